"""List common corruptions by name and apply them to images.

Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations", ICLR 2019, arXiv 1903.12261. This module implements 14 of the paper's 15
corruptions; frost is left out because it needs photographs. Images are computed here, not read from
CIFAR-10-C. The operations and constants are the same but the random draws differ: mean accuracies
are comparable, individual images differ.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from distill.data import rng
from distill.data.corruptions import blur, digital, noise, weather
from distill.data.corruptions.filters import Floats
from distill.data.rng import Draw, Stream

Pixels = NDArray[np.uint8]
Corruption = Callable[[Floats, int, Draw], Floats]

CORRUPTIONS: dict[str, Corruption] = {  # in the paper's order; draws depend on the position
    "gaussian_noise": noise.gaussian_noise,
    "shot_noise": noise.shot_noise,
    "impulse_noise": noise.impulse_noise,
    "defocus_blur": blur.defocus_blur,
    "glass_blur": blur.glass_blur,
    "motion_blur": blur.motion_blur,
    "zoom_blur": blur.zoom_blur,
    "snow": weather.snow,
    "fog": weather.fog,
    "brightness": weather.brightness,
    "contrast": digital.contrast,
    "elastic_transform": digital.elastic_transform,
    "pixelate": digital.pixelate,
    "jpeg_compression": digital.jpeg_compression,
}
NUMBERS = {name: number for number, name in enumerate(CORRUPTIONS)}
LEFT_OUT = ("frost",)
SEVERITIES = (1, 2, 3, 4, 5)
CHUNK = 250  # images at once: 3 MB as float32, which fits in the processor's cache


def corrupt(
    images: Pixels, name: str, severity: int, *, samples: NDArray[np.int64], seed: int = 0
) -> Pixels:
    """Apply the corruption `name` at a severity 1..5 to images uint8 [N, 3, S, S].

    `samples`: int64 [N], each image's number in the data set. The result for an image depends only
    on its pixels, its number, the seed, the corruption and the severity, not on the other images.
    """
    key = seed, len(SEVERITIES) * NUMBERS[name] + severity - 1
    chunks = []
    for first in range(0, len(images), CHUNK):
        part = slice(first, first + CHUNK)
        draw = partial(rng.sample_words, key, Stream.CORRUPTION, samples[part])
        floats = images[part].astype(np.float32) / np.float32(255)
        chunks.append(to_pixels(CORRUPTIONS[name](floats, severity, draw)))
    return np.concatenate(chunks) if chunks else images.copy()


def to_pixels(images: Floats) -> Pixels:
    """Clip to [0, 1], scale to 0..255 and round down to uint8, as in the published CIFAR-10-C.

    Values up to 0.001 below a whole number are rounded up to it: float32 rounding moved them there.
    """
    pixels: Pixels = np.floor(np.clip(images, 0, 1) * 255 + 1e-3).astype(np.uint8)
    return pixels
