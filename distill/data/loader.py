"""The training set on the device, and which rows of it each process sees at each step.

No workers and no queue: the uint8 set is small enough to live beside the network (CIFAR-10, padded:
240 MB), so a batch is one gather. A set that is too large stays in host memory behind the same
interface, and costs one transfer a batch. Nothing here has a state: step k can be asked for at any
time, in any order.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import one_hot

from distill.data import augment, draws, mix
from distill.data.augment import Crop, Flip, Placement
from distill.data.draws import Stream
from distill.data.mix import Cutmix, Mixture, Mixup
from distill.data.sources import ImageSet

# A set may take this share of what is free on the device; the rest is for weights and activations.
RESIDENT_SHARE = 0.25


@dataclass(frozen=True)
class View:
    """Everything random about one pass over the set, drawn before its first batch."""

    order: Tensor  # int64 [N], where the set is
    placement: Placement
    mixture: Mixture | None


@dataclass(frozen=True)
class Slice:
    """A process's share of each global batch: `rank` of `processes`, in `accumulate` parts."""

    rank: int = 0
    processes: int = 1
    accumulate: int = 1


class Loader:
    """Mixed, augmented training batches as a function of (view, sample).

    `batch_size` is global: of one optimizer step over all processes. The last partial batch is
    dropped. `resident=None` decides by the device's free memory whether the set is kept there.
    Raises ValueError where the set is smaller than one batch.
    """

    def __init__(
        self,
        images: ImageSet,
        *,
        batch_size: int,
        seed: int,
        crop: Crop | None,
        flip: Flip | None,
        mixup: Mixup | None,
        cutmix: Cutmix | None,
        device: torch.device,
        part: Slice,
        resident: bool | None = None,
    ) -> None:
        self.n, self.size = len(images.labels), images.images.shape[-1]
        self.batch_size, self.steps_per_epoch = batch_size, self.n // batch_size
        if not self.steps_per_epoch:
            raise ValueError(f"{self.n} training images are less than one batch of {batch_size}")
        self.seed, self.crop, self.flip = seed, crop, flip
        self.mixup, self.cutmix = mixup, cutmix
        self.device, self.part = device, part

        padded = augment.pad(torch.from_numpy(images.images), crop.padding if crop else 0)
        self.resident = fits(padded.nbytes, device) if resident is None else resident
        self.padded = padded.to(device) if self.resident else padded
        self.targets = one_hot(torch.from_numpy(images.labels), images.n_classes).float().to(device)
        self.view = lru_cache(maxsize=1)(self._draw)

    def _draw(self, view: int) -> View:
        placement = augment.place(self.seed, view, self.n, self.crop, self.flip)
        mixture = None
        if self.mixup or self.cutmix:
            drawn = mix.draw_mixture(self.seed, view, self.n, self.size, self.mixup, self.cutmix)
            mixture = drawn.to(self.padded.device)
        order = torch.from_numpy(draws.permutation(self.seed, view, Stream.ORDER, self.n))
        return View(order.to(self.padded.device), placement.to(self.padded.device), mixture)

    def batches(self, step: int) -> list[tuple[View, Tensor]]:
        """This process's rows of optimizer step `step`: (view, indices [b]) for each part.

        Together the processes and parts hold the same indices whatever their number.
        """
        epoch, position = divmod(step, self.steps_per_epoch)
        view = self.view(epoch)
        batch = view.order[position * self.batch_size :][: self.batch_size]
        every = rearrange(batch, "(a p b) -> a p b", a=self.part.accumulate, p=self.part.processes)
        return [(view, rows) for rows in every[:, self.part.rank]]

    def augment(self, view: View, indices: Tensor) -> Tensor:
        """Each image in its own crop and flip: float32 [b, 3, H, W] in [0, 1], channels_last."""
        pixels = augment.crop_and_flip(self.padded, indices, view.placement, self.size)
        return augment.to_float(pixels.to(self.device, non_blocking=True))

    def one_hot(self, indices: Tensor) -> Tensor:
        """The labels as distributions, float32 [b, C], on the device."""
        return self.targets[indices.to(self.device, non_blocking=True)]

    def mix(
        self, view: View, indices: Tensor, images: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Images and targets mixed with their partners of the view; as they are if none mixes."""
        if view.mixture is None:
            return images, targets
        mixture = view.mixture
        partner = mixture.partner[indices]
        weight = mix.weight_map(mixture.blend[indices], mixture.box[indices], self.size)
        lam = mixture.lam[indices, None].to(self.device)
        return (
            mix.mix(images, self.augment(view, partner), weight.to(self.device)),
            mix.mix(targets, self.one_hot(partner), lam),
        )


def fits(n_bytes: int, device: torch.device) -> bool:
    """Whether a set of `n_bytes` may live on the device; on a GPU, a share of what is free."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return n_bytes <= RESIDENT_SHARE * free


def share(images: ImageSet, rank: int = 0, processes: int = 1) -> tuple[Tensor, Tensor]:
    """This process's share of a set to evaluate: uint8 [n, 3, H, W] and int64 [n], on the host.

    Every sample is in exactly one share, so that gathered counts need no correction for padding.
    """
    mine = np.arange(rank, len(images.labels), processes)
    return torch.from_numpy(images.images[mine]), torch.from_numpy(images.labels[mine])
