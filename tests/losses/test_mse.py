"""The squared distance of logits, and its place at the end of KD."""

from dataclasses import replace

import pytest
import torch

from distill.losses.kd import KD
from distill.losses.mse import MSE
from tests.losses.loss_inputs import B, C, loss_inputs


def by_hand(student: torch.Tensor, teacher: torch.Tensor) -> float:
    rows = zip(student.tolist(), teacher.tolist(), strict=True)
    return sum((s - t) ** 2 for a, b in rows for s, t in zip(a, b, strict=True)) / (B * C)


def test_equals_the_sum_written_out() -> None:
    given = loss_inputs()
    assert MSE(centred=False)(given).item() == pytest.approx(by_hand(given.student, given.teacher))
    centred = [z - z.mean(1, keepdim=True) for z in (given.student, given.teacher)]
    assert MSE()(given).item() == pytest.approx(by_hand(*centred))


def test_constant_added_to_uncentred_row_counts() -> None:
    given = loss_inputs()
    moved = replace(given, student=given.student + 5)
    assert torch.isclose(MSE()(moved), MSE()(given))
    assert not torch.isclose(MSE(centred=False)(moved), MSE(centred=False)(given), rtol=1e-2)


def test_half_of_it_is_where_kd_tends() -> None:
    given = loss_inputs()
    assert torch.isclose(KD(1000)(given), MSE()(given) / 2, rtol=1e-2)


def test_the_gradient_is_the_difference() -> None:
    given = loss_inputs()
    student = given.student.clone().requires_grad_()
    MSE(centred=False)(replace(given, student=student)).backward()
    assert torch.allclose(student.grad, 2 * (given.student - given.teacher) / (B * C))
