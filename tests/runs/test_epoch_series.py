"""Series of measures by epoch, read from a journal."""

from dataclasses import replace

import numpy as np

from distill.events import Epoch, Step
from distill.report.curve_sections import POINTS, thin_out
from distill.runs.epoch_series import Line, curves
from tests.terminal.test_display_to_svg import START

EVENTS = [
    replace(START, steps_per_epoch=10),
    Step(5, 0, {"loss/kd": 4.0, "lr": 0.1}),
    Step(10, 0, {"loss/kd": 3.0, "lr": 0.2}),
    Epoch(1, 10, {"loss/total": 3.5, "loss/kd": 3.5, "top1/val": 0.4}, True, 1.0, 1.0),
    Step(15, 1, {"loss/kd": 2.0, "loss/at": 1.0, "lr": 0.1}),
    Epoch(2, 20, {"loss/total": 2.5, "top1/val": 0.5}, True, 1.0, 1.0),
]


def test_steps_and_epochs_stand_on_one_axis() -> None:
    known = curves(EVENTS)
    assert known.steps["loss/kd"].x.tolist() == [0.5, 1.0, 1.5]
    assert known.steps["loss/kd"].y.tolist() == [4.0, 3.0, 2.0]
    assert known.epochs["top1/val"].x.tolist() == [1, 2]


def test_partial_term_has_a_partial_line() -> None:
    known = curves(EVENTS)
    assert known.steps["loss/at"].x.tolist() == [1.5]
    assert known.terms == ["loss/kd", "loss/at", "loss/total"]


def test_start_without_steps_has_points_at_steps() -> None:
    known = curves([replace(START, steps_per_epoch=0), Step(5, 0, {"lr": 0.1})])
    assert known.steps["lr"].x.tolist() == [5.0]


def test_a_run_that_only_began_has_no_line() -> None:
    assert curves(EVENTS[:1]).epochs == curves([]).epochs == {}


def test_long_line_is_thinned_from_end_to_end() -> None:
    x = np.arange(10_000.0)
    thin = thin_out(Line(x, x))
    assert len(thin.x) <= POINTS and thin.x[0] == 0 and thin.x[-1] == 9_999
    assert thin_out(Line(x[:5], x[:5])).x.tolist() == [0, 1, 2, 3, 4]


def test_values_that_no_axis_can_hold_are_absent() -> None:
    """Matplotlib refuses an axis from -1e308 to 1e308: its length is infinite."""
    values = [1e308, -1e308, 3e38, 1.0]
    events = [Epoch(i, i, {"loss/kd": y}, True, 1.0, 1.0) for i, y in enumerate(values)]
    y = curves(events).epochs["loss/kd"].y
    np.testing.assert_array_equal(y, [np.nan, np.nan, 3e38, 1.0])
