"""Neuron selectivity transfer against the squared MMD, channel by channel."""

from dataclasses import replace

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from distill.losses.nst import NST
from tests.losses.loss_inputs import B, loss_inputs

FEW_PIXELS, MANY_PIXELS = "stages.2", "stages.0"  # 4 for 13 channels, 64 for 7


def kernel_mean(a: torch.Tensor, b: torch.Tensor) -> float:
    """The mean of (f_i . g_j)^2 over all pairs of channels of two maps [C, H, W], of norm 1."""
    f, g = ([c.flatten() / c.norm() for c in maps] for maps in (a, b))
    return sum(float(x @ y) ** 2 for x in f for y in g) / (len(f) * len(g))


@pytest.mark.parametrize("tap", [FEW_PIXELS, MANY_PIXELS])
def test_equals_the_mmd_written_out(tap: str) -> None:
    given = loss_inputs()
    ours, theirs = given.student_taps[tap], given.teacher_taps[tap]
    total = sum(
        kernel_mean(s, s) + kernel_mean(t, t) - 2 * kernel_mean(s, t)
        for s, t in zip(ours, theirs, strict=True)
    )
    assert NST(tap, tap)(given).item() == pytest.approx(total / B, rel=1e-9)


def test_the_gradient_on_many_pixels() -> None:
    given, term = loss_inputs(batch=2), NST(MANY_PIXELS, MANY_PIXELS)
    maps = given.student_taps[MANY_PIXELS].clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda ours: term(replace(given, student_taps={MANY_PIXELS: ours})), maps
    )


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_agreement_on_many_pixels_is_zero_and_finite(scale: float) -> None:
    given = loss_inputs(dtype=torch.float32)
    maps = scale * given.teacher_taps[MANY_PIXELS]
    ours = maps.clone().requires_grad_()
    same = replace(given, student_taps={MANY_PIXELS: ours}, teacher_taps={MANY_PIXELS: maps})
    value = NST(MANY_PIXELS, MANY_PIXELS)(same)
    value.backward()
    assert value.abs() < 1e-6 and ours.grad.isfinite().all()


@pytest.mark.parametrize(("side", "channels"), [(32, 8), (4, 128)])
def test_nothing_larger_than_the_maps_is_saved(side: int, channels: int) -> None:
    """The other form's matrix, of all pixels or of all channels, is 64 or 16 times the two maps."""
    ours, theirs = torch.rand(2, B, channels, side, side)
    given = replace(
        loss_inputs(),
        student_taps={"maps": ours.requires_grad_()},
        teacher_taps={"maps": theirs},
    )
    sizes = []
    with saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        NST("maps", "maps")(given)
    assert 0 < max(sizes) <= 2 * ours.numel()


@pytest.mark.parametrize("tap", [FEW_PIXELS, MANY_PIXELS])
def test_bfloat16_maps_are_compared_in_float32(tap: str) -> None:
    rough = loss_inputs(dtype=torch.bfloat16)
    ours, theirs = rough.student_taps[tap], rough.teacher_taps[tap]
    fine = replace(rough, student_taps={tap: ours.float()}, teacher_taps={tap: theirs.float()})
    assert torch.equal(NST(tap, tap)(rough), NST(tap, tap)(fine))


def test_channels_have_no_order_and_no_size() -> None:
    given = loss_inputs()
    maps = given.student_taps["stages.2"]
    scale = torch.linspace(0.5, 4, maps.shape[1], dtype=torch.float64)[None, :, None, None]
    other = replace(given, student_taps={"stages.2": (scale * maps).flip(1)})
    assert torch.isclose(NST()(other), NST()(given), rtol=1e-9)


def test_a_larger_map_is_pooled() -> None:
    given = loss_inputs()
    pooled = torch.nn.functional.avg_pool2d(given.student_taps["stages.1"], 2)
    small = replace(given, student_taps={"stages.2": pooled})
    assert torch.isclose(NST("stages.1", "stages.2")(given), NST()(small), rtol=1e-9)
