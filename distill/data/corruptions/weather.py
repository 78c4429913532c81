"""Weather corruptions: snow, fog, brightness.

Hendrycks & Dietterich, ICLR 2019, arXiv 1903.12261; the constants are those of CIFAR-10-C,
`make_cifar_c.py` in github.com/hendrycks/robustness. Each function takes images float32 [N, 3, S,
S] in [0, 1], a severity 1..5 and `draw`, the source of its random numbers (raw 64-bit words, see
distill/data/rng.py), and returns images that are not yet clipped to [0, 1]. The paper's frost is
left out: it needs photographs.
"""

from typing import NamedTuple

import numpy as np

from distill.data import rng
from distill.data.corruptions.filters import Floats, magnifier, on_both_axes, smear
from distill.data.rng import Draw


class Snow(NamedTuple):
    """Parameters of the snow at one severity."""

    mean: float  # mean of the flakes' brightness
    std: float  # standard deviation of the flakes' brightness
    zoom: float  # factor by which the flakes are enlarged
    seen_from: float  # brightness below which a flake is invisible
    radius: int  # radius of the motion blur, in pixels
    sigma: float  # standard deviation of the motion blur, in pixels
    colour: float  # weight of the original colours; the rest is the paler image's


SNOW = (
    Snow(0.1, 0.2, 1, 0.6, 8, 3, 0.95),
    Snow(0.1, 0.2, 1, 0.5, 10, 4, 0.9),
    Snow(0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
    Snow(0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
    Snow(0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
)
FOG = ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))  # thickness, decay (see `plasma`)
BRIGHTER = (0.05, 0.1, 0.15, 0.2, 0.3)  # added to the HSV value
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)[:, None, None]  # ITU-R BT.601


def snow(images: Floats, severity: int, draw: Draw) -> Floats:
    """Make colours paler; add snowflakes and a copy of the flakes rotated by 180 degrees."""
    how, (n, _, height, width) = SNOW[severity - 1], images.shape
    words = draw(height * width // 2 + 1)
    flakes: Floats = how.mean + how.std * rng.normal(words[:, 1:]).reshape(n, 1, height, width)
    flakes = on_both_axes(magnifier(height, how.zoom), flakes)
    flakes = np.where(flakes < how.seen_from, 0, np.clip(flakes, 0, 1))
    degrees = rng.between(words[:, 0], -135, -45)
    fallen = smear(np.floor(flakes * 255) / 255, degrees, how.radius, how.sigma)
    fallen = (np.rint(fallen * 255) / 255).astype(np.float32)
    pale = np.maximum(images, (LUMA * images).sum(axis=1, keepdims=True) * 1.5 + 0.5)
    coloured = how.colour * images + (1 - how.colour) * pale
    snowed: Floats = coloured + fallen + fallen[:, :, ::-1, ::-1]
    return snowed


def fog(images: Floats, severity: int, draw: Draw) -> Floats:
    """Add a cloud, then dim the image so that it is nowhere brighter than its original maximum."""
    thickness, decay = FOG[severity - 1]
    size = images.shape[-1]
    cloud = plasma(rng.uniform(draw(size * size - 1)), size, decay).astype(np.float32)
    brightest = images.max(axis=(1, 2, 3), keepdims=True)
    fogged: Floats = (images + thickness * cloud[:, None]) * (brightest / (brightest + thickness))
    return fogged


def plasma(uniforms: Floats, size: int, decay: float) -> Floats:
    """Generate clouds [N, size, size] in 0..1 by the diamond-square algorithm.

    Fournier, Fussell and Carpenter, Communications of the ACM 25, 1982. `uniforms`
    [N, size² - 1] are random numbers in [0, 1). Each time the grid spacing is halved, the random
    displacements are divided by `decay`². Opposite borders match.
    """
    heights = np.zeros((len(uniforms), size, size))
    # The unit of `rough` is arbitrary: the cloud is scaled to 0..1 at the end.
    taken, step, rough = 0, size, 1.0

    def mean(sum_of_four: Floats) -> Floats:
        nonlocal taken
        n_points = sum_of_four[0].size
        drawn = uniforms[:, taken : taken + n_points].reshape(sum_of_four.shape)
        taken += n_points
        moved: Floats = sum_of_four / 4 + rough**2 * (2 * drawn - 1)
        return moved

    while step >= 2:
        on, off = slice(None, None, step), slice(step // 2, None, step)
        corners = heights[:, on, on]
        pairs = corners + np.roll(corners, -1, axis=1)
        heights[:, off, off] = centres = mean(pairs + np.roll(pairs, -1, axis=2))
        beside = corners + np.roll(corners, -1, axis=2)
        heights[:, on, off] = mean(centres + np.roll(centres, 1, axis=1) + beside)
        below = corners + np.roll(corners, -1, axis=1)
        heights[:, off, on] = mean(centres + np.roll(centres, 1, axis=2) + below)
        step, rough = step // 2, rough / decay
    heights -= heights.min(axis=(1, 2), keepdims=True)
    cloud: Floats = heights / heights.max(axis=(1, 2), keepdims=True)
    return cloud


def brightness(images: Floats, severity: int, draw: Draw) -> Floats:
    """Increase the HSV value of each pixel; hue and saturation stay the same."""
    value = images.max(axis=1, keepdims=True)
    raised = np.minimum(value + np.float32(BRIGHTER[severity - 1]), 1)
    factor = np.divide(raised, value, out=np.zeros_like(value), where=value > 0)
    brighter: Floats = np.where(value > 0, images * factor, raised)  # black becomes grey
    return brighter
