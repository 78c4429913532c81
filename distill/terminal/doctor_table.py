"""The terminal table of `doctor`."""

from collections.abc import Sequence

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from distill.check_installation import Check
from distill.format import as_typed
from distill.terminal.table_style import blank_table

INDENT = 2  # columns; they mark advice on terminals without colours
STYLES = {"ok": "green", "note": "yellow", "fault": "bold red"}


def doctor_table(checks: Sequence[Check]) -> Table:
    """Show each check with its result; below it, indented, what to do about it."""
    table = blank_table()
    table.add_column("check", no_wrap=True)
    table.add_column("result", no_wrap=True)
    table.add_column("found", overflow="fold")
    for check in checks:
        table.add_row(
            Text(check.name, "bold"), Text(check.state, STYLES[check.state]), Text(check.found)
        )
        if check.advice:
            advice = as_typed(check.advice[0].upper() + check.advice[1:])
            table.add_row("", "", Padding.indent(Text(advice, "dim"), INDENT))
    return table
