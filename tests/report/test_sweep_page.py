"""What a person sees of a sweep: the table on the terminal, the page beside the runs."""

import re
from io import StringIO
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from distill.report.figure_style import COLUMN
from distill.report.page import Table, html
from distill.report.sweep_page import page
from distill.report.sweep_plots import history, parallel_coordinates
from distill.terminal.sweep_table import (
    counts_text,
    few_trials_warning,
    key_text,
    short_keys,
    sweep_table,
)


def row(number: int, state: str, value: float | None, lr: float, crop: str) -> dict[str, Any]:
    epochs = {} if state == "infeasible" else {"1": 0.2, "2": 0.3}
    why = "a <b> & c" if state == "infeasible" else None
    values = {"optim.lr": lr, "augment.crop": crop}
    return {
        "trial": number, "state": state, "value": value, "values": values, "epochs": epochs,
        "why": why, "run": f"runs/{number}", "workers": ["a"],
    }  # fmt: skip


ROWS = [
    row(0, "complete", 0.5, 0.01, "false"),
    row(1, "pruned", None, 0.1, "padding 4"),
    row(2, "complete", 0.75, 1.0, "padding 4"),
    row(3, "infeasible", None, 0.5, "false"),
    row(4, "complete", 0.625, 0.1, "false"),
]
SUMMARY: dict[str, Any] = {
    "sweep": "mine <1>", "recipe": "kd", "metric": "top1/val", "goal": "maximize", "asked": 5,
    "space": {"optim.lr": {"log": [0.01, 1.0]}, "augment.crop": {"choice": ["false", "padding 4"]}},
    "counts": {"complete": 3, "pruned": 1, "infeasible": 1, "diverged": 0}, "taken_up": 1,
    "redrawn": 0,
    "best": ROWS[2], "importance": {"optim.lr": 0.75, "augment.crop": 0.25}, "trials": ROWS,
}  # fmt: skip


def shown(summary: dict[str, Any], width: int = 80) -> list[str]:
    console = Console(file=StringIO(), width=width)
    console.print(sweep_table(summary, width), highlight=False)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined, no-any-return]


# On the terminal


def test_best_trials_come_first() -> None:
    lines = shown(SUMMARY, 100)
    assert [line.split()[0] for line in lines[2:5]] == ["2", "4", "0"]
    assert "5 trials: 3 complete, 1 pruned, 1 infeasible; 1 resumed" in lines[5]
    shares = "importance (PED-ANOVA, of 3 trials): optim.lr 75 %, augment.crop 25 %"
    assert lines[6].strip() == shares
    least = shown(SUMMARY | {"goal": "minimize"})
    assert [line.split()[0] for line in least[2:5]] == ["0", "4", "2"]


def of_trials(n: int) -> dict[str, Any]:
    """The sweep as if `n` trials were complete."""
    return SUMMARY | {"counts": {"complete": n}}


@pytest.mark.long
@pytest.mark.parametrize("n", [1, 8, 49])
def test_importance_of_few_trials_is_warned_of(n: int) -> None:
    """On the terminal and in the page, by the same words."""
    trials = "1 finished trial" if n == 1 else f"{n} finished trials"
    words = (
        f"This importance uses {trials} and may be noise: the shares add up to 100 % even if no "
        "key matters, and Optuna advises at least 5 trials in the best tenth, which takes 50."
    )
    assert words in " ".join(line.strip() for line in shown(of_trials(n)))
    assert words in html(page(of_trials(n)))
    assert few_trials_warning(n) == words


@pytest.mark.long
@pytest.mark.parametrize("summary", [of_trials(50), SUMMARY | {"importance": {}}])
def test_no_warning_where_none_is_due(summary: dict[str, Any]) -> None:
    """With 50 complete trials, and without an importance."""
    assert few_trials_warning(50) is None
    assert "chance alone" not in " ".join(line.strip() for line in shown(summary))
    assert "chance alone" not in html(page(summary))


