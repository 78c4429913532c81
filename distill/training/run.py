"""Run a whole training, from a recipe to a finished run folder, as a stream of events."""

import gc
import hashlib
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from distill.components import choose_normalisation, fingerprints
from distill.components.build_accelerator import build_accelerator
from distill.components.build_network import build_network, network_name, to_device, with_code
from distill.components.check_processes import check_same_inputs
from distill.components.data_pipeline import TrainValSplit, split_images
from distill.components.read_test_split import SplitIdentity, check_test, identify_test, test_split
from distill.data import array_cache
from distill.data.image_set import SIDE
from distill.data.sources import load_data_set
from distill.data.sources.load_data_set import ImageSet, Progress
from distill.data.task_progress import running
from distill.errors import Failure, RaisedByAll, UserError
from distill.evaluation import final_test, write_results
from distill.evaluation.predict_split import predict_with_progress, to_host
from distill.events import End, Event, Start
from distill.format import counted
from distill.metrics import measures
from distill.models import checkpoint, epoch_weights, out_of_memory
from distill.models.cost import count_parameters
from distill.recipe import recipe_variants, recipes
from distill.recipe.check_recipe_role import note_on_teacher_recipe
from distill.recipe.recipes import Recipe, ResolvedRecipe
from distill.recipe.stage_pairs import with_paired_stages
from distill.runs import check_runs_match, lock, read_predictions, run_folder
from distill.runs.lock import LockHolder
from distill.runs.run_folder import Role, RunFolder
from distill.teacher import selection
from distill.teacher.build_teacher import combination_identity
from distill.teacher.teacher import FrozenTeacher
from distill.training import (
    build,
    environment,
    finish_interrupted_run,
    loop,
    memory_need,
    minutes_to_steps,
)
from distill.training import resume as checkpoints
from distill.training.resume import Resumed
from distill.training.signals import StopSignal
from distill.training.start_notes import start_notes
from distill.training.train_state import TrainState

MOST_CHECK_IMAGES = 5000  # a teacher is measured on all held-out images if there are at most these
TEACHER_CHECK_IMAGES = 1024  # else on a part: enough to detect an untrained teacher, in seconds


@dataclass(frozen=True)
class TrainingRequest:
    """A training to run.

    `out`: the run folder; None for a new folder in `runs/`, named by recipe and time.
    """

    role: Role
    recipe: Recipe
    name: str  # of the recipe, as typed
    out: Path | None = None
    resume: bool = False
    stop: StopSignal = field(default_factory=StopSignal)
    origins: Mapping[str, str] = field(default_factory=dict)  # where each recipe value was set
    notes: tuple[str, ...] = ()  # for the user, on the recipe
    is_tested: bool = True  # whether to measure the test split at the end; False in a sweep's trial
    ends_early: bool = False  # whether to finish with the weights so far instead of training on


def request_training(
    role: Role,
    resolved: ResolvedRecipe,
    out: Path,
    resume: bool = False,
    stop: StopSignal | None = None,
) -> TrainingRequest:
    """Return the request to train a resolved recipe in the run folder `out`, with its notes."""
    own = note_on_teacher_recipe(resolved) if role == "student" else ()
    notes = (*own, *resolved.notes(role))
    stop = stop or StopSignal()
    return TrainingRequest(
        role, resolved.recipe, resolved.name, out, resume, stop, resolved.origins, notes
    )


@dataclass(frozen=True)
class PreparedRun:
    """A request with its data, teacher and training state, ready to train."""

    request: TrainingRequest
    split: TrainValSplit
    teacher: FrozenTeacher | None
    state: TrainState
    test: SplitIdentity  # of the test split before training; checked again afterwards
    notes: tuple[str, ...]  # for the user, on resuming, teachers, compilation and number of steps


