"""Plan which recipes fit into a time budget on this machine.

A recipe's accuracy is the one in its [about] table, measured with the command there, or unknown.
For the recipes that could fit, the time per image is measured here and multiplied by the number of
images in the whole training. For the others, the time is the number of floating-point operations of
the training divided by the speeds (operations per second) measured for other recipes.
"""

import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from distill.components.build_accelerator import bf16_instructions
from distill.data.image_set import SIDE, ImageSet, Progress
from distill.data.sources import load_data_set
from distill.errors import UserError
from distill.recipe import recipe_variants
from distill.recipe.recipe_fingerprint import recipe_fingerprint
from distill.time_plan.fill_minutes import Choice, fill_minutes
from distill.time_plan.shipped_candidates import Candidate, PlannedTraining, candidates
from distill.training import flops, measure_speed
from distill.training.estimate_duration import FORWARD_SHARE, TimeRange
from distill.training.flops import FORWARD, ImageCounts, NetworkCost
from distill.training.measure_speed import Speed
from students import course_rules as courses
from students.design import Design

BUDGET_S = 45.0  # seconds from the program's start in which speeds are measured
FASTEST = 4.0  # assumption: no network runs faster than this multiple of the best speed so far
ROUGH = 1.5  # a time that was not measured has a range of at least this factor up and down
KNOWN = {"cifar10": (50_000, 10), "cifar100": (50_000, 100)}  # training images, classes


@dataclass(frozen=True)
class Costs:
    """The amount of computation of a training.

    `images` is None for a recipe with `train.minutes`, whose number of images is unknown.
    """

    network: NetworkCost
    images: ImageCounts | None
    flop: float  # floating-point operations of training; 0 if the number of images is unknown
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
    """Measures speeds on this machine until the time `until` (time.monotonic), and stores them.

    `images`: random images for the timed steps.
    """

    images: ImageSet
    until: float
    speeds: dict[str, Speed] = field(default_factory=dict)  # by step_key
    rates: list[float] = field(default_factory=list)  # floating-point operations per second
    longest_s: float = 0.0  # duration of the longest measurement
    wall_s: float = 0.0  # duration of all measurements
    processor_s: float = 0.0  # processor time of all measurements

    def measure(self, costed: CostedCandidate, seconds: float) -> CostedCandidate:
        """Measure the step time of a candidate if it may fit into `seconds` and time is left.

        Returns the candidate. On a CPU, the precision that the command in its [about] table sets is
        replaced by the default precision if that is faster.
        """
        if not self._could_fit(costed.flop, seconds):
            return costed
        candidate = costed.candidate
        teacher, own = candidate.teacher, candidate.training
        if teacher is not None and costed.teacher is not None:
            teacher = self._faster(teacher, None, costed.teacher)
        own = self._faster(own, teacher, costed.costs)
        return replace(costed, candidate=replace(candidate, training=own, teacher=teacher))

    def next_likely_to_fit(self, waiting: list[CostedCandidate], seconds: float) -> CostedCandidate:
        """Return the first candidate that is expected to fit into `seconds`, or else the first.

        It is expected to by the best speed so far, with a reserve of ROUGH. So the time for
        measuring is not spent on recipes that only a much faster network would let fit.
        """
        if not self.rates:
            return waiting[0]
        most_flop = ROUGH * max(self.rates) * seconds
        return next((each for each in waiting if 0 < each.flop <= most_flop), waiting[0])

    def _could_fit(self, flop: float, seconds: float) -> bool:
        return not self.rates or flop <= FASTEST * max(self.rates) * seconds

    def _faster(
        self, training: PlannedTraining, teacher: PlannedTraining | None, costs: Costs
    ) -> PlannedTraining:
        """Return `training`, or on a CPU the same in the default precision if that is faster.

        Both are timed. `teacher`: the training of its teacher, if it has one.
        """
        noted_s = self._time(training, teacher, costs)
        default = training.in_default_precision
        if (
            noted_s is None
            or not measure_speed.is_on_cpu()
            or default.overrides == training.overrides
        ):
            return training
        noted = self.speeds[step_key(training, teacher)]
        default_s = self._time(default, teacher, costs, noted.first_s)
        return default if default_s is not None and default_s < noted_s else training

    def _time(
        self,
        training: PlannedTraining,
        teacher: PlannedTraining | None,
        costs: Costs,
        rival_s: float = float("inf"),
    ) -> float | None:
        """Return the seconds per image of the fastest step, which is timed unless it was before.

        None if no time is left or the number of images is unknown. `rival_s`: seconds per image of
        the alternative's first timed step; timing ends early if this one's is much longer.
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
    def processor_share(self) -> float | None:
        """The fraction of the processor's time that the timed steps had, 0..1; None on a GPU.

        It is below 1 if other programs are running.
        """
        if not measure_speed.is_on_cpu() or not self.wall_s:
            return None
        return measure_speed.processor_share(self.processor_s, self.wall_s)

    def time_of(
        self, training: PlannedTraining, teacher: PlannedTraining | None, costs: Costs
    ) -> tuple[TimeRange, bool]:
        """Return the estimated seconds of a training, and whether its own steps were timed.

        `teacher`: of the training, whose forward passes are included (its own training is not).
        """
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
        """Estimate the seconds of `flop` floating-point operations from other networks' speeds."""
        middle = statistics.median(self.rates)
        fast, slow = max(*self.rates, ROUGH * middle), min(*self.rates, middle / ROUGH)
        return TimeRange(flop / middle, flop / fast, flop / slow, 0)


