"""Build the report sections with the results on the test split: classes, calibration, mistakes."""

import base64
import io
from collections.abc import Iterator
from typing import Any

import numpy as np

from distill import metrics, statistics
from distill.format import change_of_ece, counted, grouped, interval_text, nats, percent
from distill.metrics import (
    Array,
    Counts,
    calibration_curve,
    confusion,
    most_confused,
    order_by_confusion,
    probabilities,
)
from distill.report import plots
from distill.report.figure_style import CellTitle
from distill.report.matplotlib_defaults import imsave
from distill.report.page import (
    Block,
    FigureBlock,
    Gallery,
    Mistake,
    Paragraph,
    Section,
    Table,
    TopClasses,
)
from distill.report.table_html_csv_latex import FRACTION, Column, ValueTable
from distill.runs.read_predictions import Predictions
from distill.runs.read_run_folder import RunRecord
from distill.runs.run_folder import is_tested
from distill.statistics import Interval

MOST_CONFUSED = 10  # number of pairs of classes shown
EXTREMES = 10  # best and worst classes shown if there are more than twice as many
SHOWN = 24  # largest number of mistakes shown
MOST_PROBABLE = 3  # number of classes shown for a mistake
NATS = "nats"
# The name of a measure, its value and its 95 % interval, None if there is none, with their unit.
MeasureRow = tuple[str, tuple[float, str], tuple[float, float, str] | None]

CLASS_COLUMNS = (
    Column("class", is_number=False),
    Column("images", grouped),
    Column("accuracy", percent, unit=FRACTION),
    Column("95 % interval", interval_text, ("low", "high"), unit=FRACTION),
    Column("teacher", percent, unit=FRACTION),
)
PAIR_COLUMNS = (
    Column("class", is_number=False),
    Column("predicted as", is_number=False),
    Column("images", grouped),
    Column("share of the class", percent, unit=FRACTION),
)


def test_interval(record: RunRecord) -> Interval | None:
    """Return Wilson's 95 % interval of the test accuracy; None without evaluation.npz."""
    if record.predictions is None:
        return None
    return _wilson_interval(record.predictions.is_correct)


def is_unverified(record: RunRecord) -> bool:
    """Whether the test accuracy in result.json is confirmed by no predictions."""
    return record.predictions is None and record.test_metric("top1") is not None


def result_sections(record: RunRecord) -> list[Section]:
    """Return the sections with the results on the test split, or one that explains why there are
    none.
    """
    predictions = record.predictions
    if predictions is None:
        why = "its evaluation.npz is missing" if record.is_finished else "the run is not finished"
        if not is_tested(record.result):
            why = "the run is a trial of a sweep, and only the best trial is tested"
        return [Section("On the test split", [Paragraph(f"There are no predictions: {why}.")])]
    names = record.class_names or tuple(map(str, range(predictions.logits.shape[1])))
    return [
        Section("On the test split", [*_main_measures(predictions), *_classes(predictions, names)]),
        Section("Calibration", list(_calibration(predictions))),
        Section("The most confident mistakes", list(_mistakes(predictions, names))),
    ]


def _main_measures(predictions: Predictions) -> Iterator[Block]:
    """Yield a table of the main measures with their intervals."""
    logits, labels = predictions.logits, predictions.labels
    correct, nll = predictions.is_correct, metrics.nll(logits, labels)
    confidence = probabilities(logits).max(axis=1)
    ece_interval = metrics.ece_interval(confidence, correct)
    rows: list[MeasureRow] = [("accuracy", *_share_and_interval(correct))]
    if logits.shape[1] > 5:
        rows.append(("top 5", *_share_and_interval(metrics.is_in_top(5, logits, labels))))
    low, high = statistics.bootstrap(lambda values: float(values.mean()), nll)
    rows.append(("NLL", (float(nll.mean()), NATS), (low, high, NATS)))
    rows.append(
        (
            "calibration error",
            (metrics.ece(confidence, correct), FRACTION),
            (*ece_interval, FRACTION),
        )
    )
    if predictions.teacher_logits is not None:
        same = metrics.is_same_prediction(logits, predictions.teacher_logits)
        rows.append(("same prediction as the teacher", *_share_and_interval(same)))
        kl = metrics.kl_of_logits(predictions.teacher_logits, logits)
        rows.append(("KL(teacher || student)", (float(kl.mean()), NATS), None))
    columns = (
        Column("measure", is_number=False),
        Column("test split", lambda measured: _in_unit(*measured), ("", "unit")),
        Column("95 % interval", lambda interval: _interval_in_unit(*interval), ("low", "high")),
    )
    yield Table(ValueTable("figures", "", columns, rows))


