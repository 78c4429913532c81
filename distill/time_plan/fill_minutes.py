"""Choose a student whose training is shortened or lengthened to fill a time budget.

It is for a budget into which no student's full training fits, or only much shorter ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distill.errors import UserError
from distill.time_plan.shipped_candidates import Candidate, PlannedTraining
from distill.training import measure_speed

TRAINING_SHARE = 0.9  # of the budget; the rest is for loading, the final test and the report
LEAST_SHARE = 0.25  # assumption: a training cut to less than this loses to one of fewer operations
MOSTLY = 0.5  # no proposal if a student that fits takes at least this fraction of the budget


@dataclass(frozen=True)
class Choice:
    """A candidate and its row of the plan, whose minutes are known."""

    candidate: Candidate
    row: Mapping[str, Any]

    @property
    def is_student_alone(self) -> bool:
        """Whether it trains a student without a teacher, so that one command does it."""
        return self.row["role"] == "student" and self.row["teacher"] is None

    def share(self, minutes: float) -> float:
        """Return which fraction of its training fits into `minutes`; above 1 if all of it does."""
        return minutes / float(self.row["minutes"])

    @property
    def training(self) -> PlannedTraining:
        """Its training; on a CPU without an override of the precision, if that was not timed."""
        own = self.candidate.training
        if self.row["is_timed"] or not measure_speed.is_on_cpu():
            return own
        return own.in_default_precision


def fill_minutes(
    choices: Sequence[Choice], minutes: float, data: str | None
) -> dict[str, Any] | None:
    """Return a recipe, the minutes of its training and its command, or None.

    It is the most accurate student without a teacher for which at least LEAST_SHARE of the training
    fits, or else the quickest. None if a student that fits takes most of `minutes`, or if not even
    an epoch fits. `data`: the data source, or None for the recipe's.
    """
    students = [each.row for each in choices if each.row["role"] == "student"]
    if any(MOSTLY * minutes <= row["minutes"] <= minutes for row in students):
        return None
    budget = float(f"{TRAINING_SHARE * minutes:.3g}")
    alone = [each for each in choices if each.is_student_alone and _fits_epoch(each, budget)]
    alone.sort(key=lambda each: _preference(each, budget))
    for each in alone:
        try:
            lasting = each.training.lasting(budget)
        except UserError:  # its schedule counts epochs
            continue
        command = lasting.command(data)
        return {"recipe": lasting.recipe_spec, "minutes": budget, "command": command}
    return None


def _fits_epoch(choice: Choice, minutes: float) -> bool:
    epochs = choice.candidate.training.recipe.train.epochs
    return epochs is not None and epochs * choice.share(minutes) >= 1


def _preference(choice: Choice, minutes: float) -> tuple[bool, float, float]:
    """Return a sort key.

    First come the students for which at least LEAST_SHARE of the training fits, the most accurate
    first, then the others, the quickest first.
    """
    is_enough = choice.share(minutes) >= LEAST_SHARE
    accuracy = (choice.row["accuracy"] or 0.0) if is_enough else 0.0
    return not is_enough, -accuracy, choice.row["minutes"]
