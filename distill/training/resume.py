"""Save and restore the training state."""

import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from accelerate.utils import broadcast_object_list

from distill.components.fingerprints import CALLED
from distill.errors import UserError
from distill.files.json_files import LONGEST_REASON
from distill.models import checkpoint, epoch_weights, out_of_memory
from distill.models.checkpoint import DamagedCheckpoint
from distill.runs.run_folder import RunFolder
from distill.training.state import BestEpoch, TrainState

ALWAYS = ("data", "teacher")  # the fingerprints that every checkpoint has
BRING_BACK = "Bring the checkpoint back, or begin anew in another --out."
# What a run needs to be resumed from; the rest has a default.
NEEDED = ("step", "epoch", "retries", "lr_factor", "elapsed_s", "best")


def save(run: TrainState) -> None:
    """Write `best/`, if there is a new one, and `last/`: enough to resume exactly, at any step.

    Raises Diverged where what would be saved is no good, OSError where the disk does not take it;
    the checkpoints that are there stay as they are. Called by all processes.
    """
    run.divergence.raise_if_diverged()
    run.teacher.save()
    tensors = {name: part.state_dict() for name, part in run.stateful.items()}
    tensors["losses"] = {
        "epoch": run.epoch_losses.state_dict(run.accelerator),
        "log": run.log_losses.state_dict(run.accelerator),
    }
    if run.accelerator.is_main_process:
        if run.best_weights is not None:
            path = best_file(run.folder, run.best)
            run.best.weights = checkpoint.save_weights(path, run.best_weights)
        checkpoint.save(run.folder.last, tensors, _progress(run))
        _delete_unreferenced_weights(run.folder)
    run.best_weights = None
    [run.best.weights] = broadcast_object_list([run.best.weights])
    run.mark_saved()


def _progress(run: TrainState) -> dict[str, Any]:
    return {
        "role": run.role,
        "step": run.step,
        "epoch": run.epoch,
        "total_steps": run.total_steps,
        "compiled": run.compiled,
        "elapsed_s": run.elapsed_s,
        "retries": run.retries,
        "lr_factor": run.lr_factor,
        "best": vars(run.best),
    } | run.identity


def best_file(folder: RunFolder, best: BestEpoch) -> Path:
    """The weights of the best epoch. Named by it, so that no checkpoint finds another's."""
    return folder.best / f"epoch-{best.epoch}.safetensors"


def _delete_unreferenced_weights(folder: RunFolder) -> None:
    """Weights that no checkpoint speaks of."""
    spoken_of = set()
    for place in checkpoint.checkpoint_folders(folder.last):
        with suppress(DamagedCheckpoint):
            spoken_of.add(best_file(folder, _best_of(checkpoint.read_progress(place) or {}, place)))
    for path in (*folder.best.glob("epoch-*"), *folder.best.glob(".epoch-*")):  # and halves of them
        if path not in spoken_of:
            path.unlink()


class Resumed(NamedTuple):
    """What a checkpoint says beside its tensors, and what was wrong with newer ones."""

    progress: dict[str, Any]
    notes: tuple[str, ...]


def resume(run: TrainState) -> Resumed:
    """Put the run back to its newest sound checkpoint; to the start where there is none.

    Raises UserError where there are some and none is sound, or where data or teacher are others.
    """
    found = _newest_sound(run.folder) if run.accelerator.is_main_process else None
    [found] = broadcast_object_list([found])  # on a network, disks may show each another state
    place, damaged = found
    if place is None:
        if damaged:
            nothing = "Nothing is left of it: begin anew in another --out."
            raise UserError("\n".join([*dict.fromkeys(damaged), nothing]))
        return Resumed({}, ())
    try:
        tensors, progress = checkpoint.load(place)
    except DamagedCheckpoint as fault:  # to this process alone
        raise UserError(
            f"{fault}, as process {run.accelerator.process_index} reads it.\n{BRING_BACK}"
        ) from fault
    check_identity(run, progress)
    restore_from(run, place, tensors, progress)
    if run.accelerator.is_main_process:
        epoch_weights.delete_later(run.folder, run.epoch)
    if damaged:
        _set_damaged_aside(run)
    went = f"gone on from the one before, after step {run.step:,}"
    notes = [f"{fault}: {went}" for fault in damaged]
    return Resumed(progress, (*notes, *_missing_fingerprints(run, progress)))


def _check_complete(run: TrainState, place: Path, tensors: dict[str, Any]) -> None:
    """Raises UserError if a checkpoint lacks a part of the training state.

    The scaler of fp16 may be absent: it is new if the device changed.
    """
    missing = [name for name in (*run.stateful, "losses") if name not in tensors]
    missing = [name for name in missing if name != "scaler"]
    if missing:
        raise UserError(
            f"{place} is no checkpoint of this run: it has no state of {' and '.join(missing)}.\n"
            f"{BRING_BACK}"
        )


