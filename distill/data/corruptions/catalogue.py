"""List common corruptions by name and apply them to images.

Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations", ICLR 2019, arXiv 1903.12261. It has 14 of their 15 corruptions: frost needs
photographs. Images are computed here, not read from CIFAR-10-C, with the same operations and
constants but other random draws: mean accuracies are comparable, individual images differ.
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
    """Apply a corruption at a severity 1..5 to images uint8 [N, 3, 32, 32].

    An image's result is a function of its pixels and (seed, corruption, severity, its number in
    `samples` [N]), whatever the other images.
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

    Values that float32 rounding leaves just below a whole number are rounded up to it.
    """
    pixels: Pixels = np.floor(np.clip(images, 0, 1) * 255 + 1e-3).astype(np.uint8)
    return pixels
