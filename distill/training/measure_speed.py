"""Measure the training speed of a recipe on random images, within seconds.

The timed steps have the recipe's loss terms, augmentation, optimizer and precision. Their batch is
smaller than the recipe's if a few of its steps would take too long: an image then takes longer than
in the recipe's batch. The weights are random, because the time of a step does not depend on them.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import numpy as np
import torch

from distill.components.build_accelerator import build_accelerator
from distill.components.build_network import build_network
from distill.components.data_pipeline import TrainValSplit, build_loader
from distill.data.image_set import CHANNELS, SIDE, ImageSet
from distill.recipe.recipes import Recipe
from distill.recipe.stage_pairs import with_paired_stages
from distill.runs.run_folder import Role, RunFolder
from distill.teacher.teacher import FrozenTeacher
from distill.training import build, minutes_to_steps
from distill.training.estimate_duration import LEAST_DOUBT, LEAST_STEPS, TimeRange, time_range
from distill.training.train_state import TrainState

FIRST_BATCH = 8  # images in the first two steps, which show how large the next batch can be
MOST_STEP_S = 1.5  # the most seconds that a step should take in a smaller batch than the recipe's
# The most seconds of FULL_STEPS steps of the recipe's batch, of which the first is not timed. They
# are estimated from a smaller batch, in which an image takes longer: they end sooner.
MOST_FULL_S, FULL_STEPS = 12.0, 3
ENOUGH_S = 2.5  # total seconds of timed steps
FULL_DOUBT = 0.25  # least relative uncertainty of two steps of the recipe's batch
# Least relative uncertainty if the timed batch is smaller than the recipe's: an image then takes up
# to 40 % longer in bf16.
SMALLER_DOUBT = 0.25
SLOWER = 1.3  # timing ends early if an image takes more than 1.3 times `rival_s`


@dataclass(frozen=True)
class Speed:
    """The measured seconds per training image."""

    image: TimeRange  # mean and range over the training
    teacher_s: float  # how many of these seconds the teacher takes; 0 without a teacher cache
    fastest_s: float  # in the fastest step, which other programs disturbed least
    first_s: float  # in a batch of FIRST_BATCH images


def random_images(n: int, n_classes: int, side: int = SIDE) -> ImageSet:
    """Return `n` images of noise, of `side` x `side` pixels, with balanced classes."""
    pixels = np.random.default_rng(0).integers(0, 256, (n, side, side, CHANNELS), dtype=np.uint8)
    names = tuple(f"class {c}" for c in range(n_classes))
    return ImageSet(pixels.transpose(0, 3, 1, 2), np.arange(n) % n_classes, names)


def device_name() -> str:
    """Return the name of the GPU, such as `NVIDIA H100`, or `cpu` with torch's number of
    threads.
    """
    if torch.accelerator.is_available() and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    return f"cpu, {threads} {'thread' if threads == 1 else 'threads'}"


def processor_share(processor_s: float, wall_s: float) -> float:
    """Return the fraction, 0..1, of the wall time of all its threads that this program computed.

    `processor_s`: CPU seconds of all threads together. A value below 1 means that other programs
    used the processor too.
    """
    return min(1.0, processor_s / (wall_s * torch.get_num_threads()))


def is_on_cpu() -> bool:
    """Whether this machine trains on its CPU."""
    return not torch.accelerator.is_available()


def measure(
    recipe: Recipe,
    role: Role,
    teacher: Recipe | None,
    images: ImageSet,
    until: float,
    rival_s: float = math.inf,
    most_step_s: float = MOST_STEP_S,
) -> Speed:
    """Time steps of a recipe on `images`.

    `teacher`: the recipe of the teacher, which is built untrained; None without a teacher. At least
    two steps are taken; the first is not timed. `until`: no further step is started that would end
    after this time.monotonic(). `rival_s`: the `first_s` of the same recipe in another precision;
    timing ends early if this one takes more than SLOWER times as long. `most_step_s`: the most
    seconds that a step should take in a smaller batch than the recipe's, which is timed if a few
    of the recipe's would take longer than MOST_FULL_S. Raises UserError if the recipe does not fit
    the images.
    """
    state = _build_state(recipe, role, teacher, images)
    first_s = _time_one_step(state, FIRST_BATCH)
    if first_s > SLOWER * rival_s:
        return Speed(time_range([first_s]), 0.0, first_s, first_s)
    # Parts of the training, as (begin, end) in 0..1, between which the active loss terms change.
    spans = list(pairwise([*state.loss.change_points, 1.0]))
    size_for = partial(_batch_size, recipe, len(spans), until=until, most_step_s=most_step_s)
    size, image_s = _choose_batch_size(state, recipe, images, first_s, until, size_for)
    times = [
        _image_seconds(state, size, begin, ENOUGH_S / len(spans), until, image_s)
        for begin, _ in spans
    ]
    image = _mean_over_training(times, [end - begin for begin, end in spans], size, recipe)
    is_teacher_timed = recipe.cache is not None and time.monotonic() < until
    teacher_s = _teacher_seconds(state, size, image.mean) if is_teacher_timed else 0.0
    return Speed(image, teacher_s, min(map(min, times)), first_s)


def _teacher_seconds(state: TrainState, size: int, most_s: float) -> float:
    """Return the teacher's seconds per image in a batch of `size`, at most `most_s`."""
    return min(minutes_to_steps.teacher_seconds_per_step(state) / size, most_s)


