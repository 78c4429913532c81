"""Attention transfer against the paper's sums, in both reductions."""

from dataclasses import replace

import pytest
import torch

from distill.losses.at import AT
from tests.losses.loss_inputs import B, loss_inputs

ONE = ("stages.1",)


def attention(maps: torch.Tensor) -> list[float]:
    """Of one sample [C, H, W]: the mean of squares over channels, of norm 1."""
    q = [
        sum(float(maps[c, i, j]) ** 2 for c in range(maps.shape[0]))
        for i in range(maps.shape[1])
        for j in range(maps.shape[2])
    ]
    norm = sum(each**2 for each in q) ** 0.5
    return [each / norm for each in q]


def squares(tap: str) -> list[list[float]]:
    given = loss_inputs()
    return [
        [(s - t) ** 2 for s, t in zip(attention(a), attention(b), strict=True)]
        for a, b in zip(given.student_taps[tap], given.teacher_taps[tap], strict=True)
    ]


def test_equals_the_mean_of_squares_written_out() -> None:
    rows = squares("stages.1")
    expected = sum(map(sum, rows)) / (B * len(rows[0]))
    assert AT(ONE, ONE)(loss_inputs()).item() == pytest.approx(expected, rel=1e-9)


def test_equals_the_papers_norm_written_out() -> None:
    expected = sum(sum(row) ** 0.5 for row in squares("stages.1")) / B
    assert AT(ONE, ONE, "paper")(loss_inputs()).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_papers_norm_has_gradient_where_maps_agree(scale: float) -> None:
    """A root's at 0 is infinite."""
    given = loss_inputs(dtype=torch.float32)
    maps = scale * given.teacher_taps["stages.1"]
    ours = maps.clone().requires_grad_()
    same = replace(given, student_taps={"stages.1": ours}, teacher_taps={"stages.1": maps})
    value = AT(ONE, ONE, "paper")(same)
    value.backward()
    assert value < 1e-6 and ours.grad.isfinite().all()


def test_maps_add_up() -> None:
    both = AT(("stages.0", "stages.1"), ("stages.0", "stages.1"))(loss_inputs())
    apart = (AT((tap,), (tap,))(loss_inputs()) for tap in ("stages.0", "stages.1"))
    assert torch.isclose(both, sum(apart, torch.zeros(())), rtol=1e-9)


def test_the_square_comes_before_the_pooling() -> None:
    given = loss_inputs()
    pooled = torch.nn.functional.avg_pool2d(
        given.student_taps["stages.0"].square().mean(1, keepdim=True), 2
    ).sqrt()
    by_hand = replace(given, student_taps={"stages.1": pooled})
    assert torch.isclose(AT(("stages.0",), ONE)(given), AT(ONE, ONE)(by_hand), rtol=1e-9)


def test_scale_and_signs_of_maps_do_not_matter() -> None:
    given = loss_inputs()
    for change in (3.0, -1.0):
        taps = {name: change * tap for name, tap in given.student_taps.items()}
        assert torch.isclose(AT()(replace(given, student_taps=taps)), AT()(given), rtol=1e-9)
