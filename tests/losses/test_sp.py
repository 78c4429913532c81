"""Similarity preservation against the paper's matrices."""

from dataclasses import replace

import pytest
import torch

from distill.losses.sp import SP
from tests.losses.loss_inputs import B, loss_inputs


def gram(maps: torch.Tensor) -> list[list[float]]:
    flat = [sample.flatten().tolist() for sample in maps]
    rows = [[sum(x * y for x, y in zip(a, b, strict=True)) for b in flat] for a in flat]
    norms = [sum(g**2 for g in row) ** 0.5 for row in rows]  # L2: torchdistill's is L1
    return [[g / norm for g in row] for row, norm in zip(rows, norms, strict=True)]


def test_equals_the_sums_written_out() -> None:
    given = loss_inputs()
    ours, theirs = (gram(t["stages.2"]) for t in (given.student_taps, given.teacher_taps))
    total = sum((ours[i][j] - theirs[i][j]) ** 2 for i in range(B) for j in range(B))
    assert SP()(given).item() == pytest.approx(total / B, rel=1e-9)
    assert SP(reduction="paper")(given).item() == pytest.approx(total / B**2, rel=1e-9)


def test_a_rotation_of_the_features_changes_nothing() -> None:
    given = loss_inputs()
    flat = given.student_taps["stages.2"].flatten(1)
    turn = torch.linalg.qr(torch.randn(flat.shape[1], flat.shape[1], dtype=torch.float64)).Q
    turned = replace(given, student_taps={"stages.2": flat @ turn})
    assert torch.isclose(SP()(turned), SP()(given), rtol=1e-9)


def test_widths_and_sizes_may_differ() -> None:
    assert SP("stages.0", "stages.1")(loss_inputs()) > 0
