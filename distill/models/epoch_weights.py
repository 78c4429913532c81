"""Save the weights of some epochs of a run, one file per epoch."""

import re
import shutil
from pathlib import Path
from typing import Literal, NamedTuple

from torch import nn

from distill.errors import UserError
from distill.format import counted, format_size
from distill.models import checkpoint
from distill.runs.run_folder import RunFolder

FILE_NAME = re.compile(r"epoch-([1-9][0-9]{0,8})\.safetensors")
DEFAULT_NUMBER = 20  # epochs that `train.keep_epochs = "auto"` saves
# By default weights are saved only if the disk has this many times their size left: the rest is for
# checkpoints and for later runs.
FREE_FACTOR = 2


class SavingPlan(NamedTuple):
    """The epochs, from 1, whose weights a run will save, and a note on them; empty for none."""

    epochs: frozenset[int]
    note: str


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


def epochs_to_save(keep: int | Literal["auto"], epochs: int) -> frozenset[int]:
    """Return the epochs, from 1, after which `train.keep_epochs = keep` saves weights.

    For n > 0 they are every n-th and the last of `epochs` epochs, for 0 none, and for "auto" 20 at
    about equal distances, the last one included, or all if there are fewer.
    """
    if keep == "auto":
        n = min(DEFAULT_NUMBER, epochs)
        return frozenset(-(-k * epochs // n) for k in range(1, n + 1))
    return frozenset([*range(keep, epochs, keep), epochs] if keep else [])


def plan(
    folder: RunFolder, keep: int | Literal["auto"], epochs: int, done: int, net: nn.Module
) -> SavingPlan:
    """Decide after which epochs to save weights, depending on the free disk space.

    `epochs`: of the whole run; `done`: those trained before. Without enough space "auto" saves
    none. Raises UserError if a typed interval needs more than the free space.
    """
    wanted = epochs_to_save(keep, epochs)
    each = sum(tensor.nbytes for tensor in net.state_dict().values())
    needed = each * sum(epoch > done for epoch in wanted)
    free = shutil.disk_usage(_existing(folder.path)).free
    what = f"the weights of {counted(len(wanted), 'epoch')}"
    size = format_size(each * len(wanted))
    lacking = f"{what} take {size}, and the disk has {format_size(free)} left"
    if keep == "auto" and free < FREE_FACTOR * needed:
        return SavingPlan(
            frozenset(), f"{lacking}: none are saved, so report --test-curve will have no curve"
        )
    if free < needed:
        raise UserError(
            f"train.keep_epochs = {keep}: {lacking}.\n"
            "Free some space, or type a larger number; --set train.keep_epochs=0 keeps none."
        )
    note = f"keeps {what} for report --test-curve, {size} (train.keep_epochs = 0 keeps none)"
    return SavingPlan(wanted, note if wanted else "")


def _existing(path: Path) -> Path:
    """Return the path or its nearest parent that exists."""
    resolved = path.resolve()
    return next(each for each in (resolved, *resolved.parents) if each.exists())