@dataclass(frozen=True)
class RunInputs:
    """A request with everything that is loaded before its networks are built."""

    request: TrainingRequest  # its recipe names the teachers and describes the images
    split: TrainValSplit
    teacher: FrozenTeacher | None
    test: SplitIdentity
    identity: dict[str, str]  # fingerprints of data and teacher, by name
    passed_over: tuple[str, ...]  # notes on broken runs, which were not considered as teachers
    teacher_notes: Sequence[str]  # on the choice of teachers


def train_and_test(
    request: TrainingRequest, *, progress: Progress | None = None
) -> Generator[Event]:
    """Train, select the best epoch, then measure it on the test split once, if requested.

    Yields the training's events; none if a resumed run is finished already. Raises UserError before
    training if the request is invalid or another process trains in the folder; OutOfMemory if the
    memory is too small; Diverged if the training diverges; Stopped, after saving, if `request.stop`
    requests it; Failure if the run cannot be finished after training.

    With `request.ends_early`, a run that was cut off is finished with its best weights so far.
    """
    began_at = time.monotonic()
    accel = build_accelerator(request.recipe)
    folder = _run_folder(request)
    if request.resume:
        run_folder.check_role(folder, request.role)
    if request.resume and folder.is_finished:
        check_runs_match.check_not_finished_early(folder)
        return
    run_folder.check_out(folder, request.resume)
    with _locked(folder, accel) as killed, out_of_memory.explain_out_of_memory(request.recipe):
        run_folder.check_out(folder, request.resume)  # another process may have begun meanwhile
        ready = _prepare(request, folder, accel, progress)
        start = _start_event(ready, killed, progress)
        write_results.check_result(
            request.recipe, start, _data_of_result(ready), ready.state.identity["teacher"]
        )
        yield start
        ready.state.preparation_s += time.monotonic() - began_at
        if is_early := request.ends_early and finish_interrupted_run.is_cut_off(ready.state):
            finish_interrupted_run.select_weights(ready.state)
        else:
            yield from loop.train(ready.state)
        yield from _finish(ready, start, is_early, progress)


@contextmanager
def _locked(folder: RunFolder, accel: Accelerator) -> Iterator[LockHolder | None]:
    """Hold the folder's lock, which rank 0 acquires for all processes.

    Yields the previous holder if it was killed while it held the lock, else None. Raises UserError
    on all processes if another run holds the lock.
    """
    with ExitStack() as stack:
        killed, refusal = None, None
        if accel.is_main_process:
            try:
                killed = stack.enter_context(lock.lock_run_folder(folder.path))
                if killed is not None:
                    run_folder.delete_partial_files(folder)
            except UserError as fault:
                refusal = str(fault)
        [refusal, killed] = broadcast_object_list([refusal, killed])
        if refusal:
            raise RaisedByAll(refusal)
        yield killed


def _run_folder(request: TrainingRequest) -> RunFolder:
    """Return the run's folder; rank 0 chooses its name for all processes."""
    path = [str(request.out or run_folder.default_path(request.name))]
    return RunFolder(Path(broadcast_object_list(path)[0]))


def _prepare(
    request: TrainingRequest, folder: RunFolder, accel: Accelerator, progress: Progress | None
) -> PreparedRun:
    """Load data and teacher, build the state, and write recipe and environment to the folder."""
    earlier = recipes.read(folder.recipe) if request.resume and folder.is_run else None
    inputs = _load_inputs(request, earlier, folder, accel, progress)
    request, recipe = inputs.request, inputs.request.recipe
    with running(progress, "building the networks"):
        state = build.build_state(
            recipe, request.role, inputs.split, inputs.teacher, folder, accel, inputs.identity
        )
    memory_need.check_memory(state, recipe)
    state.stop_signal, state.progress = request.stop, progress
    resumed = checkpoints.resume(state) if request.resume else Resumed({}, ())
    if request.ends_early:
        finish_interrupted_run.check_is_trained(state)
    hashes = _source_hashes(folder) if request.resume else [environment.source_hash()]
    notes = (
        *_notes_on_resuming(request, earlier, resumed),
        *inputs.passed_over,
        *(() if request.ends_early else _changed_source_note(hashes)),
        *inputs.teacher_notes,
        *_decide_compilation_and_steps(state, recipe, resumed.progress, progress),
        *_plan_epoch_weights(state, request),
    )
    accel.wait_for_everyone()  # all have read the folder before it is written
    # The files of a run that ends early describe its training, not the command that ends it.
    if accel.is_main_process and not request.ends_early:
        run_folder.write_text(folder.recipe, recipes.of_run(recipe))
        described = environment.describe(accel) | {"recipe_origins": dict(request.origins)}
        described |= {"sources": hashes} if len(hashes) > 1 else {}
        run_folder.write_json(folder.environment, described)
    return PreparedRun(request, inputs.split, inputs.teacher, state, inputs.test, notes)


