"""Terminal table of a comparison of two runs."""

from collections.abc import Callable, Sequence
from functools import partial

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from distill.events import VALIDATED, Split, measure_name
from distill.files.escape_text import visible
from distill.format import (
    UNKNOWN,
    bracketed,
    counted,
    duration,
    grouped,
    p_equation,
    percent,
    percent_number,
    points,
)
from distill.runs.compare_two_runs import ClassDifference, ComparedRun, Comparison
from distill.statistics import Interval
from distill.terminal.table_style import blank_table

MOST_CLASSES = 10  # most classes shown: those with the largest difference; --json has all


def comparison_tables(compared: Comparison) -> RenderableType:
    """Show both runs side by side, the test of their difference, recipes, classes and findings."""
    return Group(
        _side_by_side(compared.a, compared.b),
        Text(),
        *_test_lines(compared),
        Text(),
        Text("the recipes differ in", "bold"),
        *(Text(f"  {line}") for line in compared.recipes or ("nothing",)),
        Text(),
        _classes(compared.classes),
        Text(),
        Text(compared.says, "bold"),
    )


def _top1_val(run: ComparedRun, split: Split) -> str:
    """Format the accuracy on the held-out images if the final weights' has this split name."""
    return percent(run.top1_val if run.val_split == split else None)


_ROWS: Sequence[tuple[str, Callable[[ComparedRun], str]]] = (
    ("run", lambda run: run.run),
    ("recipe", lambda run: run.recipe),
    ("network", lambda run: run.network),
    ("parameters", lambda run: grouped(run.parameters)),
    (
        measure_name("top1", "test"),
        lambda run: _percent_text(run.top1_test, run.top1_test_interval),
    ),
    *((measure_name("top1", split), partial(_top1_val, split=split)) for split in VALIDATED),
    (measure_name("nll", "test"), lambda run: _nats_text(run.nll_test, run.nll_test_interval)),
    (measure_name("ece", "test"), lambda run: percent(run.ece_test)),
    ("training", lambda run: duration(run.elapsed_s)),
    ("total", lambda run: duration(run.total_s)),
)


def _side_by_side(a: ComparedRun, b: ComparedRun) -> Table:
    table = blank_table()
    table.add_column("", no_wrap=True)
    for name in "AB":
        table.add_column(name, overflow="fold")
    for name, text_of in _ROWS:
        texts = text_of(a), text_of(b)
        if set(texts) != {UNKNOWN}:
            table.add_row(Text(name, "bold"), *(Text(visible(text)) for text in texts))
    return table


def _test_lines(compared: Comparison) -> list[Text]:
    interval = compared.difference_interval
    rows = {
        "B − A": f"{points(compared.difference)} points {bracketed(interval, points)}",
        "only one right": f"A {compared.only_a:,}, B {compared.only_b:,} of "
        f"{counted(compared.n, 'image')}; McNemar's {p_equation(compared.p)}",
        "both": f"right {compared.both_right:,}, wrong {compared.both_wrong:,}",
        "same prediction": _percent_text(compared.agreement, compared.agreement_interval),
    }
    return [Text.assemble((f"{name:<20}", "bold"), text) for name, text in rows.items()]


def _classes(classes: Sequence[ClassDifference]) -> Table:
    table = blank_table()
    listed = f", {MOST_CLASSES} of {len(classes):,}" if len(classes) > MOST_CLASSES else ""
    table.add_column(f"class{listed}", overflow="fold")
    for heading in ("images", "A right", "B right", "B − A", "only A", "only B"):
        table.add_column(heading, justify="right", no_wrap=True)
    most = sorted(classes, key=lambda row: -abs(row.right_b - row.right_a))[:MOST_CLASSES]
    for row in classes if len(classes) <= MOST_CLASSES else most:
        table.add_row(
            Text(visible(row.name)),
            grouped(row.n),
            grouped(row.right_a),
            grouped(row.right_b),
            f"{row.right_b - row.right_a:+,}" if row.right_a != row.right_b else "0",
            grouped(row.only_a),
            grouped(row.only_b),
        )
    return table


def _percent_text(fraction: float, interval: Interval) -> str:
    """Format a fraction and its interval in percent: `72.10 % [71.21, 72.97]`."""
    return f"{percent(fraction)} {bracketed(interval, percent_number)}"


def _nats_text(value: float, interval: Interval) -> str:
    return f"{value:.4f} {bracketed(interval, '{:.4f}'.format)}"
