"""Report sections with the training curves of a run."""

from collections.abc import Iterator

import numpy as np

from distill.events import TOTAL, VALIDATED, Split, loss_name, measure_name
from distill.format import percent
from distill.report import plots
from distill.report.page import Block, FigureBlock, Paragraph, Section
from distill.report.plots import Series
from distill.report.style import BLUE, FAINT, GREEN, INK, RED
from distill.runs.epoch_series import Curves, Line, curves
from distill.runs.record import RunRecord

KEPT: tuple[Split, ...] = ("train", "test")  # measured afterwards, by the weights of kept epochs
POINTS = 400  # of a faint line: more cannot be told apart in a column
# What is measured without augmentation, the same colours everywhere.
MEASURED: tuple[tuple[Split, str, str], ...] = (
    ("train", "training images", INK),
    ("val", "held-out", BLUE),
    ("val_ema", "held-out, averaged", GREEN),
    ("test", "test", RED),
)


def learning_curves(record: RunRecord) -> Section:
    """The section of the curves; what is not known is said."""
    known = _with_test(curves(record.events), record)
    if not known.epochs and not known.steps:
        return Section("Learning", [Paragraph("The journal holds no epoch and no step yet.")])
    blocks = [*_error(known), *_loss(known), *_terms(known), *_lr(known)]
    return Section("Learning", [*blocks, *map(Paragraph, _missing_notes(record, known))])


def epoch_weights_line(record: RunRecord, measure: str, split: Split = "test") -> Line | None:
    """A measure of the kept epochs on a split; None where it was not asked for."""
    name = measure_name(measure, split)
    points = [(n, values[name]) for n, values in sorted(record.test_curve.items())]
    if not points:
        return None
    x, y = np.array(points, dtype=np.float64).T
    return Line(x, y)


def error_line(line: Line) -> Line:
    """Of a line of accuracies."""
    return Line(line.x, 1 - line.y)


def _with_test(known: Curves, record: RunRecord) -> Curves:
    """The kept epochs' measures beside those of the journal."""
    after: dict[str, Line] = {}
    for split in KEPT:
        for measure in ("top1", "nll"):
            if (line := epoch_weights_line(record, measure, split)) is not None:
                after[measure_name(measure, split)] = line
    return Curves(known.steps, {**known.epochs, **after})


def _lines_of(known: Curves, measure: str) -> Iterator[tuple[Line, str, str, str]]:
    """(line, name, colour, marker) of a measure, each split that has it."""
    for split, name, colour in MEASURED:
        line = known.epochs.get(measure_name(measure, split))
        if line is not None:
            yield line, name, colour, "o" if split in KEPT or len(line.x) == 1 else ""


def _error(known: Curves) -> Iterator[Block]:
    series = [
        Series(error_line(line), colour, name, marker=marker)
        for line, name, colour, marker in _lines_of(known, "top1")
    ]
    if series:
        figure = plots.over_epochs(series, "error", is_share=True)
        yield FigureBlock(
            "error", "Error after each epoch: the share that is taken wrongly.", figure
        )


def _loss(known: Curves) -> Iterator[Block]:
    series = [
        Series(line, colour, name, marker=marker)
        for line, name, colour, marker in _lines_of(known, "nll")
    ]
    total = known.epochs.get(loss_name(TOTAL))
    if total is not None:
        series = [Series(total, FAINT, "minimised", "--"), *series]
    if series:
        caption = (
            "Loss after each epoch. Dashed, the weighted sum that was minimised, on augmented "
            "images; of the others, the cross-entropy in nats."
        )
        yield FigureBlock("loss", caption, plots.over_epochs(series, "loss"))


def _terms(known: Curves) -> Iterator[Block]:
    panels = []
    for name in known.terms:
        faint, mean = known.steps.get(name), known.epochs.get(name)
        series = [Series(thin_out(faint), FAINT, is_faint=True)] if faint is not None else []
        if mean is not None:
            series.append(Series(mean, BLUE, marker="o" if len(mean.x) == 1 else ""))
        title = name.removeprefix(loss_name(""))
        panels.append((title, series))
    if panels:
        caption = (
            "Each term of the loss, unweighted, and their weighted sum: the mean of an epoch, and "
            "behind it the means between the lines of the journal."
        )
        yield FigureBlock("terms", caption, plots.stacked_panels(panels))


def _lr(known: Curves) -> Iterator[Block]:
    if known.lr is not None:
        figure = plots.over_epochs([Series(thin_out(known.lr), BLUE)], "learning rate")
        yield FigureBlock("learning_rate", "The learning rate of each step.", figure)


def thin_out(line: Line) -> Line:
    """At most some hundreds of its points, evenly, the last one always."""
    if len(line.x) <= POINTS:
        return line
    chosen = np.unique(np.linspace(0, len(line.x) - 1, POINTS).round().astype(int))
    return Line(line.x[chosen], line.y[chosen])


def _missing_notes(record: RunRecord, known: Curves) -> Iterator[str]:
    """What the curves are silent about."""
    if not any(measure_name("top1", split) in known.epochs for split in VALIDATED):
        yield "Nothing was held out, so no epoch was measured: the last one was kept."
    if not record.test_curve:
        yield (
            "The accuracy on training images is not among the curves: a run sees them augmented "
            "and mixed, with more than one label each, and measures its loss alone. A run with "
            "train.keep_epochs has it afterwards, by report --test-curve."
        )
    else:
        epochs, final = len(record.test_curve), percent(record.test_metric("top1"))
        whose = (
            "the epoch which the held-out images chose" if record.val_images else "the last epoch"
        )
        yield (
            f"The curves of training and test images were drawn after the run by the weights of "
            f"{epochs} kept epochs, on images as they are. "
            f"Nothing was chosen by them: the figure of this run, {final}, is that of {whose}."
        )
