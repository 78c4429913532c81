"""Training state on disk: everything needed to go on as if nothing had happened, and nothing else.

All randomness is a function of (seed, view, sample) or (seed, step, rank), so no random state is
stored. The teacher is not stored: its fingerprint is in the result. The folder is written beside
the old one and renamed, so a kill leaves one whole checkpoint.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from distill.errors import UserError
from distill.run_folder import write_json

FORMAT = 1


def save(folder: Path, tensors: dict[str, Any], progress: dict[str, Any]) -> None:
    """Write `tensors` (state dicts by name) and `progress` (plain JSON) as one checkpoint."""
    new, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    with (new / "state.pt").open("wb") as file:
        torch.save(tensors, file)
        file.flush()
        os.fsync(file.fileno())
    write_json(new / "progress.json", progress | {"format": FORMAT})
    if folder.exists():  # else `old` is the only whole one, and stays until the new one stands
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def load(folder: Path, device: torch.device) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The newest checkpoint that can be read as (tensors, progress), or None where there is none.

    Raises UserError where there are some and none can be read, or for another format version.
    """
    faults = []
    old = folder.with_name(folder.name + ".old")  # left by a kill between the renames of `save`
    for found in (folder, old):
        if found.exists():
            try:
                progress = json.loads((found / "progress.json").read_text())
                tensors = torch.load(found / "state.pt", map_location=device, weights_only=True)
            except Exception as fault:  # whatever a damaged zip or pickle can raise
                faults.append(f"{found} cannot be read: {type(fault).__name__}: {fault}")
                continue
            if progress["format"] != FORMAT:
                raise UserError(
                    f"{found} is a checkpoint of format {progress['format']}; this program reads "
                    f"{FORMAT}.\nResume it with the version that wrote it, or choose another --out."
                )
            return tensors, progress
    if faults:
        raise UserError("\n".join([*faults, "Begin anew with another --out."]))
    return None


def weights_of(net: nn.Module) -> dict[str, Tensor]:
    """A copy of parameters and buffers, contiguous and on the host: what a weights file holds."""
    state = net.state_dict()
    return {name: t.detach().to("cpu", copy=True).contiguous() for name, t in state.items()}


def save_weights(path: Path, weights: dict[str, Tensor]) -> None:
    """One safetensors file without metadata: its bytes depend on the weights alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    save_file(weights, new)
    new.replace(path)


def load_weights(path: Path, net: nn.Module) -> None:
    """Fill `net` from a safetensors file, strictly. Raises UserError where it does not fit."""
    try:
        weights = load_file(path)
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


def fingerprint(path: Path) -> str:
    """sha256 of a weights file: the identity of a teacher."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
