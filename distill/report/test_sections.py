"""Report sections on the test split: classes, calibration, mistakes."""

import base64
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.image import imsave

from distill import statistics
from distill.evaluation import saved_predictions
from distill.evaluation.saved_predictions import (
    Array,
    Predictions,
    calibration_curve,
    confusion,
    is_right,
    most_confused,
    probabilities,
)
from distill.format import counted, grouped, interval_text, percent
from distill.report import plots
from distill.report.page import (
    Block,
    ClassProbabilities,
    FigureBlock,
    Gallery,
    Mistake,
    Paragraph,
    Section,
    Table,
)
from distill.report.value_table import Column, ValueTable
from distill.runs.record import RunRecord
from distill.runs.run_folder import is_tested
from distill.statistics import Interval

MOST_CONFUSED = 10  # pairs
SHOWN = 24  # mistakes
LIKELIEST = 3  # classes of an opinion


CLASS_COLUMNS = (
    Column("class", is_number=False),
    Column("images", grouped),
    Column("accuracy", percent),
    Column("95 % interval", interval_text, ("low", "high")),
    Column("teacher", percent),
)
FIGURE_COLUMNS = (
    Column("measure", is_number=False),
    Column("test split"),
    Column("95 % interval"),
)
PAIR_COLUMNS = (
    Column("class", is_number=False),
    Column("taken for", is_number=False),
    Column("images", grouped),
    Column("share of the class", percent),
)


def test_interval(record: RunRecord) -> Interval | None:
    """Wilson's, of the accuracy on the test split; None where the predictions are not there."""
    if record.predictions is None:
        return None
    right = is_right(record.predictions.logits, record.predictions.labels)
    return statistics.wilson(int(right.sum()), len(right))


def result_sections(record: RunRecord) -> list[Section]:
    """The sections that are made of the predictions."""
    answers = record.predictions
    if answers is None:
        why = "its evaluation.npz is gone" if record.is_finished else "the run is not finished"
        if not is_tested(record.result):
            why = "the run is a trial of a sweep, of which only the best is measured there"
        return [Section("On the test split", [Paragraph(f"There are no predictions: {why}.")])]
    names = record.class_names or tuple(map(str, range(answers.logits.shape[1])))
    return [
        Section("On the test split", [*_figures(answers), *_classes(answers, names)]),
        Section("Calibration", list(_calibration(answers))),
        Section("The most confident mistakes", list(_mistakes(answers, names))),
    ]


def _figures(answers: Predictions) -> Iterator[Block]:
    """The first table that a paper needs."""
    logits, labels = answers.logits, answers.labels
    right, nll = answers.is_right, saved_predictions.nll(logits, labels)
    confidence = probabilities(logits).max(axis=1)
    reach = saved_predictions.ece_interval(confidence, right)
    rows: list[tuple[Any, ...]] = [
        ("accuracy", percent(right.mean()), interval_text(_share(right)))
    ]
    if logits.shape[1] > 5:
        five = saved_predictions.is_in_top(5, logits, labels)
        rows.append(("top 5", percent(five.mean()), interval_text(_share(five))))
    mean = float(nll.mean())
    low, high = statistics.bootstrap(lambda values: float(values.mean()), nll)
    rows.append(("NLL, nats", f"{mean:.4f}", interval_text((low, high), "{:.4f}".format)))
    error = saved_predictions.ece(confidence, right)
    rows.append(("calibration error", percent(error), interval_text(reach)))
    if answers.teacher_logits is not None:
        same = logits.argmax(axis=1) == answers.teacher_logits.argmax(axis=1)
        rows.append(
            ("same answer as the teacher", percent(same.mean()), interval_text(_share(same)))
        )
        kl = saved_predictions.kl_divergence(answers.teacher_logits, logits)
        rows.append(("KL(teacher || student), nats", f"{kl.mean():.4f}", ""))
    yield Table(ValueTable("figures", "", FIGURE_COLUMNS, rows))


def _share(hits: Array) -> Interval:
    return statistics.wilson(int(hits.sum()), len(hits))


