"""A run with a hundred classes: the best and the worst, and a matrix that names its cells."""

import csv
import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from distill.metrics import order_by_confusion
from distill.report import page, run_report
from distill.report.page import FigureBlock, Table
from distill.report.result_sections import EXTREMES
from distill.runs.read_predictions import Predictions
from distill.runs.read_run_folder import RunRecord
from tests.report.test_run_report import LAYERS, Reader
from tests.runs.records import record

CLASSES, PER_CLASS = 100, 10


def hundred_classes() -> RunRecord:
    """Class k has min(k, 95) % of its images right; its mistakes are of class k + 50."""
    names = [f"class {k} <&>" for k in range(CLASSES)]
    labels = np.repeat(np.arange(CLASSES), PER_CLASS)
    is_right = np.tile(np.arange(PER_CLASS), CLASSES) < labels // 10
    predicted = np.where(is_right, labels, (labels + 50) % CLASSES)
    predictions = Predictions(4 * np.eye(CLASSES)[predicted], labels)
    known = record("hundred", 15)
    return replace(known, result=known.result | {"class_names": names}, predictions=predictions)


@pytest.fixture(scope="module")
def blocks() -> dict[str, Any]:
    made = run_report.page(hundred_classes(), LAYERS)
    every = [block for section in made.sections for block in section.blocks]
    named = {block.name: block for block in every if isinstance(block, FigureBlock)}
    return named | {f"{b.grid.name} table": b for b in every if isinstance(b, Table)}


@pytest.mark.long
def test_best_and_worst_classes_are_drawn(blocks: dict[str, Any]) -> None:
    labels = [text.get_text() for text in blocks["classes"].figure.axes[0].get_yticklabels()]
    worst, best = labels[:EXTREMES], labels[EXTREMES:]
    assert {int(label.split()[1]) // 10 for label in best} == {9}
    assert {int(label.split()[1]) // 10 for label in worst} == {0}
    [between] = blocks["classes"].figure.axes[0].texts
    assert between.get_text() == "80 more classes"
    assert "the 10 best and the 10 worst of 100" in blocks["classes"].caption


def test_page_lists_twenty_classes_and_file_all(blocks: dict[str, Any]) -> None:
    table = blocks["classes table"]
    assert [cells[2] for cells in table.cells] == ["90.00 %"] * 10 + ["0.00 %"] * 10
    assert len(list(csv.reader(io.StringIO(table.grid.csv())))) == CLASSES + 1
    assert not blocks["confused table"].is_long, "it names what the matrix cannot"


@pytest.mark.long
def test_cells_name_their_classes(blocks: dict[str, Any]) -> None:
    made = page.html(run_report.page(hundred_classes(), LAYERS))
    tags = [tag for tag, _ in Reader(made).tags]
    assert tags.count("title") == 1 + 190  # the page's; 10 classes have no image right
    assert "class 95 &lt;&amp;&gt; predicted as class 45 &lt;&amp;&gt;: 1 of 10 images" in made


def test_confused_classes_are_neighbours() -> None:
    counts = 90 * np.eye(60, dtype=np.int64)
    partner = (np.arange(60) + 30) % 60  # k with k + 30
    counts[np.arange(60), partner] = 10
    order = order_by_confusion(counts)
    assert sorted(order) == list(range(60))
    assert all(abs(order.index(k) - order.index(k + 30)) == 1 for k in range(30))


@pytest.mark.parametrize("classes", [1, 2, 3])
def test_few_classes_and_empty_rows_are_ordered(classes: int) -> None:
    counts = np.zeros((classes, classes), dtype=np.int64)
    assert sorted(order_by_confusion(counts)) == list(range(classes))
