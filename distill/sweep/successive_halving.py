"""Search a student design by successive halving.

The legal set is the widest network of every depth within the budget. A rung is a sweep of its own,
so that any number of workers share it. Each rung trains anew, so that every run has a whole
schedule, whose learning rate falls to its end. To go on with the runs of the rung before would save
less than 1 / eta of the work, and only where the schedule does not depend on the length.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from distill.errors import UserError
from distill.format import counted
from distill.recipe import recipes
from distill.recipe.recipes import Recipe
from distill.recipe.validation import value_text
from distill.runs.run_folder import write_json, write_text
from distill.sweep import sweep_file
from distill.sweep.storage import Storage
from distill.sweep.sweep_file import Sweep
from distill.sweep.sweep_schema import option_label
from distill.sweep.sweep_summary import BEST, SUMMARY, run_sweep
from distill.sweep.worker import Say, Train
from students import course_rules as courses
from students.design import Design
from students.design_space import widest_of_each

KEYS = ("stages", "blocks", "width")  # of a design
GIVEN = {*KEYS, "channels"}  # what a recipe's student says and a search chooses


@dataclass(frozen=True)
class Search:
    """What to search. `epochs`: of each design of the last rung."""

    recipe: str
    overrides: tuple[str, ...]
    designs: tuple[dict[str, Any], ...]
    least_too_many: int  # parameters
    epochs: int
    n_rungs: int
    eta: int
    name: str  # in the storage

    def lengths(self) -> list[int]:
        """Epochs of each rung, the first one first: eta times as many in each, at least one."""
        powers = range(self.n_rungs - 1, -1, -1)
        return [max(1, round(self.epochs / self.eta**power)) for power in powers]

    def sizes(self) -> list[int]:
        """Designs of each rung: the best of every eta go on."""
        return [ceil(len(self.designs) / self.eta**rung) for rung in range(self.n_rungs)]

    def rung(self, number: int, designs: Sequence[dict[str, Any]]) -> Sweep:
        """The sweep of a rung, from 0. Raises UserError where the recipe cannot be trained so."""
        epochs = self.lengths()[number]
        base = recipes.load(self.recipe, [*self.overrides, f"train.epochs={self.epochs}"]).recipe
        warmup = base.optim.warmup_epochs * epochs / self.epochs  # the same share of a shorter run
        settings = [f"train.epochs={epochs}", f"optim.warmup_epochs={value_text(warmup)}"]
        values = {
            "recipe": self.recipe,
            "set": [*self.overrides, *settings],
            "study": {"pruner": "none"},
            "space": {"design": {"grid": [{"student": design} for design in designs]}},
            "constraint": {"parameters": self.least_too_many},
        }
        name = f"{self.name}-{number + 1}"
        return sweep_file.validate(values, name, f"rung {number + 1} of {self.name}")


def legal_designs(
    recipe: Recipe,
    course: str,
    budget: int,
    stages: Iterable[int],
    blocks: Iterable[int],
    *,
    asymmetric: bool,
) -> tuple[list[dict[str, Any]], int]:
    """The widest design of every depth that a course's rules allow, and the smallest number of
    parameters that they do not. What else a design has, kernels, pool, stem, is the recipe's.

    Raises UserError where the recipe has no student or fewer than two designs are legal.
    """
    if recipe.student is None:
        raise UserError("a search looks for a student, and the recipe has no [student].")
    rules, activation = courses.rules_by_name(course), recipe.student.activation
    spec = {name: value for name, value in recipe.student.spec().items() if name not in GIVEN}
    too_many = rules.least_too_many(budget)
    rows = widest_of_each(too_many, stages, blocks, asymmetric=asymmetric, **spec)
    designs = [{key: row[key] for key in KEYS} for row in rows]
    kept = [d for d in designs if not [*rules.faults(Design.of(**d, **spec), activation)]]
    if len(kept) < 2:
        verb = "keeps" if len(kept) == 1 else "keep"
        raise UserError(
            f"{counted(len(kept), 'design')} of fewer than {too_many:,} parameters {verb} the "
            f"rules of {rules.title}: there is nothing to choose.\n"
            "Type a larger --max-params, or wider --stages and --blocks."
        )
    return kept, too_many


def search(
    asked: Search,
    storage: Storage,
    place: Path,
    train: Train,
    say: Say,
    inputs: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Rung by rung, each with all workers; what the last one found.

    Its summary (see `sweep_summary.summary`) under the search's own name, and `rungs`: of each
    `epochs` and the value of every design by its label. Leaves `best.toml` and `sweep.json`; each
    rung has its own in a folder.
    """
    left, rungs, said = list(asked.designs), [], dict[str, Any]()
    for number, (epochs, size) in enumerate(zip(asked.lengths(), asked.sizes(), strict=True)):
        left = left[:size]
        which = f"rung {number + 1} of {asked.n_rungs}"
        say(f"{which}: {counted(len(left), 'design')}, {counted(epochs, 'epoch')} each, anew")
        where = place / f"rung-{number + 1}"
        is_last = number == asked.n_rungs - 1
        rung = asked.rung(number, left)
        said = run_sweep(rung, storage, where, train, say, inputs, is_tested=is_last)
        values = {row["values"]["design"]: row["value"] for row in said["trials"]}
        rungs.append({"epochs": epochs, "values": values})
        left = ranked(left, values)
    said |= {"sweep": asked.name, "rungs": rungs}
    write_json(place / SUMMARY, said)
    write_text(place / BEST, (where / BEST).read_text())
    return said


def ranked(
    designs: Sequence[dict[str, Any]], values: dict[str, float | None]
) -> list[dict[str, Any]]:
    """Those that were trained to the end, the best first; of equals the one that was first."""
    found = [(values[option_label({"student": design})], design) for design in designs]
    known = [(value, design) for value, design in found if value is not None]
    return [design for _, design in sorted(known, key=lambda pair: -pair[0])]
