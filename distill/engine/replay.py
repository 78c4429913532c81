"""One step of a run again: all that is random is a function of the step, so it is the same step."""

import math
from typing import Any

from distill import recipe as recipes
from distill.data import sources
from distill.data.sources import Progress
from distill.engine import build, checkpoint, enlist, identity, saving, train
from distill.engine.checkpoint import Damaged
from distill.engine.training import Training
from distill.errors import UserError
from distill.events import loss_name
from distill.run_folder import RunFolder


def replay(folder: RunFolder, step: int, *, progress: Progress | None = None) -> dict[str, Any]:
    """Step `step` (from 1, as the journal counts) of a run, as it was; nothing is written.

    Begins at the newest checkpoint before it, else at the start, and takes the steps in between.
    Keys: `step`, `from_step`, `epoch`, `view`, `lr`, `loss/<term>` and `loss/total` as the journal
    has them, `gradient_norm` (before it is bound; None under a loss scaler), `is_finite`. Raises
    UserError where the run has no such step, or where its data or teacher changed.
    """
    recipe = recipes.read(folder.recipe)
    known = checkpoint.peek(folder.last) or checkpoint.peek(checkpoint.places(folder.last)[1])
    if known is None:
        raise UserError(
            f"run {folder.path} has no checkpoint: nothing is known of its steps.\n"
            "Begin it by its own command with --resume."
        )
    if not 1 <= step <= known["total_steps"]:
        raise UserError(
            f"--step {step} is no step of {folder.path}; allowed: 1 to {known['total_steps']}."
        )
    accel = build.accelerator(recipe)
    images = sources.load(recipe.data.source, "train", progress=progress)
    split = build.divide(recipe, images)
    teacher = enlist.teacher(recipe, images, split)
    if teacher is not None:
        build.to_device(teacher, accel.device)
    known_by = identity.identity(recipe, images, enlist.fingerprints(recipe))
    run = build.training(recipe, known["role"], split, teacher, folder, accel, known_by)
    saving.check_identity(run, known)
    build.lasting(run, recipe, known["total_steps"])
    _go_before(run, step)
    return _taken(run, step, progress)


def _go_before(run: Training, step: int) -> None:
    """To the newest sound checkpoint before that step."""
    for place in checkpoint.places(run.folder.last):
        try:
            tensors, progress = checkpoint.load(place)
        except Damaged:
            continue
        if progress["step"] < step:
            saving.restore_from(run, place, tensors, progress)
            return


def _taken(run: Training, step: int, progress: Progress | None) -> dict[str, Any]:
    """The steps up to `step`, and what is to be said of that one."""
    from_step = run.step
    run.watch.at_once = False  # what diverged is to be seen
    run.net.train()
    for k in range(from_step, step - 1):
        train.step(run, k)
        if progress is not None:
            progress("taking the steps before it", k + 1 - from_step, step - 1 - from_step)
    [(view, _), *_] = run.loader.batches(step - 1)
    terms = {name: value.item() for name, value in train.step(run, step - 1).items()}
    norm = None if run.watch.gradient is None else run.watch.gradient.item()
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
