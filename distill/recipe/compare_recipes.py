"""List the values of recipes, and compare them key by key."""

from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel

from distill.recipe.recipes import DEFAULT, ResolvedRecipe
from distill.recipe.schema import STUDENT_READS, Recipe
from distill.recipe.validation import Values, leaves, switches, value_text


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

    An optional table that is present with defaults alone is a key of its own, with all its values:
    `{weight = 0.9, temperature = 4.0}`. A key that is absent although it has a default has the
    value `absent`.
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
            if inner or default is not None:
                yield from inner
            else:
                yield key, value_text({k: v for k, v in dumped[name].items() if v is not None})
        elif value != default:
            yield key, "absent" if value is None else value_text(value)


def differences(a: Recipe, b: Recipe) -> list[str]:
    """List the keys outside [about] whose values differ: `optim.lr: 0.1 -> 0.2`.

    A missing key has the value `absent`. An optional table that one of the two lacks has one line
    with all its values: `loss.kd: absent -> {weight = 0.9, temperature = 4.0}`.
    """
    return differing(values(a), values(b))


def differing(first: Values, second: Values) -> list[str]:
    """List the keys whose values differ, as `differences` does; both are of `values`."""
    return [
        f"{key}: {_text(before)} -> {_text(after)}"
        for key, before, after in _differing(first, second)
    ]


def differences_with_origins(a: ResolvedRecipe, b: ResolvedRecipe) -> list[str]:
    """List the keys outside [about] whose values differ, with the origin of each value.

    For example `optim.lr: 0.1 (default) -> 0.2 (recipes/kd.toml)`. For a recipe that names its
    teachers' runs, the keys of [teacher] that are then not read are left out.
    """
    first, second = (
        values_read(each, "student" if each.teacher and each.teacher.runs else "teacher")
        for each in (a.recipe, b.recipe)
    )
    return [
        f"{key}: {_with_origin(key, before, a.origins)} -> {_with_origin(key, after, b.origins)}"
        for key, before, after in _differing(first, second)
    ]


def _differing(first: Values, second: Values) -> Iterator[tuple[str, Any, Any]]:
    """Yield the keys whose values differ, with both values; None for an absent one.

    An optional table that one of the two lacks is one key, with a dictionary of all its values.
    """
    lacking = [table for table in switches() if _has(first, table) != _has(second, table)]
    before, after = _with_tables(first, lacking), _with_tables(second, lacking)
    for key in dict.fromkeys([*before, *after]):
        if before.get(key) != after.get(key):
            yield key, before.get(key), after.get(key)


def _has(values: Values, table: str) -> bool:
    return any(key.startswith(f"{table}.") for key in values)


def _with_tables(values: Values, tables: Sequence[str]) -> Values:
    """Return the values with the keys of each of these tables in a dictionary of its own."""
    found: Values = {}
    for key, value in values.items():
        table = min((t for t in tables if key.startswith(f"{t}.")), key=len, default=None)
        if table is None:
            found[key] = value
        else:
            found.setdefault(table, {})[key.removeprefix(f"{table}.")] = value
    return found


def _text(value: Any) -> str:
    return "absent" if value is None else value_text(value)


def _with_origin(key: str, value: Any, origins: dict[str, str]) -> str:
    if value is None:
        return "absent"
    keys = [f"{key}.{name}" for name in value] if isinstance(value, dict) else [key]
    every = dict.fromkeys(origins.get(each, DEFAULT) for each in keys)
    set_by = [origin for origin in every if origin != DEFAULT] or [DEFAULT]
    return f"{value_text(value)} ({', '.join(set_by)})"
