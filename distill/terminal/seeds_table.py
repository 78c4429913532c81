"""Terminal table of runs with several seeds."""

from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from distill.format import UNKNOWN, bracketed, p_equation, percent_number, points
from distill.statistics import SIGNIFICANT
from distill.terminal.table_style import blank_table

Figures = Mapping[str, Any]


def seeds_table(summary: Figures) -> RenderableType:
    """Show a row for each seed, then mean and spread, with the difference from the control if any.

    `summary`: the result of `recipe_and_control_seeds.summary`. Accuracies are shown in percent.
    """
    has_control = "control" in summary
    table = blank_table(padding=2)
    for heading in ("seed", "test %", *(["control", "difference"] if has_control else [])):
        table.add_column(heading, justify="right", no_wrap=True)
    top1 = {(row["seed"], row.get("is_control", False)): row["top1"] for row in summary["runs"]}
    for seed in sorted({seed for seed, _ in top1}):
        own, control = top1[seed, False], top1.get((seed, True))
        comparison = [] if control is None else [percent_number(control), points(own - control)]
        table.add_row(str(seed), percent_number(own), *comparison)
    table.add_section()
    shown = {"top1": percent_number, "control": percent_number, "difference": points}
    spreads = [(summary[name], show) for name, show in shown.items() if name in summary]
    table.add_row("mean ± std", *(mean_text(*each) for each in spreads), style="bold")
    table.add_row("95 % interval of the mean", *(interval_text(*each) for each in spreads))
    return Group(table, Text(finding_text(summary)))


def finding_text(summary: Figures) -> str:
    """Return a text with the network and, with controls, the conclusion of the paired t test."""
    about = f"{summary['network']}, {summary['parameters']:,} parameters."
    if "control" not in summary:
        return about
    p = summary["p"]
    if p is None:
        return f"{about}\nAll differences are equal: Student's t test is not defined."
    shown = (
        "The recipe is better than"
        if summary["difference"]["mean"] > 0
        else "The recipe is worse than"
    )
    finding = (
        f"{shown} its control" if p < SIGNIFICANT else "No significant difference from the control"
    )
    return (
        f"{about}\n{finding}: {p_equation(p)}, Student's t over {summary['difference']['n']} pairs."
    )


def mean_text(spread: Figures, show: Callable[[float], str]) -> str:
    """Format a mean and its standard deviation: `71.46 ± 0.60`; only the mean for one seed."""
    mean, std = show(spread["mean"]), spread["std"]
    return mean if std is None else f"{mean} ± {percent_number(std)}"


def interval_text(spread: Figures, show: Callable[[float], str]) -> str:
    """Format an interval: `[69.97, 72.95]`, that of a difference `[+5.60, +7.40]`."""
    return UNKNOWN if spread["interval"] is None else bracketed(spread["interval"], show)
