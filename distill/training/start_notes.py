"""Compose the notes that a run shows at its start, before hours of training."""

import re
from collections import Counter
from collections.abc import Iterator
from math import prod
from pathlib import Path

from torch import nn

from distill.components import choose_normalisation
from distill.components.build_accelerator import bf16_instructions
from distill.components.data_pipeline import TrainValSplit
from distill.components.read_test_split import SplitIdentity
from distill.data import array_cache
from distill.data.sources import load_data_set
from distill.format import counted, format_size, percent
from distill.models.features import tap_points
from distill.recipe.loss_schema import taps
from distill.recipe.recipes import Recipe
from distill.teacher import cache_files, selection
from distill.teacher.teacher import OneTeacherPerView
from distill.teacher.view_cache import CachedTeacher
from distill.training import environment
from distill.training.train_state import TrainState
from students.normalize_images import normalises

WIDE_CHANNELS = 128  # no note for narrower networks, not measured in bf16 (docs/performance.md)
FEWEST_PATCHES = 16  # of an image; a network that divides it into fewer gets a note
STAGE = re.compile(r"stages\.[0-9]+")  # the name of a stage's map
DEPENDS = {  # keys that cached logits depend on, and their names in messages
    "teacher": "the teacher's weights",
    "mirror": "teacher.mirror",
    "weights": "teacher.weights",
    "data": "the images",
    "part": "the training part",
    "precision": "train.precision",
    "seed": "data.seed",
    "pipeline": "augmentation, mixing or resolution",
    "format": "the version of this program",
}


def start_notes(
    state: TrainState,
    recipe: Recipe,
    split: TrainValSplit,
    test: SplitIdentity,
    teacher_top1: float | None,
) -> Iterator[str]:
    """Yield the notes on what a run will do, and on settings that have no effect or cost time.

    `teacher_top1`: the teacher's measured accuracy, 0..1; None without a teacher.
    """
    if recipe.data.size is not None:
        yield f"data.size: images of {recipe.data.size}x{recipe.data.size} pixels"
    yield from _normalisation_note(state, recipe)
    yield from _patches_note(state.model)
    yield from _resolution_notes(state)
    yield from _paired_stages_notes(state, recipe)
    yield from _views_per_teacher_note(state, recipe)
    yield from _cache_notes(state)
    yield from _overlap_note(test)
    yield from _recipe_notes(recipe, split, teacher_top1)
    yield from _faster_precision_note(state, recipe)


def _normalisation_note(state: TrainState, recipe: Recipe) -> Iterator[str]:
    """Yield a note on the images' mean and std, if they are not CIFAR-10's by default."""
    if normalises(state.model) and (note := choose_normalisation.note(recipe)):
        yield note


def _patches_note(model: nn.Module) -> Iterator[str]:
    """Yield a note if a network of timm divides its images into few patches."""
    patches = getattr(getattr(model, "net", None), "patch_embed", None)
    grid = getattr(patches, "grid_size", None)
    if isinstance(grid, tuple) and prod(grid) < FEWEST_PATCHES:
        sides = "x".join(map(str, grid))
        yield (
            f"the network divides an image into only {sides} patches, since it is designed for "
            "larger images; a network of convolutions, such as timm/resnet18, suits small ones"
        )


def _resolution_notes(state: TrainState) -> Iterator[str]:
    """Yield notes on `train.resolution`: the epochs at each image size, and unused sizes."""
    schedule, epochs = state.loader.schedule, state.epochs
    if not schedule.sides:
        return
    side_of = [schedule.side(epoch) for epoch in range(epochs)]
    sizes, unused = [], []
    for _, side in schedule.sides:
        pixels, n = side or state.loader.size, side_of.count(side)
        if n:
            first = side_of.index(side) + 1
            sizes.append(f"{_epoch_range(first, first + n - 1)} at {pixels} pixels")
        else:
            unused.append(str(pixels))
    yield (
        f"train.resolution: {', '.join(sizes)}; validation and test at full size, "
        f"{state.loader.size} pixels"
    )
    if unused:
        yield (
            f"train.resolution: no epoch of {epochs} trains at {' or '.join(unused)} pixels; a "
            "size is used from the first epoch at or after its fraction"
        )


def _paired_stages_notes(state: TrainState, recipe: Recipe) -> Iterator[str]:
    """Yield a note on the stages that a term compares, if the networks differ in their number."""
    if state.live_teacher is None:
        return
    teacher, *_ = state.live_teacher.networks
    numbers = [
        sum(STAGE.fullmatch(tap) is not None for tap in tap_points(net))
        for net in (state.model, teacher.extractor.net)
    ]
    if 0 in numbers or len(set(numbers)) == 1:
        return
    for name, term in recipe.loss.terms().items():
        student, teacher_maps = ([t for _, t in taps(term, r)] for r in ("student", "teacher"))
        if any(STAGE.fullmatch(tap) for tap in student):
            key = "taps" if len(student) > 1 else "tap"
            yield (
                f"loss.{name} compares the student's {', '.join(student)} (of {numbers[0]} stages) "
                f"with the teacher's {', '.join(teacher_maps)} (of {numbers[1]}); to compare "
                f"others, set loss.{name}.student_{key} and loss.{name}.teacher_{key}"
            )


def _epoch_range(first: int, last: int) -> str:
    return f"epoch {first}" if first == last else f"epochs {first} to {last}"


def _views_per_teacher_note(state: TrainState, recipe: Recipe) -> Iterator[str]:
    """Yield a note on each teacher's number of views, if one teacher is drawn for each view."""
    if not isinstance(state.live_teacher, OneTeacherPerView):
        return
    views = {state.loader.schedule.view(epoch) for epoch in range(state.epochs)}
    counts = Counter(state.live_teacher.choice(view) for view in views)
    shared = ", ".join(
        f"{run.path} {counts[i]}" for i, run in enumerate(selection.named_teachers(recipe))
    )
    have = counted(len(views), "view has", "views have")
    yield (
        f"teacher.draw = one: of {have} {shared}; the teacher's accuracy is that of the mean of all"
    )


