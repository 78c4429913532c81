"""A whole run, from a recipe to a finished folder, as a stream of events; and what a finished one is worth."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from distill import recipe as recipes
from distill import run_folder
from distill.data import sources
from distill.data.sources import ImageSet, Progress
from distill.engine import build, checkpoint, environment, train
from distill.engine.build import Split
from distill.engine.evaluate import logits_and_labels, measure, test_split
from distill.engine.metrics import measures
from distill.engine.teach import Frozen
from distill.engine.train import Training
from distill.errors import UserError
from distill.events import End, Event, Start, measure_name
from distill.recipe import Recipe
from distill.run_folder import Role, RunFolder

TEACHER_CHECK_IMAGES = 1024  # of the held-out ones: enough to see a teacher asleep, seconds to measure
N_MISTAKES = 64  # the most confident ones, kept with their pixels


@dataclass(frozen=True)
class Request:
    """What was asked for. `out=None` names the folder by recipe and time."""

    role: Role
    recipe: Recipe
    name: str  # of the recipe, as it was asked for
    out: Path | None = None
    resume: bool = False


def run(request: Request, *, progress: Progress | None = None) -> Iterator[Event]:
    """Train, select, then read the test split once. Yields nothing where the run is finished already.

    Raises UserError before any work where the request cannot be met; Diverged where training fails.
    """
    accel = build.accelerator(request.recipe)
    folder = _folder(request)
    if request.resume and folder.is_finished:
        return
    source = request.recipe.data.source
    sources.check(source)  # a missing test split is known now, not after the last epoch
    with accel.main_process_first():  # one process decodes, the others find the cache
        images = sources.load(source, "train", progress=progress)
    split = build.divide(request.recipe, images)
    request = _with_teacher(request, folder, images, split)
    _claim(folder, request)
    frozen = build.teacher(request.recipe, images, split)
    training = build.training(request.recipe, request.role, split, frozen, folder, accel)
    if request.resume:
        train.resume(training)
    accel.wait_for_everyone()  # until all have looked at the folder that is written now
    if accel.is_main_process:
        run_folder.write_text(folder.recipe, recipes.dumps(request.recipe))
        run_folder.write_json(folder.environment, environment.describe(accel))
    start = _head(request, training, split, frozen)
    yield start
    yield from train.train(training)
    yield _finish(request, training, split, frozen, start, progress)


def _folder(request: Request) -> RunFolder:
    """The run's folder, named once by rank 0."""
    named = [str(request.out or run_folder.default_path(request.name))]
    return RunFolder(Path(broadcast_object_list(named)[0]))


def _with_teacher(request: Request, folder: RunFolder, images: ImageSet, split: Split) -> Request:
    """The request with its teachers named: those given, those the resumed run had, or the newest."""
    recipe = request.recipe
    if not build.needs_teacher(recipe) or (recipe.teacher and recipe.teacher.runs):
        return request
    began_with = recipes.read(folder.recipe).teacher if request.resume and folder.is_run else None
    if began_with and began_with.runs:
        runs = list(began_with.runs)
    else:
        places = dict.fromkeys([folder.path.parent, Path("runs")])
        runs = [str(build.newest_teacher(images, split, places).path)]
    return replace(request, recipe=recipes.with_teacher(recipe, runs))


def _claim(folder: RunFolder, request: Request) -> None:
    """Raises UserError where the folder may not be written or resumed."""
    if not folder.is_run:
        return
    if not request.resume:
        raise UserError(
            f"{folder.path} already holds a run.\nContinue it with --resume, or choose another --out."
        )
    changed = recipes.differences(recipes.read(folder.recipe), request.recipe)
    if changed:
        raise UserError(
            f"{folder.path} cannot be resumed: the recipe differs from the one it began with:\n  "
            + "\n  ".join(changed)
            + "\nGive the same recipe and --set values, or choose another --out."
        )


def _teacher_runs(recipe: Recipe, frozen: Frozen | None) -> list[RunFolder]:
    if frozen is None or recipe.teacher is None:
        return []
    return [RunFolder(Path(path)) for path in recipe.teacher.runs]


def _head(request: Request, training: Training, split: Split, frozen: Frozen | None) -> Start:
    """Say what will be trained; the teacher is measured here, before hours are spent on its word."""
    accel, recipe = training.accelerator, request.recipe
    notes: list[str] = []
    teacher_top1 = None
    if frozen is not None:
        frozen.to(accel.device)
        seen = split.held_out or split.train
        some = sources.subset(seen, np.arange(min(TEACHER_CHECK_IMAGES, len(seen.labels))))
        teacher_top1 = measure(frozen, some, accel)["top1"]
        if split.held_out is None:
            notes.append("nothing is held out: the teacher's accuracy is that of training images")
        if teacher_top1 < 2 / split.train.n_classes:
            notes.append(f"the teacher is hardly above chance ({teacher_top1:.1%}): check its run")
    if split.held_out is None:
        notes.append("data.holdout = 0: no selection, the last epoch is kept")
    if accel.device.type == "cpu" and environment.precision_name(accel) != "fp32":
        notes.append("mixed precision on a CPU without native support is many times slower than fp32")
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
        teacher=" + ".join(str(r.path) for r in _teacher_runs(recipe, frozen)) or None,
        teacher_top1=teacher_top1,
        notes=tuple(notes),
    )


