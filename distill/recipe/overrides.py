"""Parse the `key=value` overrides of --set, and combine them with --data and --teacher."""

import re
import tomllib
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from distill.errors import UserError
from distill.files.escape_text import is_utf8
from distill.recipe.recipe_files import DEEPEST, TOO_LONG, has_long_key, has_long_number, is_deeper
from distill.recipe.validation import Values, shorten, value_text

OVERRIDE = "--set"
BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def override_of(key: str, overrides: Sequence[str]) -> str | None:
    """Return the last override that sets `key` (`table.name`), or None.

    An override of a whole table, such as `data={source="x"}`, sets `data.source` too.
    """
    table, _, name = key.partition(".")
    for text in reversed(overrides):
        with suppress(ValueError):  # a malformed override is reported later
            values = override_values(text).get(table)
            if isinstance(values, dict) and name in values:
                return text
    return None


def overrides_and_notes(
    data: str | None, overrides: Sequence[str], teachers: Sequence[str] | None
) -> tuple[list[str], list[str]]:
    """Return the `key=value` overrides of the options `--set`, `--data` and `--teacher`, and notes.

    If `--set` sets the key of another option too, that option is not used, and a note says so.
    Raises UserError for a path that is not UTF-8, which recipe.toml cannot contain.
    """
    for path in filter(None, [data, *(teachers or [])]):
        if not is_utf8(path):
            raise UserError(
                f"the name of {path} is not UTF-8, so recipe.toml cannot contain it.\n"
                "Rename the folder, or give a link to it with another name."
            )
    chosen, notes = [], []
    options = {"--data": ("data.source", data), "--teacher": ("teacher.runs", teachers or None)}
    for option, (key, value) in options.items():
        override = override_of(key, overrides)
        if value is not None and override is not None:
            notes.append(f"--set {override} overrides {option}, which is not used")
        elif value is not None:
            chosen.append(f"{key}={value_text(value)}")
    return [*overrides, *chosen], notes


def override_values(text: str) -> Values:
    """Parse an override such as `optim.lr=0.1` into tables.

    Raises ValueError if the key or the value is missing or malformed, or nested too deeply.
    """
    key, _, raw = text.partition("=")
    names = [name.strip() for name in key.split(".")]
    if not all(map(BARE_KEY.fullmatch, names)):
        raise ValueError(f"has no key: {shorten(repr(key))} is not one")
    if not raw.strip():
        raise ValueError("has no value")
    if len(names) > DEEPEST:
        raise ValueError(f"is nested deeper than {DEEPEST} tables")
    tables: Values = {names.pop(): _override_value(raw.strip())}
    for name in reversed(names):
        tables = {name: tables}
    return tables


def _override_value(raw: str) -> Any:
    """Parse a TOML value; any other text is a string, so that paths need no quotes.

    Raises ValueError if text that begins like a list, a table or a quoted string is malformed, if
    the value is nested too deeply, or if it has an integer of more than 64 bits.
    """
    is_structured = raw[0] in "[{\"'" or "\n" in raw
    if is_structured and has_long_key(raw):
        raise ValueError(f"is nested deeper than {DEEPEST} tables and lists")
    try:
        table = tomllib.loads(f"value = {raw}")
    except (ValueError, RecursionError):
        table = {}
    if is_deeper(table, DEEPEST):
        raise ValueError(f"is nested deeper than {DEEPEST} tables and lists")
    if has_long_number(table):
        raise ValueError(f"has {TOO_LONG}")
    if table.keys() == {"value"}:
        return table["value"]
    if is_structured:
        raise ValueError(f"is malformed: {shorten(raw)} is not a TOML value")
    return raw
