"""Save and restore the training state."""

import math
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from accelerate.utils import broadcast_object_list

from distill.components.fingerprints import CALLED
from distill.errors import UserError
from distill.events import Epoch
from distill.files.run_json_schemas import LONGEST_REASON
from distill.models import checkpoint, epoch_weights, out_of_memory
from distill.models.checkpoint import DamagedCheckpoint
from distill.runs import journal
from distill.runs.run_folder import RunFolder, check_inside_folder, file_sha256
from distill.training import check_saved_state
from distill.training.check_saved_state import UnfitState
from distill.training.train_state import BestEpoch, TrainState

ALWAYS = ("data", "teacher")  # the fingerprints that checkpoints of every version have
BRING_BACK = "Restore the checkpoint, or start again in another --out."
OWN_FILE = re.compile(  # in best/; the second is a partial file of `run_folder.write_bytes`
    r"epoch-\d+[.]safetensors|[.]epoch-\d+[.]safetensors[.][0-9a-f]{12}"
)
# The values of progress.json that resuming needs; the others have a default.
NEEDED = ("step", "epoch", "retries", "lr_factor", "elapsed_s", "best")


def save(state: TrainState) -> None:
    """Write the checkpoint `last/`, from which the run resumes exactly, after any step.

    New best weights are written to `best/` first. Raises Diverged if a loss or gradient was not
    finite, OSError if the disk is full, UserError if a folder of the run was replaced by a link;
    existing checkpoints then stay unchanged. Called by all processes.
    """
    state.divergence.raise_if_diverged()
    state.teacher.save()
    tensors = {name: part.state_dict() for name, part in state.stateful.items()}
    tensors["losses"] = {
        "epoch": state.epoch_losses.state_dict(state.accelerator),
        "log": state.log_losses.state_dict(state.accelerator),
    }
    if state.accelerator.is_main_process:
        check_inside_folder(state.folder)
        if state.best_weights is not None:
            path = best_file(state.folder, state.best)
            state.best.weights = checkpoint.save_weights(path, state.best_weights)
        checkpoint.save(state.folder.last, tensors, _progress(state))
        _delete_unreferenced_weights(state.folder)
    state.best_weights = None
    [state.best.weights] = broadcast_object_list([state.best.weights])
    state.mark_saved()


def _progress(state: TrainState) -> dict[str, Any]:
    return {
        "role": state.role,
        "step": state.step,
        "epoch": state.epoch,
        "total_steps": state.total_steps,
        "compiled": state.compiled,
        "elapsed_s": state.elapsed_s,
        "preparation_s": state.preparation_s,
        "retries": state.retries,
        "lr_factor": state.lr_factor,
        "best": vars(state.best),
    } | state.identity


def best_file(folder: RunFolder, best: BestEpoch) -> Path:
    """Return the path of the best epoch's weights.

    The file is named by the epoch, because `last/` and the previous checkpoint may refer to
    different ones.
    """
    return folder.best / f"epoch-{best.epoch}.safetensors"


def _delete_unreferenced_weights(folder: RunFolder) -> None:
    """Delete from `best/` the partial files and the weights that no checkpoint refers to."""
    referenced = set()
    for path in checkpoint.checkpoint_folders(folder.last):
        with suppress(DamagedCheckpoint):
            referenced.add(best_file(folder, _best_of(checkpoint.read_progress(path) or {}, path)))
    for file in folder.best.glob("*"):
        if OWN_FILE.fullmatch(file.name) and file not in referenced:
            file.unlink()


class Resumed(NamedTuple):
    """The progress.json of the restored checkpoint, and notes, such as on damaged newer ones.

    `progress` is empty if there was no checkpoint.
    """

    progress: dict[str, Any]
    notes: tuple[str, ...]


def resume(state: TrainState) -> Resumed:
    """Restore the newest undamaged checkpoint; without any checkpoint, stay at step 0.

    Raises UserError if all checkpoints are damaged, or if data or teacher changed.
    """
    newest = _newest_sound(state.folder) if state.accelerator.is_main_process else None
    [newest] = broadcast_object_list([newest])  # ranks may see a network disk in different states
    path, damaged = newest
    if path is None:
        if damaged:
            nothing = "No checkpoint is left: start again in another --out."
            raise UserError("\n".join([*dict.fromkeys(damaged), nothing]))
        return Resumed({}, ())
    try:
        tensors, progress = checkpoint.load(path)
    except DamagedCheckpoint as fault:  # as this process reads it: rank 0 found it sound
        raise UserError(
            f"{fault}, as process {state.accelerator.process_index} reads it.\n{BRING_BACK}"
        ) from fault
    check_identity(state, progress)
    _check_journal(state.folder, path, BestEpoch(**progress["best"]))
    restore_from(state, path, tensors, progress)
    if state.accelerator.is_main_process:
        epoch_weights.delete_after(state.folder, state.epoch)
    if damaged:
        _set_damaged_aside(state)
    continued = f"resumed from the previous one, after step {state.step:,}"
    notes = [f"{damage}: {continued}" for damage in damaged]
    return Resumed(progress, (*notes, *_missing_fingerprints_note(state, progress)))


def _check_complete(state: TrainState, path: Path, tensors: dict[str, Any]) -> None:
    """Raise UserError if a checkpoint lacks a part of the training state.

    The loss scaler of fp16 may be absent: a run that moved to another device gets a new one.
    """
    missing = [name for name in (*state.stateful, "losses") if name not in tensors]
    missing = [name for name in missing if name != "scaler"]
    if missing:
        raise UserError(
            f"{path} is not a checkpoint of this run: it has no state of {' and '.join(missing)}.\n"
            f"{BRING_BACK}"
        )


