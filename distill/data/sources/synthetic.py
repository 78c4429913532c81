"""Generate the synthetic set: ten classes of drawn 32x32 pictures, without a download.

A class is a shape (disc, ring, square, cross, triangle) combined with a texture (stripes, checks).
The object's colours, position, size and rotation are random, and so are the gradient of the
background, a half-size outline of another picture's object behind it, a bar in front of it, and
noise; all of these are independent of the class. Classes with the same shape differ only in the
texture, classes with the same texture only in the outline. So some classes are similar, and soft
targets carry information.

The images are the same bit for bit on every machine. Random numbers are raw 64-bit words of a
counter-based generator (Philox), whose stream numpy guarantees. Angles are rational points of the
unit circle. The only operations are additions, products, divisions, comparisons and floor, whose
rounding IEEE 754 defines exactly. Pixels are rounded to uint8 once, at the end.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.random import Philox
from numpy.typing import NDArray

from distill.data.image_set import SIDE, ImageSet, Split

SIZES: dict[Split, int] = {"train": 6000, "test": 2000}
SEEDS: dict[Split, int] = {"train": 20_260_101, "test": 20_260_102}
CHUNK = 500  # pictures drawn at once, a multiple of ten; their 4 MB fit in the processor's cache
TILT = 0.25  # tan of half the largest rotation, which is 28 degrees in either direction

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@cache  # drawing takes 0.5 s for train and 0.15 s for test, and a run reads the test split twice
def draw(split: Split) -> ImageSet:
    """Draw a split: 600 pictures per class in train, 200 in test.

    The labels are 0, 1, …, 9, 0, 1, … The result is cached, so callers must not change its arrays.
    """
    bits = Philox(SEEDS[split])
    chunks = [_chunk(bits) for _ in range(SIZES[split] // CHUNK)]
    labels = np.arange(SIZES[split], dtype=np.int64) % len(CLASS_NAMES)
    return ImageSet(np.concatenate(chunks), labels, CLASS_NAMES, normalised_as="cifar10")


def _uniform(bits: Philox, *shape: int, low: float = 0.0, high: float = 1.0) -> Floats:
    words = bits.random_raw(int(np.prod(shape))).reshape(shape)
    unit = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return low + (high - low) * unit


def _direction(bits: Philox, tilt: float) -> tuple[Floats, Floats]:
    """Draw the cosines and sines of random angles, [CHUNK, 1, 1], without trigonometric functions.

    `tilt` is the tangent of half the largest angle.
    """
    t = _uniform(bits, CHUNK, 1, 1, low=-tilt, high=tilt)
    return (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)


def _disc(u: Floats, v: Floats) -> Mask:
    return u * u + v * v < 0.9


def _ring(u: Floats, v: Floats) -> Mask:
    squared = u * u + v * v
    return (squared < 1.0) & (squared > 0.2)


def _square(u: Floats, v: Floats) -> Mask:
    return np.maximum(np.abs(u), np.abs(v)) < 0.85


def _cross(u: Floats, v: Floats) -> Mask:
    u, v = np.abs(u), np.abs(v)
    return (np.maximum(u, v) < 1.05) & (np.minimum(u, v) < 0.4)


def _triangle(u: Floats, v: Floats) -> Mask:
    return (v > -0.65) & (v + 1.732 * np.abs(u) < 1.3)


SHAPES: dict[str, Callable[[Floats, Floats], Mask]] = {
    "disc": _disc,
    "ring": _ring,
    "square": _square,
    "cross": _cross,
    "triangle": _triangle,
}
TEXTURES = ("striped", "checked")
CLASS_NAMES = tuple(f"{texture} {shape}" for shape in SHAPES for texture in TEXTURES)

_X: Floats = np.arange(SIDE, dtype=np.float64)[None, :] - (SIDE - 1) / 2  # pixels from the centre
_Y: Floats = _X.reshape(SIDE, 1)


def _outlines(bits: Philox) -> Mask:
    """Draw the mask of each picture's object: [CHUNK, 32, 32]."""
    cos, sin = _direction(bits, TILT)
    radius = _uniform(bits, CHUNK, 1, 1, low=8.0, high=13.0)
    x = _X - _uniform(bits, CHUNK, 1, 1, low=-4.0, high=4.0)
    y = _Y - _uniform(bits, CHUNK, 1, 1, low=-4.0, high=4.0)
    u, v = (cos * x + sin * y) / radius, (cos * y - sin * x) / radius
    mask = np.empty(u.shape, dtype=np.bool_)
    for i, shape in enumerate(SHAPES.values()):
        for label in (2 * i, 2 * i + 1):  # one shape, two textures
            rows = slice(label, None, len(CLASS_NAMES))
            mask[rows] = shape(u[rows], v[rows])
    return mask


