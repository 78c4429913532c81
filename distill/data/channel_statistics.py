"""Compute the mean and standard deviation of each colour channel of images."""

import math

import numpy as np
from numpy.typing import NDArray

CHUNK_BYTES = 1 << 24  # of pixels at a time, so that no large copy is made
DIGITS = 4  # of mean and std, as in CIFAR's published values
LEAST_STD = 1 / 255  # one grey level, for a channel that has the same value everywhere

Channels = tuple[float, float, float]  # red, green, blue


def mean_and_std(images: NDArray[np.uint8]) -> tuple[Channels, Channels]:
    """Return mean and std of red, green and blue over all pixels, for images in [0, 1].

    `images`: uint8 [N, 3, H, W]. Both are rounded to four digits. Sums are of integers, so that the
    result does not depend on the order of the images. A std is at least 1/255, rounded.
    """
    total, squares = np.zeros(3, np.int64), np.zeros(3, np.int64)
    at_once = max(1, CHUNK_BYTES // max(1, images[:1].nbytes))
    for start in range(0, len(images), at_once):
        for channel in range(3):
            levels = np.bincount(images[start : start + at_once, channel].ravel(), minlength=256)
            total[channel] += levels @ np.arange(256)
            squares[channel] += levels @ np.arange(256) ** 2
    n = images.size // 3
    mean = [int(s) / n / 255 for s in total]
    # n squares - total², in whole numbers: no digits are lost in the difference.
    variance = [n * int(q) - int(s) ** 2 for q, s in zip(squares, total, strict=True)]
    std = [max(math.sqrt(v) / n / 255, LEAST_STD) for v in variance]
    return _rounded(mean), _rounded(std)


def _rounded(values: list[float]) -> Channels:
    red, green, blue = (round(value, DIGITS) for value in values)
    return red, green, blue
