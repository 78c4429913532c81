"""Search for a student design by successive halving.

The candidates are the widest networks of every depth within the parameter budget. The search has
rungs: each trains the best designs of the previous rung for longer. A rung is a sweep of its own,
so that any number of workers share it. Each rung trains from scratch, so that every run has a
complete learning-rate schedule. Continuing the runs of the previous rung would save less than 1 /
eta of the work, and only if the schedule did not depend on the length.
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
from distill.runs import run_folder
from distill.runs.run_folder import write_json, write_text
from distill.sweep import sweep_file
from distill.sweep.storage import Storage
from distill.sweep.sweep_file import Sweep
from distill.sweep.sweep_schema import option_label
from distill.sweep.sweep_summary import BEST, SUMMARY, run_sweep
from distill.sweep.worker import PrintLine, Train
from students import course_rules as courses
from students.design import Design
from students.widest_designs import widest_designs

KEYS = ("stages", "blocks", "width")  # of a design
GIVEN = {*KEYS, "channels"}  # keys of [student] that a search chooses


@dataclass(frozen=True)
class Search:
    """A planned search for a student design."""

    recipe: str
    overrides: tuple[str, ...]
    designs: tuple[dict[str, Any], ...]  # the candidates: stages, blocks and width
    least_too_many: int  # students must have fewer parameters
    epochs: int  # of each run in the last rung
    n_rungs: int
    eta: int  # one in eta designs advances to the next rung, which is eta times longer
    name: str  # in the storage

    def lengths(self) -> list[int]:
        """Return the epochs of each rung: eta times as many as in the previous one, at least 1."""
        powers = range(self.n_rungs - 1, -1, -1)
        return [max(1, round(self.epochs / self.eta**power)) for power in powers]

    def sizes(self) -> list[int]:
        """Return the number of designs in each rung: one in eta advances."""
        return [ceil(len(self.designs) / self.eta**rung) for rung in range(self.n_rungs)]

    def rung(self, number: int, designs: Sequence[dict[str, Any]]) -> Sweep:
        """Return the sweep of rung `number`, from 0. Raises UserError if the recipe is invalid."""
        epochs = self.lengths()[number]
        base = recipes.load(self.recipe, [*self.overrides, f"train.epochs={self.epochs}"]).recipe
        warmup = (
            base.optim.warmup_epochs * epochs / self.epochs
        )  # the same fraction of a shorter run
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
    """Return the widest design of every depth that a course's rules allow, and the parameter limit.

    `course`: the name of the rules; `budget`: the parameter budget, from which the exclusive limit
    follows; `stages`, `blocks`: the numbers to combine; `asymmetric`: whether stages may have
    different numbers of blocks. Kernel sizes, pooling and stem are taken from the recipe. Raises
    UserError if the recipe has no student or if fewer than two designs are allowed.
    """
    if recipe.student is None:
        raise UserError("a search varies the student, but the recipe has no [student].")
    rules, activation = courses.rules_by_name(course), recipe.student.activation
    spec = {name: value for name, value in recipe.student.spec().items() if name not in GIVEN}
    spec["image_size"] = recipe.data.image_size
    too_many = rules.exclusive_limit(budget)
    rows = widest_designs(too_many, stages, blocks, asymmetric=asymmetric, **spec)
    designs = [{key: row[key] for key in KEYS} for row in rows]
    legal = [d for d in designs if not [*rules.faults(Design.of(**d, **spec), activation)]]
    if len(legal) < 2:
        verb = "follows" if len(legal) == 1 else "follow"
        raise UserError(
            f"{counted(len(legal), 'design')} of fewer than {too_many:,} parameters {verb} the "
            f"rules of {rules.title}: there is nothing to choose.\n"
            "Type a larger --max-params, or wider --stages and --blocks."
        )
    return legal, too_many


def search(
    planned: Search,
    storage: Storage,
    parent: Path,
    train: Train,
    print_line: PrintLine,
    inputs: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Run the rungs one after the other, each shared with other workers; return a summary.

    It is the summary of the last rung (see `sweep_summary.summary`) under the search's name, with
    the additional key `rungs`: for each rung, its `epochs` and the value of each design by its
    label. Writes `best.toml` and `sweep.json` into `parent`, and the same files of each rung into a
    subfolder. `inputs`: fingerprints of images and teachers, by name. Raises UserError if a
    subfolder is a symbolic link or if the storage has another sweep of a rung's name, Failure if no
    design of a rung was trained to the end, and any error of a run.
    """
    for number in range(planned.n_rungs):
        run_folder.check_subfolder(parent / f"rung-{number + 1}")
    remaining, rungs, found = list(planned.designs), [], dict[str, Any]()
    for number, (epochs, size) in enumerate(zip(planned.lengths(), planned.sizes(), strict=True)):
        remaining = remaining[:size]
        print_line(_heading(planned, number, len(remaining), epochs))
        folder = parent / f"rung-{number + 1}"
        is_last = number == planned.n_rungs - 1
        rung = planned.rung(number, remaining)
        found = run_sweep(rung, storage, folder, train, print_line, inputs, is_tested=is_last)
        values = {row["values"]["design"]: row["value"] for row in found["trials"]}
        rungs.append({"epochs": epochs, "values": values})
        remaining = ranked(remaining, values)
    found |= {"sweep": planned.name, "rungs": rungs}
    write_json(parent / SUMMARY, found)
    write_text(parent / BEST, (folder / BEST).read_text())
    return found


def _heading(planned: Search, number: int, n_designs: int, epochs: int) -> str:
    """Return the line that announces rung `number`, from 0."""
    designs, length = counted(n_designs, "design"), counted(epochs, "epoch")
    return f"rung {number + 1} of {planned.n_rungs}: {designs}, {length} each, from scratch"


def ranked(
    designs: Sequence[dict[str, Any]], values: dict[str, float | None]
) -> list[dict[str, Any]]:
    """Return the designs that were trained to the end, best first.

    `values`: by the design's label, its accuracy, or None if it was not trained to the end. Designs
    of equal value remain in order.
    """
    pairs = [(values[option_label({"student": design})], design) for design in designs]
    complete = [(value, design) for value, design in pairs if value is not None]
    return [design for _, design in sorted(complete, key=lambda pair: -pair[0])]