def test_one_is_not_many() -> None:
    one = {"asked": 1, "counts": {"complete": 1}, "trials": ROWS[:1], "importance": {}}
    rungs = [{"epochs": 1, "values": {"a": 0.1}}]
    assert shown(SUMMARY | one | {"taken_up": 0, "rungs": rungs})[3:] == [
        "rung 1: 1 design, 1 epoch",
        "1 trial: 1 complete",
    ]


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["loss.kd.temperature", "optim.lr"], ["temperature", "lr"]),
        (["loss.kd.weight", "loss.hard.weight", "lr"], ["kd.weight", "hard.weight", "lr"]),
        (["a.width", "width"], ["a.width", "width"]),
    ],
)
def test_keys_are_shortened_but_distinct(names: list[str], short: list[str]) -> None:
    assert list(short_keys(names).values()) == short


LABELS = ["weight 0.5, weight 0.5", "weight 0.25, weight 0.75"]
CROWD = {
    "loss.kd.temperature": {"uniform": [1.0, 6.0]}, "optim.lr": {"log": [0.02, 0.5]},
    "loss.kd.weight": {"choice": LABELS}, "loss.hard.weight": {"choice": LABELS},
    "train.batch_size": {"choice": ["32", "64"]}, "student.blocks": {"integer": [1, 2]},
    "optim.weight_decay": {"log": [1e-5, 1e-2]}, "augment.random_erasing": {"uniform": [0.0, 0.5]},
}  # fmt: skip
CROWDED = [
    5.489441764853314, 0.29334656435275985, LABELS[0], LABELS[1], "32", 2, 0.00123456, 0.125,
]  # fmt: skip


@pytest.mark.parametrize("width", [80, 60])
def test_no_word_is_cut_where_keys_are_many(width: int) -> None:
    trial = ROWS[0] | {"values": dict(zip(CROWD, CROWDED, strict=True))}
    shares = dict.fromkeys(CROWD, 0.125)
    lines = shown(SUMMARY | {"space": CROWD, "trials": [trial], "importance": shares}, width)
    assert max(len(line.rstrip()) for line in lines) <= width
    words = " ".join(lines).split()
    assert {"temperature", "kd.weight", "hard.weight", "batch_size", "random_erasing"} <= {*words}
    assert {"5.49", "0.2933", "0.25,", "0.75", "1.23e-03", "0.125"} <= {*words}
    assert {*CROWD} <= {*words}, "the importance names the keys in full"


def test_numbers_of_a_key_have_the_same_digits() -> None:
    summary = {"space": CROWD}
    assert [key_text(summary, "optim.lr", lr) for lr in (0.02, 0.11, 0.48564674)] == [
        "0.0200", "0.1100", "0.4856",
    ]  # fmt: skip
    assert [key_text(summary, "loss.kd.temperature", t) for t in (1.0, 3.071)] == ["1.00", "3.07"]
    assert key_text(summary, "optim.weight_decay", 0.01) == "1.00e-02"
    assert key_text(summary, "student.blocks", 2) == "2"
    assert key_text(summary, "train.batch_size", None) == "–"


# In figures


def test_what_was_drawn_again_is_counted() -> None:
    text = counts_text(SUMMARY | {"redrawn": 3})
    assert text.endswith("; 1 resumed after a worker died; 3 draws that could not be trained")


def test_history_shows_the_best_so_far() -> None:
    late = [*ROWS, row(5, "pruned", None, 0.1, "false")]
    figure = history(SUMMARY | {"trials": late})
    assert figure is not None
    [line] = [each for each in figure.axes[0].lines if each.get_label() == "best so far"]
    assert list(line.get_xdata()) == [0, 2, 4, 5]  # type: ignore[arg-type]
    assert list(line.get_ydata()) == [0.5, 0.75, 0.75, 0.75]  # type: ignore[arg-type]


