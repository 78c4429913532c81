"""Crop and flip a batch at random, as one gather on uint8 images.

A view has one crop offset and one flip per sample. `crop_and_flip` is a pure function of the images
and these draws: one gather without host synchronisation, which gives the same bits on every device.
Pixels are converted to float once, at the end.
"""

from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from distill.data import rng
from distill.data.rng import Stream


@dataclass(frozen=True)
class Crop:
    """Random crop after reflect padding of `padding` pixels (arXiv 1512.03385, 4.2)."""

    padding: int = 4


@dataclass(frozen=True)
class Flip:
    """Random horizontal flip of each image with probability `prob`.

    With `alternate`, flips are drawn once and inverted in every odd view, so that two successive
    views have each image in both orientations (Jordan, 2024, arXiv 2404.00498, section 3.6).
    """

    prob: float = 0.5
    alternate: bool = False


@dataclass(frozen=True)
class CropFlipParams:
    """The crop and flip of each sample of a view.

    `top`, `left`: int64 [N] in 0..2*padding, the corner of the crop in the padded image.
    `mirrored`: bool [N], whether the image is flipped.
    """

    top: Tensor
    left: Tensor
    mirrored: Tensor

    def to(self, device: torch.device) -> "CropFlipParams":
        return CropFlipParams(*(t.to(device) for t in (self.top, self.left, self.mirrored)))

    def of(self, rows: Tensor) -> "CropFlipParams":
        """Return the parameters of the samples `rows` [b], in that order."""
        return CropFlipParams(self.top[rows], self.left[rows], self.mirrored[rows])


def draw_crop_flip(
    seed: int, view: int, n: int, crop: Crop | None, flip: Flip | None
) -> CropFlipParams:
    """Draw the crop and flip of samples 0..n-1 of a view; None turns crop or flip off."""
    corner = np.zeros((n, 2), dtype=np.int64)
    mirrored: NDArray[np.bool_] = np.zeros(n, dtype=np.bool_)
    if crop is not None:
        corner = rng.integers(rng.words(seed, view, Stream.CROP, n)[:, :2], 2 * crop.padding + 1)
    if flip is not None:
        drawn_at = 0 if flip.alternate else view
        mirrored = rng.uniform(rng.words(seed, drawn_at, Stream.FLIP, n)[:, 0]) < flip.prob
        mirrored ^= flip.alternate and view % 2 == 1
    top, left = (torch.from_numpy(corner[:, axis].copy()) for axis in (0, 1))
    return CropFlipParams(top, left, torch.from_numpy(mirrored))


def crop_and_flip(
    images: Tensor, indices: Tensor, placement: CropFlipParams, padding: int
) -> Tensor:
    """Pad the images at `indices` [B] by reflection, crop and flip them: uint8 [B, C, H, W].

    `images`: the whole set, uint8 [N, H, W, C]; `placement`: the crops and flips of all N images.
    The result is channels_last in memory. No padded image is made: a position outside an image is
    read at its mirror position.
    """
    height, width = images.shape[1:3]
    down, across = (torch.arange(size, device=indices.device) for size in (height, width))
    mirrored = placement.mirrored[indices, None]
    across = torch.where(mirrored, width - 1 - across, across)
    rows = _reflect(placement.top[indices, None] + down - padding, height)
    columns = _reflect(placement.left[indices, None] + across - padding, width)
    cut = images[indices[:, None, None], rows[:, :, None], columns[:, None, :]]
    return rearrange(cut, "b h w c -> b c h w")  # no copy: channels are last in memory


def _reflect(position: Tensor, size: int) -> Tensor:
    """Reflect positions p outside 0..size-1 to inside, without repeating the border pixel.

    They must be in -size < p < 2 size - 1.
    """
    return size - 1 - (size - 1 - position.abs()).abs()


def to_float(pixels: Tensor) -> Tensor:
    """Convert uint8 to float32 in [0, 1] by a division by 255, so that 255 becomes exactly 1."""
    return quotient(pixels.float(), 255.0)


def resize(images: Tensor, side: int) -> Tensor:
    """Resize float images [B, 3, H, W] in [0, 1] to [B, 3, side, side] with antialiasing.

    The filter is torch's bilinear one, widened by H / side as in Pillow to avoid aliasing. The
    result is linear in the pixels, and does not depend on the other images of the batch.
    """
    resized = interpolate(images, size=(side, side), mode="bilinear", antialias=True)
    return resized.contiguous(memory_format=torch.channels_last)


def quotient(over: Tensor | float, under: Tensor | float) -> Tensor:
    """Return over / under, rounded only once on every device; at least one must be a tensor.

    torch itself rounds twice, since it multiplies by a rounded reciprocal: if the divisor is a
    Python number, and on a GPU also if the dividend is a Python number.
    """
    like = over if isinstance(over, Tensor) else under
    assert isinstance(like, Tensor)
    a, b = (x if isinstance(x, Tensor) else like.new_full((), x) for x in (over, under))
    return a / b
