"""Plan which recipes fit into a time budget on this machine.

A recipe's accuracy is the one in its [about] table, measured by the command there, or unknown. Its
time is the number of images in the whole training times the seconds per image, which are measured
here for the recipes that could fit. For the others the time is their floating-point operations
divided by the measured speeds.
"""

import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from distill.data.image_set import ImageSet
from distill.data.sources import load_data_set
from distill.errors import UnsuitableRecipe
from distill.recipe import recipes
from distill.time_plan.shipped_candidates import Candidate, PlannedTraining, candidates
from distill.training import flops, measure_speed
from distill.training.estimate import FORWARD_SHARE, TimeRange
from distill.training.flops import FORWARD, ImageCounts, NetworkCost
from distill.training.measure_speed import Speed
from students import course_rules as courses
from students.design import Design

BUDGET_S = 45.0  # seconds from the program's start, in which speeds are measured
FASTEST = 4.0  # assumed bound: a network runs at most at this multiple of the best speed so far
ROUGH = 1.5  # the smallest factor, up and down, in the range of a time that was not measured
KNOWN = {"cifar10": (50_000, 10), "cifar100": (50_000, 100)}  # training images, classes


@dataclass(frozen=True)
class Costs:
    """The amount of computation of a training. `images` is None for a recipe with
    `train.minutes`.
    """

    network: NetworkCost
    images: ImageCounts | None
    flop: float  # of training; 0 if the number of images is unknown
    validation_flop: float


@dataclass(frozen=True)
class CostedCandidate:
    """A candidate with the costs of its training and of its teacher's training."""

    candidate: Candidate
    costs: Costs
    teacher: Costs | None

    @property
    def flop(self) -> float:
        """Floating-point operations of both trainings, validation included."""
        return sum(c.flop + c.validation_flop for c in (self.costs, self.teacher) if c is not None)


@dataclass
class Machine:
    """Measures speeds on this machine until the time `until` (time.monotonic)."""

    images: ImageSet
    until: float
    speeds: dict[str, Speed] = field(default_factory=dict)  # by step_key
    rates: list[float] = field(default_factory=list)  # floating-point operations per second
    longest_s: float = 0.0  # of one measurement
    wall_s: float = 0.0  # of all measurements
    processor_s: float = 0.0  # processor time of all measurements

    def measure(self, priced: CostedCandidate, seconds: float) -> CostedCandidate:
        """Time the steps of a candidate if it could fit into `seconds` and time is left.

        Returns the candidate. On a CPU its precision from [about] is replaced by the default one if
        that is faster.
        """
        if not self._could_fit(priced.flop, seconds):
            return priced
        candidate = priced.candidate
        teacher, own = candidate.teacher, candidate.training
        if teacher is not None and priced.teacher is not None:
            teacher = self._faster(teacher, None, priced.teacher)
        own = self._faster(own, teacher, priced.costs)
        return replace(priced, candidate=replace(candidate, training=own, teacher=teacher))

    def _could_fit(self, flop: float, seconds: float) -> bool:
        return not self.rates or flop <= FASTEST * max(self.rates) * seconds

    def _faster(
        self, training: PlannedTraining, teacher: PlannedTraining | None, costs: Costs
    ) -> PlannedTraining:
        """Return the training, or the same in the default precision if that is faster per image."""
        noted_s = self._time(training, teacher, costs)
        default = training.in_default_precision
        if (
            noted_s is None
            or not measure_speed.is_on_cpu()
            or default.overrides == training.overrides
        ):
            return training
        default_s = self._time(default, teacher, costs, noted_s)
        return default if default_s is not None and default_s < noted_s else training

    def _time(
        self,
        training: PlannedTraining,
        teacher: PlannedTraining | None,
        costs: Costs,
        rival_s: float = float("inf"),
    ) -> float | None:
        """Return the seconds per image of the fastest step; None if it was not timed and no time is
        left.
        """
        key = step_key(training, teacher)
        if key not in self.speeds:
            began_at, processor_at = time.monotonic(), time.process_time()
            if costs.images is None or (self.rates and began_at + self.longest_s > self.until):
                return None
            teacher_recipe = None if teacher is None else teacher.recipe
            measured = measure_speed.measure(
                training.recipe, training.role, teacher_recipe, self.images, self.until, rival_s
            )
            taken_s = time.monotonic() - began_at
            self.longest_s, self.wall_s = max(self.longest_s, taken_s), self.wall_s + taken_s
            self.processor_s += time.process_time() - processor_at
            self.speeds[key] = measured
            self.rates.append(costs.flop / costs.images.trained / measured.image.mean)
        return self.speeds[key].fastest_s

    @property
    def share(self) -> float | None:
        """The share of the processor that the measured steps had, 0..1; None on a GPU."""
        if not measure_speed.is_on_cpu() or not self.wall_s:
            return None
        return measure_speed.processor_share(self.processor_s, self.wall_s)

    def time_of(
        self, training: PlannedTraining, teacher: PlannedTraining | None, costs: Costs
    ) -> tuple[TimeRange, bool]:
        """Return the seconds of a training, and whether they are based on its own timed steps."""
        if training.recipe.train.minutes is not None:
            budget_s = 60 * training.recipe.train.minutes
            return TimeRange(budget_s, budget_s, budget_s, 0), True
        measured = self.speeds.get(step_key(training, teacher))
        if measured is None or costs.images is None:
            return self._estimate(costs.flop + costs.validation_flop), False
        student_share = 1 - measured.teacher_s / measured.image.mean
        images = (
            costs.images.trained
            - costs.images.cached * (1 - student_share)
            + costs.images.validated * FORWARD_SHARE * student_share
        )
        return measured.image.scaled(images), True

    def _estimate(self, flop: float) -> TimeRange:
        """Estimate the seconds of `flop` operations from the speeds of other networks."""
        middle = statistics.median(self.rates)
        fast, slow = max(*self.rates, ROUGH * middle), min(*self.rates, middle / ROUGH)
        return TimeRange(flop / middle, flop / fast, flop / slow, 0)