def test_parallel_coordinates_go_through_the_values() -> None:
    figure = parallel_coordinates(SUMMARY)
    assert figure is not None
    across = [list(line.get_xdata()) for line in figure.axes[0].lines]  # type: ignore[arg-type]
    worst, middle, best = across  # the best is drawn last
    assert worst == pytest.approx([0, 0, 0])
    assert middle == pytest.approx([0.5, 0, 0.5])
    assert best == pytest.approx([1, 1, 1])
    words = [text.get_text() for text in figure.axes[0].texts]
    assert words == ["0.0100", "1.0000", "false", "padding 4", "0.5000", "0.7500"]


def test_figures_stay_as_narrow_as_a_column() -> None:
    trial = ROWS[0] | {"values": dict(zip(CROWD, CROWDED, strict=True))}
    figure = parallel_coordinates(SUMMARY | {"space": CROWD, "trials": [trial]})
    assert figure is not None and figure.get_figwidth() == COLUMN


# In the page


@pytest.mark.long
def test_missing_importance_has_no_section() -> None:
    assert "Importance" in html(page(SUMMARY))
    assert "Importance" not in html(page(SUMMARY | {"importance": {}}))


def test_head_shows_the_best() -> None:
    facts = [(fact.name, fact.value, fact.remark) for fact in page(SUMMARY).facts]
    assert facts == [
        ("top1/val", "0.7500", "trial 2, the best"),
        ("lr", "1.0000", ""),
        ("crop", "padding 4", ""),
    ]


@pytest.mark.long
def test_trials_are_ranked_and_the_best_is_marked() -> None:
    trials = page(SUMMARY).sections[-1].blocks[0]
    assert isinstance(trials, Table) and trials.marked == 0
    assert [cells[:4] for cells in trials.grid.cells] == [
        ["2", "complete", "0.7500", "1.0000"],
        ["4", "complete", "0.6250", "0.1000"],
        ["0", "complete", "0.5000", "0.0100"],
        ["1", "pruned", "–", "0.1000"],
        ["3", "infeasible", "–", "0.5000"],
    ]
    assert [column.head for column in trials.grid.columns][-1] == "why"
    assert html(page(SUMMARY)).count('<tr class="marked">') == 1


@pytest.mark.long
def test_page_is_self_contained_and_reproducible() -> None:
    text = html(page(SUMMARY))
    assert "mine &lt;1&gt;" in text and "a &lt;b&gt; &amp; c" in text
    assert not re.search(r"(src|href)=[\"'](?!#|data:)", text)
    drawings = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(drawings) == 3
    for drawn in drawings:
        ElementTree.fromstring(drawn)
        assert not re.search(r"(fill|stroke): #", drawn), "its colours are the page's"
    assert "prefers-color-scheme: dark" in text
    assert text == html(page(SUMMARY)), "the same sweep gives the same page"


def test_sweep_without_trained_trial_is_explained() -> None:
    counts = {"complete": 0, "infeasible": 1}
    none = {"best": None, "trials": ROWS[3:4], "importance": {}, "counts": counts}
    text = html(page(SUMMARY | none))
    assert "No trial was trained to its end" in text
    assert "<svg" not in text and "marked" not in text.split("</style>")[1]


def test_the_rungs_of_a_search() -> None:
    first = {"a": 0.1, "gone": None, "b": 0.4, "c": 0.3}
    rungs = [{"epochs": 1, "values": first}, {"epochs": 3, "values": {"b": 0.5}}]
    table = page(SUMMARY | {"rungs": rungs}).sections[0].blocks[0]
    assert isinstance(table, Table)
    assert [column.head for column in table.grid.columns] == ["design", "1 epoch", "3 epochs"]
    assert table.grid.cells == [
        ["b", "0.4000", "0.5000"],
        ["c", "0.3000", "–"],
        ["a", "0.1000", "–"],
        ["gone", "–", "–"],
    ]
    last = {"trials": [ROWS[2]], "importance": {}, "rungs": rungs}
    titles = [section.title for section in page(SUMMARY | last).sections]
    assert titles == ["Rungs", "Trials"], "nothing is drawn of one trial alone"
    assert "rung 2: 1 design, 3 epochs" in shown(SUMMARY | {"rungs": rungs})