def _share_and_interval(hits: Array) -> tuple[tuple[float, str], tuple[float, float, str]]:
    """Return the share of hits, and its 95 % interval, both with their unit."""
    return (float(hits.mean()), FRACTION), (*_wilson_interval(hits), FRACTION)


def _in_unit(value: float, unit: str) -> str:
    return nats(value) if unit == NATS else percent(value)


def _interval_in_unit(low: float, high: float, unit: str) -> str:
    return interval_text((low, high), nats if unit == NATS else percent)


def _wilson_interval(hits: Array) -> Interval:
    return statistics.wilson(int(hits.sum()), len(hits))


def _classes(predictions: Predictions, names: tuple[str, ...]) -> Iterator[Block]:
    counts = confusion(predictions.logits, predictions.labels)
    n, correct = counts.sum(axis=1), np.diag(counts)
    present = [k for k in range(len(names)) if n[k]]  # a class without images has no accuracy
    intervals = [statistics.wilson(int(correct[k]), int(n[k])) for k in present]
    shares = correct[present] / n[present]
    teacher = (
        None if predictions.teacher_logits is None else _teacher_accuracies(predictions, present)
    )
    class_names = [names[k] for k in present]
    chosen = _best_and_worst(shares)
    yield FigureBlock(
        "classes",
        _class_caption(len(chosen), len(present), has_teacher=teacher is not None),
        plots.by_class(
            shares[chosen],
            np.array(intervals)[chosen],
            [class_names[k] for k in chosen],
            None if teacher is None else teacher[chosen],
            "the teacher",
            len(present) - len(chosen),
        ),
    )
    yield _confusion(counts, names)
    if teacher is None:
        yield Paragraph("This run has no teacher's predictions to compare with.")
    of_teacher = [None] * len(present) if teacher is None else teacher.tolist()
    columns = class_names, n[present].tolist(), shares.tolist(), intervals, of_teacher
    yield _class_table(list(zip(*columns, strict=True)), chosen)
    yield _confused_pairs(counts, names)


def _class_table(rows: list[tuple[Any, ...]], chosen: list[int]) -> Table:
    """Return the table of classes, of which the page shows only the rows `chosen`.

    `rows`: a row per class with images, with the values of CLASS_COLUMNS.
    """
    is_partial = len(chosen) < len(rows)
    title = f"Class by class: {_chosen_text(len(rows))}" if is_partial else "Class by class"
    grid = ValueTable("classes", title, CLASS_COLUMNS, rows)
    return Table(grid, is_long=True, on_page=chosen if is_partial else None)


def _confused_pairs(counts: Counts, names: tuple[str, ...]) -> Table:
    """Return the table of the pairs of classes that are confused most often."""
    n = counts.sum(axis=1)
    pairs = [
        (names[i], names[j], m, m / int(n[i])) for i, j, m in most_confused(counts, MOST_CONFUSED)
    ]
    confused = ValueTable("confused", "Confused most often", PAIR_COLUMNS, pairs)
    return Table(confused, is_long=len(names) <= plots.MANY_CLASSES)


def _best_and_worst(shares: Array) -> list[int]:
    """Return the indices of the ten best and the ten worst accuracies, the best first.

    Returns all indices in their order if there are at most twenty.
    """
    if len(shares) <= 2 * EXTREMES:
        return list(range(len(shares)))
    order: list[int] = np.argsort(-shares, kind="stable").tolist()
    return [*order[:EXTREMES], *order[-EXTREMES:]]


def _chosen_text(n: int) -> str:
    return f"the {EXTREMES} best and the {EXTREMES} worst of {n}"


def _class_caption(n_chosen: int, n_present: int, *, has_teacher: bool) -> str:
    beside = " The diamonds are the teacher's accuracy." if has_teacher else ""
    if n_chosen == n_present:
        return f"Accuracy of each class, with 95 % intervals.{beside}"
    return (
        f"Accuracy of classes, {_chosen_text(n_present)}, with 95 % intervals.{beside} "
        "classes.csv, in the folder beside this page, has all."
    )