def _missing_fingerprints_note(state: TrainState, progress: dict[str, Any]) -> Iterator[str]:
    """Yield a note if an earlier version wrote the checkpoint, without some fingerprints."""
    missing = [CALLED[name] for name in state.identity if name not in progress]
    if missing:
        names = " and ".join(reversed(missing))
        yield (
            f"the checkpoint was written by an earlier version without its {names}, which is "
            "therefore not compared with the current one"
        )


def restore_from(
    state: TrainState, path: Path, tensors: dict[str, Any], progress: dict[str, Any]
) -> None:
    """Check and restore the state read from the checkpoint at `path`.

    `tensors`: its state dicts by name. `progress`: its progress.json. Raises UserError if a part of
    the training state is missing or does not fit this run.
    """
    _check_complete(state, path, tensors)
    try:
        restore(state, tensors, progress)
    except UnfitState as fault:
        raise UserError(
            f"{path} does not hold the state of this run: {fault}.\n{BRING_BACK}"
        ) from fault
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as fault:
        if out_of_memory.is_out_of_memory(fault):
            raise
        reason = (str(fault).splitlines() or [""])[0][:LONGEST_REASON]
        raise UserError(
            f"{path} does not hold the state of this run ({type(fault).__name__}: {reason}).\n"
            f"{BRING_BACK}"
        ) from fault


def _check_journal(folder: RunFolder, path: Path, best: BestEpoch) -> None:
    """Raise UserError if the journal has other measures of a checkpoint's best epoch.

    A journal that was deleted, or lacks the epoch, is not compared. `path`: the checkpoint.
    """
    recorded = [
        event.metrics
        for event in journal.events(folder.journal)
        if isinstance(event, Epoch) and event.epoch == best.epoch
    ]
    for name, value in best.metrics.items() if recorded else ():
        other = recorded[-1].get(name, math.nan)
        if other != value and (math.isfinite(other) or math.isfinite(value)):
            raise UserError(
                f"{path} contradicts {folder.journal.name}: epoch {best.epoch:,} has {name} = "
                f"{value:.4f} instead of {other:.4f}.\n{BRING_BACK}"
            )


def _best_of(progress: dict[str, Any], path: Path) -> BestEpoch:
    """Return the best epoch in a checkpoint's `progress`.

    Raises DamagedCheckpoint if a value that resuming needs is missing.
    """
    missing = [name for name in NEEDED if name not in progress]
    missing += [
        f"best.{name}" for name in vars(BestEpoch()) if name not in progress.get("best", {})
    ]
    if missing:
        raise DamagedCheckpoint(f"{path} is damaged: its progress.json has no {', '.join(missing)}")
    return BestEpoch(**progress["best"])


def _newest_sound(folder: RunFolder) -> tuple[Path | None, list[str]]:
    """Return the newest undamaged checkpoint, None without one, and messages on damaged newer
    ones.
    """
    damaged: list[str] = []
    for path in filter(Path.exists, checkpoint.checkpoint_folders(folder.last)):
        try:
            _check_best(folder, _best_of(checkpoint.read_verified(path)[1], path))
        except DamagedCheckpoint as fault:
            damaged.append(str(fault))
            continue
        except UserError:
            pass  # a checkpoint of another format: every process raises an error when it loads it
        return path, damaged
    return None, damaged


def _set_damaged_aside(state: TrainState) -> None:
    """Rename the damaged checkpoint `last/`, so that the next save does not preserve it as the
    previous one.
    """
    state.accelerator.wait_for_everyone()  # all have read the previous one
    newest = state.folder.last
    if state.accelerator.is_main_process and newest.exists():
        aside = newest.with_name(newest.name + ".damaged")
        checkpoint.delete(aside)
        newest.rename(aside)


def restore(state: TrainState, tensors: dict[str, Any], progress: dict[str, Any]) -> None:
    """Set the training state to the state of a checkpoint.

    Raises UnfitState, before anything is changed, if a part does not fit this run.
    """
    fitting = check_saved_state.checked_state(state, tensors, progress)
    for name, part in state.stateful.items():
        if name in fitting:  # a scaler is new if the device changed, and keeps its initial state
            part.load_state_dict(fitting[name])
    accelerator = state.accelerator
    state.epoch_losses.load_state_dict(tensors["losses"]["epoch"], accelerator)
    state.log_losses.load_state_dict(tensors["losses"]["log"], accelerator)
    state.step, state.epoch = progress["step"], progress["epoch"]
    state.retries, state.lr_factor = progress["retries"], progress["lr_factor"]
    state.best, state.best_weights = BestEpoch(**progress["best"]), None
    state.preparation_s = progress.get("preparation_s", 0.0)  # earlier versions did not save it
    state.start_clock(earlier_s=progress["elapsed_s"])


def check_identity(state: TrainState, progress: dict[str, Any]) -> None:
    """Raise UserError if data, teacher, test split or recipe changed since the checkpoint.

    Their fingerprints are compared; those that a checkpoint of an earlier version lacks are not.
    """
    changed = [
        CALLED[name]
        for name, value in state.identity.items()
        if progress.get(name, None if name in ALWAYS else value) != value
    ]
    if changed:
        raise UserError(
            f"{state.folder.path} cannot be resumed: its {' and '.join(changed)} changed since "
            "it started.\n"
            "Restore it, or start again in another --out."
        )


def _check_best(folder: RunFolder, best: BestEpoch) -> None:
    """Raise DamagedCheckpoint if the file of a checkpoint's best weights is missing or changed."""
    path = best_file(folder, best)
    if best.weights and (not path.exists() or file_sha256(path) != best.weights):
        raise DamagedCheckpoint(f"{path} is {'damaged' if path.exists() else 'missing'}")
