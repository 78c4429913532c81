"""Translate, rotate, shear and scale a batch with Pillow's nearest-neighbour sampling.

An operation is an affine map, six numbers (a, b, c, d, e, f) per sample: the pixel at (x, y) of the
result is read at (a x + b y + c, d x + e y + f) of the image. Pixel centres have coordinates 0.5,
1.5, ... Pillow rounds the six numbers to 16 fractional bits and continues in integer arithmetic.
`affine` does the same with numbers computed on the host, so that the result equals Pillow's bit for
bit on every device. There is one exception: if an image is scaled but not rotated, Pillow computes
in floating point, and a pixel may be read one row beside ours. Pixels outside the image are black.
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
BITS = 16  # fractional bits of the rounded numbers


@dataclass(frozen=True)
class Translate:
    """Shift by a random number of whole pixels, at most `pixels`, along each axis."""

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
    """Rotate about the centre by a random angle in [-degrees, degrees)."""

    degrees: float = 15.0
    before_crop: ClassVar[bool] = False

    def draw(self, seed: int, view: int, n: int, size: int) -> dict[str, Tensor]:
        word = rng.words(seed, view, Stream.ROTATE, n)[:, 0]
        return {"map": fixed_point(rotation(rng.between(word, -self.degrees, self.degrees), size))}

    def __call__(self, pixels: Tensor, drawn: dict[str, Tensor]) -> Tensor:
        return affine(pixels, drawn["map"])


@dataclass(frozen=True)
class Affine:
    """Rotate, shift, scale and shear by one random affine map, like torchvision's RandomAffine.

    The rotation is at most `degrees` and the shear along x at most `shear` degrees, in either
    direction. The shift along each axis is at most the fraction `translate` of the image size,
    rounded to whole pixels. `scale` is the range of the scale factor.
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
    """Return affine maps [n, 6] that shift images by x [n] pixels to the right and y [n] down."""
    one, zero = np.ones_like(x), np.zeros_like(x)
    return np.stack([one, zero, -x, zero, one, -y], axis=1)


def shear(x: Floats, y: Floats) -> Floats:
    """Return affine maps [n, 6] that shear by x [n] pixels per row and y [n] per column.

    The top left corner does not move.
    """
    one, zero = np.ones_like(x), np.zeros_like(x)
    return np.stack([one, x, zero, y, one, zero], axis=1)


def rotation(degrees: Floats, size: int) -> Floats:
    """Return affine maps [n, 6] that rotate anticlockwise about the centre, as Pillow does."""
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

    They scale by the factor `scale`, shear along x by `shear_x` degrees, rotate clockwise about the
    centre by `degrees`, and shift by x pixels to the right and y down. All arguments are [n].
    """
    turn, lean = np.radians(degrees), np.radians(shear_x)
    a, b = np.cos(turn), -np.cos(turn) * np.tan(lean) - np.sin(turn)
    c, d = np.sin(turn), -np.sin(turn) * np.tan(lean) + np.cos(turn)
    a, b, c, d = d / scale, -b / scale, -c / scale, a / scale  # the inverse
    middle = size * 0.5
    left, top = -middle - x, -middle - y
    return np.stack([a, b, a * left + b * top + middle, c, d, c * left + d * top + middle], axis=1)


def fixed_point(coefficients: Floats) -> Tensor:
    """Convert affine maps [n, 6] to Pillow's fixed-point numbers with 16 fractional bits, int64.

    The constant terms are changed so that x and y count pixels from the centre of the first pixel.
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