def _load_inputs(
    request: TrainingRequest,
    earlier: Recipe | None,
    folder: RunFolder,
    accel: Accelerator,
    progress: Progress | None,
) -> RunInputs:
    """Load images and teachers, and write them into the request's recipe.

    `earlier`: the recipe of the run that is resumed; None for a new run. Raises UserError if images
    or teachers do not fit the recipe or the run, or if they differ between processes.
    """
    images, test = _load_images(request.recipe, earlier, accel, progress)
    request = replace(request, recipe=_with_images(request.recipe, images, earlier))
    with running(progress, "computing the fingerprint of the train split"):
        split = split_images(request.recipe, images)
    places = dict.fromkeys([folder.path.parent, run_folder.RUNS])
    passed_over = tuple(selection.notes_on_broken_runs(request.recipe, earlier, places))
    recipe, teacher_notes = _choose_teachers(request, images, split, earlier, places)
    recipe = with_code(recipe, request.role)
    own_recipe, request = with_code(request.recipe, request.role), replace(request, recipe=recipe)
    if not request.ends_early:
        _check_resumable(folder, request)
    with running(progress, "loading the teacher"):
        teacher = selection.load_teacher(recipe, images, split, request.resume)
    identity = fingerprints.identity(
        recipe, images, "" if teacher is None else teacher.fingerprint, test
    )
    requested = {"recipe": check_runs_match.training_fingerprint(own_recipe)}
    check_same_inputs(
        accel, lambda: {fingerprints.CALLED[k]: v for k, v in (identity | requested).items()}
    )
    return RunInputs(request, split, teacher, test, identity, passed_over, teacher_notes)


def _load_images(
    recipe: Recipe, earlier: Recipe | None, accel: Accelerator, progress: Progress | None
) -> tuple[ImageSet, SplitIdentity]:
    """Return the train split and the identity of the test split, after checking that both exist."""
    source, size = recipe.data.source, _image_size(recipe, earlier)
    load_data_set.check(source, size=size)  # now, not after the last epoch
    with accel.main_process_first():  # one process decodes, the others read the cache
        images = load_data_set.load(source, "train", size=size, progress=progress)
        test = identify_test(source, images, size=size, progress=progress)
    return images, test


def _choose_teachers(
    request: TrainingRequest,
    images: ImageSet,
    split: TrainValSplit,
    earlier: Recipe | None,
    places: Iterable[Path],
) -> tuple[Recipe, Sequence[str]]:
    """Return the recipe with its teachers and the stages that are compared, and notes on them.

    `earlier`: as in `_load_inputs`. `places`: the folders to search for a teacher.
    """
    chosen = selection.resolve_teachers(
        request.recipe, images, split, earlier, places, request.name
    )
    # The choice of rank 0: the processes may see different runs in the folders.
    [(recipe, notes)] = broadcast_object_list([chosen])
    return with_paired_stages(recipe, selection.network_of_teacher(recipe), earlier), notes


def _notes_on_resuming(
    request: TrainingRequest, earlier: Recipe | None, resumed: Resumed
) -> Iterator[str]:
    """Yield notes on what is resumed, and on what is missing. `earlier`: as in `_load_inputs`."""
    if earlier is not None and not resumed.progress:
        yield "this run has no checkpoint: it starts from the beginning"
    if request.resume and earlier is None:
        yield "there is no run to resume here: it starts from the beginning"
    yield from resumed.notes


