"""Run a whole training, from a recipe to a finished run folder, as a stream of events."""

import gc
import hashlib
import time
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn

from distill.data import array_cache
from distill.data.sources import image_set
from distill.data.sources.image_set import Progress
from distill.errors import Failure, UserError
from distill.evaluation import final_test, results
from distill.evaluation.predict import SplitIdentity, check_test, identify_test, measure, test_split
from distill.events import End, Event, Start
from distill.format import counted
from distill.models import checkpoint
from distill.models.cost import count_parameters
from distill.recipe import recipes
from distill.recipe.recipes import Recipe
from distill.runs import lock, run_folder
from distill.runs.lock import LockHolder
from distill.runs.run_folder import Role, RunFolder
from distill.teacher import cache_files, selection
from distill.teacher.cache_files import format_size
from distill.teacher.teacher import FrozenTeacher, OneTeacherPerView
from distill.teacher.view_cache import CachedTeacher
from distill.training import budget, build, environment, fingerprints, loop, out_of_memory
from distill.training import resume as checkpoints
from distill.training.build import TrainValSplit
from distill.training.resume import Resumed
from distill.training.signals import StopSignal
from distill.training.state import TrainState

TEACHER_CHECK_IMAGES = 1024  # of the held-out ones: enough to see a teacher asleep, seconds to ask
AMX_CHANNELS = 128  # narrower networks were not measured in bf16 (docs/performance.md)


@dataclass(frozen=True)
class TrainingRequest:
    """What was asked for. `out=None` names the folder by recipe and time."""

    role: Role
    recipe: Recipe
    name: str  # of the recipe, as it was asked for
    out: Path | None = None
    resume: bool = False
    stop: StopSignal = field(default_factory=StopSignal)
    origins: Mapping[str, str] = field(default_factory=dict)  # who set each value, for the record
    notes: tuple[str, ...] = ()  # on the recipe, for the head
    is_tested: bool = True  # whether the test split is measured at the end: not of a trial


@dataclass(frozen=True)
class PreparedRun:
    """A request with everything it needs, ready to train."""

    request: TrainingRequest
    split: TrainValSplit
    teacher: FrozenTeacher | None
    state: TrainState
    test: SplitIdentity  # compared once the run has trained
    notes: tuple[str, ...]  # on how long and how it trains


def run(request: TrainingRequest, *, progress: Progress | None = None) -> Generator[Event]:
    """Train, select, then read the test split once, if the request asks for it.

    Yields nothing where the run is finished already. Raises UserError before any work where the
    request cannot be met or somebody else trains in the folder; Full where the device's memory is
    too small for it; Diverged where training fails; Stopped where `request.stop` was asked for,
    once all is saved.
    """
    accel = build.accelerator(request.recipe)
    folder = _run_folder(request)
    if request.resume:
        run_folder.check_role(folder, request.role)
    if request.resume and folder.is_finished:
        return
    run_folder.check_out(folder, request.resume)
    with _locked(folder, accel) as killed, out_of_memory.explain_out_of_memory(request.recipe):
        run_folder.check_out(folder, request.resume)  # nobody else may have begun meanwhile
        ready = _prepare(request, folder, accel, progress)
        start = _start_event(ready, killed)
        yield start
        yield from loop.train(ready.state)
        try:
            end = _finish(ready, start, progress)
        except UserError as fault:  # what was asked was right when it began
            raise Failure(str(fault)) from fault
        yield end
        if accel.is_main_process:
            _write_result(ready, start, end)
        accel.wait_for_everyone()


@contextmanager
def _locked(folder: RunFolder, accel: Accelerator) -> Iterator[LockHolder | None]:
    """Rank 0 holds the folder's lock for all. Yields who was killed in it; raises UserError on all
    processes where somebody holds it.
    """
    with ExitStack() as stack:
        killed, refusal = None, None
        if accel.is_main_process:
            try:
                killed = stack.enter_context(lock.hold_lock(folder.path))
                if killed is not None:
                    run_folder.delete_partial_files(folder)
            except UserError as fault:
                refusal = str(fault)
        [refusal, killed] = broadcast_object_list([refusal, killed])
        if refusal:
            raise UserError(refusal)
        yield killed


