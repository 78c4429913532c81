"""Hints: the regressed map against the teacher's."""

import pytest
import torch
from torch import nn

from distill.losses.fitnet import FitNet
from tests.losses.loss_inputs import STUDENT, TEACHER, loss_inputs


def made(student_tap: str = "stages.1", teacher_tap: str = "stages.1") -> FitNet:
    torch.manual_seed(0)
    shapes = {"student_shapes": STUDENT, "teacher_shapes": TEACHER}
    return FitNet(student_tap, teacher_tap, **shapes).double()


def test_equals_the_mean_square_of_the_regressed_map() -> None:
    term, given = made(), loss_inputs()
    maps, theirs = given.student_taps["stages.1"], given.teacher_taps["stages.1"]
    weight = term.regressor[0].weight[:, :, 0, 0]
    regressed = torch.zeros_like(theirs)
    for b in range(len(maps)):
        for i in range(4):
            for j in range(4):
                regressed[b, :, i, j] = weight @ maps[b, :, i, j]
    mean = regressed.mean((0, 2, 3), keepdim=True)
    spread = (regressed.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
    expected = (((regressed - mean) / spread - theirs) ** 2).sum() / theirs.numel()
    assert torch.isclose(term(given), expected, rtol=1e-9)


def test_a_larger_map_is_pooled() -> None:
    term, given = made("stages.0", "stages.1"), loss_inputs()
    pooled = nn.functional.avg_pool2d(given.student_taps["stages.0"], 2)
    expected = (term.regressor(pooled) - given.teacher_taps["stages.1"]).square().mean()
    assert torch.isclose(term(given), expected)


def test_negative_values_of_the_teacher_can_be_met() -> None:
    """A ReLU at the regressor's end would stop at 0."""
    term = made()
    reached = term.regressor(loss_inputs().student_taps["stages.1"])
    assert reached.min() < -0.5
    assert not any(isinstance(module, nn.ReLU) for module in term.modules())


def test_what_is_regressed_fits_the_widths() -> None:
    assert made().regressor[0].weight.shape == (5, 4, 1, 1)
    with pytest.raises(KeyError, match="stages.7"):
        made("stages.7")
