"""Logit standardisation against the paper's formula, and what it cannot see."""

import statistics
from dataclasses import replace

import pytest
import torch

from distill.losses.kd import KD
from distill.losses.logit_std import LogitStd, standardised
from tests.losses.answers import B, C, answers


def z_scores(logits: torch.Tensor) -> torch.Tensor:
    rows = logits.tolist()
    return torch.tensor(
        [[(z - statistics.mean(r)) / (statistics.stdev(r) + 1e-7) for z in r] for r in rows],
        dtype=torch.float64,
    )


@pytest.mark.parametrize("t", [0.7, 1.0, 2.0])
def test_is_kd_of_the_z_scores(t: float) -> None:
    given = answers()
    scores = replace(given, student=z_scores(given.student), teacher=z_scores(given.teacher))
    assert torch.isclose(LogitStd(t)(given), KD(t)(scores), rtol=1e-9)


def test_scale_and_shift_of_a_row_change_nothing() -> None:
    given = answers()
    scale = torch.linspace(0.5, 3, B, dtype=torch.float64)[:, None]
    moved = replace(given, student=scale * given.student - 2 * scale)
    assert torch.isclose(LogitStd()(moved), LogitStd()(given), rtol=1e-6)
    assert not torch.isclose(LogitStd()(replace(given, student=-given.student)), LogitStd()(given))


def test_no_margin_is_above_the_root_of_the_number_of_classes() -> None:
    sure = torch.zeros(1, C, dtype=torch.float64)
    sure[0, 2] = 100
    top, second = standardised(sure)[0].sort(descending=True).values[:2]
    assert (top - second).item() == pytest.approx(C**0.5, rel=1e-6)


def test_a_constant_row_is_zeros_with_a_finite_gradient() -> None:
    given = answers()
    student = torch.ones(B, C, dtype=torch.float64, requires_grad=True)
    assert (standardised(student) == 0).all()
    LogitStd()(replace(given, student=student)).backward()
    assert student.grad.isfinite().all()