def _run_folder(request: TrainingRequest) -> RunFolder:
    """The run's folder, named once by rank 0."""
    named = [str(request.out or run_folder.default_path(request.name))]
    return RunFolder(Path(broadcast_object_list(named)[0]))


def _prepare(
    request: TrainingRequest, folder: RunFolder, accel: Accelerator, progress: Progress | None
) -> PreparedRun:
    """Data, teacher and network, and the folder with what describes the run."""
    source = request.recipe.data.source
    image_set.check(source)  # a missing test split is known now, not after the last epoch
    with accel.main_process_first():  # one process decodes, the others find the cache
        images = image_set.load(source, "train", progress=progress)
        test = identify_test(source, images, progress=progress)
    split = build.split_images(request.recipe, images)
    earlier = recipes.read(folder.recipe) if request.resume and folder.is_run else None
    places = dict.fromkeys([folder.path.parent, run_folder.RUNS])
    passed_over = selection.notes_on_broken_runs(request.recipe, earlier, places)
    chosen = selection.resolve_teachers(
        request.recipe, images, split, earlier, places, request.name
    )
    [(recipe, choice)] = broadcast_object_list([chosen])  # another rank may see other runs
    request = replace(request, recipe=recipe)
    _check_resumable(folder, request)
    teacher = selection.load_teacher(recipe, images, split)
    if teacher is not None:
        build.to_device(teacher, accel.device)
    known = fingerprints.identity(recipe, images, selection.teachers_fingerprint(recipe), test)
    training = build.state(recipe, request.role, split, teacher, folder, accel, known)
    training.stop_signal = request.stop
    resumed = checkpoints.resume(training) if request.resume else Resumed({}, ())
    hashes = _sources(folder) if request.resume else [environment.source_hash()]
    lost = earlier is not None and not resumed.progress
    is_new = request.resume and earlier is None
    notes = (
        *(["no checkpoint is left of this run: it begins at the start"] if lost else []),
        *(["no run was here to go on with: it begins at the start"] if is_new else []),
        *resumed.notes,
        *passed_over,
        *_changed_source(hashes),
        *choice,
        *_set_length(training, recipe, resumed.progress),
    )
    accel.wait_for_everyone()  # all have looked at the folder before it is written
    if accel.is_main_process:
        run_folder.write_text(folder.recipe, recipes.dumps(recipe))
        described = environment.describe(accel) | {"recipe_origins": dict(request.origins)}
        described |= {"sources": hashes} if len(hashes) > 1 else {}
        run_folder.write_json(folder.environment, described)
    return PreparedRun(request, split, teacher, training, test, notes)


def _sources(folder: RunFolder) -> list[str]:
    """The hashes of our source that the run has been trained with, today's last."""
    earlier, today = (
        environment.earlier_source_hashes(folder.environment),
        environment.source_hash(),
    )
    return earlier if earlier[-1:] == [today] else [*earlier, today]


def _changed_source(hashes: list[str]) -> Iterator[str]:
    """A note if the run has been trained with more than one version of the source."""
    if len(hashes) > 1:
        first, today = hashes[0][:12], hashes[-1][:12]
        yield (
            f"the program's source changed during the run (sha256 {first} when it began, {today} "
            "today): environment.json has every hash"
        )