def _cache_notes(state: TrainState) -> Iterator[str]:
    """Yield notes on the teacher cache: its folder, the number of cached views, damaged views, and
    why cached logits are not used.
    """
    cache = state.teacher.source
    if not isinstance(cache, CachedTeacher):
        return
    needed, found, damaged = cache.count_views(state.epochs)
    n_bytes = needed * state.loader.targets.numel() * cache_files.BYTES
    verb = "is" if needed == 1 else "are"
    yield (
        f"{found} of {counted(needed, 'view')} of the teacher's logits {verb} cached in "
        f"{cache_files.logits_folder()}, "
        f"{format_size(n_bytes)} for all of them; cached views are not computed again"
    )
    if damaged:
        verb = "is" if damaged == 1 else "are"
        yield f"{damaged} of the cached views {verb} damaged: computed and cached again"
    if not found and (mismatched := cache.mismatched_keys()):
        differs = " and ".join(DEPENDS.get(name, name) for name in mismatched)
        yield f"the most similar cached logits differ in {differs}: they are not used"
    folders = cache.folders(state.epochs)
    yield from _unreadable_cache_note(folders)
    yield from _shared_cache_note(folders)
    if cache.matches_teacher(state.step) is False:
        yield "the cached logits differ from the teacher's current logits: all are computed again"


def _unreadable_cache_note(folders: list[Path]) -> Iterator[str]:
    """Yield a note if this user may not read a folder that the run's logits are cached in."""
    for folder in filter(array_cache.is_unreadable, folders):
        yield (
            f"{folder} may not be read by this user: logits in it are computed again and not "
            "cached; set UNDERSTUDY_CACHE to a folder of your own to cache them"
        )
        return


def _shared_cache_note(folders: list[Path]) -> Iterator[str]:
    """Yield a note if other users may change the cached logits.

    Only one batch of cached logits is compared with the teacher, so changes could remain unnoticed.
    """
    for folder in folders:
        if why := array_cache.writable_by_others(folder):
            yield (
                f"other users may change the cached logits in {folder}: {why}; use it only if you "
                "trust them, or set UNDERSTUDY_CACHE to a folder of your own"
            )
            return


def _overlap_note(test: SplitIdentity) -> Iterator[str]:
    """Yield a note if test images are in the train split too."""
    if test.n_in_train:
        verb = "is" if test.n_in_train == 1 else "are"
        yield (
            f"{test.n_in_train:,} of the {test.n_images:,} test images {verb} in the train split "
            "too, pixel by pixel: the test accuracy is partly measured on training images"
        )


def _recipe_notes(
    recipe: Recipe, split: TrainValSplit, teacher_top1: float | None
) -> Iterator[str]:
    """Yield notes on the recipe's data, teacher and loss terms."""
    for run in selection.named_teachers(recipe):
        if run.is_finished and "imported" in run.result():
            yield f"the teacher {run.path} was imported: another program trained its weights"
    is_resized = recipe.data.size is not None
    is_genuine = is_resized or split.fingerprint in load_data_set.GENUINE
    source = recipe.data.source
    if source in load_data_set.NAMED and not is_genuine:
        yield f"these are not the published images; type python cli.py data verify {source}"
    if split.held_out is None:
        yield "data.holdout = 0: no epoch is selected, the last epoch's weights are saved"
        if teacher_top1 is not None:
            yield "nothing is held out: the teacher's accuracy is that of training images"
    if teacher_top1 is not None and teacher_top1 < 2 / split.train.n_classes:
        chance = percent(1 / split.train.n_classes)
        yield f"the teacher's accuracy is {percent(teacher_top1)}, chance {chance}: check its run"
    hard = recipe.loss.hard
    if hard is not None and hard.weight == 0 and hard.label_smoothing > 0:
        yield (
            f"loss.hard.label_smoothing = {hard.label_smoothing:g} has no effect: loss.hard.weight "
            "is 0; type --set loss.hard.weight=1 to train on labels"
        )
    if recipe.train.validate_both and recipe.ema is None:
        yield (
            "train.validate_both = true has no effect: the recipe has no [ema], so there is one "
            "network to measure; type --set ema={} for averaged weights"
        )
    relational = recipe.loss.terms().keys() & {"dist", "sp", "pkt", "rkd"}
    if recipe.train.accumulate > 1 and relational:
        names = " and ".join(sorted(relational))
        yield f"train.accumulate = {recipe.train.accumulate}: {names} compares samples of one part"


def _faster_precision_note(state: TrainState, recipe: Recipe) -> Iterator[str]:
    """Yield a note if another precision than the recipe's is faster on this CPU."""
    if state.accelerator.device.type != "cpu":
        return
    precision = environment.precision_name(state.accelerator)
    instructions = bf16_instructions()
    if precision == "fp16" or (precision == "bf16" and instructions is None):
        yield f"this CPU does not compute {precision} natively: it is many times slower than fp32"
    convolutions = (module for module in state.model.modules() if isinstance(module, nn.Conv2d))
    is_wide = max((conv.out_channels for conv in convolutions), default=0) >= WIDE_CHANNELS
    if instructions is not None and is_wide and recipe.train.precision == "auto":
        gain = "2 to 3" if instructions == "AMX" else "1.5 to 2"
        yield (
            f"this CPU has {instructions} instructions for bf16: --set train.precision=bf16 trains "
            f"networks of {WIDE_CHANNELS} channels or more {gain} times as fast"
        )