def _image_size(recipe: Recipe, earlier: Recipe | None) -> int | None:
    """Return the size to which images are resized; None for a new run on images as they are."""
    return recipe.data.size or (None if earlier is None else earlier.data.image_size)


def _with_images(recipe: Recipe, images: ImageSet, earlier: Recipe | None) -> Recipe:
    """Return the recipe with the size, mean and std of the resumed run, or of a new run's images.

    `earlier`: the recipe of the run that is resumed; None for a new run.
    """
    recipe = recipe_variants.with_data(recipe, size=None if images.size == SIDE else images.size)
    if earlier is None:
        return choose_normalisation.resolve(recipe, images)
    recipe = recipe_variants.with_size_and_normalisation_of(recipe, earlier)
    is_known = recipe.data.normalize == earlier.data.normalize
    return recipe if is_known else choose_normalisation.resolve(recipe, images)


def _source_hashes(folder: RunFolder) -> list[str]:
    """Return the source hashes that the run was trained with, the current one last."""
    earlier, today = (
        environment.earlier_source_hashes(folder.environment),
        environment.source_hash(),
    )
    return earlier if earlier[-1:] == [today] else [*earlier, today]


def _changed_source_note(hashes: list[str]) -> Iterator[str]:
    """Yield a note if the run has been trained with more than one version of the source."""
    if len(hashes) > 1:
        first, today = hashes[0][:12], hashes[-1][:12]
        yield (
            f"the program's source changed during the run (sha256 {first} when it began, {today} "
            "today): environment.json has every hash"
        )


def _decide_compilation_and_steps(
    state: TrainState, recipe: Recipe, decided: dict[str, Any], progress: Progress | None
) -> tuple[str, ...]:
    """Decide on compilation and on the number of steps; return notes on both.

    `decided`: the progress.json of a resumed run's checkpoint, which contains its earlier
    decisions; empty for a new run.
    """
    began_at, minutes, notes = time.monotonic(), recipe.train.minutes, []
    if recipe.train.compile is True or decided.get("compiled"):
        build.compile_networks(state)
        notes.append("the networks are compiled at the first step, which may take minutes")
    # On a CPU compiling never paid (docs/performance.md), and only an uncompiled run is
    # reproducible in every bit.
    elif recipe.train.compile == "auto" and not decided and _on_gpu(state):
        run_s = None if minutes is None else 60 * minutes
        with running(progress, "timing steps, plain and compiled"):
            decision = minutes_to_steps.choose_compilation(state, run_s)
        notes.append(f"train.compile = auto: {decision}")
    if minutes is not None:
        with running(progress, "timing steps"):
            steps = decided.get("total_steps") or minutes_to_steps.steps_within(
                state, minutes, began_at
            )
        build.set_total_steps(state, recipe, steps)
        notes.append(
            f"train.minutes = {minutes:g}: the training gets {counted(steps, 'step')}, as many as "
            "fit into that time; measuring the test split afterwards takes more"
        )
    return tuple(notes)


def _plan_epoch_weights(state: TrainState, request: TrainingRequest) -> Iterator[str]:
    """Decide after which epochs weights are saved; yield a note on them.

    By default a trial of a sweep saves none: a sweep has many, and needs no curves on test images.
    """
    keep = state.settings.keep_epochs
    if request.ends_early or (keep == "auto" and not request.is_tested):
        return
    planned = epoch_weights.plan(state.folder, keep, state.epochs, state.epoch, state.final_weights)
    [state.epochs_to_save, note] = broadcast_object_list([*planned])
    if note:
        yield note


def _on_gpu(state: TrainState) -> bool:
    return bool(state.accelerator.device.type == "cuda")


