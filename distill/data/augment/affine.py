"""Translate, rotate, shear and scale a batch with Pillow's nearest-neighbour sampling.

An operation is an affine map from the pixels of the result back to those of the image, six numbers
per sample: (x, y) <- (a x + b y + c, d x + e y + f), with pixel centres at one half. Pillow rounds
these coefficients to 16 fractional bits and continues in integer arithmetic. `affine` does the
same, with the coefficients computed on the host, so that the result equals Pillow's bit for bit on
every device. There is one exception: Pillow samples a pure scale, without rotation, in floating
point, and there the sampled row may differ by one. Pixels from outside the image are black.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from distill.data import rng
from distill.data.rng import Stream

Floats = NDArray[np.float64]
BITS = 16  # fractional bits


@dataclass(frozen=True)
class Translate:
    """Shift by up to `pixels` whole pixels along each axis, in either direction."""

    pixels: int = 4
    before_crop: ClassVar[bool] = False

    def draw(self, seed: int, view: int, n: int, size: int) -> dict[str, Tensor]:
        words = rng.words(seed, view, Stream.TRANSLATE, n)
        x, y = (rng.integers(words[:, axis], 2 * self.pixels + 1) - self.pixels for axis in (0, 1))
        return {"map": fixed_point(translation(x.astype(np.float64), y.astype(np.float64)))}

    def __call__(self, pixels: Tensor, drawn: dict[str, Tensor]) -> Tensor:
        return affine(pixels, drawn["map"])


@dataclass(frozen=True)
class Rotate:
    """Rotate about the centre by up to `degrees`, in either direction."""

    degrees: float = 15.0
    before_crop: ClassVar[bool] = False

    def draw(self, seed: int, view: int, n: int, size: int) -> dict[str, Tensor]:
        word = rng.words(seed, view, Stream.ROTATE, n)[:, 0]
        return {"map": fixed_point(rotation(rng.between(word, -self.degrees, self.degrees), size))}

    def __call__(self, pixels: Tensor, drawn: dict[str, Tensor]) -> Tensor:
        return affine(pixels, drawn["map"])


@dataclass(frozen=True)
class Affine:
    """Rotate, shift, scale and shear by one affine map, like torchvision's RandomAffine.

    `degrees` and `shear` (degrees, along x): maxima in either direction; `translate`: maximum as a
    share of the image size, rounded to whole pixels; `scale`: range of the factor.
    """

    degrees: float = 0.0
    translate: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    shear: float = 0.0
    before_crop: ClassVar[bool] = False

    def draw(self, seed: int, view: int, n: int, size: int) -> dict[str, Tensor]:
        angle, x, y, scale = rng.words(seed, view, Stream.AFFINE, n).T
        shift = self.translate * size
        return {
            "map": fixed_point(
                affine_maps(
                    rng.between(angle, -self.degrees, self.degrees),
                    np.rint(rng.between(x, -shift, shift)),
                    np.rint(rng.between(y, -shift, shift)),
                    rng.between(scale, *self.scale),
                    rng.between(
                        rng.words(seed, view, Stream.SHEAR, n)[:, 0], -self.shear, self.shear
                    ),
                    size,
                )
            )
        }

    def __call__(self, pixels: Tensor, drawn: dict[str, Tensor]) -> Tensor:
        return affine(pixels, drawn["map"])


def translation(x: Floats, y: Floats) -> Floats:
    """Return affine maps [n, 6] that shift the image by x pixels to the right and y down."""
    one, zero = np.ones_like(x), np.zeros_like(x)
    return np.stack([one, zero, -x, zero, one, -y], axis=1)


def shear(x: Floats, y: Floats) -> Floats:
    """Return affine maps [n, 6] that shear by x pixels per row and y per column.

    The top left corner does not move.
    """
    one, zero = np.ones_like(x), np.zeros_like(x)
    return np.stack([one, x, zero, y, one, zero], axis=1)


def rotation(degrees: Floats, size: int) -> Floats:
    """Return affine maps [n, 6] that rotate anticlockwise about the centre, like `Image.rotate`."""
    angle = -np.radians(degrees % 360)
    cos, sin = np.round(np.cos(angle), 15), np.round(np.sin(angle), 15)
    middle = size / 2
    x = cos * -middle + sin * -middle + middle
    y = -sin * -middle + cos * -middle + middle
    return np.stack([cos, sin, x, -sin, cos, y], axis=1)


def affine_maps(
    degrees: Floats, x: Floats, y: Floats, scale: Floats, shear_x: Floats, size: int
) -> Floats:
    """Return affine maps [n, 6] that scale, shear, rotate and shift, in this order.

    They shear along x, rotate clockwise about the centre, and shift by x pixels to the right and y
    down. Angles are in degrees.
    """
    turn, lean = np.radians(degrees), np.radians(shear_x)
    a, b = np.cos(turn), -np.cos(turn) * np.tan(lean) - np.sin(turn)
    c, d = np.sin(turn), -np.sin(turn) * np.tan(lean) + np.cos(turn)
    a, b, c, d = d / scale, -b / scale, -c / scale, a / scale  # the inverse
    middle = size * 0.5
    left, top = -middle - x, -middle - y
    return np.stack([a, b, a * left + b * top + middle, c, d, c * left + d * top + middle], axis=1)


def fixed_point(coefficients: Floats) -> Tensor:
    """Convert affine maps [n, 6] to Pillow's fixed point, int64 [n, 6].

    The constant terms are those of the centre of the first pixel.
    """
    a, b, c, d, e, f = coefficients.T
    at_centre = np.stack([a, b, c + a * 0.5 + b * 0.5, d, e, f + d * 0.5 + e * 0.5], axis=1)
    return torch.from_numpy(np.floor(at_centre * 2.0**BITS + 0.5).astype(np.int64))


def affine(pixels: Tensor, fixed: Tensor) -> Tensor:
    """Apply maps [B, 6] made by `fixed_point` to images uint8 [B, 3, H, W].

    The result has channels last in memory.
    """
    height, width = pixels.shape[-2:]
    a, b, c, d, e, f = (column[:, None, None] for column in fixed.unbind(1))
    down = torch.arange(height, device=pixels.device)[:, None]
    across = torch.arange(width, device=pixels.device)[None, :]
    x, y = (a * across + b * down + c) >> BITS, (d * across + e * down + f) >> BITS
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    sample = torch.arange(len(pixels), device=pixels.device)[:, None, None]
    sampled = rearrange(pixels, "b c h w -> b h w c")[
        sample, y.clamp(0, height - 1), x.clamp(0, width - 1)
    ]
    return rearrange(sampled * inside[..., None], "b h w c -> b c h w")
