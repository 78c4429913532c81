"""Define the style that all terminal tables share: a rule below the heading row, no frame."""

from rich.box import SIMPLE_HEAD
from rich.table import Table

GAP = "  "  # between two values on a line


def blank_table(padding: int = 1) -> Table:
    """Return an empty table; `padding`: spaces between two columns in addition to one."""
    return Table(box=SIMPLE_HEAD, padding=(0, padding, 0, 0), show_edge=False, pad_edge=False)
