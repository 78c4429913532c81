"""Save the weights of some epochs of a run, one file per epoch."""

import re
from pathlib import Path

from torch import nn

from distill.models import checkpoint
from distill.runs.run_folder import RunFolder

FILE_NAME = re.compile(r"epoch-([1-9][0-9]{0,8})\.safetensors")


def weights_path(folder: RunFolder, epoch: int) -> Path:
    """The file of an epoch's weights; epochs count from 1."""
    return folder.epochs / f"epoch-{epoch}.safetensors"


def saved_epochs(folder: RunFolder) -> list[int]:
    """The epochs whose weights are saved, ascending; files of other names are ignored."""
    names = (FILE_NAME.fullmatch(path.name) for path in folder.epochs.glob("epoch-*.safetensors"))
    return sorted(int(name[1]) for name in names if name)


def save(folder: RunFolder, epoch: int, net: nn.Module) -> None:
    """Save a network's weights as those of an epoch. Raises OSError if they cannot be written."""
    checkpoint.save_weights(weights_path(folder, epoch), checkpoint.copy_weights(net))


def delete_later(folder: RunFolder, epoch: int) -> None:
    """Delete the weights of later epochs: a run that resumed before them computes others."""
    for later in saved_epochs(folder):
        if later > epoch:
            weights_path(folder, later).unlink()
