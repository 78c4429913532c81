"""Logit standardisation against the paper's formula, and what it cannot see."""

import statistics
from dataclasses import replace

import pytest
import torch

from distill.losses.kd import KD
from distill.losses.logit_std import LogitStd, standardised
from distill.losses.objective import LossInputs
from tests.losses.loss_inputs import B, C, loss_inputs


def z_scores(logits: torch.Tensor) -> torch.Tensor:
    rows = logits.tolist()
    return torch.tensor(
        [[(z - statistics.mean(r)) / statistics.stdev(r) for z in r] for r in rows],
        dtype=torch.float64,
    )


@pytest.mark.parametrize("t", [0.7, 1.0, 2.0])
def test_is_kd_of_the_z_scores(t: float) -> None:
    given = loss_inputs()
    scores = replace(given, student=z_scores(given.student), teacher=z_scores(given.teacher))
    assert torch.isclose(LogitStd(t)(given), KD(t)(scores), rtol=1e-9)


def test_scale_and_shift_of_a_row_change_nothing() -> None:
    given = loss_inputs()
    scale = torch.linspace(0.5, 3, B, dtype=torch.float64)[:, None]
    moved = replace(given, student=scale * given.student - 2 * scale)
    assert torch.isclose(LogitStd()(moved), LogitStd()(given), rtol=1e-6)
    assert not torch.isclose(LogitStd()(replace(given, student=-given.student)), LogitStd()(given))


def test_no_margin_is_above_root_of_class_count() -> None:
    sure = torch.zeros(1, C, dtype=torch.float64)
    sure[0, 2] = 100
    top, second = standardised(sure)[0].sort(descending=True).values[:2]
    assert (top - second).item() == pytest.approx(C**0.5, rel=1e-6)


@pytest.mark.parametrize("constant", [0.3, 3.1, 12.3])
def test_a_constant_row_is_near_zeros_in_float32(constant: float) -> None:
    """Of ten times 3.1, float32 leaves 2e-7 about the mean: no z-scores of 1."""
    assert standardised(torch.full((1, 10), constant)).abs().max() < 1e-3


@pytest.mark.parametrize("spread", [0.0, 1e-6, 1e-4, 1e-2])
def test_constant_logits_have_a_bounded_gradient(spread: float) -> None:
    given = loss_inputs(dtype=torch.float32)
    student = (3.1 + spread * given.student).requires_grad_()
    LogitStd(1.0)(LossInputs(student, given.targets, given.teacher)).backward()
    assert 0 < student.grad.norm(dim=1).max() < 2 / 0.01 / B
