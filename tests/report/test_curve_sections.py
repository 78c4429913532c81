"""The learning rate as the recipe's schedule gives it, and markers on short curves."""

from dataclasses import replace

import pytest

from distill.events import Epoch, Event, Retry, Start
from distill.report.curve_sections import POINTS, learning_curves, scheduled_lr
from distill.report.page import FigureBlock
from distill.report.plots import FEW_POINTS
from distill.runs.read_run_folder import RunRecord
from tests.runs.records import record
from tests.terminal.test_display_to_svg import START

PEAK = 0.8
SCHEDULE = ("train.epochs=3", f"optim.lr={PEAK}", "optim.schedule=linear", "optim.warmup_epochs=1")


def run_of(epochs: int, *more: Event, finished: bool = True) -> RunRecord:
    """A run of `epochs` epochs of ten steps."""
    start = replace(START, steps_per_epoch=10, epochs=epochs, total_steps=None)
    losses = {"loss/total": 2.5, "top1/val": 0.4}
    done = [Epoch(k + 1, 10 * k + 10, losses, True, 1.0, 1.0) for k in range(epochs)]
    known = record("run", 15, *SCHEDULE, finished=finished)
    return replace(known, events=(start, *more, *done))


def figures(known: RunRecord) -> dict[str, FigureBlock]:
    blocks = learning_curves(known).blocks
    return {block.name: block for block in blocks if isinstance(block, FigureBlock)}


def test_learning_rate_is_that_of_every_step() -> None:
    line = scheduled_lr(run_of(3))
    assert line is not None
    assert line.x.tolist() == pytest.approx([k / 10 for k in range(30)])
    rising = [PEAK * (k + 1) / 10 for k in range(10)]
    falling = [PEAK * (1 - k / 20) for k in range(20)]
    assert line.y.tolist() == pytest.approx([*rising, *falling])


def test_retry_scales_the_learning_rate() -> None:
    plain, retried = scheduled_lr(run_of(3)), run_of(3, Retry(25, 20, 2, 0.5, "nan"))
    line = scheduled_lr(retried)
    assert line is not None and plain is not None
    assert (line.y / plain.y).tolist() == pytest.approx([1.0] * 20 + [0.5] * 10)


def test_long_schedule_has_limited_points() -> None:
    line = scheduled_lr(run_of(500))
    assert line is not None and len(line.x) == POINTS
    assert line.x[0] == 0 and line.x[-1] == pytest.approx(499.9)


def test_schedule_of_unfinished_run_is_dashed_ahead() -> None:
    known = run_of(3, finished=False)
    known = replace(known, events=known.events[:3])  # two of three epochs
    past, future = figures(known)["learning_rate"].figure.axes[0].lines
    assert max(past.get_xdata()) == 2 and min(future.get_xdata()) == 2  # type: ignore[arg-type]
    assert future.get_linestyle() == "--" and max(future.get_xdata()) == 2.9  # type: ignore[arg-type]


def test_run_without_start_has_no_schedule() -> None:
    known = run_of(3)
    known = replace(known, events=tuple(e for e in known.events if not isinstance(e, Start)))
    assert scheduled_lr(known) is None and "learning_rate" not in figures(known)


@pytest.mark.parametrize(
    ("losses", "panels", "caption"),
    [
        ({"loss/hard": 2.5, "loss/total": 2.5}, 1, "The only term of the loss:"),
        ({"loss/hard": 5.0, "loss/total": 2.5}, 2, "Each term of the loss, unweighted, and"),
        ({"loss/hard": 2.0, "loss/kd": 2.0, "loss/total": 2.0}, 3, "Each term of the loss"),
    ],
)
def test_sum_of_one_term_is_drawn_once(losses: dict[str, float], panels: int, caption: str) -> None:
    known = run_of(3)
    events = [replace(e, metrics=losses) if isinstance(e, Epoch) else e for e in known.events]
    drawn = figures(replace(known, events=tuple(events)))["terms"]
    assert len(drawn.figure.axes) == panels
    assert drawn.caption.startswith(caption)


@pytest.mark.parametrize(("epochs", "marker"), [(1, "o"), (FEW_POINTS, "o"), (30, "")])
def test_few_epochs_have_markers(epochs: int, marker: str) -> None:
    drawn = figures(run_of(epochs))
    for name in ("error", "loss", "terms"):
        lines = drawn[name].figure.axes[0].lines
        assert {line.get_marker() for line in lines} == {marker}, name
