"""Save and load weights and training checkpoints.

All random numbers are functions of (seed, view, sample) or (seed, step, rank), so no random state
is saved. The teacher is not saved either; its fingerprint is. A checkpoint is written under a
temporary name, read again, and only then renamed. The previous checkpoint is retained in case the
disk damages the new one. One sha256 covers the whole checkpoint.
"""

import errno
import hashlib
import io
import json
import os
import shutil
from pathlib import Path
from typing import IO, Any

import torch
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from distill.errors import UserError
from distill.files import regular_file, run_json_schemas
from distill.files.escape_text import visible
from distill.files.regular_file import InvalidFile
from distill.models import safetensors_files, torch_files
from distill.models.safetensors_files import InvalidSafetensors
from distill.runs.run_folder import foreign_in, write_bytes

FORMAT = 2  # version of the checkpoint format
LONGEST_FORMAT = 20  # characters of another format in a message
PIECE = 1 << 20  # bytes that are hashed at a time
LARGEST_STATE = 16 << 30  # bytes: enough for 10^9 weights, their average and Adam's two buffers


class DamagedCheckpoint(Exception):
    """A checkpoint whose content differs from what was written."""


def checkpoint_folders(folder: Path) -> list[Path]:
    """Return the folders of the latest checkpoint, which is `folder`, and of the previous one."""
    return [folder, folder.with_name(folder.name + ".old")]


def save(folder: Path, tensors: dict[str, Any], progress: dict[str, Any]) -> None:
    """Write `tensors` (state dicts by name) and `progress` (plain JSON) as one checkpoint.

    Raises OSError if it cannot be written or reads back differently, or if a folder to be replaced
    has other files; the previous checkpoint is then intact.
    """
    new, (_, old) = folder.with_name(folder.name + ".new"), checkpoint_folders(folder)
    delete(new)
    try:
        _write_and_verify(new, tensors, progress)
    except OSError:
        shutil.rmtree(
            new, ignore_errors=True
        )  # on a full disk a partial checkpoint would take space
        raise
    if folder.exists():  # else `old` is the only complete checkpoint
        delete(old)
        folder.rename(old)
    new.rename(folder)
    _sync_folder(folder.parent)


def delete(folder: Path) -> None:
    """Delete the folder of a checkpoint, if it exists.

    Raises OSError if it has files that are not a checkpoint's; nothing is deleted then.
    """
    if foreign := foreign_in(folder):
        raise OSError(errno.ENOTEMPTY, "Not a checkpoint's file: move it elsewhere", foreign[0])
    shutil.rmtree(folder, ignore_errors=True)


def _write_and_verify(new: Path, tensors: dict[str, Any], progress: dict[str, Any]) -> None:
    """Write both files of a checkpoint. Raises OSError if they read back differently."""
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
        raise OSError(f"{new} was written and reads back differently: {fault}") from fault


def read_progress(folder: Path) -> dict[str, Any] | None:
    """Return a checkpoint's progress; None if the checkpoint is absent, damaged or too old.

    The tensors are verified but not loaded.
    """
    try:
        return read_verified(folder)[1]
    except (DamagedCheckpoint, UserError):
        return None


