"""Repeat one training step of a run exactly."""

import math
from typing import Any

from distill.components import fingerprints
from distill.components.data_pipeline import split_images
from distill.components.device import build_accelerator
from distill.components.network import to_device
from distill.data.sources import image_set
from distill.data.sources.image_set import Progress
from distill.errors import UserError
from distill.events import loss_name
from distill.models import checkpoint
from distill.models.checkpoint import DamagedCheckpoint
from distill.recipe import recipes
from distill.runs.run_folder import RunFolder
from distill.teacher import selection
from distill.training import build, loop, resume
from distill.training.state import TrainState


def replay(folder: RunFolder, step: int, *, progress: Progress | None = None) -> dict[str, Any]:
    """Step `step` (from 1, as the journal counts) of a run, as it was; nothing is written.

    Begins at the newest checkpoint before it, else at the start, and takes the steps in between.
    Keys: `step`, `from_step`, `epoch`, `view`, `lr`, `loss/<term>` and `loss/total` as the journal
    has them, `gradient_norm` (before it is bound; None under a loss scaler), `is_finite`. Raises
    UserError where the run has no such step, or where its data or teacher changed.
    """
    recipe = recipes.read(folder.recipe)
    known = checkpoint.read_progress(folder.last) or checkpoint.read_progress(
        checkpoint.checkpoint_folders(folder.last)[1]
    )
    if known is None:
        raise UserError(
            f"run {folder.path} has no checkpoint: nothing is known of its steps.\n"
            "Begin it by its own command with --resume."
        )
    if not 1 <= step <= known["total_steps"]:
        raise UserError(
            f"--step {step} is no step of {folder.path}; allowed: 1 to {known['total_steps']}."
        )
    accel = build_accelerator(recipe)
    images = image_set.load(recipe.data.source, "train", progress=progress)
    split = split_images(recipe, images)
    teacher = selection.load_teacher(recipe, images, split)
    if teacher is not None:
        to_device(teacher, accel.device)
    known_by = fingerprints.identity(recipe, images, selection.teachers_fingerprint(recipe))
    run = build.build_state(recipe, known["role"], split, teacher, folder, accel, known_by)
    resume.check_identity(run, known)
    build.set_total_steps(run, recipe, known["total_steps"])
    _restore_before(run, step)
    return _repeat_until(run, step, progress)


def _restore_before(run: TrainState, step: int) -> None:
    """To the newest sound checkpoint before that step."""
    for place in checkpoint.checkpoint_folders(run.folder.last):
        try:
            tensors, progress = checkpoint.load(place)
        except DamagedCheckpoint:
            continue
        if progress["step"] < step:
            resume.restore_from(run, place, tensors, progress)
            return


def _repeat_until(run: TrainState, step: int, progress: Progress | None) -> dict[str, Any]:
    """The steps up to `step`, and what is to be said of that one."""
    from_step = run.step
    run.divergence.at_once = False  # what diverged is to be seen
    run.model_ddp.train()
    for k in range(from_step, step - 1):
        loop.step(run, k)
        if progress is not None:
            progress("taking the steps before it", k + 1 - from_step, step - 1 - from_step)
    [(view, _), *_] = run.loader.batches(step - 1)
    terms = {name: value.item() for name, value in loop.step(run, step - 1).items()}
    norm = None if run.divergence.gradient is None else run.divergence.gradient.item()
    return {
        "step": step,
        "from_step": from_step,
        "epoch": (step - 1) // run.loader.steps_per_epoch + 1,
        "view": view.number,
        "lr": run.lr(step - 1) * run.lr_factor,
        **{loss_name(name): value for name, value in terms.items()},
        "gradient_norm": norm,
        "is_finite": all(map(math.isfinite, [*terms.values(), norm or 0.0])),
    }
