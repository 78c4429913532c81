"""Save the weights of some epochs of a run, one file per epoch."""

import re
from pathlib import Path

from torch import nn

from distill.models import checkpoint
from distill.runs.run_folder import RunFolder

FILE_NAME = re.compile(r"epoch-([1-9][0-9]{0,8})\.safetensors")


def weights_path(folder: RunFolder, epoch: int) -> Path:
    """Return the path of an epoch's weights; epochs count from 1."""
    return folder.epochs / f"epoch-{epoch}.safetensors"


def saved_epochs(folder: RunFolder) -> list[int]:
    """Return the epochs whose weights are saved, in ascending order; ignore other file names."""
    names = (FILE_NAME.fullmatch(path.name) for path in folder.epochs.glob("epoch-*.safetensors"))
    return sorted(int(name[1]) for name in names if name)


def save(folder: RunFolder, epoch: int, net: nn.Module) -> None:
    """Save a network's weights after an epoch. Raises OSError if they cannot be written."""
    checkpoint.save_weights(weights_path(folder, epoch), checkpoint.copy_weights(net))


def delete_after(folder: RunFolder, epoch: int) -> None:
    """Delete the weights of epochs after `epoch`: a resumed run trains those epochs again."""
    for later in saved_epochs(folder):
        if later > epoch:
            weights_path(folder, later).unlink()
