"""Build the report section with the recipe of a run, without keys at their defaults."""

import shlex
from collections.abc import Iterator, Mapping

from distill.errors import UserError
from distill.files.redact_urls import hide_secrets
from distill.recipe import compare_recipes, recipe_variants, recipes
from distill.recipe.recipes import Recipe
from distill.report.page import Block, Paragraph, Table
from distill.report.table_html_csv_latex import Column, ValueTable
from distill.runs.read_run_folder import RunRecord


def recipe_blocks(record: RunRecord) -> list[Block]:
    """Return what the recipe claims, how it differs from the shipped one, and what it sets."""
    return list(_blocks(record))


def _blocks(record: RunRecord) -> Iterator[Block]:
    about = [(name, str(value)) for name, value in record.recipe.about if value]
    if about:
        columns = (Column("what", is_number=False), Column("value", is_number=False))
        yield Table(ValueTable("about", "", columns, about))
    shipped = _shipped_recipe(record)
    yield from _provenance(record, shipped)
    yield from _changed_keys(record, shipped)


def _changed_keys(record: RunRecord, shipped: Recipe | None) -> Iterator[Block]:
    """Yield a table of the keys that are not at their defaults, and a note on the others.

    Its last column, what set a key, is left out if that is unknown for all keys.
    """
    origins = record.environment.get("recipe_origins", {})
    source = hide_secrets(record.recipe.data.source)
    changed = {
        key: value
        for key, value in compare_recipes.changed_values(
            recipe_variants.with_source(record.recipe, source)
        ).items()
        if compare_recipes.is_read(key, record.role)
    }
    set_by = {key: _origin(key, origins) for key in changed}
    heads = ("key", "value", "set by") if any(set_by.values()) else ("key", "value")
    columns = tuple(Column(head, is_number=False) for head in heads)
    rows = [(key, value, set_by[key])[: len(heads)] for key, value in changed.items()]
    yield Table(ValueTable("recipe", "What the recipe sets", columns, rows))
    command = f"python cli.py recipes {shlex.quote(record.requested_recipe or '')}"
    listed = f"{command} lists those of the shipped recipe, and " if shipped else ""
    yield Paragraph(
        f"Keys at their defaults are left out: {listed}recipe.toml in the run's folder has all."
    )


def _origin(key: str, origins: Mapping[str, str]) -> str | None:
    """Return the files that set a key, or the keys of a table; None if they are unknown."""
    found = dict.fromkeys(
        origin for name, origin in origins.items() if f"{name}.".startswith(f"{key}.")
    )
    return ", ".join(origin for origin in found if origin != recipes.DEFAULT) or None


def _shipped_recipe(record: RunRecord) -> Recipe | None:
    """Return the shipped recipe that the run's command names; None if it names none."""
    name = record.requested_recipe
    if name is None or not _is_shipped(record):
        return None
    try:
        return recipes.load(name).recipe
    except UserError:
        return None


def _provenance(record: RunRecord, shipped: Recipe | None) -> Iterator[Block]:
    """Yield a table of the differences from the shipped recipe of the same name.

    Yields a sentence instead if there are no differences or no such recipe.
    """
    name = record.requested_recipe
    if name is None:
        return
    if shipped is None:
        yield Paragraph(f"No recipe named {name} comes with the program.")
        return
    # A student's teacher is shown above, by its run; this table compares recipes.
    no_teacher = {"teacher": None} if record.role == "student" else {}
    shipped, recipe = (r.model_copy(update=no_teacher) for r in (shipped, record.recipe))
    changed = [line.split(": ", 1) for line in compare_recipes.differences(shipped, recipe)]
    if not changed:
        yield Paragraph(f"The recipe {name} as shipped with the program.")
        return
    columns = (Column("key", is_number=False), Column("shipped → this run", is_number=False))
    rows = [(key, change.replace(" -> ", " → ")) for key, change in changed]
    yield Table(
        ValueTable("recipe_differences", f"What differs from {name} as shipped", columns, rows)
    )


def _is_shipped(record: RunRecord) -> bool:
    """Whether the recipe is a shipped one rather than a user's file of the same name."""
    command = record.environment.get("command") or ()
    return not any(str(word).endswith(".toml") for word in command)
