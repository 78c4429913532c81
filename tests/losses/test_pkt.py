"""Probabilistic knowledge transfer against the paper's probabilities."""

import math
from dataclasses import replace

import pytest
import torch

from distill.losses.pkt import PKT
from tests.losses.loss_inputs import B, loss_inputs


def probabilities(features: torch.Tensor) -> list[list[float]]:
    def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
        return float(a @ b / (a.norm() * b.norm()))

    kernel = [[(cosine(a, b) + 1) / 2 for b in features] for a in features]
    return [[k / sum(row) for k in row] for row in kernel]


def test_equals_the_divergence_written_out() -> None:
    given = loss_inputs()
    p_s, p_t = (probabilities(t["features"]) for t in (given.student_taps, given.teacher_taps))
    total = sum(p_t[i][j] * math.log(p_t[i][j] / p_s[i][j]) for i in range(B) for j in range(B))
    assert PKT()(given).item() == pytest.approx(total / B, rel=1e-4)
    assert PKT(reduction="paper")(given).item() == pytest.approx(total / B**2, rel=1e-4)


def test_only_angles_matter() -> None:
    given = loss_inputs()
    features = given.student_taps["features"]
    scale = torch.linspace(0.5, 4, B, dtype=torch.float64)[:, None]
    turn = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    moved = replace(given, student_taps={"features": scale * features @ turn})
    assert torch.isclose(PKT()(moved), PKT()(given), rtol=1e-6)
