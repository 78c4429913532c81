"""Save and load weights and training checkpoints.

All randomness is a function of (seed, view, sample) or (seed, step, rank), so no random state is
stored. The teacher is not stored: its fingerprint is in the result. A checkpoint is written beside
the one before, read again, and only then takes its name; the one before stays, for the case that
the disk damages the new one. One digest covers all that is in it.
"""

import hashlib
import io
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from distill.errors import UserError
from distill.files import json_files
from distill.models import out_of_memory
from distill.runs.run_folder import write_bytes

FORMAT = 2


class DamagedCheckpoint(Exception):
    """A checkpoint that is not what was written."""


def checkpoint_folders(folder: Path) -> list[Path]:
    """Where a checkpoint may lie: the newest, and the one before."""
    return [folder, folder.with_name(folder.name + ".old")]


def save(folder: Path, tensors: dict[str, Any], progress: dict[str, Any]) -> None:
    """Write `tensors` (state dicts by name) and `progress` (plain JSON) as one checkpoint.

    Raises OSError where the disk does not take it or gives back something else; what was there
    before is whole then.
    """
    new, (_, old) = folder.with_name(folder.name + ".new"), checkpoint_folders(folder)
    shutil.rmtree(new, ignore_errors=True)
    try:
        _write_and_verify(new, tensors, progress)
    except OSError:
        shutil.rmtree(new, ignore_errors=True)  # on a full disk the half of it is in the way
        raise
    if folder.exists():  # else `old` is the only whole one, and stays until the new one stands
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    new.rename(folder)
    _sync_folder(folder.parent)


def _write_and_verify(new: Path, tensors: dict[str, Any], progress: dict[str, Any]) -> None:
    """Both files, and read them again."""
    new.mkdir(parents=True)
    buffer = io.BytesIO()  # torch's own writer turns a full disk into a RuntimeError
    torch.save(tensors, buffer)
    state, progress = buffer.getvalue(), progress | {"format": FORMAT}
    write_bytes(new / "state.pt", state)
    described = progress | {"sha256": digest_of(state, progress)}
    write_bytes(new / "progress.json", (json.dumps(described, sort_keys=True) + "\n").encode())
    try:
        read_verified(new)
    except DamagedCheckpoint as fault:
        raise OSError(f"{new} was written and does not read as it was: {fault}") from fault


def read_progress(place: Path) -> dict[str, Any] | None:
    """What a checkpoint says beside its tensors; None where there is none that is sound."""
    try:
        return read_verified(place)[1]
    except (DamagedCheckpoint, UserError):
        return None


def load(place: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(tensors, progress) of the checkpoint at `place`, the tensors on the host.

    Raises Damaged where a bit of it is not as it was written, UserError for another format.
    """
    state, progress = read_verified(place)
    try:
        tensors = torch.load(io.BytesIO(state), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as fault:  # ours calls nothing
        raise DamagedCheckpoint(f"{place} wants to run code, and is not loaded: {fault}") from fault
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError, EOFError) as fault:
        if out_of_memory.is_out_of_memory(fault):
            raise
        raise DamagedCheckpoint(
            f"{place} is damaged: its state.pt is not what torch wrote"
        ) from fault
    if not isinstance(tensors, dict):
        raise DamagedCheckpoint(f"{place} is damaged: its state.pt holds no state dicts")
    return tensors, progress


def read_verified(place: Path) -> tuple[bytes, dict[str, Any]]:
    """(the tensors' bytes, progress) of the checkpoint at `place`; raises as `load` does."""
    try:
        progress = json_files.parsed(json_files.content_of(place / "progress.json"))
        state = (place / "state.pt").read_bytes()
        format_, written = progress["format"], progress.pop("sha256", None)
    except OSError as fault:
        raise DamagedCheckpoint(
            f"{place} cannot be read: {fault.strerror} ({fault.filename})"
        ) from fault
    except (ValueError, KeyError, TypeError, AttributeError) as fault:
        raise DamagedCheckpoint(
            f"{place} is damaged: its progress.json is not what was written"
        ) from fault
    is_whole = written == digest_of(state, progress)
    if format_ != FORMAT and (is_whole or written is None):  # format 1 had no digest
        raise UserError(
            f"{place} is a checkpoint of format {format_}; this program reads {FORMAT}.\n"
            "Resume it with the version that wrote it, or choose another --out."
        )
    if not is_whole:
        raise DamagedCheckpoint(
            f"{place} is damaged: its sha256 is not the one it was written with"
        )
    try:
        json_files.check(json_files.Progress, progress)
    except json_files.Invalid as fault:
        raise DamagedCheckpoint(f"{place} is damaged: its progress.json has {fault}") from None
    return state, progress


def digest_of(state: bytes, progress: dict[str, Any]) -> str:
    """sha256 over both parts; JSON writes a float so that it reads the same."""
    digest = hashlib.sha256(json.dumps(progress, sort_keys=True).encode() + b"\0")
    digest.update(state)
    return digest.hexdigest()


def _sync_folder(folder: Path) -> None:
    """The renames themselves reach the disk; only POSIX lets a folder be flushed."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def copy_weights(net: nn.Module) -> dict[str, Tensor]:
    """A copy of parameters and buffers, contiguous and on the host: what a weights file holds."""
    state = net.state_dict()
    return {name: t.detach().to("cpu", copy=True).contiguous() for name, t in state.items()}


def save_weights(path: Path, weights: dict[str, Tensor]) -> str:
    """One safetensors file without metadata: its bytes depend on the weights alone.

    Returns their fingerprint.
    """
    content = to_bytes(weights)
    write_bytes(path, content)
    return hashlib.sha256(content).hexdigest()


def load_weights(path: Path, net: nn.Module, sha256: str | None = None) -> None:
    """Fill `net` from a safetensors file, strictly.

    Raises UserError where it cannot be read, is not the file of that digest, or does not fit.
    """
    try:
        content = path.read_bytes()
        if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
            raise UserError(
                f"{path} is not the file that its run wrote: its sha256 is another.\n"
                "Bring it back, or train it again in another --out."
            )
        weights = from_bytes(content)
    except (OSError, SafetensorError) as fault:
        raise UserError(f"{path} cannot be read as weights: {fault}.") from fault
    wanted = net.state_dict()
    misfits = {
        "missing": [name for name in wanted if name not in weights],
        "unknown": [name for name in weights if name not in wanted],
        "of another shape": [
            name for name in wanted if name in weights and wanted[name].shape != weights[name].shape
        ],
    }
    faults = [f"{len(n)} {what}, {n[0]} first" for what, n in misfits.items() if n]
    if faults:
        raise UserError(f"{path} does not hold the weights of this network: {'; '.join(faults)}.")
    net.load_state_dict(weights)


def weights_fingerprint(path: Path) -> str:
    """sha256 of a weights file: the identity of a teacher."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