def _choose_batch_size(
    state: TrainState,
    recipe: Recipe,
    images: ImageSet,
    first_s: float,
    until: float,
    size_for: Callable[[float], int],
) -> tuple[int, float]:
    """Set the batch size to time in `state`; return it, and the seconds per image of a step.

    `first_s`: the seconds per image in a batch of FIRST_BATCH. `size_for` returns the batch size to
    time by the seconds per image.
    """

    def set_batch_size(size: int) -> int:
        if size != state.loader.batch_size:
            state.loader = build_loader(_with_batch_size(recipe, size), images, state.accelerator)
        return size

    size, image_s = set_batch_size(size_for(first_s)), first_s
    if FIRST_BATCH < size < _full_batch(recipe) and time.monotonic() + 2 * size * first_s < until:
        # In the first batch an image takes up to four times as long: estimate again.
        image_s = _time_one_step(state, size)
        size = set_batch_size(size_for(image_s))
    return size, image_s


def _mean_over_training(
    image_s: list[list[float]], shares: list[float], size: int, recipe: Recipe
) -> TimeRange:
    """Return the seconds per image, averaged over the training.

    `image_s`: the measured times in each part of the training. `shares`: the fraction of the
    training that each part takes; they sum to 1. `size`: the timed batch size.
    """
    is_full_size = size == _full_batch(recipe)
    parts = [
        _range_of_steps(times, is_full_size).scaled(share)
        for times, share in zip(image_s, shares, strict=True)
    ]
    return TimeRange(
        mean=sum(part.mean for part in parts),
        low=sum(part.low for part in parts),
        high=sum(part.high for part in parts),
        n=sum(part.n for part in parts),
    )


def _time_one_step(state: TrainState, size: int) -> float:
    """Return the seconds per image of one step, after one that is not timed. `size`: its batch."""
    take_steps = minutes_to_steps.repeated_step(state)
    take_steps(1)
    return minutes_to_steps.time_work(state, lambda: take_steps(1)) / size


def _range_of_steps(times: list[float], is_full_size: bool) -> TimeRange:
    """Return the mean seconds per image of timed steps, with a range around it.

    `is_full_size`: whether their batch is the recipe's. Two of its steps have as many images as
    several smaller ones, and so a smaller uncertainty than two of these.
    """
    if is_full_size and len(times) == FULL_STEPS - 1:
        mean = fmean(times)
        return TimeRange(mean, mean / (1 + FULL_DOUBT), mean * (1 + FULL_DOUBT), len(times))
    return time_range(times, LEAST_DOUBT if is_full_size else SMALLER_DOUBT)


def _full_batch(recipe: Recipe) -> int:
    """Return the number of images that a recipe computes at once."""
    return recipe.train.batch_size // recipe.train.accumulate


def _build_state(
    recipe: Recipe, role: Role, teacher: Recipe | None, images: ImageSet
) -> TrainState:
    """Build a state of the recipe that is never saved, with small batches and no teacher cache."""
    small = _with_batch_size(recipe, FIRST_BATCH)
    accel = build_accelerator(small)
    frozen = None
    if teacher is not None:
        frozen = FrozenTeacher(build_network(teacher, "teacher", images.n_classes))
        small = with_paired_stages(small, teacher.teacher)
    split, unused = TrainValSplit("", images, None), RunFolder(Path("unused"))
    return build.build_state(small, role, split, frozen, unused, accel, {})


def _with_batch_size(recipe: Recipe, size: int) -> Recipe:
    """Return a copy of the recipe for one epoch of full batches of size `size`, without gradient
    accumulation or cache.
    """
    changed = {"batch_size": size, "accumulate": 1, "epochs": 1, "minutes": None, "drop_last": True}
    return recipe.model_copy(
        update={"cache": None, "train": recipe.train.model_copy(update=changed)}
    )


def _batch_size(
    recipe: Recipe, n_spans: int, image_s: float, until: float, most_step_s: float
) -> int:
    """Return the batch size to time: on a GPU the recipe's.

    On a CPU too, if a few of its steps end within MOST_FULL_S seconds and before `until`. Otherwise
    it is the largest power of two, at most the recipe's batch size, with which a step takes at most
    `most_step_s` seconds and several steps end before `until`. At least FIRST_BATCH. `n_spans`:
    parts of the training that are timed. `image_s`: seconds per image.
    """
    most = _full_batch(recipe)
    left_s = max(0.0, until - time.monotonic())
    full_s = n_spans * FULL_STEPS * most * image_s
    if is_on_cpu() and full_s > min(MOST_FULL_S, left_s):
        step_s = min(most_step_s, left_s / (LEAST_STEPS + 2))
        most = min(most, 2 ** max(0, math.floor(math.log2(max(1.0, step_s / image_s)))))
    return max(FIRST_BATCH, most)


def _image_seconds(
    state: TrainState, size: int, at: float, enough_s: float, until: float, first_s: float
) -> list[float]:
    """Return the seconds per image of each timed step.

    `at`: the fraction of the training, 0..1, whose active loss terms the steps compute. Timing ends
    after `enough_s` seconds and LEAST_STEPS steps, one less if a step is longer than MOST_STEP_S,
    or before `until`. If there is no time for a step, returns only `first_s`, the seconds per image
    of an earlier step.
    """
    take_steps, image_s = minutes_to_steps.repeated_step(state, at), list[float]()
    if time.monotonic() + size * first_s < until:
        take_steps(1)
    while time.monotonic() + size * first_s < until and (
        len(image_s) < _least_steps(size, image_s) or size * sum(image_s) < enough_s
    ):
        image_s.append(minutes_to_steps.time_work(state, lambda: take_steps(1)) / size)
    return image_s or [first_s]


def _least_steps(size: int, image_s: list[float]) -> int:
    """Return how many steps of `size` images to time at least, given the earlier ones' seconds per
    image.
    """
    is_long = bool(image_s) and size * image_s[0] > MOST_STEP_S
    return FULL_STEPS - 1 if is_long else LEAST_STEPS
