"""Mean and std of colour channels, compared with their definition in float64."""

import numpy as np
import pytest

from distill.data import channel_statistics
from distill.data.channel_statistics import mean_and_std


@pytest.mark.parametrize("at_once", [1, 1 << 24])
def test_values_are_those_of_all_pixels(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_statistics, "CHUNK_BYTES", at_once)
    images = np.random.default_rng(0).integers(0, 200, (7, 3, 5, 5), dtype=np.uint8)
    images[:, 1] //= 4
    mean, std = mean_and_std(images)
    scaled = images / 255
    assert mean == pytest.approx(scaled.mean((0, 2, 3)), abs=5.001e-5)  # of four digits
    assert std == pytest.approx(scaled.std((0, 2, 3)), abs=5.001e-5)
    assert all(value == round(value, 4) for value in mean + std)


def test_order_and_layout_do_not_matter() -> None:
    images = np.random.default_rng(1).integers(0, 256, (64, 3, 8, 8), dtype=np.uint8)
    interleaved = np.ascontiguousarray(images.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    assert mean_and_std(images) == mean_and_std(images[::-1]) == mean_and_std(interleaved)


def test_constant_channel_has_a_std() -> None:
    images = np.zeros((2, 3, 4, 4), np.uint8)
    images[0, 0] = 255
    assert mean_and_std(images) == ((0.5, 0.0, 0.0), (0.5, 0.0039, 0.0039))
