"""Crop and flip a batch at random, as one gather on uint8 images.

A view has one crop offset and one flip per sample. `crop_and_flip` is a pure function of these
draws: one gather without host synchronisation, which gives the same bits on every device. Pixels
are converted to float once, at the end.
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
    """Random horizontal flip with probability `prob`.

    `alternate`: orientations are drawn once and inverted in every odd view, so that two successive
    views have each image in both orientations (Jordan, 2024, arXiv 2404.00498, section 3.6).
    """

    prob: float = 0.5
    alternate: bool = False


@dataclass(frozen=True)
class CropFlipParams:
    """Each sample's crop corner in the padded image, and whether it is mirrored.

    `top`, `left`: int64 [N] in 0..2*padding; `mirrored`: bool [N].
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
    """Draw the crop and flip of samples 0..n-1 of a view; None turns one off."""
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
    """Pad the images `indices` [B] of a set by reflection, crop them and flip them.

    images uint8 [N, H, W, C] -> uint8 [B, C, H, W], channels_last in memory. No padded image is
    stored: a position outside an image is read at its mirror position. `placement` has one entry
    per sample of the whole set.
    """
    height, width = images.shape[1:3]
    down, across = (torch.arange(size, device=indices.device) for size in (height, width))
    mirrored = placement.mirrored[indices, None]
    across = torch.where(mirrored, width - 1 - across, across)
    rows = _reflected(placement.top[indices, None] + down - padding, height)
    columns = _reflected(placement.left[indices, None] + across - padding, width)
    cut = images[indices[:, None, None], rows[:, :, None], columns[:, None, :]]
    return rearrange(cut, "b h w c -> b c h w")  # a view: channels stay last in memory


def _reflected(position: Tensor, size: int) -> Tensor:
    """Reflect positions in -size < p < 2 size - 1 to 0..size-1.

    The border pixel is not repeated.
    """
    return size - 1 - (size - 1 - position.abs()).abs()


def to_float(pixels: Tensor) -> Tensor:
    """Convert uint8 to float32 in [0, 1] by a division, so that 255 is exactly 1."""
    return quotient(pixels.float(), 255.0)


def resize(images: Tensor, side: int) -> Tensor:
    """Resize float images [B, 3, H, W] in [0, 1] to [B, 3, side, side] with antialiasing.

    The filter is torch's bilinear one, widened by H / side as in Pillow, so that no frequency
    aliases. It is linear in the pixels; an image's result does not depend on the others of its
    batch.
    """
    resized = interpolate(images, size=(side, side), mode="bilinear", antialias=True)
    return resized.contiguous(memory_format=torch.channels_last)


def quotient(over: Tensor | float, under: Tensor | float) -> Tensor:
    """Return over / under, rounded once on every device; at least one is a tensor.

    torch itself multiplies by a reciprocal if the divisor is a Python number, and on a GPU also if
    the dividend is one.
    """
    like = over if isinstance(over, Tensor) else under
    assert isinstance(like, Tensor)
    a, b = (x if isinstance(x, Tensor) else like.new_full((), x) for x in (over, under))
    return a / b
