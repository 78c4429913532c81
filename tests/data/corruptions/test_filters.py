"""Filters of many maps at once against scipy's of one, and against lines drawn by hand."""

import numpy as np
import pytest
from scipy import ndimage

from distill.data.corruptions.filters import (
    convolve,
    gaussian,
    magnifier,
    on_both_axes,
    reflect_with_edge,
    reflect_without_edge,
    sample,
    smear,
)

MAPS = np.random.default_rng(0).random((3, 2, 32, 32))


@pytest.mark.parametrize("sigma", [0.05, 0.4, 1.92, 6.4])
@pytest.mark.parametrize(("border", "theirs"), [("edge", "nearest"), ("symmetric", "reflect")])
def test_smoothing_is_scipy_s(sigma: float, border: str, theirs: str) -> None:
    ours = on_both_axes(gaussian(32, sigma, truncate=3, border=border), MAPS)  # type: ignore[arg-type]
    wanted = ndimage.gaussian_filter(MAPS, (0, 0, sigma, sigma), mode=theirs, truncate=3)
    assert np.allclose(ours, wanted, atol=1e-12)


@pytest.mark.parametrize("factor", [1, 1.03, 1.25, 1.75, 2.25])
def test_a_magnified_middle_is_scipy_s(factor: float) -> None:
    cropped = int(np.ceil(32 / factor))
    first = (32 - cropped) // 2
    middle = MAPS[:, :, first : first + cropped, first : first + cropped]
    zoomed = ndimage.zoom(middle, (1, 1, factor, factor), order=1)
    trim = (zoomed.shape[-1] - 32) // 2
    ours = on_both_axes(magnifier(32, factor), MAPS)
    assert np.allclose(ours, zoomed[:, :, trim : trim + 32, trim : trim + 32], atol=1e-12)


def test_a_kernel_is_scipy_s() -> None:
    kernel = np.array([[0.0, 0.1, 0.0], [0.1, 0.6, 0.1], [0.0, 0.1, 0.0]])
    wanted = ndimage.correlate(MAPS, kernel[None, None], mode="mirror")
    assert np.allclose(convolve(MAPS, kernel), wanted, atol=1e-12)


@pytest.mark.parametrize(
    ("fold", "theirs"), [(reflect_without_edge, "mirror"), (reflect_with_edge, "reflect")]
)
def test_places_between_pixels_and_beyond_are_scipy_s(fold, theirs: str) -> None:
    down, right = np.random.default_rng(1).uniform(-9, 40, (2, 3, 32, 32))
    ours = sample(MAPS, down, right, fold)
    for n in range(3):
        for channel in range(2):
            places = [down[n], right[n]]
            wanted = ndimage.map_coordinates(MAPS[n, channel], places, order=1, mode=theirs)
            assert np.allclose(ours[n, channel], wanted, atol=1e-12)


def test_smear_draws_half_gaussian_along_its_angle() -> None:
    point = np.zeros((3, 1, 32, 32))
    point[:, 0, 16, 16] = 1.0
    smeared = smear(point, np.array([0.0, -90.0, 45.0]), radius=3, sigma=1.0)[:, 0]
    weights = np.exp(-0.5 * np.arange(7) ** 2)
    weights /= weights.sum()
    # A pixel takes the pixels ahead of it, so a point is smeared backwards.
    assert np.allclose(smeared[0, 16, 16:9:-1], weights)
    assert np.allclose(smeared[1, 16:23, 16], weights)
    steps = np.ceil(np.arange(7) / np.sqrt(2) - 0.5).astype(int)
    diagonal = np.bincount(steps, weights)
    assert np.allclose([smeared[2, 16 - k, 16 - k] for k in range(len(diagonal))], diagonal)
    assert np.allclose(smeared.sum(axis=(1, 2)), 1)
