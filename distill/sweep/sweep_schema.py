"""The tables of a sweep file: every key with its type and default."""

from collections.abc import Iterator
from itertools import chain
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from distill.files.escape_text import LONGEST_NAME, is_file_name
from distill.recipe.loss_schema import MOST, Count, Names, Positive, Table
from distill.recipe.validation import keys, leaves, value_text

Options = Annotated[tuple[Any, ...], Field(strict=False, min_length=1)]
Numbers = Annotated[tuple[float, float], Field(strict=False)]
MOST_TRIALS = 100_000
Trials = Annotated[int, Field(ge=1, le=MOST_TRIALS)]
FOLDER_NAME = f"the name of one folder, of at most {LONGEST_NAME} bytes, without / and \\"
KINDS = ("grid", "choice", "log", "uniform", "integer")


class Space(Table):
    """The search space of one name in [space]: exactly one of these fields is set.

    The name is a key of a recipe, or any name if the options are tables, which set several keys.
    """

    grid: Options | None = None  # options to try in turn, combined with every other grid
    choice: Options | None = None  # options from which the sampler chooses
    log: Annotated[tuple[Positive, Positive], Field(strict=False)] | None = None  # from, to
    uniform: Numbers | None = None  # from, to
    integer: Annotated[tuple[int, int], Field(strict=False)] | None = None  # from, to

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if len(self.model_fields_set) != 1:
            raise ValueError(f"allowed: one of {', '.join(KINDS)}")
        if self.bounds and not self.bounds[0] < self.bounds[1]:
            raise ValueError("allowed: the smaller first, then the larger")
        if len(self.options) != len({option_label(option) for option in self.options}):
            raise ValueError("allowed: each option once")
        return self

    @property
    def kind(self) -> str:
        """The field that is set: grid, choice, log, uniform or integer."""
        (kind,) = self.model_fields_set
        return kind

    @property
    def options(self) -> tuple[Any, ...]:
        """The options of a grid or a choice; empty for a range of numbers."""
        return self.grid or self.choice or ()

    @property
    def bounds(self) -> tuple[float, ...]:
        """The two ends of a range of numbers; empty for options."""
        return self.log or self.uniform or self.integer or ()


class Study(Table):
    """The [study] table: the number of trials, the sampler, the pruner and the metric."""

    name: str | None = None  # of the study and of the folder of runs; by default the file's
    trials: Trials | None = None  # number of trials; by default each cell of the grid once
    sampler: Literal["tpe", "random"] = "tpe"
    pruner: Literal["median", "hyperband", "none"] = "median"
    startup_trials: Trials = 5  # number of trials before sampler and pruner use earlier ones
    warmup_epochs: Count = 1  # epochs of a trial before it may be pruned
    metric: str | None = None  # top1/val …; by default the metric that selects the best epoch
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0  # of the sampler
    heartbeat_s: Annotated[int, Field(ge=1, le=86_400)] = (
        20  # seconds between a worker's heartbeats; it counts as dead after missing three
    )

    @field_validator("name")
    @classmethod
    def _one_folder(cls, name: str | None) -> str | None:
        if name and not is_file_name(name):
            raise ValueError(f"allowed: {FOLDER_NAME}")
        return name


class Constraint(Table):
    """Limits on the trials: a trial that exceeds one is not trained."""

    parameters: Annotated[int, Field(ge=1, le=MOST * 1_000)] | None = (
        None  # the student has strictly fewer
    )


class SweepFile(Table):
    """The tables of a sweep file."""

    recipe: str
    overrides: Names = Field((), alias="set")
    study: Study = Study()
    space: dict[str, Space] = Field(min_length=1)
    constraint: Constraint = Constraint()


def option_label(option: Any) -> str:
    """Return the text by which an option is stored and shown.

    It is TOML, or for a table `blocks 1, width 20`: the last part of each key, or whole keys if two
    have the same last part.
    """
    if not isinstance(option, dict):
        return value_text(option)
    values = dict(leaves(option))
    last = [key.split(".")[-1] for key in values]
    names = last if len(set(last)) == len(last) else list(values)
    return ", ".join(
        f"{name} {value_text(v)}" for name, v in zip(names, values.values(), strict=True)
    )


def overrides_of(name: str, space: Space, value: Any) -> Iterator[str]:
    """Yield the overrides, such as `optim.lr=0.1`, that a trial's value of a name in [space] sets.

    `value`: a number or the label of an option; an option that is a table sets several keys.
    """
    matching = (option for option in space.options if option_label(option) == value)
    for key, setting in keys_and_values(name, next(matching, value)):
        yield f"{key}={value_text(setting)}"


def searched_keys(file: SweepFile) -> list[str]:
    """Return every recipe key that the search space sets."""
    every = (keys_of(name, space) for name, space in file.space.items())
    return list(dict.fromkeys(chain.from_iterable(every)))


def keys_of(name: str, space: Space) -> list[str]:
    """Return the recipe keys that a name in [space] sets."""
    every = (
        key for value in space.options or space.bounds for key, _ in keys_and_values(name, value)
    )
    return list(dict.fromkeys(every))


def keys_and_values(name: str, value: Any) -> list[tuple[str, Any]]:
    """Return the recipe keys and values that one value of a name in [space] sets.

    They are `name` itself, or, if the value is a table, each of its keys.
    """
    if name in keys() or not isinstance(value, dict):
        return [(name, value)]
    return list(leaves(value))