def _classes(answers: Predictions, names: tuple[str, ...]) -> Iterator[Block]:
    counts = confusion(answers.logits, answers.labels)
    n, right = counts.sum(axis=1), np.diag(counts)
    asked = [k for k in range(len(names)) if n[k]]  # a class without images has no accuracy
    reach = [statistics.wilson(int(right[k]), int(n[k])) for k in asked]
    shares = right[asked] / n[asked]
    teacher = None if answers.teacher_logits is None else _by_class(answers, asked)
    called = [names[k] for k in asked]
    figure = plots.by_class(shares, np.array(reach), called, teacher, "the teacher")
    beside = "" if teacher is None else " The diamonds are the teacher's accuracy."
    yield FigureBlock("classes", f"Accuracy class by class, with 95 % intervals.{beside}", figure)
    caption = (
        "What each class is taken for, in percent of its images. Blue is right; orange is wrong, "
        "on a scale of its own."
    )
    yield FigureBlock("confusion", caption, plots.confusion(counts, names))
    if teacher is None:
        yield Paragraph("Nobody taught this run, so there is no teacher's opinion on these images.")
    theirs = [None] * len(asked) if teacher is None else teacher.tolist()
    rows = zip(called, n[asked].tolist(), shares.tolist(), reach, theirs, strict=True)
    yield Table(ValueTable("classes", "Class by class", CLASS_COLUMNS, list(rows)), is_long=True)
    pairs = [
        (names[i], names[j], m, m / int(n[i])) for i, j, m in most_confused(counts, MOST_CONFUSED)
    ]
    yield Table(ValueTable("confused", "Confused most often", PAIR_COLUMNS, pairs), is_long=True)


def _by_class(answers: Predictions, asked: list[int]) -> Array:
    """The teacher's accuracy of each class that has images."""
    assert answers.teacher_logits is not None
    right = is_right(answers.teacher_logits, answers.labels)
    return np.array([right[answers.labels == k].mean() for k in asked])


def _calibration(answers: Predictions) -> Iterator[Block]:
    plain = calibration_curve(probabilities(answers.logits), answers.labels)
    scaled, note = (
        None,
        (
            "The predictions on held-out images are not in evaluation.npz, so no temperature was "
            "fitted: it may not be fitted on the test split."
        ),
    )
    if answers.val_logits is not None and answers.val_labels is not None:
        fitted = statistics.fit_temperature(answers.val_logits, answers.val_labels)
        scaled = calibration_curve(probabilities(answers.logits, fitted), answers.labels)
        leaning = "over" if fitted > 1 else "under"
        note = (
            f"Divided by the temperature {fitted:.3f}, fitted on the held-out images, the logits "
            f"of this {leaning}confident network have an expected calibration error of "
            f"{scaled.ece:.4f} instead of {plain.ece:.4f}. No answer changes by it."
        )
    caption = (
        "Reliability in 15 bins: how often answers of some confidence are right, and how many "
        "have it. On the dashed line the network knows what it knows."
    )
    yield FigureBlock("reliability", caption, plots.reliability(plain, scaled))
    yield Paragraph(note)


def _mistakes(answers: Predictions, names: tuple[str, ...]) -> Iterator[Block]:
    if answers.mistakes is None or answers.mistake_pixels is None or not len(answers.mistakes):
        yield Paragraph("There are none.")
        return
    who = [("student" if answers.teacher_logits is not None else "network", answers.logits)]
    if answers.teacher_logits is not None:
        who.append(("teacher", answers.teacher_logits))
    shown = min(SHOWN, len(answers.mistakes))
    n = int((~is_right(answers.logits, answers.labels)).sum())
    yield Paragraph(
        f"{shown} of {counted(n, 'mistake')}, "
        "the most confident first: each image with its label, and what is held of it. Some labels "
        "are wrong themselves."
    )
    opinions = [(whose, probabilities(logits[answers.mistakes[:shown]])) for whose, logits in who]
    yield Gallery(
        [
            Mistake(
                png_data_url(answers.mistake_pixels[k]),
                f"test image {answers.mistakes[k]}",
                names[answers.labels[answers.mistakes[k]]],
                [
                    ClassProbabilities(whose, _most_probable(shares[k], names))
                    for whose, shares in opinions
                ],
            )
            for k in range(shown)
        ]
    )


def _most_probable(shares: Array, names: tuple[str, ...]) -> list[tuple[str, float]]:
    order = np.argsort(-shares, kind="stable")[:LIKELIEST]
    return [(names[k], float(shares[k])) for k in order]


def png_data_url(pixels: Array) -> str:
    """uint8 [3, H, W] as the address of a PNG that is inside of it."""
    file = io.BytesIO()
    nothing: Any = {"Software": None}
    imsave(file, np.moveaxis(pixels, 0, -1), format="png", metadata=nothing)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
