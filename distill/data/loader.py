"""Load augmented batches for each process from a training set that is on the device.

There are no workers and no queue: the uint8 images are few enough to fit into device memory with
the network (CIFAR-10: 154 MB), so a batch is one gather. A set that is too large stays in host
memory, and each batch costs one transfer. The loader is stateless: the batch of step k can be
computed at any time, in any order.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import one_hot

from distill.data import rng
from distill.data.augment import crop_flip, mixup_cutmix, ricap
from distill.data.augment.augment_schedule import AugmentSchedule, OperationParams, Pipeline
from distill.data.augment.crop_flip import CropFlipParams
from distill.data.augment.mixup_cutmix import MixParams
from distill.data.augment.ricap import RicapParams
from distill.data.image_set import ImageSet
from distill.data.rng import Stream

# Images may take this fraction of the device's free memory; the rest is for the training.
RESIDENT_SHARE = 0.25
EVERY_EPOCH = AugmentSchedule()


@dataclass(frozen=True)
class View:
    """All random parameters of one pass over the training set, drawn before its first batch."""

    number: int
    pipeline: Pipeline
    order: Tensor  # int64 [N], the order of the samples; on the device of the images
    crop_flip: CropFlipParams
    drawn: tuple[OperationParams, ...]  # the parameters of each operation of `pipeline`
    mix: MixParams | None
    ricap: RicapParams | None

    def partners(self, rows: Tensor) -> Tensor:
        """Return the mixing partner of each sample, int64 [b].

        A view without mixup and cutmix returns `rows`: each sample is its own partner.
        """
        return rows if self.mix is None else self.mix.partner[rows]

    def weight_of_own_label(self, rows: Tensor) -> Tensor:
        """Return the weight of each sample in its mixed targets, float32 [b, 1]; 1 if not mixed."""
        if self.mix is None:
            return torch.ones(len(rows), 1, device=rows.device)
        return self.mix.lam[rows, None]


@dataclass(frozen=True)
class Batch:
    """A training batch of one view: samples that are augmented, mixed and resized."""

    view: View
    rows: Tensor  # int64 [b], indices in the training images
    images: Tensor  # float32 [b, 3, H, W] in [0, 1], channels_last
    targets: Tensor  # float32 [b, C], the labels as distributions, mixed like the images


@dataclass(frozen=True)
class Shard:
    """The part of each global batch that one process computes.

    The batch is divided into `accumulate` micro-batches, and each micro-batch is divided between
    `processes` processes. `rank`, from 0, is the number of this process.
    """

    rank: int = 0
    processes: int = 1
    accumulate: int = 1


class Loader:
    """Computes augmented, mixed training batches; each image depends only on (view, sample).

    `batch_size` counts the images of one optimizer step over all processes. `drop_last`: whether to
    leave out the last batch of an epoch if it has fewer images; if not, their number must be
    divisible by the processes and micro-batches of `shard`. `resident`: whether the images are in
    device memory; None puts them there if they fit. Raises ValueError if there are fewer images
    than one batch.
    """

    def __init__(
        self,
        images: ImageSet,
        *,
        batch_size: int,
        seed: int,
        pipeline: Pipeline,
        schedule: AugmentSchedule = EVERY_EPOCH,
        device: torch.device,
        shard: Shard,
        drop_last: bool = True,
        resident: bool | None = None,
    ) -> None:
        self.n, self.size = len(images.labels), images.images.shape[-1]
        self.batch_size, self.full_batches = batch_size, self.n // batch_size
        self.steps_per_epoch = self.full_batches if drop_last else -(-self.n // batch_size)
        if not self.full_batches:
            raise ValueError(f"{self.n} training images are less than one batch of {batch_size}")
        self.seed, self.pipeline, self.schedule = seed, pipeline, schedule
        self.device, self.part = device, shard

        pixels = rearrange(torch.from_numpy(images.images), "n c h w -> n h w c").contiguous()
        self.resident = fits(pixels.nbytes, device) if resident is None else resident
        self.pixels = pixels.to(device) if self.resident else pixels
        self.targets = one_hot(torch.from_numpy(images.labels), images.n_classes).float().to(device)
        self.view = lru_cache(maxsize=1)(self._draw_view)

    def set_schedule(self, schedule: AugmentSchedule) -> None:
        """Replace the augmentation schedule."""
        self.schedule = schedule
        self.view.cache_clear()

    @contextmanager
    def at_side(self, side: int | None) -> Iterator[None]:
        """Within the context, resize every view to `side` x `side` pixels; None: full size."""
        schedule = self.schedule
        self.set_schedule(schedule.at(side))
        try:
            yield
        finally:
            self.set_schedule(schedule)

    def _draw_view(self, epoch: int) -> View:
        number, device = self.schedule.view(epoch), self.pixels.device
        on = self.schedule.pipeline(self.pipeline, epoch)
        key = self.seed, number, self.n
        mix = ricap_params = None
        if on.mixup or on.cutmix:
            mix = mixup_cutmix.draw_mix(*key, self.size, on.mixup, on.cutmix).to(device)
        if on.ricap:
            taken = sum(kind.prob for kind in (on.mixup, on.cutmix) if kind)
            ricap_params = ricap.draw_ricap(*key, self.size, on.ricap, low=taken).to(device)
        drawn = (operation.draw(*key, self.size) for operation in on.operations)
        return View(
            number,
            on,
            torch.from_numpy(rng.permutation(self.seed, number, Stream.ORDER, self.n)).to(device),
            crop_flip.draw_crop_flip(*key, on.crop, on.flip).to(device),
            tuple({name: rows.to(device) for name, rows in each.items()} for each in drawn),
            mix,
            ricap_params,
        )

    def batches(self, step: int) -> list[tuple[View, Tensor]]:
        """Return (view, rows [b]) of each micro-batch of this process in optimizer step `step`.

        `rows` are indices of training images. The rows of all processes and micro-batches together
        do not depend on the numbers of processes and micro-batches.
        """
        epoch, position = divmod(step, self.steps_per_epoch)
        view = self.view(epoch)
        batch = view.order[position * self.batch_size :][: self.batch_size]
        parts = rearrange(batch, "(a p b) -> a p b", a=self.part.accumulate, p=self.part.processes)
        return [(view, rows) for rows in parts[:, self.part.rank]]

    def images_in(self, step: int) -> int:
        """Return the number of images in optimizer step `step`, over all processes."""
        left = self.n - step % self.steps_per_epoch * self.batch_size
        return min(self.batch_size, left)

    def batch(self, view: View, rows: Tensor) -> Batch:
        """Augment, mix and resize the samples `rows` of a view."""
        images, targets = self.mix(view, rows, self.augment(view, rows), self.one_hot(rows))
        return Batch(view, rows, self.resized(view, images), targets)

    def augment(self, view: View, rows: Tensor) -> Tensor:
        """Return the samples `rows`, augmented but not mixed.

        They are float32 [b, 3, H, W] in [0, 1], channels_last, on the device.
        """
        pixels = _apply_operations(view, rows, self._crop_and_flip(view, rows), before_crop=False)
        return crop_flip.to_float(pixels.to(self.device, non_blocking=True))

    def _crop_and_flip(self, view: View, rows: Tensor) -> Tensor:
        """Apply the operations before the crop, then crop and flip: uint8 [b, 3, H, W]."""
        images, indices, params = self.pixels, rows, view.crop_flip
        if any(operation.before_crop for operation in view.pipeline.operations):
            whole = rearrange(images[rows], "b h w c -> b c h w")
            whole = _apply_operations(view, rows, whole, before_crop=True)
            images, params = rearrange(whole, "b c h w -> b h w c"), params.of(rows)
            indices = torch.arange(len(rows), device=rows.device)
        padding = view.pipeline.crop.padding if view.pipeline.crop else 0
        return crop_flip.crop_and_flip(images, indices, params, padding)

    def one_hot(self, indices: Tensor) -> Tensor:
        """Return the labels of the samples `indices`, one-hot: float32 [b, C], on the device."""
        return self.targets[indices.to(self.device, non_blocking=True)]

    def mix(
        self, view: View, rows: Tensor, images: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mix images and targets with their partners in `view`; without mixing, return them."""
        if view.mix is not None:
            images, targets = self._apply_mixup_cutmix(view, view.mix, rows, images, targets)
        if view.ricap is not None:
            images, targets = self._apply_ricap(view, view.ricap, rows, images, targets)
        return images, targets

    def resized(self, view: View, images: Tensor) -> Tensor:
        """Resize mixed images [b, 3, H, W] to the view's image size."""
        side = view.pipeline.side
        return images if side is None else crop_flip.resize(images, side)

    def _apply_mixup_cutmix(
        self, view: View, mix: MixParams, rows: Tensor, images: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Apply mixup and cutmix, which mix two images."""
        partner = mix.partner[rows]
        weight = mixup_cutmix.weight_map(mix.blend[rows], mix.box[rows], self.size)
        lam = mix.lam[rows, None].to(self.device)
        return (
            mixup_cutmix.mix(images, self.augment(view, partner), weight.to(self.device)),
            mixup_cutmix.mix(targets, self.one_hot(partner), lam),
        )

    def _apply_ricap(
        self, view: View, params: RicapParams, rows: Tensor, images: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Apply RICAP, which combines four images."""
        others = params.partner[rows].unbind(1)
        four = torch.stack([images, *(self.augment(view, other) for other in others)])
        labels = torch.stack([targets, *(self.one_hot(other) for other in others)])
        used, boundary, corner, share = (
            t[rows].to(self.device)
            for t in (params.used, params.boundary, params.corner, params.share)
        )
        return (
            torch.where(
                used[:, None, None, None], ricap.combine_four(four, boundary, corner), images
            ),
            torch.where(used[:, None], (share.T[..., None] * labels).sum(0), targets),
        )


def _apply_operations(view: View, rows: Tensor, pixels: Tensor, *, before_crop: bool) -> Tensor:
    """Apply the view's operations to pixels uint8 [b, 3, H, W].

    Only operations whose attribute `before_crop` equals the argument are applied.
    """
    for operation, drawn in zip(view.pipeline.operations, view.drawn, strict=True):
        if operation.before_crop == before_crop:
            pixels = operation(pixels, {name: of[rows] for name, of in drawn.items()})
    return pixels


def fits(n_bytes: int, device: torch.device) -> bool:
    """Whether `n_bytes` of images may be stored on a device; always true if it is not a GPU.

    They may take a quarter of a GPU's free memory.
    """
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return n_bytes <= RESIDENT_SHARE * free


def share(images: ImageSet, rank: int = 0, processes: int = 1) -> tuple[Tensor, Tensor]:
    """Return the images uint8 [n, 3, H, W] and labels int64 [n] that process `rank` evaluates.

    Both are in host memory. Every sample belongs to exactly one process, so that counts summed over
    the processes need no correction for padding.
    """
    own = np.arange(rank, len(images.labels), processes)
    return torch.from_numpy(images.images[own]), torch.from_numpy(images.labels[own])
