"""Tables of recipes and facts, for the terminal."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from distill.recipe import About, Resolved, dumps
from distill.show.display import GAP, UNKNOWN, grouped

BESIDE = {"ingredients": "to be composed with a recipe: kd+cutmix+ema"}


def recipe_table(shipped: Sequence[tuple[str, Path, About]]) -> Table:
    """Name, claim and measured accuracy of every shipped recipe, folder by folder."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    table.add_column("recipe", no_wrap=True)
    table.add_column("claim")
    table.add_column("accuracy", max_width=18)
    for folder, recipes in groupby(shipped, key=lambda each: each[1].parent.name):
        if table.rows:
            table.add_section()
            table.add_row(Text(folder, "dim"), Text(BESIDE.get(folder, ""), "dim"))
        for name, _, about in recipes:
            table.add_row(Text(name, "bold"), Text(about.claim), Text(about.accuracy))
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


def stock_table(rows: Sequence[Mapping[str, Any]], folder: Path) -> Table:
    """The stored answers, a line for each set of things that they depend on."""
    total = sum(row["bytes"] for row in rows)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    table.caption = f"{total / 1e6:.1f} MB in {folder}"
    for heading in ("key", "teacher", "data"):
        table.add_column(heading, overflow="fold")
    for heading in ("views", "MB"):
        table.add_column(heading, justify="right")
    for row in rows:
        teacher = " + ".join(row["teacher"]) or UNKNOWN
        size = f"{row['bytes'] / 1e6:.1f}"
        table.add_row(row["key"][:12], teacher, row["data"] or UNKNOWN, str(row["views"]), size)
    return table


def fact_lines(values: Mapping[str, Any]) -> Text:
    """Names and values, one a line, nothing cut off."""
    width = max(map(len, values), default=0)
    lines = [
        Text.assemble((name.ljust(width), "bold"), GAP, plain(value))
        for name, value in values.items()
    ]
    return Text("\n").join(lines)


def plain(value: object) -> str:
    """A value for a person: 4697162 as `4,697,162`, true as `yes`, a list with commas."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return grouped(value)
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, list):
        return ", ".join(map(plain, value)) or UNKNOWN
    return str(value)
