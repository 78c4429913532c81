"""Build the report sections with the curves of several runs, one colour per group."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from distill.events import measure_name
from distill.report import plots
from distill.report.curve_sections import epoch_weights_line, error_line
from distill.report.figure_style import SERIES
from distill.report.page import Block, FigureBlock, Paragraph
from distill.report.plots import Series
from distill.runs.epoch_series import Line, curves
from distill.runs.read_run_folder import RunRecord
from distill.runs.seed_groups import Group

LineOf = Callable[[RunRecord, str], Line | None]  # maps a run and a measure to a line


def group_colour(run_groups: Sequence[Group], group: Group) -> str:
    """Return a group's colour, which is the same in every figure."""
    return SERIES[list(run_groups).index(group) % len(SERIES)]


def overlay_curves(run_groups: Sequence[Group]) -> list[Block]:
    """Return figures with a faint line per run and a strong line for the mean of each group.

    Returns a paragraph instead if no epoch of the runs was measured.
    """
    drawn = [
        ("error", "top1", "held-out error", _held_out, "Error on the held-out images"),
        (
            "loss",
            "nll",
            "cross-entropy",
            _held_out,
            "Cross-entropy on the held-out images, in nats",
        ),
        ("test_error", "top1", "test error", epoch_weights_line, "Error on the test split"),
    ]
    blocks: list[Block] = []
    for name, measure, label, line_of, caption in drawn:
        series = list(_series(run_groups, measure, line_of))
        if series:
            figure = plots.over_epochs(series, label, is_share=measure == "top1")
            under = f"{caption}: each run faint, the mean of its group strong."
            blocks.append(FigureBlock(name, under, figure))
    return blocks or [Paragraph("No epoch of these runs was measured.")]


def _series(run_groups: Sequence[Group], measure: str, line_of: LineOf) -> Iterator[Series]:
    for group in run_groups:
        ink = group_colour(run_groups, group)
        lines = [line for r in group.records if (line := line_of(r, measure)) is not None]
        lines = [error_line(line) if measure == "top1" else line for line in lines]
        if len(lines) > 1:
            yield from (Series(line, ink, is_faint=True) for line in lines)
        if lines:
            line = mean_line(lines)
            yield Series(line, ink, group.name, marker=plots.point_marker(line))


def _held_out(record: RunRecord, measure: str) -> Line | None:
    """Return a measure on the held-out images over the epochs; None if nothing was held out.

    It is the measure of the averaged weights if the run has an average.
    """
    epochs = curves(record.events).epochs
    net, averaged = (epochs.get(measure_name(measure, split)) for split in ("val", "val_ema"))
    return averaged if averaged is not None else net


def mean_line(lines: Sequence[Line]) -> Line:
    """Return the mean of several lines at the epochs that occur in all of them."""
    common = sorted(set.intersection(*(set(line.x.tolist()) for line in lines)))
    at = [dict(zip(line.x.tolist(), line.y.tolist(), strict=True)) for line in lines]
    values = [float(np.mean([line[x] for line in at])) for x in common]
    return Line(np.array(common), np.array(values))
