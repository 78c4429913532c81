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
MOST = 10  # trials in the table; all are in sweep.json
LONGEST = 40  # letters of one line of a value, where room is short
DIGITS = 3  # of a number that was drawn
MOST_DECIMALS = 5  # beyond them 1.23e-07
# Complete trials below which an importance is shown with a warning. Optuna on its PED-ANOVA: "it is
# preferable to include at least 5 trials above target_quantile", which is the best tenth
# (optuna.importance.PedAnovaImportanceEvaluator, 4.x).
ENOUGH = 50


def sweep_table(said: SweepSummary, width: int) -> RenderableType:
    """The best trials, a line each, and what became of all.

    `said`: what `sweep_summary` found; `width`: characters of the terminal. Keys that do not fit
    beside each other stand in a table of their own below.
    """
    rows = ranked(said)
    lines = rung_lines(said)
    lines += [f"{len(rows) - MOST} more in sweep.json"] if len(rows) > MOST else []
    lines.append(counts_text(said))
    lines += filter(None, [test_text(said)])
    if said["importance"]:
        shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in by_importance(said))
        lines.append(f"importance (PED-ANOVA, of {counted_trials(n_complete(said))}): {shares}")
        lines += filter(None, [few_trials_warning(n_complete(said))])
    return Group(*_tables(said, rows[:MOST], width), Text("\n".join(lines)))


def _tables(said: SweepSummary, rows: Sequence[Mapping[str, Any]], width: int) -> list[Table]:
    """One table of all keys; several where they are too many for the width."""
    if not rows:
        return []
    first = {
        "trial": [str(row["trial"]) for row in rows],
        said["metric"]: [value_text(row["value"]) for row in rows],
    }
    keys = {
        head: [key_text(said, name, row["values"].get(name)) for row in rows]
        for name, head in heads(list(said["space"])).items()
    }
    room = width - _width(first)
    if _width(keys) > room:
        keys = {head: [*map(_stacked, cells)] for head, cells in keys.items()}
    blocks: list[dict[str, list[str]]] = [{}]
    for head, cells in keys.items():
        if blocks[-1] and _width(blocks[-1] | {head: cells}) > room:
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
    """Characters that columns take, each with the gap beside it."""
    return sum(
        max(len(line) for cell in (head, *cells) for line in cell.split("\n")) + len(GAP)
        for head, cells in columns.items()
    )


def _stacked(label: str) -> str:
    """A label of several values, one a line."""
    return "\n".join(shorten(line, LONGEST) for line in label.replace(", ", ",\n").split("\n"))


def heads(names: Sequence[str]) -> dict[str, str]:
    """Each key by as many of its last parts as tell it from the others: `optim.lr` as `lr`."""
    ends = {
        name: [".".join(name.split(".")[-n:]) for n in range(1, name.count(".") + 2)]
        for name in names
    }
    every = [end for several in ends.values() for end in several]
    return {
        name: next((end for end in several if every.count(end) == 1), name)
        for name, several in ends.items()
    }


def rung_lines(said: SweepSummary) -> list[str]:
    """Of a search: how many designs each rung had, and for how long."""
    return [
        f"rung {n}: {counted(len(rung['values']), 'design')}, {counted(rung['epochs'], 'epoch')}"
        for n, rung in enumerate(said.get("rungs", ()), start=1)
    ]


def ranked(said: SweepSummary) -> list[Mapping[str, Any]]:
    """The trials that have a value, the best first."""
    rows = [row for row in said["trials"] if row["value"] is not None]
    return sorted(rows, key=lambda row: row["value"], reverse=said["goal"] == "maximize")


def in_order(said: SweepSummary) -> list[Mapping[str, Any]]:
    """Every trial: the ranked ones, then the pruned, then those that were not trained."""
    others = [row for row in said["trials"] if row["value"] is None]
    return ranked(said) + sorted(others, key=lambda row: (row["state"] != "pruned", row["state"]))


def by_importance(said: SweepSummary) -> list[tuple[str, float]]:
    """Keys and their shares, the largest first."""
    return sorted(said["importance"].items(), key=lambda pair: -pair[1])


def few_trials_warning(n: int) -> str | None:
    """The warning beside an importance of `n` complete trials; None if they are enough."""
    if n >= ENOUGH:
        return None
    return (
        f"This importance uses {counted(n, 'finished trial')} and may be noise: "
        "the shares add up to 100 % even if no key matters, and Optuna advises at least 5 trials "
        f"in the best tenth, which takes {ENOUGH}."
    )


def n_complete(said: SweepSummary) -> int:
    """How many trials were trained to their end."""
    n: int = said["counts"]["complete"]
    return n


def counted_trials(n: int) -> str:
    """`1 trial`, `20 trials`."""
    return counted(n, "trial")


def counts_text(said: SweepSummary) -> str:
    """`20 trials: 12 complete, 7 pruned, 1 infeasible; 2 taken up again …`."""
    counts = ", ".join(f"{n} {state}" for state, n in said["counts"].items() if n)
    besides = {
        "taken up again, after a worker was gone": said["taken_up"],
        "draws that could not be trained": said["redrawn"],
    }
    more = "".join(f"; {n} {what}" for what, n in besides.items() if n)
    return f"{counted_trials(said['asked'])}: {counts}{more}"


def test_text(said: SweepSummary) -> str | None:
    """`trial 7, the best, on the test split: top1/test 0.7123 …`; None before it is measured."""
    if not said.get("test"):
        return None
    figures = ", ".join(f"{name} {value:.4f}" for name, value in said["test"].items())
    return f"trial {said['best']['trial']}, the best, on the test split: {figures}"


def value_text(value: float | None) -> str:
    """What a trial reached: four decimals."""
    return UNKNOWN if value is None else f"{value:.4f}"


def key_text(said: SweepSummary, name: str, value: object) -> str:
    """What a trial gave a key; numbers of one span all have the same decimals, enough for three
    digits of its larger end, or of the smaller one where it was drawn in logarithms.
    """
    if not isinstance(value, float):
        return UNKNOWN if value is None else str(value)
    [(kind, ends)] = said["space"][name].items()
    size = ends[0] if kind == "log" else max(map(abs, ends))
    decimals = max(0, DIGITS - 1 - math.floor(math.log10(size)))
    return f"{value:.{decimals}f}" if decimals <= MOST_DECIMALS else f"{value:.{DIGITS - 1}e}"
