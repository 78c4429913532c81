"""The student's projected maps in the teacher's place."""

import pytest
import torch

from distill.losses.simkd import SimKD
from tests.losses.loss_inputs import loss_inputs


def test_equals_the_mean_square_written_out() -> None:
    given = loss_inputs()
    ours, theirs = given.student_taps["projector"].flatten(), given.teacher_taps["maps"].flatten()
    total = sum((s - t) ** 2 for s, t in zip(ours.tolist(), theirs.tolist(), strict=True))
    assert SimKD()(given).item() == pytest.approx(total / len(theirs), rel=1e-9)


def test_the_larger_map_is_pooled() -> None:
    given = loss_inputs(like_teacher=True)
    pooled = torch.nn.functional.avg_pool2d(given.teacher_taps["stages.1"], 2)
    taps = {"stages.1": given.teacher_taps["stages.1"]}
    large = type(given)(given.student, given.targets, None, {"projector": pooled}, taps)
    assert SimKD("projector", "stages.1")(large).abs() < 1e-12


def test_widths_that_differ_are_named() -> None:
    with pytest.raises(ValueError, match="the student's projector has 6, the teacher 7"):
        SimKD("maps", "maps")(loss_inputs())