def plan(minutes: float, rules: str | None, data: str | None, began_at: float) -> dict[str, Any]:
    """Return the recipes that fit into `minutes`, best first, and those that do not.

    `rules`: the name of a course's rules. `began_at`: start of the program (time.monotonic). Times
    are in minutes, each with its range; `accuracy` in % of CIFAR-10's test split. Raises UserError
    for unknown rules or images.
    """
    course = None if rules is None else courses.rules_by_name(rules)
    n_images, n_classes = _size(data)
    every = list(candidates())
    legal = [each for each in every if course is None or _is_legal(course, each)]
    priced = sorted(_cost_candidates(legal, n_images, n_classes), key=_measuring_order)
    machine = Machine(measure_speed.random_images(n_images, n_classes), began_at + BUDGET_S)
    timed = [machine.measure(each, 60 * minutes) for each in priced]
    rows = sorted((_row(each, machine, minutes, data) for each in timed), key=_display_order)
    fitting = [row for row in rows if row["fits"]]
    return {
        "minutes": minutes,
        "rules": rules,
        "data": data,
        "device": measure_speed.device_name(),
        "processor_share": machine.share,
        "best": fitting[0]["recipe"] if fitting else None,
        "quickest": min(rows, key=lambda row: row["minutes"], default={"recipe": None})["recipe"],
        "recipes": rows,
        "against_the_rules": [each.training.recipe_spec for each in every if each not in legal],
        "measured_s": time.monotonic() - began_at,
    }


def _size(data: str | None) -> tuple[int, int]:
    """Return the number of training images before any are held out, and of classes."""
    if data is None or data in KNOWN:
        return KNOWN[data or "cifar10"]
    load_data_set.check(data)
    images = load_data_set.load(data, "train")
    return len(images.labels), images.n_classes


