"""The table of several seeds, as a person reads it."""

from io import StringIO
from typing import Any

from rich.console import Console

from distill.terminal.seeds_table import seeds_table


def shown(figures: dict[str, Any]) -> str:
    console = Console(file=StringIO(), width=120)
    console.print(seeds_table(figures))
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


TOP1 = {"n": 2, "mean": 0.715, "std": 0.00707, "interval": (0.6515, 0.7785)}
FIGURES = {
    "network": "ResNet [1, 1, 1] 16-32-64",
    "parameters": 78_042,
    "top1": TOP1,
    "control": TOP1 | {"mean": 0.65},
    "difference": {"n": 2, "mean": 0.065, "std": 0.001, "interval": (0.056, 0.074)},
    "p": 0.0069,
    "runs": [
        {"run": "a", "seed": 0, "top1": 0.72},
        {"run": "b", "seed": 0, "top1": 0.654, "is_control": True},
        {"run": "c", "seed": 1, "top1": 0.71},
        {"run": "d", "seed": 1, "top1": 0.646, "is_control": True},
    ],
}


def test_table_has_a_line_per_seed_and_summary() -> None:
    text = shown(FIGURES)
    rows = [line.split() for line in text.splitlines()]
    assert ["0", "72.00", "65.40", "+6.60"] in rows and ["1", "71.00", "64.60", "+6.40"] in rows
    assert (
        "71.50 ± 0.71" in text
        and "+6.50 ± 0.10" in text
        and "[+5.60, +7.40]" in text
        and "[65.15, 77.85]" in text
    )
    assert "95 % interval of the mean" in text
    assert "The recipe is better than its control: p = 0.0069, Student's t over 2 pairs." in text
    assert "No significant difference from the control" in shown(FIGURES | {"p": 0.2})


def test_without_a_control_nothing_is_compared() -> None:
    alone = {key: FIGURES[key] for key in ("network", "parameters", "top1")}
    text = shown(alone | {"runs": [row for row in FIGURES["runs"] if "is_control" not in row]})  # type: ignore[attr-defined]
    assert "difference" not in text and text.rstrip().endswith("78,042 parameters.")


def test_one_seed_has_no_deviation() -> None:
    one = {"n": 1, "mean": 0.72, "std": None, "interval": None}
    alone = {key: FIGURES[key] for key in ("network", "parameters")} | {"top1": one}
    text = shown(alone | {"runs": [{"run": "a", "seed": 0, "top1": 0.72}]})
    assert "±" not in text.replace("mean ± std", "") and "–" in text