def _confusion(counts: Counts, names: tuple[str, ...]) -> FigureBlock:
    """Return the confusion matrix; many classes are ordered so that confused ones are neighbours.

    In a browser, each cell has a title with its classes and numbers.
    """
    caption = (
        "Predictions for each class, in percent of its images. Blue is correct; orange is wrong, "
        "on a separate scale."
    )
    if len(names) > plots.MANY_CLASSES:
        order = order_by_confusion(counts)
        counts, names = counts[np.ix_(order, order)], tuple(names[k] for k in order)
        caption += (
            " Classes that are confused with each other are neighbours. Hover over a cell "
            "to see its classes; the table below has the pairs that are confused most often."
        )
    n = counts.sum(axis=1)
    titles = [
        CellTitle(j, i, f"{names[i]} predicted as {names[j]}: {counts[i, j]} of {n[i]} images")
        for i, j in np.argwhere(counts).tolist()
    ]
    return FigureBlock("confusion", caption, plots.confusion(counts, names), titles)


def _teacher_accuracies(predictions: Predictions, classes: list[int]) -> Array:
    """Return the teacher's accuracy [len(classes)] on each of the given classes, 0..1."""
    assert predictions.teacher_logits is not None
    correct = metrics.is_correct(predictions.teacher_logits, predictions.labels)
    return np.array([correct[predictions.labels == k].mean() for k in classes])


def _calibration(predictions: Predictions) -> Iterator[Block]:
    plain = calibration_curve(probabilities(predictions.logits), predictions.labels)
    scaled, note = (
        None,
        (
            "The predictions on held-out images are not in evaluation.npz, so no temperature was "
            "fitted: it may not be fitted on the test split."
        ),
    )
    if predictions.val_logits is not None and predictions.val_labels is not None:
        fitted = statistics.fit_temperature(predictions.val_logits, predictions.val_labels)
        scaled = calibration_curve(probabilities(predictions.logits, fitted), predictions.labels)
        leaning = "over" if fitted > 1 else "under"
        effect = change_of_ece(plain.ece, scaled.ece)
        note = (
            f"On the held-out images this network is {leaning}confident, and dividing its logits "
            f"by the temperature {fitted:.3f} fits them best. On the test images this {effect}. "
            "No prediction changes."
        )
    caption = (
        "Reliability in 15 bins: the accuracy of predictions by their confidence, and their share. "
        "The dashed line is perfect calibration."
    )
    yield FigureBlock("reliability", caption, plots.reliability(plain, scaled))
    yield Paragraph(note)


def _mistakes(predictions: Predictions, names: tuple[str, ...]) -> Iterator[Block]:
    if (
        predictions.mistakes is None
        or predictions.mistake_pixels is None
        or not len(predictions.mistakes)
    ):
        yield Paragraph("There are none.")
        return
    networks = [("network", predictions.logits)]
    if predictions.teacher_logits is not None:
        networks = [("student", predictions.logits), ("teacher", predictions.teacher_logits)]
    shown = min(SHOWN, len(predictions.mistakes))
    n = int((~predictions.is_correct).sum())
    yield Paragraph(
        f"{shown} of {counted(n, 'mistake')}, "
        "the most confident first: each image with its label and the most probable classes. Some "
        "of the labels may be wrong."
    )
    chosen = predictions.mistakes[:shown]
    shown_by = [(name, probabilities(logits[chosen])) for name, logits in networks]
    yield Gallery(
        [
            Mistake(
                png_data_url(predictions.mistake_pixels[k]),
                f"test image {predictions.mistakes[k]}",
                names[predictions.labels[predictions.mistakes[k]]],
                [TopClasses(name, _most_probable(shares[k], names)) for name, shares in shown_by],
            )
            for k in range(shown)
        ]
    )


def _most_probable(shares: Array, names: tuple[str, ...]) -> list[tuple[str, float]]:
    order = np.argsort(-shares, kind="stable")[:MOST_PROBABLE]
    return [(names[k], float(shares[k])) for k in order]


def png_data_url(pixels: Array) -> str:
    """Encode uint8 [3, H, W] as a data: URL of a PNG."""
    file = io.BytesIO()
    nothing: Any = {"Software": None}
    imsave(file, np.moveaxis(pixels, 0, -1), format="png", metadata=nothing)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
