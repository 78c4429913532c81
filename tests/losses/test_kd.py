"""Hinton's term against the formula, its limits and its gradient."""

import pytest
import torch

from distill.losses.kd import KD
from distill.losses.logit_std import LogitStd
from distill.losses.objective import LossInputs

B, C = 5, 10


def pair(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(B, C, dtype=dtype, generator=generator) * 3 for _ in range(2))
    return student, teacher


def kd(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    return KD(temperature)(LossInputs(student, torch.empty(0), teacher))


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_equals_the_sum_written_out(temperature: float) -> None:
    student, teacher = pair()
    by_hand = 0.0
    for z_s, z_t in zip(student / temperature, teacher / temperature, strict=True):
        p_s, p_t = z_s.exp() / z_s.exp().sum(), z_t.exp() / z_t.exp().sum()
        by_hand += sum(t * (t / s).log() for s, t in zip(p_s, p_t, strict=True))
    expected = temperature**2 * by_hand / B
    assert torch.isclose(kd(student, teacher, temperature).double(), expected, rtol=1e-5)


def test_zero_where_the_student_is_the_teacher() -> None:
    student, _ = pair()
    assert kd(student, student, 4.0).abs() < 1e-6


def test_a_constant_added_to_the_logits_changes_nothing() -> None:
    student, teacher = pair()
    assert torch.isclose(kd(student + 7, teacher - 3, 4.0), kd(student, teacher, 4.0), rtol=1e-4)


def test_high_temperature_tends_to_half_mean_square() -> None:
    student, teacher = pair()
    gap = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    limit = gap.square().sum(1).mean() / (2 * C)
    assert torch.isclose(kd(student, teacher, 300.0).double(), limit, rtol=2e-2)


def test_gradient_is_t_times_the_difference_of_probabilities() -> None:
    student, teacher = pair(torch.float32)
    student.requires_grad_()
    kd(student, teacher, 4.0).backward()
    expected = 4.0 * ((student / 4).softmax(-1) - (teacher / 4).softmax(-1)) / B
    assert torch.allclose(student.grad, expected, atol=1e-6)


def test_finite_in_bfloat16_with_logit_gap_of_100() -> None:
    student = torch.zeros(1, C, dtype=torch.bfloat16, requires_grad=True)
    teacher = torch.zeros(1, C, dtype=torch.bfloat16)
    teacher[0, 0] = 100
    loss = kd(student, teacher, 1.0)
    loss.backward()
    assert torch.isclose(loss, torch.tensor(C).log(), rtol=1e-3)
    assert student.grad.isfinite().all()
    assert kd(teacher, student.detach(), 1.0).isfinite()


def test_missing_teacher_is_reported() -> None:
    with pytest.raises(ValueError, match="kd term needs a teacher's logits, and there is no"):
        KD()(LossInputs(torch.zeros(1, C), torch.zeros(1, C)))


def test_standardised_kd_is_the_logit_std_term() -> None:
    given = LossInputs(pair()[0], torch.empty(0), pair()[1])
    assert torch.equal(KD(2.0, standardise=True)(given), LogitStd(2.0)(given))
    assert not torch.isclose(KD(2.0, standardise=True)(given), KD(2.0)(given))