def _is_legal(course: courses.Rules, candidate: Candidate) -> bool:
    """Whether a candidate trains a student that follows a course's rules."""
    student = candidate.training.recipe.student
    if candidate.training.role == "teacher" or student is None:
        return False
    return not courses.broken_clauses(course, Design.of(**student.spec()), student.activation)


def _cost_candidates(
    candidates: list[Candidate], n_images: int, n_classes: int
) -> Iterator[CostedCandidate]:
    """Yield the costs of each candidate that can be trained on this number of classes."""
    for each in candidates:
        try:
            teacher = (
                None if each.teacher is None else _costs(each.teacher, None, n_images, n_classes)
            )
            yield CostedCandidate(
                each, _costs(each.training, teacher, n_images, n_classes), teacher
            )
        except UnsuitableRecipe:  # with more classes a student may be over its budget
            continue


def _costs(
    training: PlannedTraining, teacher: Costs | None, n_images: int, n_classes: int
) -> Costs:
    recipe = training.recipe
    network = flops.network_cost(recipe, training.role, n_classes)
    images = flops.count_images(recipe, n_images)
    if images is None:
        return Costs(network, None, 0.0, 0.0)
    by = None if teacher is None else teacher.network
    validation = float(FORWARD * images.validated * network.macs)
    return Costs(network, images, flops.training_flop(images, network, by), validation)


def _measuring_order(priced: CostedCandidate) -> tuple[float, float]:
    """Return a sort key for measuring: the highest accuracy first, then the least work."""
    return -(priced.candidate.about.measured_accuracy or 0.0), priced.flop


def _display_order(row: dict[str, Any]) -> tuple[bool, bool, float, float]:
    """Return a sort key for display: fits, students before teachers, highest accuracy,
    least time.
    """
    return not row["fits"], row["role"] == "teacher", -(row["accuracy"] or 0.0), row["minutes"]


def _row(
    priced: CostedCandidate, machine: Machine, minutes: float, data: str | None
) -> dict[str, Any]:
    candidate = priced.candidate
    teacher = own = _training_row(candidate.training, candidate.teacher, priced.costs, machine)
    parts = [own]
    if candidate.teacher is not None and priced.teacher is not None:
        teacher = _training_row(candidate.teacher, None, priced.teacher, machine)
        parts = [teacher, own]
    total = {key: sum(part[key] for part in parts) for key in ("minutes", "low", "high")}
    about = candidate.about
    return {
        "recipe": candidate.training.recipe_spec,
        "role": candidate.training.role,
        "accuracy": about.measured_accuracy,
        "seeds": about.seeds,
        "fits": total["minutes"] <= minutes,
        **total,
        "is_timed": all(part["is_timed"] for part in parts),
        "teacher": teacher if len(parts) == 2 else None,
        "training": own,
        "commands": candidate.commands(data),
    }


def _training_row(
    training: PlannedTraining, teacher: PlannedTraining | None, costs: Costs, machine: Machine
) -> dict[str, Any]:
    total_s, is_timed = machine.time_of(training, teacher, costs)
    return {
        "recipe": training.recipe_spec,
        "overrides": list(training.overrides),
        "network": costs.network.name,
        "parameters": costs.network.parameters,
        "flop": costs.flop or None,
        "minutes": total_s.mean / 60,
        "low": total_s.low / 60,
        "high": total_s.high / 60,
        "is_timed": is_timed,
        "steps": total_s.n,
    }


def step_key(training: PlannedTraining, teacher: PlannedTraining | None) -> str:
    """Return a key of what a step's time depends on, which excludes the recipe's length and
    seeds.
    """
    recipe = recipes.with_seed(training.recipe, 0)
    once = recipe.train.model_copy(update={"epochs": 1, "minutes": None})
    parts = [training.role, recipes.fingerprint(recipe.model_copy(update={"train": once}))]
    if teacher is not None:
        networks = teacher.recipe.model_dump(mode="json", include={"teacher", "student"})
        parts.append(json.dumps(networks))
    return " ".join(parts)
