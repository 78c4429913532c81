"""DKD against the paper's sums, its identity with KD, and its limits."""

import math
import statistics
from dataclasses import replace

import pytest
import torch

from distill.losses.dkd import DKD
from distill.losses.kd import KD
from distill.losses.objective import LossInputs
from tests.losses.loss_inputs import B, C, loss_inputs


def softmax(row: list[float]) -> list[float]:
    exps = [math.exp(z) for z in row]
    return [e / sum(exps) for e in exps]


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize(("alpha", "beta", "t"), [(1, 0, 1), (0, 1, 1), (1.5, 8, 4)])
def test_equals_the_sums_written_out(alpha: float, beta: float, t: float) -> None:
    given, total = loss_inputs(), 0.0
    for z_s, z_t, y in zip(
        given.student.tolist(), given.teacher.tolist(), given.targets.argmax(1).tolist(),
        strict=True,
    ):  # fmt: skip
        p_s, p_t = (softmax([z / t for z in row]) for row in (z_s, z_t))
        q_s, q_t = (softmax([z / t for c, z in enumerate(row) if c != y]) for row in (z_s, z_t))
        target = kl([p_t[y], 1 - p_t[y]], [p_s[y], 1 - p_s[y]])
        total += t**2 * (alpha * target + beta * kl(q_t, q_s)) / B
    assert DKD(alpha, beta, t)(given).item() == pytest.approx(total, rel=1e-9)


def test_kd_is_target_part_plus_weighted_rest() -> None:
    """KL(p_t || p_s) = TCKD + (1 - p_t[y]) NCKD, sample by sample at T = 1."""
    given = loss_inputs()
    for row in range(B):
        one = replace(
            given,
            student=given.student[row : row + 1],
            teacher=given.teacher[row : row + 1],
            targets=given.targets[row : row + 1],
        )
        left = 1 - (one.teacher.softmax(1) * one.targets).sum()
        parts = DKD(1, 0, 1)(one) + left * DKD(0, 1, 1)(one)
        assert torch.isclose(parts, KD(1)(one), rtol=1e-9)


def test_a_sure_student_is_no_infinity() -> None:
    """log(1 - p) of the authors' code is -inf at a gap of 120 in float32, of 9 in bfloat16."""
    student = torch.zeros(1, C, requires_grad=True)
    sure = student + torch.tensor([[120.0] + [0.0] * (C - 1)])
    loss = DKD(1, 8, 1)(LossInputs(sure, torch.eye(C)[:1], torch.zeros(1, C)))
    loss.backward()
    assert loss.item() == pytest.approx((C - 1) / C * 120, rel=0.05)
    assert student.grad.isfinite().all()


def test_of_two_classes_the_targets_share_is_all() -> None:
    two = LossInputs(torch.randn(3, 2), torch.eye(2)[[0, 1, 1]], torch.randn(3, 2))
    assert torch.isclose(DKD(1, 8, 4)(two), KD(4)(two))


def z_scores(logits: torch.Tensor) -> torch.Tensor:
    rows = logits.tolist()
    scores = [[(z - statistics.mean(r)) / statistics.stdev(r) for z in r] for r in rows]
    return torch.tensor(scores, dtype=torch.float64)


def test_standardised_dkd_is_dkd_of_the_z_scores() -> None:
    given, term = loss_inputs(), DKD(1, 8, 2, standardise=True)
    scores = replace(given, student=z_scores(given.student), teacher=z_scores(given.teacher))
    assert torch.isclose(term(given), DKD(1, 8, 2)(scores), rtol=1e-9)
    assert not torch.isclose(term(given), DKD(1, 8, 2)(given))
    scaled = replace(given, student=3 * given.student - 1)
    assert torch.isclose(term(scaled), term(given), rtol=1e-9)
