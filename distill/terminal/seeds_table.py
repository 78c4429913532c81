"""Terminal table of runs with several seeds."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from distill.format import UNKNOWN, bracketed, p_equation, percent_number, points
from distill.statistics import SIGNIFICANT
from distill.terminal.table_style import blank_table

Figures = Mapping[str, Any]


def seeds_table(summary: Figures) -> RenderableType:
    """A line a seed, then mean and spread; the difference to the control where there is one.

    `said`: what `study.seeds.summary` found; shares are shown in per cent.
    """
    has_control = "control" in summary
    table = blank_table(padding=2)
    for heading in ("seed", "test %", *(["control", "difference"] if has_control else [])):
        table.add_column(heading, justify="right", no_wrap=True)
    known = {(row["seed"], row.get("is_control", False)): row["top1"] for row in summary["runs"]}
    for seed in sorted({seed for seed, _ in known}):
        ours, control = known[seed, False], known.get((seed, True))
        beside = [] if control is None else [percent_number(control), points(ours - control)]
        table.add_row(str(seed), percent_number(ours), *beside)
    table.add_section()
    spreads = [summary[name] for name in ("top1", "control", "difference") if name in summary]
    table.add_row("mean ± std", *map(mean_text, spreads), style="bold")
    table.add_row("95 % of the mean", *map(interval_text, spreads))
    return Group(table, Text(finding_text(summary)))


def finding_text(summary: Figures) -> str:
    """Which network, and what the paired difference shows."""
    about = f"{summary['network']}, {summary['parameters']:,} parameters."
    if "control" not in summary:
        return about
    p = summary["p"]
    if p is None:
        return f"{about}\nStudent's t says nothing of differences that do not differ."
    shown = (
        "The recipe is better than" if summary["difference"]["mean"] > 0 else "The recipe is below"
    )
    word = f"{shown} its control" if p < SIGNIFICANT else "No difference to the control is shown"
    return f"{about}\n{word}: {p_equation(p)}, Student's t over {summary['difference']['n']} pairs."


def mean_text(spread: Figures) -> str:
    """`71.46 ± 0.60`."""
    return f"{percent_number(spread['mean'])} ± {percent_number(spread['std'] or 0)}"


def interval_text(spread: Figures) -> str:
    """`[69.97, 72.95]`."""
    if spread["interval"] is None:
        return UNKNOWN
    return bracketed(spread["interval"], percent_number)
