"""Finish a run that was cut off with the best weights that it has so far."""

from accelerate.utils import broadcast_object_list

from distill.errors import UserError
from distill.models import checkpoint
from distill.runs.commands_to_repeat import continue_line
from distill.training import loop
from distill.training.resume import best_file
from distill.training.train_state import BestEpoch, TrainState


def check_is_trained(state: TrainState) -> None:
    """Raise UserError if a restored run has taken no step, so that its weights are the initial
    ones.
    """
    if state.step == 0:
        raise UserError(
            f"run {state.folder.path} has no checkpoint of a trained step, so it has no weights to "
            f"finish with.\n{continue_line(state.folder)}"
        )


def is_cut_off(state: TrainState) -> bool:
    """Whether steps are left. If none are, ending the last epoch as usual finishes the run."""
    return state.step < state.total_steps


def select_weights(state: TrainState) -> None:
    """Select the weights of the best finished epoch, as a run does that trains to its end.

    Before the end of the first epoch there is none: the current weights are then measured on the
    held-out images and saved as those of epoch 0. No checkpoint refers to them, so that a training
    continued from the checkpoint is not changed by them. Called by all processes.
    """
    state.start_clock()  # the time of the preparations is no time of training
    if state.best.epoch:
        return
    loop.re_estimate_batch_norm(state)
    loop.broadcast_buffers(state)
    state.best = BestEpoch(0, loop.validate(state))
    if state.accelerator.is_main_process:
        weights = checkpoint.copy_weights(state.final_weights)
        state.best.weights = checkpoint.save_weights(best_file(state.folder, state.best), weights)
    [state.best.weights] = broadcast_object_list([state.best.weights])


def described(state: TrainState) -> dict[str, int]:
    """Return the table `finished_early` of result.json: what was trained, and what was planned."""
    return {
        "epochs": state.epoch,
        "planned_epochs": state.epochs,
        "steps": state.step,
        "planned_steps": state.total_steps,
    }
