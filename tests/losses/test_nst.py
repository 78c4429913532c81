"""Neuron selectivity transfer against the squared MMD, channel by channel."""

from dataclasses import replace

import pytest
import torch

from distill.losses.nst import NST
from tests.losses.answers import B, answers


def kernel_mean(a: torch.Tensor, b: torch.Tensor) -> float:
    """The mean of (f_i . g_j)^2 over all pairs of channels of two maps [C, H, W], of norm 1."""
    f, g = ([c.flatten() / c.norm() for c in maps] for maps in (a, b))
    return sum(float(x @ y) ** 2 for x in f for y in g) / (len(f) * len(g))


def test_equals_the_mmd_written_out() -> None:
    given = answers()
    ours, theirs = given.student_taps["stages.2"], given.teacher_taps["stages.2"]
    total = sum(
        kernel_mean(s, s) + kernel_mean(t, t) - 2 * kernel_mean(s, t)
        for s, t in zip(ours, theirs, strict=True)
    )
    assert NST()(given).item() == pytest.approx(total / B, rel=1e-9)


def test_channels_have_no_order_and_no_size() -> None:
    given = answers()
    maps = given.student_taps["stages.2"]
    scale = torch.linspace(0.5, 4, maps.shape[1], dtype=torch.float64)[None, :, None, None]
    other = replace(given, student_taps={"stages.2": (scale * maps).flip(1)})
    assert torch.isclose(NST()(other), NST()(given), rtol=1e-9)


def test_a_larger_map_is_pooled() -> None:
    given = answers()
    pooled = torch.nn.functional.avg_pool2d(given.student_taps["stages.1"], 2)
    small = replace(given, student_taps={"stages.2": pooled})
    assert torch.isclose(NST("stages.1", "stages.2")(given), NST()(small), rtol=1e-9)