def load(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (tensors, progress) of the checkpoint at `folder`, with the tensors on the CPU.

    Raises DamagedCheckpoint if it differs from what was written, UserError if a program version
    with another checkpoint format wrote it.
    """
    state, progress = read_verified(folder)
    try:
        tensors = torch_files.loads(state)
    except torch_files.RunsCode as fault:  # checkpoints of this program contain no calls
        raise DamagedCheckpoint(
            f"{folder} tries to run code, and is not loaded: {fault.name}"
        ) from fault
    except torch_files.InvalidTorchFile as fault:
        raise DamagedCheckpoint(f"{folder} is damaged: its state.pt {fault}") from fault
    if not isinstance(tensors, dict):
        raise DamagedCheckpoint(f"{folder} is damaged: its state.pt contains no state dicts")
    return tensors, progress


def read_verified(folder: Path) -> tuple[bytes, dict[str, Any]]:
    """Return (the tensors' bytes, progress) of a checkpoint after checking its sha256.

    Raises DamagedCheckpoint if it differs from what was written, UserError if a program version
    with another checkpoint format wrote it.
    """
    state, progress, digest = _read_files(folder)
    is_whole = state is not None
    if progress["format"] != FORMAT and (is_whole or digest is None):  # format 1 had no digest
        raise UserError(
            f"{folder} is a checkpoint of format "
            f"{visible(str(progress['format'])[:LONGEST_FORMAT])}; this program reads {FORMAT}.\n"
            "Resume it with the version that wrote it, or choose another --out."
        )
    if state is None:
        raise DamagedCheckpoint(
            f"{folder} is damaged: its sha256 is not the one it was written with"
        )
    try:
        run_json_schemas.check(run_json_schemas.Progress, progress)
    except run_json_schemas.Invalid as fault:
        raise DamagedCheckpoint(f"{folder} is damaged: its progress.json has {fault}") from None
    return state, progress


def _read_files(folder: Path) -> tuple[bytes | None, dict[str, Any], object]:
    """Return (the tensors' bytes, progress without its sha256, that sha256) of a checkpoint.

    The bytes are None if the sha256 is not theirs. Raises DamagedCheckpoint if a file cannot be
    read.
    """
    try:
        progress = run_json_schemas.parsed(run_json_schemas.content_of(folder / "progress.json"))
        _format, digest = progress["format"], progress.pop("sha256", None)
        with regular_file.open_regular(folder / "state.pt", LARGEST_STATE) as file:
            is_whole = digest == _digest_of_file(file, progress)
            file.seek(0)
            return (file.read() if is_whole else None), progress, digest
    except OSError as fault:
        raise DamagedCheckpoint(
            f"{folder} cannot be read: {fault.strerror} ({fault.filename})"
        ) from fault
    except InvalidFile as fault:
        raise DamagedCheckpoint(f"{folder} is damaged: its state.pt, {fault}") from fault
    except (ValueError, KeyError, TypeError, AttributeError) as fault:
        raise DamagedCheckpoint(
            f"{folder} is damaged: its progress.json is not what was written"
        ) from fault


def digest_of(state: bytes, progress: dict[str, Any]) -> str:
    """Return the sha256 of a checkpoint's tensors, as bytes, and of its progress, as JSON.

    JSON preserves floats exactly, so the digest can be computed again after reading.
    """
    digest = _begin_digest(progress)
    digest.update(state)
    return digest.hexdigest()


def _digest_of_file(state: IO[bytes], progress: dict[str, Any]) -> str:
    """Return `digest_of` the content of a file, which is not held in memory."""
    digest = _begin_digest(progress)
    for piece in iter(lambda: state.read(PIECE), b""):
        digest.update(piece)
    return digest.hexdigest()


def _begin_digest(progress: dict[str, Any]) -> "hashlib._Hash":
    return hashlib.sha256(json.dumps(progress, sort_keys=True).encode() + b"\0")


def _sync_folder(folder: Path) -> None:
    """Flush the renames in a folder to disk; do nothing on systems that are not POSIX."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def copy_weights(net: nn.Module) -> dict[str, Tensor]:
    """Return contiguous copies of a network's parameters and buffers on the CPU, by name."""
    state = net.state_dict()
    return {name: t.detach().to("cpu", copy=True).contiguous() for name, t in state.items()}


def save_weights(path: Path, weights: dict[str, Tensor]) -> str:
    """Write a safetensors file and return its sha256.

    The file has no metadata, so its bytes depend only on the weights.
    """
    content = to_bytes(weights)
    write_bytes(path, content)
    return hashlib.sha256(content).hexdigest()


def load_weights(path: Path, net: nn.Module, sha256: str | None = None) -> None:
    """Load all weights of `net` from a safetensors file.

    Raises UserError if the file cannot be read, if its sha256 is not `sha256` (None: not checked),
    or if its tensors do not have the names, shapes and dtypes of the network's.
    """
    expected = net.state_dict()
    n_bytes = sum(tensor.nbytes for tensor in expected.values())
    try:
        content = regular_file.content_of(path, n_bytes + safetensors_files.LARGEST_HEADER)
        if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
            raise UserError(
                f"{path} is not the file that its run wrote: its sha256 differs.\n"
                "Restore it, or train it again in another --out."
            )
        weights = safetensors_files.loads(content)
    except (OSError, InvalidFile, InvalidSafetensors) as fault:
        raise UserError(f"{path} cannot be read as weights: {fault}.") from fault
    if faults := _misfits(weights, expected):
        raise UserError(f"{path} does not hold the weights of this network: {'; '.join(faults)}.")
    net.load_state_dict(weights)


def _misfits(weights: dict[str, Tensor], expected: dict[str, Tensor]) -> list[str]:
    """Return a text for each kind of difference between weights and a network's, by name."""
    common = [name for name in expected if name in weights]
    misfits = {
        "missing": [name for name in expected if name not in weights],
        "unknown": [name for name in weights if name not in expected],
        "of another shape": [n for n in common if expected[n].shape != weights[n].shape],
        "of another type": [n for n in common if expected[n].dtype != weights[n].dtype],
    }
    return [f"{len(names)} {kind}, {names[0]} first" for kind, names in misfits.items() if names]
