"""Build the report sections with the training curves of a run."""

from bisect import bisect_left
from collections.abc import Iterator

import numpy as np

from distill.events import (
    TOTAL,
    VALIDATED,
    Epoch,
    Retry,
    Split,
    loss_name,
    measure_name,
    total_steps,
)
from distill.format import counted, percent
from distill.recipe import lr_schedule
from distill.report import plots
from distill.report.figure_style import BLUE, FAINT, GREEN, INK, RED
from distill.report.page import Block, FigureBlock, Paragraph, Section
from distill.report.plots import Series
from distill.runs.epoch_series import Curves, Floats, Line, curves
from distill.runs.read_run_folder import RunRecord

# Splits that are measured after the run, with the saved weights of its epochs.
AFTERWARDS: tuple[Split, ...] = ("train", "test")
POINTS = 400  # most points of a faint line: more are indistinguishable in a figure of column width
# Split, name in the legend and colour of each curve; measured on unaugmented images.
MEASURED: tuple[tuple[Split, str, str], ...] = (
    ("train", "training images", INK),
    ("val", "held-out", BLUE),
    ("val_ema", "held-out, averaged", GREEN),
    ("test", "test", RED),
)


def learning_curves(record: RunRecord) -> Section:
    """Return the section with the training curves, and notes on curves that are missing."""
    drawn = _with_test(curves(record.events), record)
    if not drawn.epochs and not drawn.steps:
        return Section("Learning", [Paragraph("The journal has no epoch and no step yet.")])
    blocks = [*_error(drawn), *_loss(drawn), *_terms(drawn), *_lr(record)]
    return Section("Learning", [*blocks, *map(Paragraph, _missing_notes(record, drawn))])


def lines_by_figure(record: RunRecord) -> dict[str, dict[str, Line]]:
    """Return the training curves of a run: the lines of each figure by their names.

    The figures are `error`, `loss`, `learning rate` and, for each term of the loss, its name; one
    without a line is left out. Losses are means of an epoch.
    """
    drawn, rate = _with_test(curves(record.events), record), scheduled_lr(record)
    total = drawn.epochs.get(loss_name(TOTAL))
    terms = {name: drawn.epochs[name] for name in drawn.terms if name in drawn.epochs}
    figures = {
        "error": {name: error_line(line) for line, name, _, _ in _lines_of(drawn, "top1")},
        "loss": ({} if total is None else {"minimised": total})
        | {name: line for line, name, _, _ in _lines_of(drawn, "nll")},
        **{name: {"mean of an epoch": line} for name, line in terms.items()},
        "learning rate": {} if rate is None else {"each step": rate},
    }
    return {figure: lines for figure, lines in figures.items() if lines}


def epoch_weights_line(record: RunRecord, measure: str, split: Split = "test") -> Line | None:
    """Return a measure of the saved weights of each epoch on a split, as a line over the epochs.

    Returns None if the test curve of the run was not computed.
    """
    name = measure_name(measure, split)
    points = [(n, values[name]) for n, values in sorted(record.test_curve.items())]
    if not points:
        return None
    x, y = np.array(points, dtype=np.float64).T
    return Line(x, y)


def error_line(line: Line) -> Line:
    """Return the line of errors, 1 - accuracy, of a line of accuracies."""
    return Line(line.x, 1 - line.y)


def _with_test(drawn: Curves, record: RunRecord) -> Curves:
    """Add the measures of the saved weights of the epochs to the curves from the journal."""
    added: dict[str, Line] = {}
    for split in AFTERWARDS:
        for measure in ("top1", "nll"):
            if (line := epoch_weights_line(record, measure, split)) is not None:
                added[measure_name(measure, split)] = line
    return Curves(drawn.steps, {**drawn.epochs, **added})


def _lines_of(drawn: Curves, measure: str) -> Iterator[tuple[Line, str, str, str]]:
    """Yield (line, name, colour, marker) for each split on which the measure was computed."""
    for split, name, colour in MEASURED:
        line = drawn.epochs.get(measure_name(measure, split))
        if line is not None:
            yield line, name, colour, "o" if split in AFTERWARDS else plots.point_marker(line)


def _error(drawn: Curves) -> Iterator[Block]:
    series = [
        Series(error_line(line), colour, name, marker=marker)
        for line, name, colour, marker in _lines_of(drawn, "top1")
    ]
    if series:
        figure = plots.over_epochs(series, "error", is_share=True)
        yield FigureBlock(
            "error", "Error after each epoch: the share of images classified wrongly.", figure
        )


def _loss(drawn: Curves) -> Iterator[Block]:
    series = [
        Series(line, colour, name, marker=marker)
        for line, name, colour, marker in _lines_of(drawn, "nll")
    ]
    total = drawn.epochs.get(loss_name(TOTAL))
    if total is not None:
        minimised = Series(total, FAINT, "minimised", "--", plots.point_marker(total))
        series = [minimised, *series]
    if series:
        caption = (
            "Loss after each epoch. Dashed: the weighted sum that was minimised, on augmented "
            "images. The others: cross-entropy in nats."
        )
        yield FigureBlock("loss", caption, plots.over_epochs(series, "loss"))