def _set_length(training: TrainState, recipe: Recipe, decided: dict[str, Any]) -> tuple[str, ...]:
    """How many steps, compiled or not: as the recipe says, as was decided before, or as measured.

    `decided`: what the checkpoint of a resumed run says.
    """
    began_at, minutes, notes = time.monotonic(), recipe.train.minutes, []
    if recipe.train.compile is True or decided.get("compiled"):
        build.compile_networks(training)
        notes.append("the networks are compiled at the first step, which may take minutes")
    # On a CPU it never paid (docs/performance.md), and a plain run is the same in every bit.
    elif recipe.train.compile == "auto" and not decided and _on_gpu(training):
        run_s = None if minutes is None else 60 * minutes
        notes.append(f"train.compile = auto: {budget.choose_compilation(training, run_s)}")
    if minutes is not None:
        steps = decided.get("total_steps") or budget.steps_within(training, minutes, began_at)
        build.set_total_steps(training, recipe, steps)
        fitting = counted(steps, "step fits", "steps fit")
        notes.append(f"train.minutes = {minutes:g}: {fitting}, of training alone")
    return tuple(notes)


def _on_gpu(training: TrainState) -> bool:
    return bool(training.accelerator.device.type == "cuda")


def _check_resumable(folder: RunFolder, request: TrainingRequest) -> None:
    """Raises UserError where the folder may not be resumed."""
    if folder.is_run:
        run_folder.check_same(folder, request.recipe)


def _start_event(ready: PreparedRun, killed: LockHolder | None) -> Start:
    """Say what will be trained; the teacher is asked here, before hours are spent on its word."""
    request, split, training = ready.request, ready.split, ready.state
    accel, recipe = training.accelerator, request.recipe
    teacher_top1 = None if ready.teacher is None else _measure_teacher(ready.teacher, ready)
    return Start(
        run=str(training.folder.path),
        role=request.role,
        recipe=request.name,
        network=build.network_name(recipe, request.role, split.train.n_classes),
        parameters=count_parameters(training.model),
        data=recipe.data.source,
        train_images=len(split.train.labels),
        val_images=0 if split.held_out is None else len(split.held_out.labels),
        n_classes=split.train.n_classes,
        processes=accel.num_processes,
        device=accel.device.type,  # each process has its own of these
        precision=environment.precision_name(accel),
        batch_size=recipe.train.batch_size,
        epochs=training.epochs,
        steps_per_epoch=training.loader.steps_per_epoch,
        total_steps=None if recipe.train.minutes is None else training.total_steps,
        first_step=training.step,
        first_epoch=training.epoch,
        retries=training.retries,
        teacher=" + ".join(str(run.path) for run in selection.named_teachers(recipe)) or None,
        teacher_top1=teacher_top1,
        notes=(
            *_killed_note(killed),
            *request.notes,
            *ready.notes,
            *_resolution(training),
            *_views_per_teacher_note(training, recipe),
            *_cache_notes(training),
            *_overlap_note(ready.test),
            *_notes(recipe, split, accel, teacher_top1),
            *_cpu_precision(training, recipe),
        ),
    )


def _overlap_note(test: SplitIdentity) -> Iterator[str]:
    """How many test images are training images."""
    if test.n_in_train:
        verb = "is" if test.n_in_train == 1 else "are"
        yield (
            f"{test.n_in_train:,} of the {test.n_images:,} test images {verb} in the train split "
            "too, pixel by pixel: the test accuracy is not of unseen images alone"
        )


def _views_per_teacher_note(training: TrainState, recipe: Recipe) -> Iterator[str]:
    """How many views each teacher has, where one is drawn for each."""
    if not isinstance(training.online_teacher, OneTeacherPerView):
        return
    views = {training.loader.schedule.view(epoch) for epoch in range(training.epochs)}
    counts = Counter(training.online_teacher.choice(view) for view in views)
    shared = ", ".join(
        f"{run.path} {counts[i]}" for i, run in enumerate(selection.named_teachers(recipe))
    )
    have = counted(len(views), "view has", "views have")
    yield (
        f"teacher.draw = one: of {have} {shared}; the teacher's accuracy is that of the mean of all"
    )


def _killed_note(killed: LockHolder | None) -> Iterator[str]:
    if killed is not None:
        yield f"{killed}, was killed here: its lock is taken over"


