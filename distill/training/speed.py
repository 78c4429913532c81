"""Measure the training speed of a recipe on random images, within seconds.

The step is the recipe's own, with its terms, augmentation, optimizer and precision. Its batch is
smaller if a step of the whole one lasts too long. The networks have random weights: what a step
costs does not depend on them.
"""

import math
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from accelerate.state import AcceleratorState

from distill.components.data_pipeline import TrainValSplit, build_loader
from distill.components.device import build_accelerator
from distill.components.network import build_network, to_device
from distill.data.images import CHANNELS, SIDE, ImageSet
from distill.recipe.recipes import Recipe
from distill.runs.run_folder import Role, RunFolder
from distill.teacher.teacher import FrozenTeacher
from distill.training import budget, build
from distill.training.estimate import LEAST_DOUBT, LEAST_STEPS, TimeRange, time_range
from distill.training.state import TrainState

FIRST_BATCH = 8  # of the first two steps, which say how large a batch can be timed
MOST_STEP_S = 1.5  # seconds that a timed step should last at most
ENOUGH_S = 2.5  # seconds of timed steps
SMALLER_DOUBT = 0.25  # of a batch smaller than the recipe's, whose images take longer (bf16: 40 %)
MUCH_SLOWER = 2.0  # than the time of a rival: an image that takes so long is not timed further


@dataclass(frozen=True)
class Speed:
    """Seconds of one training image, and how much of them its teacher takes; 0 without one."""

    image: TimeRange
    teacher_s: float
    fastest_s: float  # of an image, in the fastest step: the least disturbed by other programs


def random_images(n: int, n_classes: int) -> ImageSet:
    """`n` images of noise, each class as often as the others."""
    pixels = np.random.default_rng(0).integers(0, 256, (n, SIDE, SIDE, CHANNELS), dtype=np.uint8)
    names = tuple(f"class {c}" for c in range(n_classes))
    return ImageSet(pixels.transpose(0, 3, 1, 2), np.arange(n) % n_classes, names)


def device_name() -> str:
    """`NVIDIA H100`, or `cpu` with the number of threads that torch uses."""
    if torch.accelerator.is_available() and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    return f"cpu, {threads} {'thread' if threads == 1 else 'threads'}"


def processor_share(processor_s: float, wall_s: float) -> float:
    """How much of its threads' time this program had, 0..1; less beside other programs."""
    return min(1.0, processor_s / (wall_s * torch.get_num_threads()))


def is_on_cpu() -> bool:
    """Whether trainings run on the CPU here."""
    return not torch.accelerator.is_available()


def measure(
    recipe: Recipe,
    role: Role,
    teacher: Recipe | None,
    images: ImageSet,
    until: float,
    rival_s: float = math.inf,
) -> Speed:
    """Times steps of a recipe on `images`, taught by an untrained network of the recipe `teacher`.

    Two steps at least are taken, of which the first is not counted; no more are begun that would
    end after `until`, by time.monotonic, or if an image takes much longer than `rival_s`. Raises
    UserError where the recipe does not fit the images.
    """
    run = _build_state(recipe, role, teacher, images)
    take = budget.repeated_step(run)
    take(1)
    tried = [budget.time_work(run, lambda: take(1)) / FIRST_BATCH]
    if tried[0] > MUCH_SLOWER * rival_s:
        return Speed(time_range(tried), 0.0, tried[0])
    size = _batch_size(recipe, tried[0], until)
    if size != FIRST_BATCH:
        run.loader = build_loader(_with_batch_size(recipe, size), images, run.accelerator)
    spans = list(pairwise([*run.loss.change_points, 1.0]))  # terms come and go
    found = [
        _image_seconds(run, size, begin, ENOUGH_S / len(spans), until, tried) for begin, _ in spans
    ]
    image = _mean_over_training(found, [end - begin for begin, end in spans], size, recipe)
    teacher_s = 0.0
    if recipe.cache is not None and time.monotonic() < until:
        teacher_s = min(budget.teacher_seconds(run) / size, image.mean)
    return Speed(image, teacher_s, min(map(min, found)))


def _mean_over_training(
    found: list[list[float]], shares: list[float], size: int, recipe: Recipe
) -> TimeRange:
    """Seconds of an image, the mean over parts of the training, each with its share of it."""
    is_whole = size == recipe.train.batch_size // recipe.train.accumulate
    doubt = LEAST_DOUBT if is_whole else SMALLER_DOUBT
    parts = [
        time_range(each, doubt).scaled(share) for each, share in zip(found, shares, strict=True)
    ]
    return TimeRange(
        mean=sum(part.mean for part in parts),
        low=sum(part.low for part in parts),
        high=sum(part.high for part in parts),
        n=sum(part.n for part in parts),
    )


def _build_state(
    recipe: Recipe, role: Role, teacher: Recipe | None, images: ImageSet
) -> TrainState:
    """A run of the recipe that is never saved, in small batches, without cached teacher logits."""
    AcceleratorState._reset_state()  # it keeps one precision for a process; recipes have several
    small = _with_batch_size(recipe, FIRST_BATCH)
    accel = build_accelerator(small)
    frozen = None
    if teacher is not None:
        frozen = FrozenTeacher(build_network(teacher, "teacher", images.n_classes))
        to_device(frozen, accel.device)
    split, nowhere = TrainValSplit("", images, None), RunFolder(Path("unused"))
    return build.build_state(small, role, split, frozen, nowhere, accel, {})


def _with_batch_size(recipe: Recipe, size: int) -> Recipe:
    """One epoch of the same recipe in other batches."""
    changed = {"batch_size": size, "accumulate": 1, "epochs": 1, "minutes": None}
    return recipe.model_copy(
        update={"cache": None, "train": recipe.train.model_copy(update=changed)}
    )


def _batch_size(recipe: Recipe, image_s: float, until: float) -> int:
    """The largest power of two, or the recipe's own batch, that can be timed in a short step."""
    most = recipe.train.batch_size // recipe.train.accumulate
    if is_on_cpu():
        left_s = max(0.0, until - time.monotonic())
        step_s = min(MOST_STEP_S, left_s / (LEAST_STEPS + 2))
        most = min(most, 2 ** max(0, math.floor(math.log2(max(1.0, step_s / image_s)))))
    return max(FIRST_BATCH, most)


def _image_seconds(
    run: TrainState, size: int, at: float, enough_s: float, until: float, tried: list[float]
) -> list[float]:
    """Seconds of an image in each timed step, while the terms are those of `at`; `tried`, those of
    an earlier step, if there is no time for more.
    """
    take, found = budget.repeated_step(run, at), list[float]()
    if time.monotonic() + size * tried[0] < until:
        take(1)
    while time.monotonic() + size * tried[0] < until and (
        len(found) < LEAST_STEPS or size * sum(found) < enough_s
    ):
        found.append(budget.time_work(run, lambda: take(1)) / size)
    return found or tried
