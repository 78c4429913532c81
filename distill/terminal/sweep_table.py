"""Terminal table of a sweep's trials."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from distill.format import UNKNOWN, counted, shorten
from distill.terminal.table_style import GAP, blank_table

SweepSummary = Mapping[str, Any]
MOST = 10  # most trials in the table; all are in sweep.json
LONGEST = 40  # most characters in a line of a value if the terminal is too narrow
DIGITS = 3  # significant digits shown of a drawn number
MOST_DECIMALS = 5  # a number that needs more decimals is written as 1.23e-07
# With fewer complete trials, importances are shown with a warning. Optuna's documentation of its
# PED-ANOVA: "it is preferable to include at least 5 trials above target_quantile", which is the
# best tenth (optuna.importance.PedAnovaImportanceEvaluator, 4.x).
ENOUGH = 50


def sweep_table(summary: SweepSummary, width: int) -> RenderableType:
    """Show the best trials in a table, and the numbers of all trials by state.

    `summary`: the result of `sweep_summary.summary`. `width`: characters of the terminal. If the
    table is too wide, the remaining keys are shown in further tables below.
    """
    rows = ranked(summary)
    lines = rung_lines(summary)
    lines += [f"{len(rows) - MOST} more in sweep.json"] if len(rows) > MOST else []
    lines.append(counts_text(summary))
    lines += filter(None, [test_text(summary)])
    if summary["importance"]:
        shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in by_importance(summary))
        lines.append(f"importance (PED-ANOVA, of {counted_trials(n_complete(summary))}): {shares}")
        lines += filter(None, [few_trials_warning(n_complete(summary))])
    return Group(*_tables(summary, rows[:MOST], width), Text("\n".join(lines)))


def _tables(summary: SweepSummary, rows: Sequence[Mapping[str, Any]], width: int) -> list[Table]:
    """Return a table of the trials in `rows` with all keys, or several if it would be too wide."""
    if not rows:
        return []
    first = {
        "trial": [str(row["trial"]) for row in rows],
        summary["metric"]: [value_text(row["value"]) for row in rows],
    }
    keys = {
        head: [key_text(summary, name, row["values"].get(name)) for row in rows]
        for name, head in short_keys(list(summary["space"])).items()
    }
    available = width - _width(first)
    if _width(keys) > available:
        keys = {head: [*map(_one_value_per_line, cells)] for head, cells in keys.items()}
    blocks: list[dict[str, list[str]]] = [{}]
    for head, cells in keys.items():
        if blocks[-1] and _width(blocks[-1] | {head: cells}) > available:
            blocks.append({})
        blocks[-1][head] = cells
    return [_table(first | block) for block in blocks]


def _table(columns: Mapping[str, Sequence[str]]) -> Table:
    table = blank_table()
    for head, cells in columns.items():
        is_text = any(" " in cell or "\n" in cell for cell in cells)
        table.add_column(head, justify="left" if is_text else "right", no_wrap=True)
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*cells)
    return table


def _width(columns: Mapping[str, Sequence[str]]) -> int:
    """Return the width of columns in characters, including the gap after each column."""
    return sum(
        max(len(line) for cell in (head, *cells) for line in cell.split("\n")) + len(GAP)
        for head, cells in columns.items()
    )


def _one_value_per_line(label: str) -> str:
    """Put each value of an option's label, such as `blocks 1, width 20`, on its own line."""
    return "\n".join(shorten(line, LONGEST) for line in label.replace(", ", ",\n").split("\n"))


def short_keys(names: Sequence[str]) -> dict[str, str]:
    """Return a short form of each key, its fewest last parts that are unique: `optim.lr` as `lr`.

    `names`: dotted keys.
    """
    ends = {
        name: [".".join(name.split(".")[-n:]) for n in range(1, name.count(".") + 2)]
        for name in names
    }
    all_ends = [end for of_name in ends.values() for end in of_name]
    return {
        name: next((end for end in of_name if all_ends.count(end) == 1), name)
        for name, of_name in ends.items()
    }


def rung_lines(summary: SweepSummary) -> list[str]:
    """Return lines with the number of designs and epochs of each rung of a search."""
    return [
        f"rung {n}: {counted(len(rung['values']), 'design')}, {counted(rung['epochs'], 'epoch')}"
        for n, rung in enumerate(summary.get("rungs", ()), start=1)
    ]


def ranked(summary: SweepSummary) -> list[Mapping[str, Any]]:
    """Return the trials that have a value, the best first."""
    rows = [row for row in summary["trials"] if row["value"] is not None]
    return sorted(rows, key=lambda row: row["value"], reverse=summary["goal"] == "maximize")


def in_order(summary: SweepSummary) -> list[Mapping[str, Any]]:
    """Return all trials: those with a value, best first; then pruned ones; then the others."""
    others = [row for row in summary["trials"] if row["value"] is None]
    return ranked(summary) + sorted(
        others, key=lambda row: (row["state"] != "pruned", row["state"])
    )


def by_importance(summary: SweepSummary) -> list[tuple[str, float]]:
    """Return each key and its importance, the largest first."""
    return sorted(summary["importance"].items(), key=lambda pair: -pair[1])


def few_trials_warning(n: int) -> str | None:
    """Return a warning that importances from `n` complete trials may be noise.

    None if there are enough trials.
    """
    if n >= ENOUGH:
        return None
    return (
        f"This importance uses {counted(n, 'finished trial')} and may be noise: "
        "the shares add up to 100 % even if no key matters, and Optuna advises at least 5 trials "
        f"in the best tenth, which takes {ENOUGH}."
    )


def n_complete(summary: SweepSummary) -> int:
    """Return how many trials were trained to their end."""
    n: int = summary["counts"]["complete"]
    return n


def counted_trials(n: int) -> str:
    """Format a number of trials: `1 trial`, `20 trials`."""
    return counted(n, "trial")


def counts_text(summary: SweepSummary) -> str:
    """Format the numbers of trials by state: `20 trials: 12 complete, 7 pruned, 1 infeasible`."""
    counts = ", ".join(f"{n} {state}" for state, n in summary["counts"].items() if n)
    extra = {
        "resumed after a worker died": summary["taken_up"],
        "draws that could not be trained": summary["redrawn"],
    }
    more = "".join(f"; {n} {what}" for what, n in extra.items() if n)
    return f"{counted_trials(summary['asked'])}: {counts}{more}"


def test_text(summary: SweepSummary) -> str | None:
    """Format the best trial's test metrics; None if they have not been measured.

    For example `trial 7, the best, on the test split: top1/test 0.7123 …`.
    """
    if not summary.get("test"):
        return None
    figures = ", ".join(f"{name} {value:.4f}" for name, value in summary["test"].items())
    return f"trial {summary['best']['trial']}, the best, on the test split: {figures}"


def value_text(value: float | None) -> str:
    """Format a trial's value of the sweep's metric with four decimals."""
    return UNKNOWN if value is None else f"{value:.4f}"


def key_text(summary: SweepSummary, name: str, value: object) -> str:
    """Format a trial's value of the key `name` in the search space.

    All values of a range have the same number of decimals: enough for three significant digits of
    the upper bound, or of the lower bound on a log scale.
    """
    if not isinstance(value, float):
        return UNKNOWN if value is None else str(value)
    [(kind, ends)] = summary["space"][name].items()
    size = ends[0] if kind == "log" else max(map(abs, ends))
    decimals = max(0, DIGITS - 1 - math.floor(math.log10(size)))
    return f"{value:.{decimals}f}" if decimals <= MOST_DECIMALS else f"{value:.{DIGITS - 1}e}"