def _measure_teacher(teacher: FrozenTeacher, ready: PreparedRun) -> float:
    """The teacher's accuracy on some held-out images; on training images where none are.

    Measured once for these weights and images, and remembered in the cache folder.
    """
    accel, images = ready.state.accelerator, ready.split.held_out or ready.split.train
    some = image_set.subset(images, np.arange(min(TEACHER_CHECK_IMAGES, len(images.labels))))
    combined = "".join(
        f" {key}={value}" for key, value in build.combination_identity(ready.request.recipe).items()
    )
    asked = ready.state.identity["teacher"] + combined + some.fingerprint
    key = f"teachers/{hashlib.sha256(asked.encode()).hexdigest()[:32]}"
    [known] = broadcast_object_list(
        [array_cache.load_cached(key, (), np.float64)]
    )  # rank 0 decides for all
    if known is not None:
        return float(known)
    top1 = measure(teacher, some, accel)["top1"]
    if accel.is_main_process:
        array_cache.save_cached(key, np.array(top1))
    return top1


def _notes(
    recipe: Recipe, split: TrainValSplit, accel: Accelerator, teacher_top1: float | None
) -> Iterator[str]:
    """What the user should know before hours are spent."""
    if recipe.data.source == "cifar10" and split.fingerprint not in image_set.GENUINE:
        yield "these are not the published images: python cli.py data verify cifar10"
    if split.held_out is None:
        yield "data.holdout = 0: nothing is selected, the last epoch is kept"
        if teacher_top1 is not None:
            yield "nothing is held out: the teacher's accuracy is that of training images"
    if teacher_top1 is not None and teacher_top1 < 2 / split.train.n_classes:
        yield f"the teacher is hardly above chance ({teacher_top1:.1%}): look at its run"
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
    compares = recipe.loss.terms().keys() & {"dist", "sp", "pkt", "rkd"}
    if recipe.train.accumulate > 1 and compares:
        names = " and ".join(sorted(compares))
        yield f"train.accumulate = {recipe.train.accumulate}: {names} compares samples of one part"


def _cpu_precision(training: TrainState, recipe: Recipe) -> Iterator[str]:
    """A note if this CPU computes the network faster in another precision than the recipe's."""
    if training.accelerator.device.type != "cpu":
        return
    precision = environment.precision_name(training.accelerator)
    has_amx = torch.cpu.get_capabilities().get("amx_bf16", False)
    if precision == "fp16" or (precision == "bf16" and not has_amx):
        yield f"this CPU does not compute {precision} natively: it is many times slower than fp32"
    convolutions = (each for each in training.model.modules() if isinstance(each, nn.Conv2d))
    is_wide = max((each.out_channels for each in convolutions), default=0) >= AMX_CHANNELS
    if has_amx and is_wide and recipe.train.precision == "auto":
        yield (
            f"this CPU has AMX: --set train.precision=bf16 trains networks of {AMX_CHANNELS} "
            "channels or more 2 to 3 times as fast"
        )