def plan(
    minutes: float,
    rules: str | None,
    data: str | None,
    began_at: float,
    *,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Return the recipes that fit into `minutes`, best first, and those that do not.

    `rules`: the name of a course's rules, which the students must follow. `data`: the data source,
    or None for the recipes'. `began_at`: start of the program (time.monotonic), from which the time
    for measuring counts. `progress`: called with the recipe that is timed. In the result, times are
    in minutes, each with a range `low` to `high`; `accuracy` is the percentage on CIFAR-10's test
    split; `fills_minutes` is the result of `fill_minutes`; `published` is the name of the published
    set that the images are, or None; `broken_rules` are the clauses that each recipe left out
    breaks. Raises UserError for unknown rules or images.
    """
    course = None if rules is None else courses.rules_by_name(rules)
    n_images, n_classes, size, published = _describe_images(data)
    every = _candidates(size)
    broken = {
        each.training.recipe_spec: clauses
        for each in every
        if course is not None and (clauses := _broken_rules(course, each))
    }
    legal = [each for each in every if each.training.recipe_spec not in broken]
    costed = sorted(_cost_candidates(legal, n_images, n_classes), key=_measuring_order)
    machine = Machine(measure_speed.random_images(n_images, n_classes, size), began_at + BUDGET_S)
    timed = _time_all(costed, machine, 60 * minutes, progress)
    unsorted = [_row(each, machine, minutes, data) for each in timed]
    choices = [Choice(each.candidate, row) for each, row in zip(timed, unsorted, strict=True)]
    rows = sorted(unsorted, key=_display_order)
    return {
        "minutes": minutes,
        "rules": rules,
        "data": data,
        "published": published,
        "device": measure_speed.device_name(),
        "processor_share": machine.processor_share,
        "best": next((row["recipe"] for row in rows if row["fits"]), None),
        "quickest": min(rows, key=lambda row: row["minutes"], default={"recipe": None})["recipe"],
        "fills_minutes": fill_minutes(choices, minutes, data),
        "recipes": rows,
        "against_the_rules": list(broken),
        "broken_rules": broken,
        "measured_s": time.monotonic() - began_at,
    }


def _candidates(size: int) -> list[Candidate]:
    """Return the recipes on images of `size` pixels a side, in a precision that is fast here."""
    every = [each.at_size(None if size == SIDE else size) for each in candidates()]
    if measure_speed.is_on_cpu() and bf16_instructions() is None:
        return [each.in_default_precision for each in every]
    return every


def _describe_images(data: str | None) -> tuple[int, int, int, str | None]:
    """Return the numbers of training images (with those to be held out) and of classes, the height
    and width of the images in pixels, and the name of the published set that they are, or None.

    `data`: the data source; None for CIFAR-10. Raises UserError if it cannot be read.
    """
    if data is None or data in KNOWN:
        return *KNOWN[data or "cifar10"], SIDE, data or "cifar10"
    load_data_set.check(data)
    images = load_data_set.load(data, "train")
    published = load_data_set.published_set(images)
    return len(images.labels), images.n_classes, images.size, published


def _broken_rules(course: courses.Rules, candidate: Candidate) -> list[str]:
    """Return why a candidate trains no student that follows a course's rules; empty if it does."""
    student = candidate.training.recipe.student
    if candidate.training.role == "teacher" or student is None:
        return ["it trains a teacher, and the rules are for students"]
    return courses.broken_clauses(course, Design.of(**student.spec()), student.activation)


def _cost_candidates(
    candidates: list[Candidate], n_images: int, n_classes: int
) -> Iterator[CostedCandidate]:
    """Yield the candidates that can be trained on these images and classes, with their costs."""
    for each in candidates:
        try:
            teacher = (
                None if each.teacher is None else _costs(each.teacher, None, n_images, n_classes)
            )
            yield CostedCandidate(
                each, _costs(each.training, teacher, n_images, n_classes), teacher
            )
        except UserError:  # over the budget with more classes, or images too small for the network
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


def _time_all(
    costed: list[CostedCandidate], machine: Machine, seconds: float, progress: Progress | None
) -> list[CostedCandidate]:
    """Return the candidates with their steps timed, those that are likely to fit first.

    `seconds`: the time budget of a whole training. `progress`: called with the recipe that is
    timed.
    """
    timed, waiting = [], list(costed)
    for done in range(len(costed)):
        each = machine.next_likely_to_fit(waiting, seconds)
        waiting.remove(each)
        if progress is not None:
            progress(f"timing {each.candidate.training.recipe_spec}", done, len(costed))
        timed.append(machine.measure(each, seconds))
        if progress is not None:
            progress(f"timing {each.candidate.training.recipe_spec}", len(costed), len(costed))
    return timed


def _measuring_order(costed: CostedCandidate) -> tuple[float, float]:
    """Return a sort key: candidates with the highest accuracy first, then the fewest operations."""
    return -(costed.candidate.about.measured_accuracy or 0.0), costed.flop


def _display_order(row: dict[str, Any]) -> tuple[bool, bool, float, float]:
    """Return a sort key: fitting recipes first, then students, high accuracy, short time."""
    return not row["fits"], row["role"] == "teacher", -(row["accuracy"] or 0.0), row["minutes"]


def _row(
    costed: CostedCandidate, machine: Machine, minutes: float, data: str | None
) -> dict[str, Any]:
    candidate = costed.candidate
    teacher = own = _training_row(candidate.training, candidate.teacher, costed.costs, machine)
    parts = [own]
    if candidate.teacher is not None and costed.teacher is not None:
        teacher = _training_row(candidate.teacher, None, costed.teacher, machine)
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
    """Return a key that is equal for trainings whose steps take the same time.

    It is independent of the recipe's length and seeds. `teacher`: the training of the teacher.
    """
    recipe = recipe_variants.with_seed(training.recipe, 0)
    once = recipe.train.model_copy(update={"epochs": 1, "minutes": None})
    parts = [training.role, recipe_fingerprint(recipe.model_copy(update={"train": once}))]
    if teacher is not None:
        networks = teacher.recipe.model_dump(mode="json", include={"teacher", "student"})
        parts.append(json.dumps(networks))
    return " ".join(parts)
