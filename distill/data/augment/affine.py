"""Translate, rotate, shear and scale a batch with Pillow's nearest sampling.

An operation is an affine map from the pixels of the result back to those of the image, six numbers
a sample: (x, y) <- (a x + b y + c, d x + e y + f), pixel centres at one half. Pillow rounds them to
sixteen bits after the point and adds integers from there on; so does `affine`, with the six numbers
made on the host: the same bits on every device, and Pillow's. (A pure scale, without a turn, is the
one map that Pillow samples in floating point: a row there may be its neighbour.) What comes from
outside is black.
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
BITS = 16  # after the point


@dataclass(frozen=True)
class Translate:
    """A shift by up to `pixels` whole pixels on each axis, either way."""

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
    """A rotation about the centre by up to `degrees`, either way."""

    degrees: float = 15.0
    before_crop: ClassVar[bool] = False

    def draw(self, seed: int, view: int, n: int, size: int) -> dict[str, Tensor]:
        word = rng.words(seed, view, Stream.ROTATE, n)[:, 0]
        return {"map": fixed_point(rotation(rng.between(word, -self.degrees, self.degrees), size))}

    def __call__(self, pixels: Tensor, drawn: dict[str, Tensor]) -> Tensor:
        return affine(pixels, drawn["map"])


@dataclass(frozen=True)
class Affine:
    """Rotation, shift, scale and shear at once, as torchvision's RandomAffine has them.

    `degrees` and `shear` (degrees, along x) either way at most; `translate`, a share of the side,
    rounded to whole pixels; `scale` from and to.
    """

    degrees: float = 0.0
    translate: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    shear: float = 0.0
    before_crop: ClassVar[bool] = False

    def draw(self, seed: int, view: int, n: int, size: int) -> dict[str, Tensor]:
        angle, x, y, scale = rng.words(seed, view, Stream.AFFINE, n).T
        far = self.translate * size
        return {
            "map": fixed_point(
                similarity(
                    rng.between(angle, -self.degrees, self.degrees),
                    np.rint(rng.between(x, -far, far)),
                    np.rint(rng.between(y, -far, far)),
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
    """[n, 6]: the image moved by x pixels to the right and y down."""
    one, zero = np.ones_like(x), np.zeros_like(x)
    return np.stack([one, zero, -x, zero, one, -y], axis=1)


def shear(x: Floats, y: Floats) -> Floats:
    """[n, 6]: rows drawn out by x pixels a row, columns by y pixels a column, about the corner."""
    one, zero = np.ones_like(x), np.zeros_like(x)
    return np.stack([one, x, zero, y, one, zero], axis=1)


def rotation(degrees: Floats, size: int) -> Floats:
    """[n, 6]: the image turned about its centre, anticlockwise, as `Image.rotate` turns it."""
    angle = -np.radians(degrees % 360)
    cos, sin = np.round(np.cos(angle), 15), np.round(np.sin(angle), 15)
    middle = size / 2
    x = cos * -middle + sin * -middle + middle
    y = -sin * -middle + cos * -middle + middle
    return np.stack([cos, sin, x, -sin, cos, y], axis=1)


def similarity(
    degrees: Floats, x: Floats, y: Floats, scale: Floats, shear_x: Floats, size: int
) -> Floats:
    """[n, 6]: scaled, sheared along x, turned clockwise about the centre, then moved by (x, y)."""
    turn, lean = np.radians(degrees), np.radians(shear_x)
    a, b = np.cos(turn), -np.cos(turn) * np.tan(lean) - np.sin(turn)
    c, d = np.sin(turn), -np.sin(turn) * np.tan(lean) + np.cos(turn)
    a, b, c, d = d / scale, -b / scale, -c / scale, a / scale  # the inverse
    middle = size * 0.5
    left, top = -middle - x, -middle - y
    return np.stack([a, b, a * left + b * top + middle, c, d, c * left + d * top + middle], axis=1)


def fixed_point(coefficients: Floats) -> Tensor:
    """[n, 6] as Pillow rounds them: int64, the constant terms those of the first pixel's centre."""
    a, b, c, d, e, f = coefficients.T
    at_centre = np.stack([a, b, c + a * 0.5 + b * 0.5, d, e, f + d * 0.5 + e * 0.5], axis=1)
    return torch.from_numpy(np.floor(at_centre * 2.0**BITS + 0.5).astype(np.int64))


def affine(pixels: Tensor, fixed: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] through the maps [B, 6] of `fixed_point`; channels last in memory."""
    height, width = pixels.shape[-2:]
    a, b, c, d, e, f = (each[:, None, None] for each in fixed.unbind(1))
    down = torch.arange(height, device=pixels.device)[:, None]
    across = torch.arange(width, device=pixels.device)[None, :]
    x, y = (a * across + b * down + c) >> BITS, (d * across + e * down + f) >> BITS
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    sample = torch.arange(len(pixels), device=pixels.device)[:, None, None]
    found = rearrange(pixels, "b c h w -> b h w c")[
        sample, y.clamp(0, height - 1), x.clamp(0, width - 1)
    ]
    return rearrange(found * inside[..., None], "b h w c -> b c h w")
