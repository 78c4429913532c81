"""A whole run, from a recipe to a finished folder, as a stream of events; a run measured again."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn

from distill import recipe as recipes
from distill import run_folder
from distill.data import sources
from distill.data.sources import ImageSet, Progress
from distill.engine import build, checkpoint, enlist, environment, result, stored, train
from distill.engine.build import Division
from distill.engine.evaluate import logits_and_labels, measure, test_split
from distill.engine.metrics import measures
from distill.engine.teach import Frozen
from distill.engine.train import Training
from distill.errors import UserError
from distill.events import End, Event, Start, measure_name
from distill.recipe import Recipe
from distill.run_folder import Role, RunFolder

TEACHER_CHECK_IMAGES = 1024  # of the held-out ones: enough to see a teacher asleep, seconds to ask


@dataclass(frozen=True)
class Request:
    """What was asked for. `out=None` names the folder by recipe and time."""

    role: Role
    recipe: Recipe
    name: str  # of the recipe, as it was asked for
    out: Path | None = None
    resume: bool = False


@dataclass(frozen=True)
class Run:
    """A request with everything it needs, ready to train."""

    request: Request
    split: Division
    teacher: Frozen | None
    training: Training


def run(request: Request, *, progress: Progress | None = None) -> Iterator[Event]:
    """Train, select, then read the test split once.

    Yields nothing where the run is finished already. Raises UserError before any work where the
    request cannot be met; Diverged where training fails.
    """
    accel = build.accelerator(request.recipe)
    folder = _folder(request)
    if request.resume and folder.is_finished:
        return
    ready = _prepare(request, folder, accel, progress)
    start = _head(ready)
    yield start
    yield from train.train(ready.training)
    yield _finish(ready, start, progress)


def _folder(request: Request) -> RunFolder:
    """The run's folder, named once by rank 0."""
    named = [str(request.out or run_folder.default_path(request.name))]
    return RunFolder(Path(broadcast_object_list(named)[0]))


def _prepare(
    request: Request, folder: RunFolder, accel: Accelerator, progress: Progress | None
) -> Run:
    """Data, teacher and network, and the folder with what describes the run."""
    source = request.recipe.data.source
    sources.check(source)  # a missing test split is known now, not after the last epoch
    with accel.main_process_first():  # one process decodes, the others find the cache
        images = sources.load(source, "train", progress=progress)
    split = build.divide(request.recipe, images)
    earlier = recipes.read(folder.recipe) if request.resume and folder.is_run else None
    places = dict.fromkeys([folder.path.parent, run_folder.RUNS])
    recipe = enlist.with_teachers(request.recipe, images, split, earlier, places)
    recipe = broadcast_object_list([recipe])[0]  # of two newest teachers, rank 0's
    request = replace(request, recipe=recipe)
    _claim(folder, request)
    teacher = enlist.teacher(recipe, images, split)
    if teacher is not None:
        build.to_device(teacher, accel.device)
    identity = {"data": images.fingerprint, "teacher": enlist.fingerprints(recipe)}
    training = build.training(recipe, request.role, split, teacher, folder, accel, identity)
    if request.resume:
        train.resume(training)
    accel.wait_for_everyone()  # all have looked at the folder before it is written
    if accel.is_main_process:
        run_folder.write_text(folder.recipe, recipes.dumps(recipe))
        run_folder.write_json(folder.environment, environment.describe(accel))
    return Run(request, split, teacher, training)


def _claim(folder: RunFolder, request: Request) -> None:
    """Raises UserError where the folder may not be written or resumed."""
    run_folder.check_out(folder, request.resume)
    if folder.is_run:
        run_folder.check_same(folder, request.recipe)


def _head(ready: Run) -> Start:
    """Say what will be trained; the teacher is asked here, before hours are spent on its word."""
    request, split, training = ready.request, ready.split, ready.training
    accel, recipe = training.accelerator, request.recipe
    teacher_top1 = None if ready.teacher is None else _ask(ready.teacher, split, accel)
    return Start(
        run=str(training.folder.path),
        role=request.role,
        recipe=request.name,
        network=build.network_name(recipe, request.role, split.train.n_classes),
        parameters=_n_parameters(training.student),
        data=recipe.data.source,
        train_images=len(split.train.labels),
        val_images=0 if split.held_out is None else len(split.held_out.labels),
        n_classes=split.train.n_classes,
        processes=accel.num_processes,
        device=str(accel.device),
        precision=environment.precision_name(accel),
        batch_size=recipe.train.batch_size,
        epochs=training.epochs,
        steps_per_epoch=training.loader.steps_per_epoch,
        first_step=training.step,
        teacher=" + ".join(str(run.path) for run in enlist.named(recipe)) or None,
        teacher_top1=teacher_top1,
        notes=tuple(_notes(recipe, split, accel, teacher_top1)),
    )


