"""Blur corruptions: defocus, frosted glass, motion, zoom.

Hendrycks & Dietterich, ICLR 2019, arXiv 1903.12261; the constants are those of CIFAR-10-C,
`make_cifar_c.py` in github.com/hendrycks/robustness. Each function takes images float32 [N, 3, S,
S] in [0, 1], a severity 1..5 and `draw`, the source of its random numbers (raw 64-bit words, see
distill/data/rng.py), and returns images that are not yet clipped to [0, 1].
"""

from functools import cache

import numpy as np

from distill.data import rng
from distill.data.corruptions.filters import (
    Floats,
    convolve,
    gaussian,
    magnifier,
    on_both_axes,
    smear,
)
from distill.data.rng import Draw

# One entry per severity. The smoothing is the standard deviation of a Gaussian.
FOCUS = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))  # radius, smoothing, in pixels
GLASS = ((0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2))  # smoothing in pixels, passes
MOTION = ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))  # radius, standard deviation, in pixels
ZOOM = (1.06, 1.11, 1.16, 1.21, 1.26)  # the largest factor; factors begin at 1
ZOOM_STEP = 0.01
LARGEST_MATRIX = 32  # pixels; for larger images the matrix of the zoom blur takes too much memory


def defocus_blur(images: Floats, severity: int, draw: Draw) -> Floats:
    """Convolve with a small disk whose edge is smoothed."""
    return convolve(images, disk(*FOCUS[severity - 1]))


def disk(radius: float, smoothing: float) -> Floats:
    """Return the kernel of a disk, [5, 5] with sum 1, smoothed by a 3x3 Gaussian.

    `radius` and `smoothing`, the standard deviation of the Gaussian, are in pixels.
    """
    at = np.arange(-2, 3)
    filled = (at**2 + at[:, None] ** 2 <= radius**2).astype(float)
    taps = np.exp(-0.5 * (np.arange(-1, 2) / smoothing) ** 2)
    taps /= taps.sum()
    smoother = sum(tap * np.eye(len(at), k=k) for k, tap in zip((-1, 0, 1), taps, strict=True))
    return on_both_axes(smoother, filled / filled.sum())


def glass_blur(images: Floats, severity: int, draw: Draw) -> Floats:
    """Replace each pixel by a random neighbour above or to the left, between two smoothings.

    The paper swaps the two pixels. The authors' program swaps two views of one array, which only
    copies the neighbour. The published images were made by that program, so this function copies
    the neighbour too.
    """
    smoothing, passes = GLASS[severity - 1]
    smoother = gaussian(images.shape[-1], smoothing, truncate=4, border="edge")
    n, _, height, width = images.shape
    moves = rng.integers(draw(passes * height * width), 4).reshape(n, passes, height, width)
    blurred = np.floor(on_both_axes(smoother, images) * 255 + 1e-3) / np.float32(255)
    row, column = np.mgrid[:height, :width]
    inner = (row >= 2) & (column >= 2)
    for move in moves.swapaxes(0, 1):
        at = np.where(inner, (row - move // 2) * width + column - move % 2, row * width + column)
        blurred = np.take_along_axis(
            blurred.reshape(n, 3, -1), at.reshape(n, 1, -1), axis=2
        ).reshape(images.shape)
    return on_both_axes(smoother, blurred)


def motion_blur(images: Floats, severity: int, draw: Draw) -> Floats:
    """Blur along a line within 45 degrees of the horizontal."""
    return smear(images, rng.between(draw(1)[:, 0], -45, 45), *MOTION[severity - 1])


def zoom_blur(images: Floats, severity: int, draw: Draw) -> Floats:
    """Return the mean of the image and of enlargements of its middle by increasing factors."""
    size = images.shape[-1]
    if size > LARGEST_MATRIX:
        zooms = [zoom.astype(np.float32) for zoom in _zooms(severity, size)]
        total = images + sum(zoom @ images @ zoom.T for zoom in zooms)
        return np.asarray(total / (len(zooms) + 1), np.float32)
    flat = images.reshape(-1, size * size)
    return (flat @ zoom_mean(severity, size).T).reshape(images.shape)


@cache
def zoom_mean(severity: int, size: int) -> Floats:
    """Return the matrix [size², size²], float32, that applies the zoom blur to flattened images.

    It takes 4 MB for 32x32 pixels.
    """
    zooms = _zooms(severity, size)
    total = np.eye(size * size) + sum(np.kron(zoom, zoom) for zoom in zooms)
    mean: Floats = (total / (len(zooms) + 1)).astype(np.float32)
    return mean


def _zooms(severity: int, size: int) -> list[Floats]:
    """Return the matrices [size, size] that enlarge the middle of an image along one axis."""
    factors = np.arange(1, ZOOM[severity - 1], ZOOM_STEP)  # numpy's rounding may include the end
    return [magnifier(size, factor) for factor in factors]