def _finish(
    request: Request,
    training: Training,
    split: Split,
    frozen: Frozen | None,
    start: Start,
    progress: Progress | None,
) -> End:
    """Read the kept weights back from disk, measure them on the test split, and leave the result."""
    accel, folder = training.accelerator, training.folder
    net = build.network(request.recipe, request.role, split.train.n_classes)
    checkpoint.load_weights(folder.best / "weights.safetensors", net)
    net.to(accel.device)
    test = test_split(request.recipe.data.source, progress=progress)
    logits, labels = logits_and_labels(net, test, accel)
    tested = {measure_name(name, "test"): value for name, value in measures(logits, labels).items()}
    metrics = training.best.metrics | tested
    opinion = None if frozen is None else logits_and_labels(frozen, test, accel)[0]
    end = End(
        epoch=training.best.epoch,
        metrics=metrics,
        parameters=start.parameters,
        elapsed_s=training.elapsed_s,
        weights=str(folder.weights(request.role)),
    )
    if accel.is_main_process:
        checkpoint.save_weights(folder.weights(request.role), checkpoint.weights_of(net))
        _write_evaluation(folder, test, logits, opinion)
        run_folder.write_json(folder.result_file, _result(request, split, start, end, training))
    accel.wait_for_everyone()
    return end


def _result(
    request: Request, split: Split, start: Start, end: End, training: Training
) -> dict[str, Any]:
    """The content of result.json."""
    return {
        "role": request.role,
        "recipe": request.name,
        "recipe_fingerprint": recipes.fingerprint(request.recipe),
        "network": start.network,
        "parameters": start.parameters,
        "class_names": list(split.train.class_names),
        "data": {
            "source": start.data,
            "fingerprint": split.fingerprint,
            "train_images": start.train_images,
            "val_images": start.val_images,
        },
        "teacher": {
            "runs": [] if start.teacher is None else start.teacher.split(" + "),
            "fingerprint": training.identity.get("teacher", ""),
            "top1": start.teacher_top1,
        },
        "epoch": end.epoch,
        "epochs": start.epochs,
        "metrics": end.metrics,
        "elapsed_s": end.elapsed_s,
        "device": start.device,
        "precision": start.precision,
        "processes": start.processes,
        "weights": checkpoint.fingerprint(training.folder.weights(request.role)),
        "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _write_evaluation(
    folder: RunFolder, test: ImageSet, logits: Tensor, opinion: Tensor | None
) -> None:
    """evaluation.npz: logits [N, C] in the split's order, labels, the teacher's logits, the worst mistakes."""
    predictions = logits.cpu()
    confidence, answer = predictions.softmax(dim=-1).max(dim=-1)
    wrong = torch.nonzero(answer != torch.from_numpy(test.labels)).flatten()
    worst = wrong[confidence[wrong].argsort(descending=True)][:N_MISTAKES].numpy()
    arrays = {
        "logits": predictions.numpy(),
        "labels": test.labels,
        "mistakes": worst,
        "mistake_pixels": test.images[worst],
    }
    if opinion is not None:
        arrays["teacher_logits"] = opinion.cpu().numpy()
    np.savez_compressed(folder.evaluation, **arrays)  # type: ignore[arg-type]


def evaluate(
    folder: RunFolder, source: str | None = None, *, progress: Progress | None = None
) -> dict[str, Any]:
    """A finished run on the test split of `source` (its own by default), in float32: top1, nll, ece, n.

    Raises UserError where the data has other classes than the run was trained for.
    """
    accel = Accelerator(mixed_precision="no")
    result = folder.result()
    wanted = source or recipes.read(folder.recipe).data.source
    test = test_split(wanted, progress=progress)
    if list(test.class_names) != result["class_names"]:
        raise UserError(
            f"run {folder.path} knows the classes {', '.join(result['class_names'])}; "
            f"{wanted} has {', '.join(test.class_names)}.\nGive --data with the run's own classes."
        )
    net = build.trained(folder).to(accel.device)
    values = measure(net, test, accel)
    return values | {
        "n": len(test.labels),
        "data": wanted,
        "run": str(folder.path),
        "network": result["network"],
        "parameters": _n_parameters(net),
    }


def _n_parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@contextmanager
def processes() -> Iterator[None]:
    """Leaves the process group cleanly, so that the last line on the screen is not torch's warning."""
    try:
        yield
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
