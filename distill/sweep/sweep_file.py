"""Load a sweep file, and compute the recipe of each trial.

    recipe = "kd_cutmix+two_cores"
    set = ["train.epochs=6"]

    [study]
    trials = 20

    [space]
    optim.lr = { log = [0.01, 0.5] }
    loss.kd.temperature = { choice = [1.0, 2.0, 4.0] }
    size = { grid = [{ student.blocks = 1, student.width = 20 }, { student.blocks = 2, … }] }

    [constraint]
    parameters = 5_000_000

A sweep file is data, never code, and is validated before anything is trained: first its tables and
keys, then every key and bound of the space against the tables of a recipe.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from distill.errors import UserError, first_faults
from distill.events import MEASURES, Split, measure_name
from distill.files.regular_file import InvalidFile
from distill.recipe import recipes
from distill.recipe.recipe_files import text_of, toml
from distill.recipe.recipes import ResolvedRecipe
from distill.recipe.validation import Values, keys
from distill.sweep import sweep_validation
from distill.sweep.sweep_schema import (
    KINDS,
    SweepFile,
    keys_and_values,
    option_label,
    overrides_of,
    searched_keys,
)


@dataclass(frozen=True)
class Sweep:
    """A validated sweep. `base`: the recipe that every trial varies."""

    name: str
    file: SweepFile
    base: ResolvedRecipe

    @property
    def cells(self) -> list[dict[str, str]]:
        """The cells of the grid: all combinations of the grids' options.

        A cell has an option's label for each name in [space] that is a grid. Without a grid there
        is one empty cell.
        """
        grids = {name: space.grid for name, space in self.file.space.items() if space.grid}
        labels = [[option_label(option) for option in options] for options in grids.values()]
        return [dict(zip(grids, cell, strict=True)) for cell in product(*labels)]

    @property
    def n_trials(self) -> int:
        return self.file.study.trials or len(self.cells)

    @property
    def metric(self) -> str:
        """The metric by which trials are compared; it is measured on held-out images."""
        split: Split = "val" if self.base.recipe.ema is None else "val_ema"
        return self.file.study.metric or measure_name("top1", split)

    @property
    def is_maximized(self) -> bool:
        return self.metric in {measure_name("top1", "val"), measure_name("top1", "val_ema")}

    def trial_recipe(self, values: Mapping[str, Any]) -> ResolvedRecipe:
        """Return the recipe of a trial.

        `values`: for each name in [space], a number or the label of an option. Raises RecipeError
        if the values contradict each other or the student is too large.
        """
        spaces = self.file.space
        chosen = [
            line for name in spaces for line in overrides_of(name, spaces[name], values[name])
        ]
        return recipes.load(self.file.recipe, [*self.overrides, *chosen])

    @property
    def overrides(self) -> list[str]:
        """The `key=value` overrides that all trials share."""
        limit = self.file.constraint.parameters
        budget = [] if limit is None else [f"student.max_params={limit}"]
        both = ["train.validate_both=true"] if self._measures_trained_and_averaged else []
        return [*self.file.overrides, *budget, *both]

    @property
    def _measures_trained_and_averaged(self) -> bool:
        """Whether trials must measure both the trained weights and their moving average.

        This is so if trials average their weights, but are compared by the trained ones.
        """
        varied = {key.partition(".")[0] for key in searched_keys(self.file)}
        averages = self.base.recipe.ema is not None or "ema" in varied
        return averages and self.metric in {measure_name(m, "val") for m in MEASURES}


def load(path: Path, overrides: Sequence[str] = (), trials: int | None = None) -> Sweep:
    """Load a sweep file. Raises UserError with every fault.

    `overrides`: further `key=value` for all trials. `trials`: replaces the file's number of trials.
    """
    wrong: list[str] = []
    try:
        values = toml(text_of(path), str(path), wrong)
    except InvalidFile as error:
        raise UserError(f"{path} cannot be read as a sweep: {error}.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not TOML: {error}.") from error
    if wrong:
        raise UserError(f"{wrong[0]}.")
    if overrides and isinstance(values.setdefault("set", []), list):
        values["set"] += overrides
    if trials is not None and isinstance(values.setdefault("study", {}), dict):
        values["study"]["trials"] = trials
    return validate(values, path.stem, str(path))


def validate(values: Values, name: str, location: str) -> Sweep:
    """Build a sweep from its tables. Raises UserError with every fault.

    `name`: the sweep's name unless [study] has one. `location`: what messages call the tables, such
    as the file's path.
    """
    if isinstance(values.get("space"), dict):
        values = values | {"space": dict(_keys_and_spaces(values["space"], ""))}
    try:
        file = SweepFile.model_validate(values)
    except ValidationError as error:
        lines = map(sweep_validation.error_text, error.errors(include_url=False))
        raise _sweep_error(
            location, [*lines, *sweep_validation.valid_space_faults(values)]
        ) from None
    if wrong := list(sweep_validation.file_faults(file)):
        raise _sweep_error(location, wrong)
    sweep = Sweep(file.study.name or name, file, recipes.load(file.recipe, file.overrides))
    if wrong := list(_unmet_requirements_of_recipe(sweep)):
        raise _sweep_error(location, wrong)
    return sweep


def _unmet_requirements_of_recipe(sweep: Sweep) -> Iterator[str]:
    """Yield a fault for each requirement of the sweep that its recipe does not meet."""
    recipe = sweep.base.recipe
    if recipe.data.holdout == 0:
        yield "data.holdout = 0: trials need held-out images; type data.holdout=0.1 in set"
    if sweep.metric in {measure_name(m, "val_ema") for m in MEASURES}:
        yield from _missing_average_faults(sweep)
    if sweep.file.study.pruner == "hyperband" and recipe.train.epochs is None:
        yield 'study.pruner = "hyperband" counts epochs, but the recipe sets train.minutes'
    if recipe.student is None and sweep.file.constraint.parameters is not None:
        yield "constraint.parameters limits a student, but the recipe has none"
    if recipes.has_teacher(recipe) and not (recipe.teacher and recipe.teacher.runs):
        yield (
            f"{sweep.base.name} needs a teacher, the same for all trials; name it: --teacher RUN"
        )


def _missing_average_faults(sweep: Sweep) -> Iterator[str]:
    """Yield a fault for each reason why trials would have no averaged weights to measure."""
    needs = f'study.metric = "{sweep.metric}" needs [ema], and'
    if sweep.base.recipe.ema is None:
        yield f"{needs} the recipe has none"
    for name, space in sweep.file.space.items():
        if any(("ema", False) in keys_and_values(name, option) for option in space.options):
            own = sweep.metric.removesuffix("_ema")
            yield (
                f"{needs} space.{name} turns it off in some trials; "
                f'type metric = "{own}" in [study]'
            )


def _keys_and_spaces(tables: Values, prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield the name and the value of each entry in [space].

    `optim.lr = {…}`, which TOML parses as nested tables, is the same as `"optim.lr" = {…}`.
    """
    for name, value in tables.items():
        path = prefix + name
        is_table = isinstance(value, dict) and value and not value.keys() & set(KINDS)
        is_recipe_table = any(key.startswith(f"{path}.") for key in keys())
        if is_table and (is_recipe_table or all(isinstance(each, dict) for each in value.values())):
            yield from _keys_and_spaces(value, f"{path}.")
        else:
            yield path, value


def _sweep_error(location: str, faults: Iterable[str]) -> UserError:
    lines = list(dict.fromkeys(faults))
    count = "1 fault" if len(lines) == 1 else f"{len(lines)} faults"
    return UserError("\n  ".join([f"{count} in {location}", *first_faults(lines)]))