def _terms(drawn: Curves) -> Iterator[Block]:
    panels, names = [], _distinct_terms(drawn)
    for name in names:
        faint, mean = drawn.steps.get(name), drawn.epochs.get(name)
        series = [Series(thin_out(faint), FAINT, is_faint=True)] if faint is not None else []
        if mean is not None:
            series.append(Series(mean, BLUE, marker=plots.point_marker(mean)))
        title = name.removeprefix(loss_name(""))
        panels.append((title, series))
    if panels:
        shown = (
            "The only term of the loss"
            if len(names) == 1
            else "Each term of the loss, unweighted, and their weighted sum"
        )
        caption = (
            f"{shown}: the mean of each epoch, and behind it, faint, the means between two logged "
            "steps."
        )
        yield FigureBlock("terms", caption, plots.stacked_panels(panels))


def _distinct_terms(drawn: Curves) -> list[str]:
    """Return the names of the loss terms and of their weighted sum, if it differs from the term."""
    names = drawn.terms
    lines = [drawn.epochs.get(name) for name in names]
    if len(names) == 2 and all(line is not None for line in lines):
        term, total = (line.y for line in lines if line is not None)
        if np.allclose(term, total, equal_nan=True):
            return names[:1]
    return names


def _lr(record: RunRecord) -> Iterator[Block]:
    line = scheduled_lr(record)
    if line is None:
        return
    series = [Series(line, BLUE, marker=plots.point_marker(line))]
    caption = "The learning rate of each step, as the recipe's schedule gives it."
    if not record.is_finished:
        done = max((e.epoch for e in record.events if isinstance(e, Epoch)), default=0)
        past, future = (Line(line.x[part], line.y[part]) for part in _split(line.x, done))
        series = [Series(past, BLUE), Series(future, FAINT, style="--")]
        caption += " Dashed: epochs that are not finished."
    yield FigureBlock("learning_rate", caption, plots.over_epochs(series, "learning rate"))


def _split(x: Floats, end: float) -> tuple[slice, slice]:
    """Return slices of the points up to and from `end`, which share one point; `x` is sorted."""
    k = int(np.searchsorted(x, end))
    return slice(0, k + 1), slice(k, None)


def scheduled_lr(record: RunRecord) -> Line | None:
    """Return the learning rate of the recipe's schedule over the epochs, at up to POINTS steps.

    From the step to which a retry went back, the rates are multiplied by its factor. Returns None
    if the length of the run is unknown.
    """
    start = record.start
    if start is None or total_steps(start) < 1:
        return None
    total, per_epoch = total_steps(start), max(1, start.steps_per_epoch)
    rate = lr_schedule.of_recipe(record.recipe, total, per_epoch)
    steps = sorted({i * (total - 1) // (POINTS - 1) for i in range(POINTS)})
    rates = np.array([rate(step) for step in steps])
    for event in record.events:
        if isinstance(event, Retry):
            begin = bisect_left(steps, event.first_step)
            rates[begin:] = [event.lr_factor * rate(step) for step in steps[begin:]]
    return Line(np.array([step / per_epoch for step in steps]), rates)


def thin_out(line: Line) -> Line:
    """Return a line with at most POINTS of the line's points, evenly spaced, including the last."""
    if len(line.x) <= POINTS:
        return line
    chosen = np.unique(np.linspace(0, len(line.x) - 1, POINTS).round().astype(int))
    return Line(line.x[chosen], line.y[chosen])


def _missing_notes(record: RunRecord, drawn: Curves) -> Iterator[str]:
    """Yield notes on curves that are missing."""
    if not any(measure_name("top1", split) in drawn.epochs for split in VALIDATED):
        yield "Nothing was held out, so no epoch was validated: the weights are the last epoch's."
    if not record.test_curve:
        yield (
            "The curves do not include the accuracy on training images: a run sees them augmented "
            "and mixed, with more than one label each, and measures only its loss. From "
            "the saved epochs it can be computed afterwards, by report --test-curve."
        )
    else:
        epochs, final = len(record.test_curve), percent(record.test_metric("top1"))
        epoch = (
            "the epoch selected on the held-out images" if record.val_images else "the last epoch"
        )
        yield (
            f"The curves of training and test images were computed after the run from the weights "
            f"of {counted(epochs, 'saved epoch')}, on unaugmented images. "
            f"Nothing was selected by them: the accuracy of this run, {final}, is that of {epoch}."
        )
        name = measure_name("top1", "test")
        best, measured = max(record.test_curve.items(), key=lambda item: item[1][name])
        most = f"The most accurate of these epochs on the test split is epoch {best}"
        if best == record.result.get("epoch"):
            yield f"{most}, whose weights are those of this run."
            return
        yield (
            f"{most}, with {percent(measured[name])}. Some publications give this accuracy, which "
            "is too high because the test split selected it."
        )
