"""Hide a rectangle of each image: cutout and random erasing.

Cutout: DeVries, Taylor, 2017, arXiv 1708.04552. Random erasing: Zhong, Zheng, Kang, Li, Yang, AAAI
2020, arXiv 1708.04896, algorithm 1. Hidden pixels get the mean colour of CIFAR-10, which is about 0
after the networks' normalisation.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill.data import rng
from distill.data.rng import Stream

MEAN_COLOUR = (125, 123, 114)  # 255 times (0.4914, 0.4822, 0.4465)


@dataclass(frozen=True)
class Cutout:
    """Hide a square of `size` x `size` pixels in each image with probability `prob`.

    The centre of the square is uniform in the image. The square is clipped at the border.
    """

    size: int = 16
    prob: float = 1.0
    before_crop: ClassVar[bool] = False

    def draw(self, seed: int, view: int, n: int, size: int) -> dict[str, Tensor]:
        which, row, column, _ = rng.words(seed, view, Stream.CUTOUT, n).T
        centre = np.stack([rng.integers(each, size) for each in (row, column)], axis=1)
        low = np.clip(centre - self.size // 2, 0, size)
        high = np.clip(centre - self.size // 2 + self.size, 0, size)
        return {"box": _make_boxes(low, high, rng.uniform(which) < self.prob)}

    def __call__(self, pixels: Tensor, drawn: dict[str, Tensor]) -> Tensor:
        return hide(pixels, drawn["box"])


@dataclass(frozen=True)
class Erase:
    """Hide a rectangle inside each image with probability `prob`.

    `area`: range of the rectangle's area as a fraction of the image, drawn uniformly. `ratio`:
    range of its height divided by its width, drawn log-uniformly as in torchvision, so that tall
    and wide rectangles are equally likely. The paper's ratio is uniform, which favours tall ones.
    The paper draws again until a rectangle fits. Here a height or width that is too large is
    clipped (in 1 of 600 rectangles with the default ranges on 32x32 pixels), so that one draw per
    sample is enough.
    """

    prob: float = 0.25
    area: tuple[float, float] = (0.02, 0.33)
    ratio: tuple[float, float] = (0.3, 3.3)
    before_crop: ClassVar[bool] = False

    def draw(self, seed: int, view: int, n: int, size: int) -> dict[str, Tensor]:
        which, area, ratio, position = rng.words(seed, view, Stream.ERASE, n).T
        pixels = size**2 * rng.between(area, *self.area)
        tall = np.exp(rng.between(ratio, *np.log(self.ratio)))
        sides = np.stack([np.sqrt(pixels * tall), np.sqrt(pixels / tall)], axis=1)
        extent = np.clip(np.rint(sides), 1, size).astype(np.int64)
        n_positions = (size - extent + 1).astype(np.uint64)
        low = (np.stack(rng.halves(position), axis=1) % n_positions).astype(np.int64)
        return {"box": _make_boxes(low, low + extent, rng.uniform(which) < self.prob)}

    def __call__(self, pixels: Tensor, drawn: dict[str, Tensor]) -> Tensor:
        return hide(pixels, drawn["box"])


def _make_boxes(low: NDArray[np.int64], high: NDArray[np.int64], used: NDArray[np.bool_]) -> Tensor:
    """Return boxes (top, bottom, left, right), int64 [n, 4], from corners `low`, `high` [n, 2].

    The ends bottom and right are exclusive. The box of a sample that is not `used` is empty.
    """
    box = np.stack([low[:, 0], high[:, 0], low[:, 1], high[:, 1]], axis=1)
    return torch.from_numpy(np.where(used[:, None], box, 0))


def hide(pixels: Tensor, box: Tensor) -> Tensor:
    """Fill the box [B, 4] of each image of pixels uint8 [B, 3, H, W] with CIFAR-10's mean colour.

    A box is (top, bottom, left, right); the ends bottom and right are exclusive.
    """
    axis = torch.arange(pixels.shape[-1], device=pixels.device)
    top, bottom, left, right = (edge[:, None] for edge in box.unbind(1))
    rows, columns = (axis >= top) & (axis < bottom), (axis >= left) & (axis < right)
    inside = rows[:, None, :, None] & columns[:, None, None, :]
    # The colour is created on the device: a copy from the host would have to wait for the device.
    colour = torch.stack([pixels.new_full((), channel) for channel in MEAN_COLOUR])
    return torch.where(inside, colour[:, None, None], pixels)