def _textures(bits: Philox) -> Mask:
    """Draw masks of rotated stripes (even labels) or checks (odd labels): [CHUNK, 32, 32]."""
    cos, sin = _direction(bits, TILT)
    period = _uniform(bits, CHUNK, 1, 1, low=5.0, high=8.0)
    phase = _uniform(bits, 2, CHUNK, 1, 1)
    mask = _square_wave((cos * _X + sin * _Y) / period + phase[0])
    across = (cos * _Y - sin * _X) / period + phase[1]
    mask[1::2] ^= _square_wave(across[1::2])
    return mask


def _square_wave(position: Floats) -> Mask:
    """Whether the fractional part of each position is below one half."""
    fraction: Floats = position - np.floor(position)
    return fraction < 0.5


def _bars(bits: Philox) -> Mask:
    """Draw the mask of a straight bar in front of the object: [CHUNK, 32, 32]."""
    cos, sin = _direction(bits, 1.0)
    offset = _uniform(bits, CHUNK, 1, 1, low=-9.0, high=9.0)
    width = _uniform(bits, CHUNK, 1, 1, low=0.0, high=3.0)
    return np.abs(cos * _X + sin * _Y - offset) < width


def _clutter(bits: Philox, outlines: Mask) -> Mask:
    """Place a half-size outline of another picture at a random position: masks [CHUNK, 32, 32]."""
    canvas = np.zeros_like(outlines)
    partner = _uniform(bits, CHUNK, high=CHUNK).astype(np.int64)
    y, x = _uniform(bits, 2, CHUNK, 1, 1, high=SIDE // 2 + 1).astype(np.int64)
    picture, steps = np.arange(CHUNK)[:, None, None], np.arange(SIDE // 2)
    canvas[picture, y + steps[:, None], x + steps] = outlines[partner, ::2, ::2]
    return canvas


def _draw_colours(bits: Philox) -> Floats:
    """Draw five colours per picture, [5, CHUNK, 3, 1, 1].

    They are the colours of the background, of the dark and light parts of the object, of the
    clutter and of the bar. In each channel the background is between the object's two colours, so
    that every object and texture is visible and minutes of training are enough.
    """
    *levels, clutter, bar = _uniform(bits, 5, CHUNK, 3, 1, 1)
    spans = ((96.0, 160.0), (0.0, 96.0), (160.0, 256.0))
    object_and_back = [low + (high - low) * u for (low, high), u in zip(spans, levels, strict=True)]
    return np.stack([*object_and_back, 255.0 * clutter, 255.0 * bar])


def _chunk(bits: Philox) -> NDArray[np.uint8]:
    """Draw pictures [CHUNK, 3, 32, 32] of classes 0, 1, …, 9, 0, 1, …"""
    outlines, textures = _outlines(bits), _textures(bits)
    background, dark, light, clutter, bar = _draw_colours(bits)
    slope = _uniform(bits, 2, CHUNK, 3, 1, 1, low=-2.0, high=2.0)  # grey levels per pixel
    pixels = background + slope[0] * _X + slope[1] * _Y
    np.copyto(pixels, clutter, where=_clutter(bits, outlines)[:, None])
    np.copyto(pixels, dark, where=(outlines & textures)[:, None])
    np.copyto(pixels, light, where=(outlines & ~textures)[:, None])
    np.copyto(pixels, bar, where=_bars(bits)[:, None])
    pixels += _noise(bits, pixels.shape)
    rounded: NDArray[np.uint8] = np.clip(np.floor(pixels + 0.5), 0, 255).astype(np.uint8)
    return rounded


def _noise(bits: Philox, shape: tuple[int, ...]) -> Floats:
    """Draw noise of a random strength per picture.

    It is a sum of two random bytes, whose distribution is triangular.
    """
    words = bits.random_raw(2 * int(np.prod(shape)) // 8)
    pair = words.astype("<u8").view(np.uint8).reshape(2, *shape)
    strength = _uniform(bits, shape[0], 1, 1, 1, low=0.0, high=0.4)
    noise: Floats = strength * (pair[0].astype(np.float64) + pair[1] - 255.0)
    return noise
