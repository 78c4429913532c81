"""The trials of a sweep, for the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from distill.show.display import UNKNOWN

MOST = 10  # trials in the table; all are in sweep.json


def sweep_table(said: Mapping[str, Any]) -> RenderableType:
    """The best trials, a line each, and what became of all; `said`: what `sweep_summary` found."""
    rows = ranked(said)
    table = Table(box=SIMPLE_HEAD, padding=(0, 2, 0, 0), show_edge=False, pad_edge=False)
    for heading in ("trial", said["metric"]):
        table.add_column(heading, justify="right", no_wrap=True)
    for name in said["space"]:
        table.add_column(name, justify="right", overflow="fold")
    for row in rows[:MOST]:
        values = [value_text(row["values"].get(name)) for name in said["space"]]
        table.add_row(str(row["trial"]), f"{row['value']:.4f}", *values)
    lines = rung_lines(said)
    lines += [f"{len(rows) - MOST} more in sweep.json"] if len(rows) > MOST else []
    lines.append(counts_text(said))
    if said["importance"]:
        shares = (f"{name} {100 * share:.0f} %" for name, share in said["importance"].items())
        lines.append(f"importance (PED-ANOVA): {', '.join(shares)}")
    return Group(table, Text("\n".join(lines)))


def rung_lines(said: Mapping[str, Any]) -> list[str]:
    """Of a search: how many designs each rung had, and for how long."""
    return [
        f"rung {n}: {len(rung['values'])} designs, {rung['epochs']} epochs"
        for n, rung in enumerate(said.get("rungs", ()), start=1)
    ]


def ranked(said: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The trials that have a value, the best first."""
    rows = [row for row in said["trials"] if row["value"] is not None]
    return sorted(rows, key=lambda row: row["value"], reverse=said["goal"] == "maximize")


def counts_text(said: Mapping[str, Any]) -> str:
    """`20 trials: 12 complete, 7 pruned, 1 infeasible; 2 were taken up from another worker`."""
    counts = ", ".join(f"{n} {state}" for state, n in said["counts"].items() if n)
    taken = said["taken_up"]
    again = f"; {taken} taken up again, after a worker was gone" if taken else ""
    return f"{said['asked']} trials: {counts}{again}"


def value_text(value: object) -> str:
    """A value of a trial: four digits of a number."""
    if value is None:
        return UNKNOWN
    return f"{value:.4g}" if isinstance(value, float) else str(value)
