"""Validate merged tables and report every error at once, in terms of what the user wrote.

`check` is the one way from merged tables to a `Recipe`. First each key by itself, where pydantic
finds the faults and none of its language is kept; then the rules across keys, for those tables
that are sound.
"""

import inspect
import json
import types
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from difflib import get_close_matches
from functools import cache, reduce
from operator import getitem
from typing import Any, get_args

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from distill.recipe.constraints import RULES, Fault, Rule, did_you_mean
from distill.recipe.schema import Recipe

Values = dict[str, Any]  # tables as TOML gives them
LONGEST = 200  # characters of a value in a message; of a longer one …
BEGINNING = 60  # … so many


def check(
    values: Values, rules: Sequence[Rule] = RULES, *, whole: bool = True
) -> tuple[Recipe | None, list[Fault]]:
    """The recipe that merged tables make, and every fault; no recipe where a key is faulty.

    `whole=False`: parts could not be read, so that nothing is known to be missing.
    """
    values = {name: {} for name in _always_there()} | values
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        details = error.errors(include_url=False)
        faults = [f for f in _key_faults(details, values) if whole or f.value is not None]
        return None, faults + (_rule_faults(rules, _sound(values, details)) if whole else [])
    return recipe, _rule_faults(rules, dict(recipe)) if whole else []


def _sound(values: Values, details: Sequence[ErrorDetails]) -> dict[str, BaseModel]:
    """The tables whose own keys are right, whatever unknown ones stand beside them."""
    values, broken = deepcopy(values), set()
    for detail in details:
        *way, last = detail["loc"]
        if detail["type"] == "extra_forbidden":
            del _at(values, way)[last]
        else:
            broken.add(way[0] if way else last)
    tables = {name: _table(field) for name, field in Recipe.model_fields.items()}
    return {
        name: table.model_validate(values[name])
        for name, table in tables.items()
        if table is not None and name in values and name not in broken
    }


def _rule_faults(rules: Sequence[Rule], tables: Mapping[str, Any]) -> list[Fault]:
    faults: list[Fault] = []
    for rule in rules:
        read = [tables.get(name) for name in inspect.signature(rule).parameters]
        if None not in read:
            faults += rule(*read)
    return faults


def _key_faults(details: Sequence[ErrorDetails], values: Values) -> Iterator[Fault]:
    """One fault a key, though pydantic reports each branch of `int | tuple` and each element."""
    kinds: dict[str, set[str]] = {}
    for detail in details:
        if detail["type"] == "extra_forbidden":
            key = ".".join(map(str, detail["loc"]))
            yield Fault(key, detail["input"], f"is not a key{did_you_mean(_nearest_key(key))}")
        else:
            kinds.setdefault(_known_key(detail["loc"]), set()).add(detail["type"])
    for key, found in kinds.items():
        if "missing" in found:
            yield Fault(key, None, f"is missing; allowed: {allowed_text(key)}")
        else:
            value = _at(values, key.split("."))
            yield Fault(key, value, _value_problem(key, value, found))


def _at(values: Any, way: Sequence[int | str]) -> Any:
    return reduce(getitem, way, values)


def _known_key(location: Sequence[int | str]) -> str:
    """The key of a location, which may go on into a union's branch and a list's index."""
    parts = list(map(str, location))
    while ".".join(parts) not in keys():
        parts.pop()
    return ".".join(parts)


def _value_problem(key: str, value: object, kinds: set[str]) -> str:
    # A choice of words has no type of its own: what is no word is of the wrong one.
    if all(
        k.endswith("_type") or (not isinstance(value, str) and k == "literal_error") for k in kinds
    ):
        return f"is {_kind(value)}; allowed: {allowed_text(key)}"
    if isinstance(value, str):
        near = get_close_matches(value, _choices(_schema(key)), n=1)
        return f"is unknown; allowed: {allowed_text(key)}{did_you_mean(*map(value_text, near))}"
    return f"is out of range; allowed: {allowed_text(key)}"


