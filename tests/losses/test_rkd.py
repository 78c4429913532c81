"""Relational distillation against the paper's distances and angles."""

from dataclasses import replace

import pytest
import torch

from distill.losses.rkd import RKD
from tests.losses.loss_inputs import B, loss_inputs


def huber(x: float) -> float:
    return x**2 / 2 if abs(x) <= 1 else abs(x) - 0.5


def distances(f: torch.Tensor) -> list[list[float]]:
    d = [[float((a - b).norm()) for b in f] for a in f]
    mean = sum(map(sum, d)) / (len(f) * (len(f) - 1))
    return [[each / mean for each in row] for row in d]


def angle(f: torch.Tensor, i: int, j: int, k: int) -> float:
    a, b = f[j] - f[i], f[k] - f[i]
    return float(a @ b / (a.norm() * b.norm())) if i not in (j, k) else 0.0


def by_hand(rows: int) -> tuple[float, float]:
    given = loss_inputs()
    s, t = given.student_taps["features"], given.teacher_taps["features"]
    d_s, d_t = distances(s), distances(t)
    near = sum(huber(d_s[i][j] - d_t[i][j]) for i in range(B) for j in range(B)) / B**2
    some = range(rows)
    gaps = (angle(s, i, j, k) - angle(t, i, j, k) for i in some for j in some for k in some)
    return near, sum(map(huber, gaps)) / rows**3


@pytest.mark.parametrize("rows", [B, 4])
def test_equals_the_sums_written_out(rows: int) -> None:
    near, turned = by_hand(rows)
    assert RKD(1, 0, rows)(loss_inputs()).item() == pytest.approx(near, rel=1e-6)
    assert RKD(0, 1, rows)(loss_inputs()).item() == pytest.approx(turned, rel=1e-6)
    assert RKD(25, 50, rows)(loss_inputs()).item() == pytest.approx(
        25 * near + 50 * turned, rel=1e-6
    )


def test_more_rows_than_there_are_is_all() -> None:
    assert torch.equal(RKD(rows=128)(loss_inputs()), RKD(rows=B)(loss_inputs()))


def test_shift_scale_and_rotation_change_nothing() -> None:
    given = loss_inputs()
    turn = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    moved = replace(given, student_taps={"features": 3 * given.student_taps["features"] @ turn + 1})
    assert torch.isclose(RKD()(moved), RKD()(given), rtol=1e-6)


def test_samples_in_one_place_have_finite_gradients() -> None:
    given = loss_inputs()
    features = torch.ones(B, 6, dtype=torch.float64, requires_grad=True)
    RKD()(replace(given, student_taps={"features": features})).backward()
    assert features.grad.isfinite().all()
