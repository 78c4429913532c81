"""Tables of recipes and facts, for the terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from distill.recipe import About, Resolved, dumps


def recipe_table(shipped: Sequence[tuple[str, Path, About]]) -> Table:
    """Name, claim and measured accuracy of every shipped recipe."""
    table = Table(box=SIMPLE_HEAD)
    for column in ("recipe", "claim", "accuracy"):
        table.add_column(column, overflow="fold")
    for name, path, about in shipped:
        kind = "" if path.parent.name == "recipes" else f" ({path.parent.name[:-1]})"
        table.add_row(Text(name + kind), Text(about.claim), Text(about.accuracy))
    return table


def recipe_origins(resolved: Resolved) -> Text:
    """The resolved recipe as TOML, each value followed by the file that set it."""
    lines, table = [], ""
    for line in dumps(resolved.recipe).splitlines():
        if line.startswith("["):
            table = line.strip("[]") + "."
        key = table + line.split(" = ")[0]
        origin = resolved.origins.get(key)
        lines.append(f"{line:<48}  # {origin}" if origin and " = " in line else line)
    return Text("\n".join(lines))


def fact_table(values: Mapping[str, Any]) -> Table:
    """Names and values, one a line."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in values.items():
        shown = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else value
        shown = f"{value:.4f}" if isinstance(value, float) else shown
        table.add_row(Text(name, style="bold"), Text(str(shown)))
    return table
