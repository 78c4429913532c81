"""Validate the stored attempts of a study against its sweep file.

The storage is not trusted, as others may write to it: a trial's number becomes the name of a
folder, its values become a recipe, and its result is reported as measured.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Annotated

from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState
from pydantic import BaseModel, Field

from distill.files.run_json_schemas import OPEN, Count, Invalid, Text, check
from distill.format import counted
from distill.sweep import optuna_space
from distill.sweep.sweep_file import Sweep
from distill.sweep.sweep_schema import MOST_TRIALS, Space, option_label

RUNG = re.compile(r"completed_rung_\d{1,6}")  # set by Hyperband: the trial's value at a rung
Epoch = Annotated[str, Field(pattern=r"^[1-9]\d{0,9}$")]


class Attributes(BaseModel):
    """The attributes that workers store with an attempt at a trial."""

    model_config = OPEN

    trial: Annotated[int, Field(ge=0, lt=MOST_TRIALS)]
    worker: Text = ""
    run: Text = ""
    told: dict[Epoch, float] = {}
    full: bool = False
    infeasible: str = ""
    diverged: str = ""
    redrawn: Count = 0


def fault_of(attempts: Sequence[FrozenTrial], sweep: Sweep) -> str | None:
    """Return a reason why the stored attempts cannot all come from workers of this sweep.

    None if there is no such reason.
    """
    for number, count in Counter(attempt.number for attempt in attempts).items():
        if not isinstance(number, int) or count > 1:
            return f"{counted(count, 'attempt')} with the number {number}"
    expected = optuna_space.distributions(sweep.file)
    for attempt in attempts:
        for fault in _faults(attempt, sweep, expected):
            return f"attempt {attempt.number}: {fault}"
    return None


def _faults(
    attempt: FrozenTrial, sweep: Sweep, expected: dict[str, BaseDistribution]
) -> Iterator[str]:
    yield from _attribute_faults(attempt)
    yield from _value_faults(attempt, sweep.file.space, expected)
    yield from _measured_faults(attempt, sweep.metric)
    if attempt.state == TrialState.COMPLETE:
        if missing := sorted(expected.keys() - attempt.params.keys()):
            yield f"it is complete without {', '.join(missing)}"
        if attempt.values is None:
            yield "it is complete without a value"


def _attribute_faults(attempt: FrozenTrial) -> Iterator[str]:
    if "trial" not in attempt.user_attrs:
        yield "it has no 'trial'"
    try:
        check(Attributes, attempt.user_attrs)
    except Invalid as fault:
        yield str(fault)
    for name, value in attempt.system_attrs.items():
        if not RUNG.fullmatch(name):
            yield f"a sweep sets no {name[:40]!r}"
        elif not isinstance(value, float | int):
            yield f"{name} is not a number"


def _value_faults(
    attempt: FrozenTrial, spaces: dict[str, Space], expected: dict[str, BaseDistribution]
) -> Iterator[str]:
    """Yield a fault for each value of an attempt that is not in the sweep's search space.

    `expected`: optuna's distributions by name.
    """
    for name, value in attempt.params.items():
        if attempt.distributions[name] != expected.get(name):
            yield f"{name[:40]} is not of this sweep's space"
        elif not _contains(spaces[name], value):
            yield f"{name} = {str(value)[:40]} is not in the space"


def _contains(space: Space, value: object) -> bool:
    if space.options:
        return value in [option_label(option) for option in space.options]
    low, high = space.bounds
    return isinstance(value, float | int) and low <= value <= high


def _measured_faults(attempt: FrozenTrial, metric: str) -> Iterator[str]:
    """Yield a fault for each value of the metric that cannot have been measured."""
    reported = attempt.user_attrs.get("told", {})
    for epoch in attempt.intermediate_values:
        if epoch < 1:
            yield f"it has a value after epoch {epoch}"
    measured = [*attempt.intermediate_values.values(), *reported.values(), *(attempt.values or ())]
    for value in measured:
        if not isinstance(value, float | int):
            yield f"{metric} = {str(value)[:40]!r} is not a number"
        elif not _is_possible(value, metric.partition("/")[0]):
            yield f"{metric} = {value} cannot have been measured"


def _is_possible(value: float, measure: str) -> bool:
    """Whether `measure` (top1, nll or ece) can have this value.

    nll and ece are nan if the logits are not finite.
    """
    if math.isnan(value):
        return measure != "top1"
    return value >= 0 and (measure == "nll" or value <= 1)