def _ask(teacher: Frozen, split: Division, accel: Accelerator) -> float:
    """The teacher's accuracy on some held-out images; on training images where none are."""
    images = split.held_out or split.train
    some = np.arange(min(TEACHER_CHECK_IMAGES, len(images.labels)))
    return measure(teacher, sources.subset(images, some), accel)["top1"]


def _notes(
    recipe: Recipe, split: Division, accel: Accelerator, teacher_top1: float | None
) -> Iterator[str]:
    """What the user should know before hours are spent."""
    if recipe.cache is not None and teacher_top1 is not None:
        yield _store(recipe, split)
    if split.held_out is None:
        yield "data.holdout = 0: nothing is selected, the last epoch is kept"
        if teacher_top1 is not None:
            yield "nothing is held out: the teacher's accuracy is that of training images"
    if teacher_top1 is not None and teacher_top1 < 2 / split.train.n_classes:
        yield f"the teacher is hardly above chance ({teacher_top1:.1%}): look at its run"
    if accel.device.type == "cpu" and environment.precision_name(accel) != "fp32":
        yield "mixed precision on a CPU is many times slower than fp32 where it is not native"


def _store(recipe: Recipe, split: Division) -> str:
    """Where the teacher's answers are kept, and how large that becomes."""
    views = (recipe.cache and recipe.cache.views) or recipe.train.epochs
    n_bytes = views * len(split.train.labels) * split.train.n_classes * stored.BYTES
    return (
        f"the teacher's answers are kept in {stored.folder()}, {n_bytes / 1e6:.1f} MB when all "
        f"{views} views are there; a view that is there is not asked again"
    )


def _finish(ready: Run, start: Start, progress: Progress | None) -> End:
    """Read the kept weights back, measure them on the test split in float32, leave the result."""
    request, split, training = ready.request, ready.split, ready.training
    accel, folder, best = training.accelerator, training.folder, training.best
    net = build.network(request.recipe, request.role, split.train.n_classes)
    checkpoint.load_weights(train.best_file(training), net)
    build.to_device(net, accel.device)
    with accel.main_process_first():
        test = test_split(request.recipe.data.source, progress=progress)
    logits, labels = logits_and_labels(net, test, accel)
    tested = {measure_name(name, "test"): value for name, value in measures(logits, labels).items()}
    teacher = ready.teacher
    teacher_logits = None if teacher is None else logits_and_labels(teacher, test, accel)[0]
    weights = folder.weights(request.role)
    end = End(best.epoch, best.metrics | tested, start.parameters, training.elapsed_s, str(weights))
    if accel.is_main_process:
        checkpoint.save_weights(weights, checkpoint.weights_of(net))
        result.write_evaluation(folder, test, logits, teacher_logits)
        data = {"fingerprint": split.fingerprint, "class_names": list(split.train.class_names)}
        teachers = training.identity["teacher"]
        result.write_result(folder, request.recipe, start, end, data, teachers)
    accel.wait_for_everyone()
    return end


def evaluate(
    folder: RunFolder, source: str | None = None, *, progress: Progress | None = None
) -> dict[str, Any]:
    """A finished run on the test split of `source` (its own by default), in float32.

    Keys: `top1`, `nll`, `ece`, `n`, and what was measured. Raises UserError where the data has
    other classes than the run was trained for.
    """
    accel = build.measuring_accelerator()
    known = folder.result()
    wanted = source or recipes.read(folder.recipe).data.source
    test = test_split(wanted, progress=progress)
    _check_classes(folder, known["class_names"], wanted, test)
    net = build.to_device(build.trained(folder), accel.device)
    return measure(net, test, accel) | {
        "n": len(test.labels),
        "data": wanted,
        "run": str(folder.path),
        "network": known["network"],
        "parameters": _n_parameters(net),
    }


def _check_classes(folder: RunFolder, known: list[str], source: str, test: ImageSet) -> None:
    if list(test.class_names) != known:
        raise UserError(
            f"run {folder.path} knows the classes {', '.join(known)}; "
            f"{source} has {', '.join(test.class_names)}.\n"
            "Give --data with the run's own classes."
        )


def _n_parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@contextmanager
def processes() -> Iterator[None]:
    """Leaves the process group cleanly: the last line on the screen is not torch's warning."""
    try:
        yield
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            gc.collect()  # DistributedDataParallel must go first: without its group it may hang
            torch.distributed.destroy_process_group()
