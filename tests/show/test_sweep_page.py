"""What a person sees of a sweep: the table on the terminal, the page beside the runs."""

import re
from io import StringIO
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from distill.show.sweep_page import history, importance, page, parallel
from distill.show.sweep_table import sweep_table


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
SAID: dict[str, Any] = {
    "sweep": "mine <1>", "recipe": "kd", "metric": "top1/val", "goal": "maximize", "asked": 5,
    "space": {"optim.lr": {"log": [0.01, 1.0]}, "augment.crop": {"choice": ["false", "padding 4"]}},
    "counts": {"complete": 3, "pruned": 1, "infeasible": 1, "diverged": 0}, "taken_up": 1,
    "best": ROWS[2], "importance": {"optim.lr": 0.75, "augment.crop": 0.25}, "trials": ROWS,
}  # fmt: skip


def shown(said: dict[str, Any]) -> str:
    console = Console(file=StringIO(), width=100)
    console.print(sweep_table(said))
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_the_best_come_first_and_all_are_accounted_for() -> None:
    lines = shown(SAID).splitlines()
    assert [line.split()[0] for line in lines[2:5]] == ["2", "4", "0"]
    assert "5 trials: 3 complete, 1 pruned, 1 infeasible; 1 taken up again" in lines[5]
    assert lines[6].strip() == "importance (PED-ANOVA): optim.lr 75 %, augment.crop 25 %"
    least = shown(SAID | {"goal": "minimize"}).splitlines()
    assert [line.split()[0] for line in least[2:5]] == ["0", "4", "2"]


def test_the_history_has_the_best_so_far() -> None:
    (line,) = history(SAID).axes[0].lines
    assert list(line.get_ydata()) == [0.5, 0.75, 0.75]  # type: ignore[arg-type]


def test_parallel_coordinates_go_through_the_values() -> None:
    figure = parallel(SAID)
    assert figure is not None
    heights = [list(line.get_ydata()) for line in figure.axes[0].lines]  # type: ignore[arg-type]
    worst, middle, best = heights  # the best is drawn last
    assert worst == pytest.approx([0, 0, 0])
    assert middle == pytest.approx([0.5, 0, 0.5])
    assert best == pytest.approx([1, 1, 1])


def test_without_an_importance_nothing_is_drawn_of_it() -> None:
    assert importance(SAID | {"importance": {}}) is None
    assert "Importance" not in page(SAID | {"importance": {}})


def test_the_page_needs_nothing_beside_it_and_means_what_it_says() -> None:
    text = page(SAID)
    assert "mine &lt;1&gt;" in text and "a &lt;b&gt; &amp; c" in text
    assert not re.search(r"(src|href)=[\"'](?!#)", re.sub(r'xlink:href="#', 'href="#', text))
    drawings = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(drawings) == 3
    for drawn in drawings:
        ElementTree.fromstring(drawn)
    assert text == page(SAID), "the same sweep gives the same page"


def test_the_rungs_of_a_search() -> None:
    rungs = [{"epochs": 1, "values": {"a": 0.1, "b": 0.4}}, {"epochs": 3, "values": {"b": 0.5}}]
    text = page(SAID | {"rungs": rungs})
    assert "<th>1 epochs</th><th>3 epochs</th>" in text
    assert text.index("<td>b</td><td>0.4</td><td>0.5</td>") < text.index("<td>a</td><td>0.1</td>")
    assert "rung 2: 1 designs, 3 epochs" in shown(SAID | {"rungs": rungs})
