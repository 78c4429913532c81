"""Repeat one training step of a run exactly."""

import math
from typing import Any

from distill.data.sources.load_data_set import Progress
from distill.errors import UserError
from distill.events import loss_name
from distill.models import checkpoint
from distill.models.checkpoint import DamagedCheckpoint
from distill.recipe import recipes
from distill.runs.commands_to_repeat import continue_line
from distill.runs.run_folder import RunFolder
from distill.training import build, loop, resume
from distill.training.train_state import TrainState


def repeat_step(
    folder: RunFolder, step: int, *, progress: Progress | None = None
) -> dict[str, Any]:
    """Repeat step `step` (from 1, as in the journal) of a run; nothing is written.

    Starts from the newest checkpoint before that step, or from step 0, and takes the steps in
    between. Returns `step`, `from_step`, `epoch`, `view`, `lr`, `loss/<term>` and `loss/total` as
    in the journal, `gradient_norm` (before clipping; None under a loss scaler) and `is_finite`.
    Raises UserError if the run has no checkpoint or no such step, or if its data or teacher
    changed.
    """
    recipe = recipes.read(folder.recipe)
    newest = checkpoint.read_progress(folder.last) or checkpoint.read_progress(
        checkpoint.checkpoint_folders(folder.last)[1]
    )
    if newest is None:
        raise UserError(
            f"run {folder.path} has no checkpoint, so none of its steps can be repeated.\n"
            f"{continue_line(folder)}"
        )
    total_steps = newest["total_steps"]
    if not 1 <= step <= total_steps:
        raise UserError(
            f"--step {step} is not a step of {folder.path}; allowed: 1 to {total_steps}."
        )
    state = build.build(recipe, newest["role"], folder, progress=progress)
    resume.check_identity(state, newest)
    build.set_total_steps(state, recipe, total_steps)
    _restore_checkpoint_before(state, step)
    return _repeat_until(state, step, progress)


def _restore_checkpoint_before(state: TrainState, step: int) -> None:
    """Restore the newest undamaged checkpoint from before step `step`, if there is one."""
    for path in checkpoint.checkpoint_folders(state.folder.last):
        try:
            tensors, progress = checkpoint.load(path)
        except DamagedCheckpoint:
            continue
        if progress["step"] < step:
            resume.restore_from(state, path, tensors, progress)
            return


def _repeat_until(state: TrainState, step: int, progress: Progress | None) -> dict[str, Any]:
    """Take the steps up to `step`; return the measurements of the last one."""
    from_step = state.step
    state.divergence.at_once = False  # report a step that diverges instead of raising
    state.model_ddp.train()
    for k in range(from_step, step - 1):
        loop.step(state, k)
        if progress is not None:
            progress("taking the steps before it", k + 1 - from_step, step - 1 - from_step)
    [(view, _), *_] = state.loader.batches(step - 1)
    terms = {name: value.item() for name, value in loop.step(state, step - 1).items()}
    norm = None if state.divergence.gradient is None else state.divergence.gradient.item()
    return {
        "step": step,
        "from_step": from_step,
        "epoch": (step - 1) // state.loader.steps_per_epoch + 1,
        "view": view.number,
        "lr": state.lr(step - 1) * state.lr_factor,
        **{loss_name(name): value for name, value in terms.items()},
        "gradient_norm": norm,
        "is_finite": all(map(math.isfinite, [*terms.values(), norm or 0.0])),
    }