DEPENDS = {  # what stored answers depend on, as a person calls it
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


def _resolution(training: TrainState) -> Iterator[str]:
    """Notes on `train.resolution`: the epochs at each image side, and sides that no epoch uses."""
    schedule, epochs = training.loader.schedule, training.epochs
    if not schedule.sides:
        return
    side_of = [schedule.side(epoch) for epoch in range(epochs)]
    said, unused = [], []
    for _, side in schedule.sides:
        pixels, n = side or training.loader.size, side_of.count(side)
        if n:
            first = side_of.index(side) + 1
            said.append(f"{_epoch_range(first, first + n - 1)} at {pixels} pixels")
        else:
            unused.append(str(pixels))
    yield (
        f"train.resolution: {', '.join(said)}; validation and test at full size, "
        f"{training.loader.size} pixels"
    )
    if unused:
        yield (
            f"train.resolution: no epoch of {epochs} trains at {' or '.join(unused)} pixels; a "
            "side begins with the first epoch at or after its share"
        )


def _epoch_range(first: int, last: int) -> str:
    return f"epoch {first}" if first == last else f"epochs {first} to {last}"


def _cache_notes(training: TrainState) -> Iterator[str]:
    """Where the teacher's answers are kept, how many are there, and why others are not taken."""
    kept = training.teacher.source
    if not isinstance(kept, CachedTeacher):
        return
    wanted, found, damaged = kept.count_views(training.epochs)
    n_bytes = wanted * training.loader.targets.numel() * cache_files.BYTES
    verb = "is" if wanted == 1 else "are"
    yield (
        f"{found} of {counted(wanted, 'view')} of the teacher's answers {verb} stored in "
        f"{cache_files.logits_folder()}, "
        f"{format_size(n_bytes)} when all are; a view that is there is not asked again"
    )
    if damaged:
        verb = "is" if damaged == 1 else "are"
        yield f"{damaged} of the stored views {verb} damaged: asked and stored anew"
    if not found and (missed := kept.mismatched_keys()):
        differs = " and ".join(DEPENDS.get(name, name) for name in missed)
        yield f"the nearest answers that are stored differ in {differs}: they are not taken"
    yield from _shared_cache_note(kept.folders(training.epochs))
    if kept.matches_teacher(training.step) is False:
        yield "what is stored is not what the teacher says today: all is asked and stored anew"


def _shared_cache_note(folders: list[Path]) -> Iterator[str]:
    """A note if other users may change cached teacher outputs: of one batch alone it is checked
    that they are the teacher's.
    """
    for folder in folders:
        if why := array_cache.writable_by_others(folder):
            yield (
                f"other users may change what is stored in {folder}: {why}; use it only if you "
                "trust them, or set UNDERSTUDY_CACHE to a folder of your own"
            )
            return


def _finish(ready: PreparedRun, start: Start, progress: Progress | None) -> End:
    """Read the kept weights back and save them; measure them on the test split, if it is asked."""
    request, split, training = ready.request, ready.split, ready.state
    accel, folder, best = training.accelerator, training.folder, training.best
    net = build.network(request.recipe, request.role, split.train.n_classes)
    checkpoint.load_weights(checkpoints.best_file(folder, best), net, best.weights)
    build.to_device(net, accel.device)
    tested = dict[str, float]()
    if request.is_tested:
        with accel.main_process_first():
            test = test_split(request.recipe.data.source, progress=progress)
        check_test(test, ready.test)
        tested = final_test.measure(folder, net, ready.teacher, split.held_out, test, accel)
    weights = folder.weights(request.role)
    end = End(best.epoch, best.metrics | tested, start.parameters, training.elapsed_s, str(weights))
    if accel.is_main_process:
        checkpoint.save_weights(weights, checkpoint.copy_weights(net))
    accel.wait_for_everyone()
    return end


def _write_result(ready: PreparedRun, start: Start, end: End) -> None:
    """The run's last file. Once it is there, what the run would be resumed from is not needed."""
    split, folder = ready.split, ready.state.folder
    known = ready.state.identity
    data = {
        "fingerprint": split.fingerprint,
        "class_names": list(split.train.class_names),
        "test_fingerprint": known["test"],
        "test_images": ready.test.n_images,
        "class_names_fingerprint": known["class_names"],
    }
    teachers = known["teacher"]
    request = ready.request
    results.write_result(
        folder, request.recipe, start, end, data, teachers, is_tested=request.is_tested
    )


OPEN = ContextVar("OPEN", default=False)


@contextmanager
def process_group() -> Iterator[None]:
    """Leaves the process group cleanly: the last line on the screen is not torch's warning.

    Of several, one within another, the outermost does: the group is for all runs of a process.
    """
    if OPEN.get():
        yield
        return
    outermost = OPEN.set(True)
    try:
        yield
    finally:
        OPEN.reset(outermost)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            gc.collect()  # DistributedDataParallel must go first: without its group it may hang
            torch.distributed.destroy_process_group()
