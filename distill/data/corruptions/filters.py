"""Smooth, zoom, shift and resample many images at once.

A separable filter with the same weights along rows and columns is one matrix [size, size]. Row i of
the matrix holds the weights of all input positions in output position i.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Indices = NDArray[np.int64]
Border = Literal["edge", "symmetric"]  # modes of np.pad: aa|abc|cc and ba|abc|cb


def on_both_axes(matrix: Floats, maps: Floats) -> Floats:
    """Apply a filter matrix [size, size] to the rows and the columns of maps [..., size, size]."""
    square = matrix.astype(maps.dtype)
    applied: Floats = square @ maps @ square.T
    return applied


def gaussian(size: int, sigma: float, *, truncate: float, border: Border) -> Floats:
    """Return the filter matrix [size, size] of a Gaussian of standard deviation `sigma` pixels.

    The Gaussian is truncated at `truncate` standard deviations. `border`: how the map is padded.
    """
    radius = int(truncate * sigma + 0.5)
    if not radius:
        return np.eye(size)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    weights /= weights.sum()
    padded = np.pad(np.eye(size), ((radius, radius), (0, 0)), mode=border)
    rows: Floats = sum(weight * padded[i : i + size] for i, weight in enumerate(weights))
    return rows


def magnifier(size: int, factor: float) -> Floats:
    """Return the filter matrix [size, size] that enlarges the middle of a map by `factor`.

    The map has the same size afterwards. Interpolation is linear.
    """
    cropped = int(np.ceil(size / factor))
    whole = round(cropped * factor)  # size of the enlarged crop, whose middle is cut out
    first = (whole - size) // 2 + np.arange(size)
    at = (size - cropped) // 2 + first * (cropped - 1) / (whole - 1)
    linear: Floats = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(size)))
    return linear


def smear(maps: Floats, degrees: Floats, radius: int, sigma: float) -> Floats:
    """Apply motion blur to maps [N, C, H, W], along one angle per map: `degrees` [N].

    As in ImageMagick's MotionBlurImage, the kernel is a one-sided Gaussian of standard deviation
    `sigma` pixels. It has 2 * radius + 1 points along the line, each sampled at the nearest pixel.
    Pixels beyond the border repeat the edge.
    """
    taps = np.arange(2 * radius + 1)
    weights = np.exp(-0.5 * (taps / sigma) ** 2)
    weights = (weights / weights.sum()).astype(maps.dtype)
    angle = np.deg2rad(degrees)
    offsets = np.stack([np.sin(angle), np.cos(angle)], axis=-1)[:, None] * taps[:, None]
    steps = np.ceil(offsets - 0.5).astype(np.int64)  # [N, taps, (down, right)]
    pad, (height, width) = 2 * radius, maps.shape[-2:]
    padded = np.pad(maps, ((0, 0), (0, 0), (pad, pad), (pad, pad)), mode="edge")
    smeared = np.zeros_like(maps)
    for tap, weight in enumerate(weights):
        # A point of the line has few different offsets: slicing all maps with the same offset at
        # once is faster than gathering pixels.
        for down, right in np.unique(steps[:, tap], axis=0):
            same = (steps[:, tap] == (down, right)).all(axis=1)
            rows = slice(pad + down, pad + down + height)
            columns = slice(pad + right, pad + right + width)
            smeared[same] += weight * padded[same, :, rows, columns]
    return smeared


def convolve(maps: Floats, kernel: Floats) -> Floats:
    """Convolve maps [N, C, H, W] with a symmetric kernel of odd size, padded by reflection."""
    reach, (height, width) = len(kernel) // 2, maps.shape[-2:]
    padded = np.pad(maps, ((0, 0), (0, 0), (reach, reach), (reach, reach)), mode="reflect")
    result = np.zeros_like(maps)
    for (i, j), weight in np.ndenumerate(kernel.astype(maps.dtype)):
        if weight:
            result += weight * padded[:, :, i : i + height, j : j + width]
    return result


def reflect_without_edge(index: Indices, size: int) -> Indices:
    """Reflect indices outside 0..size-1 to inside, without repeating the edge: cb|abcd|cb."""
    period = 2 * (size - 1)
    folded: Indices = np.abs((index + size - 1) % period - (size - 1))
    return folded


def reflect_with_edge(index: Indices, size: int) -> Indices:
    """Reflect indices outside 0..size-1 to inside, repeating the edge: ba|abcd|dc."""
    folded = index % (2 * size)
    return np.minimum(folded, 2 * size - 1 - folded)


def sample(
    maps: Floats, down: Floats, right: Floats, fold: Callable[[Indices, int], Indices]
) -> Floats:
    """Interpolate maps [N, C, H, W] bilinearly at the positions (`down`, `right`) in pixels.

    `down`, `right`: [N, H, W], the row and column of each output pixel in its input map. `fold`
    maps indices outside a map to indices inside.
    """
    n, channels, height, width = maps.shape
    flat = maps.reshape(n, channels, -1)
    top, left = np.floor(down).astype(np.int64), np.floor(right).astype(np.int64)
    below, beside = ((down - top).astype(maps.dtype), (right - left).astype(maps.dtype))
    sampled = np.zeros_like(maps)
    for i, row_share in ((0, 1 - below), (1, below)):
        for j, column_share in ((0, 1 - beside), (1, beside)):
            index = fold(top + i, height) * width + fold(left + j, width)
            corner = np.take_along_axis(flat, index.reshape(n, 1, -1), axis=2)
            sampled += (row_share * column_share)[:, None] * corner.reshape(maps.shape)
    return sampled
