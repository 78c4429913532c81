"""Terminal tables of recipes, designs and cache entries."""

import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.columns import Columns
from rich.table import Table
from rich.text import Text

from distill.files.escape_text import visible
from distill.files.redact_urls import hide_secrets
from distill.format import UNKNOWN, grouped
from distill.recipe.recipe_variants import with_source
from distill.recipe.recipes import About, ResolvedRecipe, annotated, dumps, toml_of
from distill.terminal.table_style import GAP, blank_table

NOT_YET = "not yet run"  # the accuracy in [about] of a recipe that was not measured
BESIDE = {  # notes beside a folder's name
    "ingredients": "to compose with a recipe: kd+cutmix+ema",
    "published": "settings of published tables: crd_cifar100+published_at",
}


def recipe_table(shipped: Sequence[tuple[str, Path, About]]) -> Table:
    """Show name, claim and measured accuracy of every shipped recipe, grouped by folder."""
    table = blank_table()
    table.add_column("recipe", no_wrap=True)
    table.add_column("claim")
    table.add_column("accuracy", max_width=18)
    for folder, recipes in groupby(shipped, key=lambda entry: entry[1].parent.name):
        if table.rows:
            table.add_section()
            table.add_row(Text(folder, "dim"), Text(BESIDE.get(folder, ""), "dim"))
        for name, _, about in recipes:
            accuracy = UNKNOWN if about.accuracy == NOT_YET else about.accuracy
            table.add_row(Text(name, "bold"), Text(about.claim), Text(accuracy))
    return table


def recipe_origins(resolved: ResolvedRecipe) -> Text:
    """Return the resolved recipe as TOML, each value followed by the file that set it.

    A password in the path of the data is hidden.
    """
    recipe = with_source(resolved.recipe, hide_secrets(resolved.recipe.data.source))
    return Text(annotated(dumps(recipe), resolved.origins))


def tables_with_origins(tables: Mapping[str, Any], origins: Mapping[str, str]) -> Text:
    """Return an ingredient's tables as TOML, each value followed by the file that set it."""
    return Text(annotated(toml_of(dict(tables)), origins))


def cache_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Show the cached teacher logits, one row per cache entry."""
    table = blank_table()
    table.add_column("key", no_wrap=True)
    for heading in ("teacher", "data", "augmentation"):
        table.add_column(heading, overflow="fold")
    for heading in ("seed", "views", "size"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        cells = row["teacher"], row["data"], row["pipeline"]
        teacher, data, pipeline = (cell or UNKNOWN for cell in cells)
        table.add_row(
            row["key"][:12],
            Text(visible(" + ".join(teacher))),
            Text(visible(data)),
            Text(visible(_operations(pipeline))),
            UNKNOWN if row["seed"] is None else str(row["seed"]),
            str(row["views"]),
            row["size"],
        )
    return table


def _operations(pipeline: str) -> str:
    """Return the active operations of an augmentation pipeline: `crop padding 4; flip prob 0.5`.

    Switches that are off are left out.
    `pipeline`: the repr of the pipeline object, such as `Pipeline(crop=Crop(padding=4), …)`.
    """
    found = re.findall(r"([A-Z]\w*)\(([^()]*)\)", pipeline.partition("(")[2])
    texts = (" ".join([name.lower(), _keys(keys)]).strip() for name, keys in found)
    return "; ".join(texts) or pipeline


def _keys(keys: str) -> str:
    """Return `padding=4, alternate=False` as `padding 4`."""
    return re.sub(r"(, )?\b\w+=False\b", "", keys).removeprefix(", ").replace("=", " ")


def design_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Show the widest design of each depth, in sections by number of stages."""
    table = blank_table()
    for heading in ("stages", "blocks", "width", "parameters", "MACs", "MACs per parameter"):
        table.add_column(heading, justify="right", no_wrap=True)
    for _, group in groupby(rows, key=lambda row: row["stages"]):
        if table.rows:
            table.add_section()
        for row in group:
            table.add_row(
                str(row["stages"]),
                value_text(row["blocks"]),
                str(row["width"]),
                grouped(row["parameters"]),
                f"{row['macs'] / 1e6:,.0f} M",
                f"{row['macs_per_parameter']:,.0f}",
            )
    return table


def fact_lines(values: Mapping[str, Any]) -> Text:
    """Return names and values, one pair per line; no value is shortened."""
    width = max(map(len, values), default=0)
    lines = [
        Text.assemble((name.ljust(width), "bold"), GAP, value_text(value))
        for name, value in values.items()
    ]
    return Text("\n").join(lines)


def class_counts(counts: Mapping[str, int]) -> Columns:
    """Show how many images are predicted as each class: `airplane 1,012`.

    Each line has as many classes as fit into the terminal's width.
    """
    pairs = [f"{visible(name)} {grouped(n)}" for name, n in counts.items()]
    return Columns(pairs, padding=(0, len(GAP)), column_first=False)


def value_text(value: object) -> str:
    """Format a value: 4697162 as `4,697,162`, true as `yes`, a list with commas."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return grouped(value)
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, list):
        return ", ".join(map(value_text, value)) or UNKNOWN
    return visible(str(value))
