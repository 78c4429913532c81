"""Digital corruptions: contrast, elastic displacement, pixelation, JPEG.

Hendrycks & Dietterich, ICLR 2019, arXiv 1903.12261; the constants are those of CIFAR-10-C,
`make_cifar_c.py` in github.com/hendrycks/robustness. Each function takes images float32 [N, 3, S,
S] in [0, 1], a severity 1..5 and `draw`, the source of its random numbers (raw 64-bit words, see
distill/data/rng.py), and returns images that are not yet clipped to [0, 1].
"""

from collections.abc import Callable
from io import BytesIO

import numpy as np
from PIL import Image

from distill.data import rng
from distill.data.corruptions.filters import (
    Floats,
    gaussian,
    on_both_axes,
    reflect_with_edge,
    reflect_without_edge,
    sample,
)
from distill.data.rng import Draw

# One entry per severity.
CONTRAST = (0.75, 0.5, 0.4, 0.3, 0.15)  # factor on the deviation from a channel's mean
# Displacement of pixels, its smoothing, displacement of corners, as fractions of the image size.
ELASTIC = (
    (0, 0, 0.08),
    (0.05, 0.2, 0.07),
    (0.08, 0.06, 0.06),
    (0.1, 0.04, 0.05),
    (0.1, 0.03, 0.03),
)
REDUCED = (0.95, 0.9, 0.85, 0.75, 0.65)  # size of the shrunk image, as a fraction
QUALITY = (80, 65, 58, 50, 40)  # quality setting of the JPEG encoder


def contrast(images: Floats, severity: int, draw: Draw) -> Floats:
    """Move each colour channel towards its mean in the image."""
    means = images.mean(axis=(2, 3), keepdims=True)
    flatter: Floats = (images - means) * np.float32(CONTRAST[severity - 1]) + means
    return flatter


def elastic_transform(images: Floats, severity: int, draw: Draw) -> Floats:
    """Apply an affine map that displaces three corners, then displace pixels smoothly."""
    n, size = len(images), images.shape[-1]
    distance, smoothing, corners = (share * size for share in ELASTIC[severity - 1])
    uniforms = 2 * rng.uniform(draw(6 + 2 * size * size)) - 1
    row, column = np.mgrid[:size, :size].astype(np.float64)
    back = inverse_affine_maps(corners * uniforms[:, :6].reshape(n, 3, 2), size)
    grid = np.stack([column, row, np.ones_like(row)], axis=-1) @ back[:, None]
    mapped = sample(images, grid[..., 1], grid[..., 0], reflect_without_edge)
    smoother = gaussian(size, smoothing, truncate=3, border="symmetric")
    moves = distance * on_both_axes(smoother, uniforms[:, 6:].reshape(n, 2, size, size))
    return sample(mapped, row + moves[:, 1], column + moves[:, 0], reflect_with_edge)


def inverse_affine_maps(moves: Floats, size: int) -> Floats:
    """Return the inverses of the affine maps that move three corners by `moves` [N, 3, 2] pixels.

    The corners are the bottom right, top right and top left corners of a centred square, which is
    2/3 as wide as the image. The inverses are matrices [N, 3, 2] for row vectors (x, y, 1).
    """
    centre, half = size // 2, size // 3
    corners = centre + half * np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
    moved = np.concatenate([corners + moves, np.ones((len(moves), 3, 1))], axis=-1)
    return np.linalg.solve(moved, np.broadcast_to(corners, (len(moves), 3, 2)))


def pixelate(images: Floats, severity: int, draw: Draw) -> Floats:
    """Shrink and enlarge the image; each new pixel is the mean of the pixels that it covers."""
    size = images.shape[-1]
    small = int(size * REDUCED[severity - 1])

    def change(image: Image.Image) -> Image.Image:
        reduced = image.resize((small, small), Image.Resampling.BOX)
        return reduced.resize((size, size), Image.Resampling.BOX)

    return one_by_one(images, change)


def jpeg_compression(images: Floats, severity: int, draw: Draw) -> Floats:
    """Compress the image as a JPEG and decode it."""

    def change(image: Image.Image) -> Image.Image:
        file = BytesIO()
        image.save(file, "JPEG", quality=QUALITY[severity - 1])
        return Image.open(file)

    return one_by_one(images, change)


def one_by_one(images: Floats, change: Callable[[Image.Image], Image.Image]) -> Floats:
    """Apply `change`, a function of a Pillow image, to each image of a batch [N, 3, H, W]."""
    pixels = np.rint(images * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    changed = np.stack([np.asarray(change(Image.fromarray(image))) for image in pixels])
    return changed.transpose(0, 3, 1, 2).astype(np.float32) / 255