def value_text(value: object) -> str:
    """A value as TOML would write it, on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name} = {value_text(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(value_text, value))}]"
    if isinstance(value, str | bool):
        return json.dumps(value, ensure_ascii=False)
    return str(value)  # numbers and dates


def shorten(text: str) -> str:
    """A value or a key in a message: its beginning, and how long it is, where it is long."""
    return text if len(text) <= LONGEST else f"{text[:BEGINNING]}… ({len(text):,} characters)"


def _kind(value: object) -> str:
    kinds = {
        bool: "a boolean",
        str: "text",
        int: "a whole number",
        float: "a number",
        list: "a list",
        dict: "a table",
    }
    return kinds.get(type(value), "a date")


@cache
def keys() -> dict[str, FieldInfo]:
    """Every dotted key, tables included: `optim`, `optim.lr`, `mix.cutmix.prob`."""
    return dict(_keys(Recipe, ""))


def _keys(table: type[BaseModel], prefix: str) -> Iterator[tuple[str, FieldInfo]]:
    for name, field in table.model_fields.items():
        yield prefix + name, field
        inner = _table(field)
        if inner is not None:
            yield from _keys(inner, f"{prefix}{name}.")


@cache
def switches() -> frozenset[str]:
    """The keys of tables that `false` turns off."""
    return frozenset(k for k, field in keys().items() if _table(field) and _may_be_absent(field))


def _always_there() -> list[str]:
    return [name for name, field in Recipe.model_fields.items() if not _may_be_absent(field)]


def _table(field: FieldInfo) -> type[BaseModel] | None:
    """The model of a field that is a table, or a table or None."""
    for kind in get_args(field.annotation) or (field.annotation,):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def _may_be_absent(field: FieldInfo) -> bool:
    return types.NoneType in get_args(field.annotation)


def allowed_text(key: str) -> str:
    """What a key takes, in words: `a number (at least 0, below 1)`."""
    if _table(keys()[key]) is not None:
        return (
            "a table ({} for its defaults), or false for none" if key in switches() else "a table"
        )
    return schema_text(_schema(key))


def _schema(key: str) -> Values:
    return TypeAdapter(keys()[key].rebuild_annotation()).json_schema()


BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
    "multipleOf": "a multiple of",
}
TYPES = {"boolean": "true or false", "integer": "a whole number", "number": "a number"}


def schema_text(schema: Values) -> str:
    """A JSON schema in English."""
    if "anyOf" in schema:
        branches = [branch for branch in schema["anyOf"] if branch.get("type") != "null"]
        return " or ".join(map(schema_text, branches))
    choices = list(map(value_text, _choices(schema)))
    if choices:
        return " or ".join([", ".join(choices[:-1]), choices[-1]] if choices[1:] else choices)
    if "type" not in schema:
        return "a value"
    if schema["type"] == "array" and _differ(schema.get("prefixItems", ())):
        return "[" + ", ".join(map(schema_text, schema["prefixItems"])) + "]"
    if schema["type"] == "array":
        each = schema["items"] if "items" in schema else schema["prefixItems"][0]
        least = f" of at least {schema['minItems']}" if schema.get("minItems") else ""
        number = f" of {schema['maxItems']}" if "maxItems" in schema else least
        return f"a list{number}, each {schema_text(each)}"
    bounds = [
        f"{word} {_bound(schema[bound])}" for bound, word in BOUNDS.items() if bound in schema
    ]
    return TYPES.get(schema["type"], "text") + (f" ({', '.join(bounds)})" if bounds else "")


def _differ(schemas: Sequence[Values]) -> bool:
    return any(schema != schemas[0] for schema in schemas)


def _bound(number: float) -> str:
    """A bound as TOML would have it: 1_000_000, 0.5, 1e+30."""
    is_long = 10_000 <= number < 1e15 and number == int(number)
    return f"{int(number):_}" if is_long else str(number)


def _choices(schema: Values) -> list[str]:
    """The words that a JSON schema lists."""
    inner = [choice for branch in schema.get("anyOf", ()) for choice in _choices(branch)]
    return [schema["const"]] if "const" in schema else [*schema.get("enum", ()), *inner]


def _nearest_key(key: str) -> str | None:
    """A slip of the pen, else the same last name in another table, else the most alike."""
    same = [known for known in keys() if known.split(".")[-1] == key.split(".")[-1]]
    near = (
        get_close_matches(key, keys(), n=1, cutoff=0.8)
        or get_close_matches(key, same, n=1, cutoff=0)
        or get_close_matches(key, keys(), n=1)
    )
    return near[0] if near else None