def _check_resumable(folder: RunFolder, request: TrainingRequest) -> None:
    """Raise UserError if the folder contains a run of another recipe than the request."""
    if folder.is_run:
        check_runs_match.check_same(folder, request.recipe)


def _start_event(ready: PreparedRun, killed: LockHolder | None, progress: Progress | None) -> Start:
    """Return the start event, with notes. Measures the teacher's accuracy first.

    `killed`: the process that was killed in the folder; None if there is none.
    """
    request, state = ready.request, ready.state
    teacher_top1, teacher_images = None, None
    if ready.teacher is not None:
        teacher_top1, teacher_images = _measure_teacher(ready.teacher, ready, progress)
    with running(progress, "reading the cached logits"):
        own_notes = start_notes(state, request.recipe, ready.split, ready.test, teacher_top1)
        notes = (*killed_note(killed), *request.notes, *ready.notes, *own_notes)
    return replace(
        _start_facts(ready), teacher_top1=teacher_top1, teacher_images=teacher_images, notes=notes
    )


def _start_facts(ready: PreparedRun) -> Start:
    """Return the start event without the teacher's accuracy and without notes."""
    request, split, state = ready.request, ready.split, ready.state
    accel, recipe = state.accelerator, request.recipe
    return Start(
        run=str(state.folder.path),
        role=request.role,
        recipe=request.name,
        network=network_name(recipe, request.role, split.train.n_classes),
        parameters=count_parameters(state.model),
        data=recipe.data.source,
        train_images=len(split.train.labels),
        val_images=0 if split.held_out is None else len(split.held_out.labels),
        n_classes=split.train.n_classes,
        processes=accel.num_processes,
        device=accel.device.type,  # each process has one of this type
        precision=environment.precision_name(accel),
        batch_size=recipe.train.batch_size,
        epochs=state.epochs,
        steps_per_epoch=state.loader.steps_per_epoch,
        total_steps=None if recipe.train.minutes is None else state.total_steps,
        first_step=state.step,
        first_epoch=state.epoch,
        retries=state.retries,
        teacher=" + ".join(str(run.path) for run in selection.named_teachers(recipe)) or None,
    )


def killed_note(killed: LockHolder | None) -> Iterator[str]:
    """Yield a note on the process that was killed in the run's folder; `killed`: None for none."""
    if killed is not None:
        yield f"{killed}, was killed while training in this folder: this run continues in its place"


def _measure_teacher(
    teacher: FrozenTeacher, ready: PreparedRun, progress: Progress | None
) -> tuple[float, int]:
    """Return the teacher's accuracy, 0..1, and the number of images that it was measured on.

    These are all held-out images, or the first TEACHER_CHECK_IMAGES if there are more than
    MOST_CHECK_IMAGES; training images, as many, if none are held out. The result is cached by
    weights and images.
    """
    accel, images = ready.state.accelerator, ready.split.held_out or ready.split.train
    n_images = len(images.labels)
    is_part = ready.split.held_out is None or n_images > MOST_CHECK_IMAGES
    n_checked = min(TEACHER_CHECK_IMAGES, n_images) if is_part else n_images
    checked = load_data_set.subset(images, np.arange(n_checked))
    combination = "".join(
        f" {key}={value}" for key, value in combination_identity(ready.request.recipe).items()
    )
    identity = ready.state.identity["teacher"] + combination + checked.fingerprint
    key = f"teachers/{hashlib.sha256(identity.encode()).hexdigest()[:32]}"
    [cached] = broadcast_object_list([_cached_accuracy(key)])  # rank 0 decides for all
    if cached is not None:
        return float(cached), n_checked
    predicted = predict_with_progress(teacher, checked, accel, progress, "measuring the teacher")
    top1 = measures(*to_host(predicted))["top1"]
    if accel.is_main_process:
        array_cache.save_cached(key, np.array(top1))
    return top1, n_checked


