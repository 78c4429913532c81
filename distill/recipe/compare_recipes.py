"""List the values of recipes, and compare them key by key."""

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from distill.recipe.recipes import DEFAULT, ResolvedRecipe
from distill.recipe.schema import STUDENT_READS, Recipe
from distill.recipe.validation import Values, leaves, switches, value_text

DEFAULTS = "with its defaults"  # value of a table in `changed_values`


def values(recipe: Recipe) -> dict[str, Any]:
    """Return every key outside [about] that is not absent: `{"optim.lr": 0.1, …}`."""
    return dict(leaves(recipe.model_dump(exclude={"about"})))


def is_read(key: str, role: str | None) -> bool:
    """Whether a run of this role, "student" or "teacher", reads a key of its recipe; of None, all.

    A student's run loads its teachers from `teacher.runs`; it does not read the keys of [teacher]
    that describe a network.
    """
    table, _, name = key.partition(".")
    return role != "student" or table != "teacher" or name in STUDENT_READS


def values_read(recipe: Recipe, role: str | None) -> dict[str, Any]:
    """Return the `values` of the keys that a run of this role reads (`is_read`)."""
    return {key: value for key, value in values(recipe).items() if is_read(key, role)}


def changed_values(recipe: Recipe) -> dict[str, str]:
    """Return every key outside [about] that is not at its default, with its value as text.

    An optional table that is present with defaults alone is a key of its own, with the value
    DEFAULTS. A key that is absent although it has a default has the value `absent`.
    """
    return dict(_changed(recipe, recipe.model_dump(exclude={"about"})))


def _changed(table: BaseModel, dumped: Values, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield dotted key and value of the keys of a table and its inner tables that are not defaults.

    `dumped`: the table's keys that a recipe has, which for [student] and [teacher] are those of
    their network.
    """
    for name in dumped:
        key, value = prefix + name, getattr(table, name)
        field = type(table).model_fields.get(name)
        default = None if field is None else field.default
        if isinstance(value, BaseModel):
            inner = list(_changed(value, dumped[name], f"{key}."))
            yield from inner or ([(key, DEFAULTS)] if default is None else [])
        elif value != default:
            yield key, "absent" if value is None else value_text(value)


def differences(a: Recipe, b: Recipe) -> list[str]:
    """List the keys outside [about] whose values differ: `optim.lr: 0.1 -> 0.2`.

    A missing key has the value `absent`.
    """
    return differing(values(a), values(b))


def differing(first: Values, second: Values) -> list[str]:
    """List the keys whose values differ, as `differences` does; both are of `values`."""
    return [
        f"{key}: {_text_at(key, first)} -> {_text_at(key, second)}"
        for key in dict.fromkeys([*first, *second])
        if first.get(key) != second.get(key)
    ]


def differences_with_origins(a: ResolvedRecipe, b: ResolvedRecipe) -> list[str]:
    """List the keys outside [about] whose values differ, with the origin of each value.

    For example `optim.lr: 0.1 (default) -> 0.2 (recipes/kd.toml)`. Keys at their defaults in a
    table that the other recipe lacks are left out, and for a recipe that names its teachers' runs
    the keys of [teacher] that are then not read.
    """
    first, second = (
        values_read(each, "student" if each.teacher and each.teacher.runs else "teacher")
        for each in (a.recipe, b.recipe)
    )
    return [
        f"{key}: {_with_origin(key, first, a.origins)} -> {_with_origin(key, second, b.origins)}"
        for key in dict.fromkeys([*first, *second])
        if first.get(key) != second.get(key)
        and not is_default_of_absent_table(key, a.recipe, b.recipe)
    ]


def is_default_of_absent_table(key: str, a: Recipe, b: Recipe) -> bool:
    """Whether one of two recipes lacks the key's whole table, and the other has the key's default.

    False for all keys of a table that has defaults alone: they show that the table is there.
    """
    table = f"{key.rpartition('.')[0]}."
    inside = [any(name.startswith(table) for name in values(each)) for each in (a, b)]
    if table[:-1] not in switches() or all(inside):
        return False
    changed = changed_values(a if inside[0] else b)
    return key not in changed and any(name.startswith(table) for name in changed)


def _text_at(key: str, leaves: Values) -> str:
    return value_text(leaves[key]) if key in leaves else "absent"


def _with_origin(key: str, leaves: Values, origins: dict[str, str]) -> str:
    return f"{value_text(leaves[key])} ({origins.get(key, DEFAULT)})" if key in leaves else "absent"
