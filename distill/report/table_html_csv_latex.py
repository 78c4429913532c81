"""Convert a table of values to HTML cells, CSV and LaTeX."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from distill.files.escape_text import csv_cell, latex
from distill.format import UNKNOWN

FRACTION = "fraction"  # the unit of numbers in 0..1 that a page shows in percent
LATEX_HEAD = r"""% This table needs no package; \usepackage{booktabs} improves its rules.
% A character that pdfLaTeX cannot print without a package is written as <U+XXXX>, its code point.
\providecommand{\toprule}{\hline}
\providecommand{\midrule}{\hline}
\providecommand{\bottomrule}{\hline}
"""


@dataclass(frozen=True)
class Column:
    """The heading of a table's column, and how its values are shown.

    None is shown as a dash.
    """

    head: str
    format: Callable[[Any], str] = str  # converts a value to displayed text
    # If values are tuples: the names of their first items, each of which is a column in CSV.
    parts: tuple[str, ...] = ()
    is_number: bool = True  # aligned right
    unit: str = ""  # of the unrounded numbers in CSV; in its header
    note: str = ""  # added to the heading, except in CSV: the unit of displayed text, for example

    @property
    def title(self) -> str:
        """The heading of displayed tables: `head`, with the note in parentheses if there is one."""
        return f"{self.head} ({self.note})" if self.note else self.head

    def cell(self, value: Any) -> str:
        """Return the value as displayed text."""
        return UNKNOWN if value is None else self.format(value)

    def csv_heads(self) -> list[str]:
        """Return the column's headings in CSV with the unit: one, or one for each part."""
        unit = f" ({self.unit})" if self.unit else ""
        return [f"{self.head} {part}".strip() + unit for part in self.parts or ("",)]

    def csv_values(self, value: Any) -> list[Any]:
        """Return the unrounded values of a cell for CSV: one, or one for each part.

        None is unknown; so is a part that the value does not have.
        """
        if not self.parts:
            return [value]
        known = [] if value is None else list(value[: len(self.parts)])
        return known + [None] * (len(self.parts) - len(known))


def _csv(value: Any) -> Any:
    return csv_cell(value) if isinstance(value, str) else value


@dataclass(frozen=True)
class ValueTable:
    """A table: rows of values, and the columns that format them.

    `name`: the stem of the table's files. Each row has one value per column.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: Sequence[Sequence[Any]]

    @property
    def cells(self) -> list[list[str]]:
        """The displayed text of all cells, row by row."""
        return [
            [column.cell(value) for column, value in zip(self.columns, row, strict=True)]
            for row in self.rows
        ]

    def csv(self) -> str:
        """Return CSV with a header row (RFC 4180 with bare line feeds)."""
        text = io.StringIO()
        write = csv.writer(text, lineterminator="\n").writerow
        write([csv_cell(head) for column in self.columns for head in column.csv_heads()])
        for row in self.rows:
            pairs = zip(self.columns, row, strict=True)
            write([_csv(part) for column, value in pairs for part in column.csv_values(value)])
        return text.getvalue()

    def latex(self) -> str:
        """Return a LaTeX `tabular` that compiles without packages; every cell is escaped.

        Its rules are those of booktabs if the document loads it.
        """
        align = "".join("r" if column.is_number else "l" for column in self.columns)
        head, *rows = (
            " & ".join(map(latex, line)) + r" \\"
            for line in [[column.title for column in self.columns], *self.cells]
        )
        body = [rf"\begin{{tabular}}{{{align}}}", r"\toprule", head, r"\midrule", *rows]
        return LATEX_HEAD + "\n".join([*body, r"\bottomrule", r"\end{tabular}"]) + "\n"