def _cached_accuracy(key: str) -> float | None:
    """Return a teacher's cached accuracy, 0..1; None if it is absent or invalid.

    Also None if other users may write to the cache, because the accuracy is copied to result.json.
    """
    folders = array_cache.cache_folder(), array_cache.cache_folder() / "teachers"
    if any(map(array_cache.writable_by_others, folders)):
        return None
    cached = array_cache.load_cached(key, (), np.float64)
    return float(cached) if cached is not None and 0 <= cached <= 1 else None


def _finish(
    ready: PreparedRun, start: Start, is_early: bool, progress: Progress | None
) -> Generator[End]:
    """Save and measure the final weights, yield the end event, and then write result.json.

    `is_early`: whether the run was finished before its last step. Raises Failure if it cannot be
    finished.
    """
    accel = ready.state.accelerator
    try:
        end = _save_and_test(ready, start, progress)
    except UserError as fault:  # the request was valid when the run began
        raise Failure(str(fault)) from fault
    yield end
    if accel.is_main_process:
        _write_result(ready, start, end, is_early)
    accel.wait_for_everyone()


def _save_and_test(ready: PreparedRun, start: Start, progress: Progress | None) -> End:
    """Save the best epoch's weights as the final weights; measure the test split if requested."""
    request, split, state = ready.request, ready.split, ready.state
    accel, folder, best = state.accelerator, state.folder, state.best
    trained_s = state.elapsed_s
    net = build_network(request.recipe, request.role, split.train.n_classes)
    checkpoint.load_weights(checkpoints.best_file(folder, best), net, best.weights)
    to_device(net, accel.device)
    tested = dict[str, float]()
    if request.is_tested:
        with accel.main_process_first():
            data = request.recipe.data
            test = test_split(data.source, size=data.image_size, progress=progress)
        check_test(test, ready.test)
        tested = final_test.measure_on_test(
            folder, net, ready.teacher, split.held_out, test, accel, progress=progress
        )
    weights = folder.weights(request.role)
    total_s = state.preparation_s + state.elapsed_s
    metrics = best.metrics | tested
    end = End(best.epoch, metrics, start.parameters, trained_s, str(weights), total_s)
    if accel.is_main_process:
        checkpoint.save_weights(weights, checkpoint.copy_weights(net))
    accel.wait_for_everyone()
    _check_readable(folder, metrics)
    return end


def _check_readable(folder: RunFolder, metrics: Mapping[str, float]) -> None:
    """Raise UserError if a result with these metrics would be refused when it is read.

    The held-out measures may come from an edited checkpoint.
    """
    predictions = read_predictions.read_if_present(folder.evaluation)
    if predictions is not None:
        read_predictions.check_measures(folder.last / "progress.json", predictions, metrics)


def _write_result(ready: PreparedRun, start: Start, end: End, is_early: bool) -> None:
    """Write result.json, the run's last file: the run is finished once it exists.

    `is_early`: whether the run was finished before its last step.
    """
    request, state, data = ready.request, ready.state, _data_of_result(ready)
    teachers = state.identity["teacher"]
    early = finish_interrupted_run.described(state) if is_early else None
    write_results.write_result(
        state.folder,
        request.recipe,
        start,
        end,
        data,
        teachers,
        is_tested=request.is_tested,
        early=early,
    )


def _data_of_result(ready: PreparedRun) -> dict[str, Any]:
    """Return the fingerprints and class names of the images for result.json."""
    identity = ready.state.identity
    return {
        "fingerprint": ready.split.fingerprint,
        "class_names": list(ready.split.train.class_names),
        "test_fingerprint": identity["test"],
        "test_images": ready.test.n_images,
        "class_names_fingerprint": identity["class_names"],
    }


OPEN = ContextVar("OPEN", default=False)


@contextmanager
def process_group() -> Iterator[None]:
    """Destroy torch's process group at the end, so that torch prints no warning.

    Contexts may be nested: only the outermost one destroys the group, which all runs of a process
    share.
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
            gc.collect()  # frees DistributedDataParallel first: without its group it may hang
            torch.distributed.destroy_process_group()
