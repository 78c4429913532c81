"""Validate a sweep file and report every error at once."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from math import prod
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from distill.events import MEASURES, VALIDATED, measure_name
from distill.recipe.constraints import Fault, did_you_mean
from distill.recipe.validation import (
    MOST_KEYS,
    Values,
    allowed_values_text,
    check,
    keys,
    shorten,
    switches,
    value_text,
)
from distill.sweep.sweep_schema import (
    KINDS,
    MOST_TRIALS,
    Constraint,
    Space,
    Study,
    SweepFile,
    keys_and_values,
    keys_of,
)

METRICS = [measure_name(name, split) for name in MEASURES for split in VALIDATED]


def file_faults(file: SweepFile) -> Iterator[str]:
    """Yield a message for each fault of a sweep file whose tables are valid one by one.

    Faults are contradictions between tables, and keys and values that no recipe accepts.
    """
    yield from _study_faults(file)
    yield from _space_faults(file.space)


def valid_space_faults(values: Values) -> Iterator[str]:
    """Yield the faults of the entries in [space] whose keys and types are valid.

    Used if other tables of the file are invalid, so that all faults are reported at once.
    """
    valid = dict[str, Space]()
    tables = values.get("space")
    for name, value in tables.items() if isinstance(tables, dict) else ():
        with suppress(ValidationError):
            valid[name] = Space.model_validate(value)
    yield from _space_faults(valid)


def _study_faults(file: SweepFile) -> Iterator[str]:
    if file.study.trials is None and any(not space.grid for space in file.space.values()):
        yield "study.trials is missing; only a sweep of grids alone needs none"
    cells = prod(len(space.grid) for space in file.space.values() if space.grid)
    if cells > MOST_TRIALS:
        yield f"space: its grids cross to {cells:,} trials; allowed: {MOST_TRIALS:,}"
    is_grid = all(space.grid for space in file.space.values())
    if is_grid and file.study.trials is not None and file.study.trials > cells:
        yield (
            f"study.trials = {file.study.trials} is more than the {cells} of the grid: training "
            "twice with the same seed gives the same result; add train.seed to the space"
        )
    if file.study.metric is not None and file.study.metric not in METRICS:
        yield f'study.metric = "{file.study.metric}" is unknown; allowed: {", ".join(METRICS)}'


def _space_faults(spaces: Mapping[str, Space]) -> Iterator[str]:
    """Yield a message for each key that no recipe has, each invalid value, each key set twice."""
    seen: dict[str, str] = {}
    n_unknown = 0
    for name, space in spaces.items():
        for key in keys_of(name, space):
            if key not in keys():
                n_unknown += 1
                near = get_close_matches(key, keys(), n=1) if n_unknown <= MOST_KEYS else []
                yield f"space.{name}: {key} is not a key of a recipe{did_you_mean(*near)}"
            elif key in seen:
                yield f"space.{name} and space.{seen[key]} both set {key}; give one of them"
            elif key == "train.precision":
                yield f"space.{name}: a process computes in one precision only; run two sweeps"
            seen.setdefault(key, name)
        for option in space.options or space.bounds:
            settings = [
                (key, value) for key, value in keys_and_values(name, option) if key in keys()
            ]
            for fault in (f for key, value in settings for f in _value_faults(key, value)):
                value = shorten(value_text(fault.value))
                yield f"space.{name}: {fault.key} = {value} {fault.problem}"


def _value_faults(key: str, value: Any) -> list[Fault]:
    """Return the faults of a single value of a recipe key.

    Combinations of values are validated when a trial draws them.
    """
    return (
        [] if value is False and key in switches() else check(_nested(key, value), whole=False)[1]
    )


def _nested(key: str, value: Any) -> Values:
    for name in reversed(key.split(".")):
        value = {name: value}
    return dict(value)


def error_text(detail: ErrorDetails) -> str:
    """Return a message for an error of pydantic, in the same terms as a recipe's faults."""
    path = [str(part) for part in detail["loc"]]
    key, kind = shorten(".".join(path)), detail["type"]
    if kind == "missing":
        return f"{key} is missing"
    table = _table(path[:-1] if kind == "extra_forbidden" else path)
    if kind == "extra_forbidden":
        known = [field.alias or name for name, field in table.model_fields.items()]
        near = get_close_matches(path[-1], known, n=1)
        return f"{key} is not a key{did_you_mean(*near)}; allowed: {', '.join(known)}"
    if kind == "value_error":
        return f"{key} = {shorten(value_text(detail['input']))}; {detail['ctx']['error']}"
    if path == ["space"]:
        return (
            "space: nothing is varied; allowed: a table of keys, optim.lr = { log = [0.01, 0.5] }"
        )
    if path[0] == "space" and len(path) == 2:
        value = shorten(value_text(detail["input"]))
        return (
            f"{key} = {value} is not a space; allowed: a table of one of "
            f"{', '.join(KINDS)}, {{ choice = [0.1, 0.2] }}"
        )
    field = next((f for name, f in table.model_fields.items() if name in path[-3:]), None)
    allowed = (
        allowed_values_text(TypeAdapter(field.rebuild_annotation()).json_schema())
        if field
        else "a table"
    )
    return f"{key} = {shorten(value_text(detail['input']))} is refused; allowed: {allowed}"


def _table(path: Sequence[str]) -> type[BaseModel]:
    """Return the pydantic model of the table that contains the location of an error."""
    tables: dict[str, type[BaseModel]] = {
        "study": Study, "constraint": Constraint, "space": Space,
    }  # fmt: skip
    return tables.get(path[0], SweepFile) if path else SweepFile