def _missing_fingerprints(run: TrainState, progress: dict[str, Any]) -> Iterator[str]:
    """The fingerprints that a checkpoint of an earlier version lacks."""
    lacking = [CALLED[name] for name in run.identity if name not in progress]
    if lacking:
        names = " and ".join(reversed(lacking))
        yield (
            f"the checkpoint is of an earlier version: it does not name its {names}, which is "
            "therefore not compared with today's"
        )


def restore_from(
    run: TrainState, place: Path, tensors: dict[str, Any], progress: dict[str, Any]
) -> None:
    """`restore`, from the checkpoint at `place`. Raises UserError if it lacks a part of the
    training state, or if a part does not fit this run.
    """
    _check_complete(run, place, tensors)
    try:
        restore(run, tensors, progress)
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as fault:
        if out_of_memory.is_out_of_memory(fault):
            raise
        reason = (str(fault).splitlines() or [""])[0][:LONGEST_REASON]
        raise UserError(
            f"{place} does not hold the state of this run ({type(fault).__name__}: {reason}).\n"
            f"{BRING_BACK}"
        ) from fault


def _best_of(progress: dict[str, Any], place: Path) -> BestEpoch:
    """The best epoch by a checkpoint. Raises Damaged if a value to resume from is missing."""
    missing = [name for name in NEEDED if name not in progress]
    missing += [
        f"best.{name}" for name in vars(BestEpoch()) if name not in progress.get("best", {})
    ]
    if missing:
        raise DamagedCheckpoint(
            f"{place} is damaged: its progress.json has no {', '.join(missing)}"
        )
    return BestEpoch(**progress["best"])


def _newest_sound(folder: RunFolder) -> tuple[Path | None, list[str]]:
    """The checkpoint to go on from, and what is wrong with newer ones."""
    damaged: list[str] = []
    for place in filter(Path.exists, checkpoint.checkpoint_folders(folder.last)):
        try:
            _check_best(folder, _best_of(checkpoint.read_verified(place)[1], place))
        except DamagedCheckpoint as fault:
            damaged.append(str(fault))
            continue
        except UserError:
            pass  # of another format: all processes are to refuse it
        return place, damaged
    return None, damaged


def _set_damaged_aside(run: TrainState) -> None:
    """The damaged checkpoint out of the way: the next save must not take it for the one before."""
    run.accelerator.wait_for_everyone()  # all have read the one before
    newest = run.folder.last
    if run.accelerator.is_main_process and newest.exists():
        aside = newest.with_name(newest.name + ".damaged")
        shutil.rmtree(aside, ignore_errors=True)
        newest.rename(aside)


def restore(run: TrainState, tensors: dict[str, Any], progress: dict[str, Any]) -> None:
    """Everything as the checkpoint has it."""
    for name, part in run.stateful.items():
        if name in tensors:  # a scaler is new where the device changed, and begins anew
            part.load_state_dict(tensors[name])
    accelerator = run.accelerator
    run.epoch_losses.load_state_dict(tensors["losses"]["epoch"], accelerator)
    run.log_losses.load_state_dict(tensors["losses"]["log"], accelerator)
    run.step, run.epoch = progress["step"], progress["epoch"]
    run.retries, run.lr_factor = progress["retries"], progress["lr_factor"]
    run.best, run.best_weights = BestEpoch(**progress["best"]), None
    run.start_clock(earlier_s=progress["elapsed_s"])


def check_identity(run: TrainState, progress: dict[str, Any]) -> None:
    """Raises UserError if the checkpoint is of other data, another teacher, test split or recipe.

    A checkpoint of an earlier version lacks some of these fingerprints: they are not compared.
    """
    changed = [
        CALLED[name]
        for name, value in run.identity.items()
        if progress.get(name, None if name in ALWAYS else value) != value
    ]
    if changed:
        raise UserError(
            f"{run.folder.path} cannot be resumed: its {' and '.join(changed)} changed since "
            "it began.\n"
            "Bring the former back, or begin anew with another --out."
        )


def _check_best(folder: RunFolder, best: BestEpoch) -> None:
    """Raises Damaged where the weights that a checkpoint speaks of are not as they were."""
    path = best_file(folder, best)
    if best.weights and (not path.exists() or checkpoint.weights_fingerprint(path) != best.weights):
        raise DamagedCheckpoint(f"{path} is {'damaged' if path.exists() else 'not there any more'}")
