"""Validate merged tables and report every error at once, in terms of what the user wrote.

`check` builds a `Recipe` from merged tables. It first checks each key by itself: pydantic finds the
faults, and this module writes the messages. Then it applies the rules between keys
(`constraints.py`) to the tables that are valid.
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

# What other programs call `base`.
NAMES_OF_TEMPERATURE = ("T", "t", "tau", "temp", "kd_T")  # in other programs
MEANT_BASE = ("extends", "extend", "inherit", "inherits", "from", "parent", "import", "include")
BASE_HINT = (
    '; to build on another recipe, write base = "kd", or compose = ["kd", "cutmix"] for several, '
    "at the top of the file"
)

Values = dict[str, Any]  # parsed TOML tables
LONGEST = 200  # most characters of a value in a message
BEGINNING = 60  # characters that are shown of a longer value
MOST_KEYS = 80  # with a fault in one message; finding the nearest key takes a millisecond for each


def check(
    values: Values, rules: Sequence[Rule] = RULES, *, whole: bool = True
) -> tuple[Recipe | None, list[Fault]]:
    """Return the recipe of merged tables, or None if a key is faulty, and every fault.

    `whole=False`: the tables are only a part of a recipe. Then a missing key is no fault, and the
    rules between keys are not applied.
    """
    values = {name: {} for name in _always_there()} | values
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        details = error.errors(include_url=False)
        listed = list(_key_faults(details[:MOST_KEYS], values))
        if without_base := [fault for fault in listed if fault.key in MEANT_BASE]:
            return None, without_base  # other faults may be of keys that the base sets
        faults = [fault for fault in listed if whole or fault.value is not None]
        if len(details) > MOST_KEYS:
            faults.append(Fault("the recipe", None, "has more faults, which are not listed"))
        return None, faults + (_rule_faults(rules, _valid_tables(values, details)) if whole else [])
    return recipe, _rule_faults(rules, dict(recipe)) if whole else []


def _valid_tables(values: Values, details: Sequence[ErrorDetails]) -> dict[str, BaseModel]:
    """Return the tables without an invalid key, by name; their unknown keys are removed."""
    values, broken = deepcopy(values), set()
    for detail in details:
        *path, last = detail["loc"]
        if detail["type"] == "extra_forbidden":
            del _value_at(values, path)[last]
        else:
            broken.add(path[0] if path else last)
    tables = {name: table_of(field) for name, field in Recipe.model_fields.items()}
    return {
        name: table.model_validate(values[name])
        for name, table in tables.items()
        if table is not None and name in values and name not in broken
    }


def _rule_faults(rules: Sequence[Rule], tables: Mapping[str, Any]) -> list[Fault]:
    faults: list[Fault] = []
    for rule in rules:
        arguments = [tables.get(name) for name in inspect.signature(rule).parameters]
        if None not in arguments:
            faults += rule(*arguments)
    return faults


def _key_faults(details: Sequence[ErrorDetails], values: Values) -> Iterator[Fault]:
    """Yield one fault per faulty key.

    Pydantic may report several errors for one key: one for each type in a union such as
    `int | tuple`, and one for each element of a list.
    """
    kinds: dict[str, set[str]] = {}
    for detail in details:
        if detail["type"] == "extra_forbidden":
            key = ".".join(map(str, detail["loc"]))
            hint = BASE_HINT if key in MEANT_BASE else did_you_mean(_nearest_key(key))
            yield Fault(key, detail["input"], f"is not a key{hint}")
        else:
            key, location = _known_key(detail["loc"]), ".".join(map(str, detail["loc"]))
            # What is missing below a key is an element of its list.
            is_element = detail["type"] == "missing" and location != key
            kinds.setdefault(key, set()).add("too_short" if is_element else detail["type"])
    for key, types_of_key in kinds.items():
        if "missing" in types_of_key:
            yield Fault(key, None, f"is missing; allowed: {allowed_text(key)}")
        else:
            value = _value_at(values, key.split("."))
            yield Fault(key, value, _value_problem(key, value, types_of_key))


def _value_at(values: Any, path: Sequence[int | str]) -> Any:
    return reduce(getitem, path, values)


def _known_key(location: Sequence[int | str]) -> str:
    """Return the dotted key at the location of a pydantic error.

    The location may continue below the key, with a type in a union or an index in a list.
    """
    parts = list(map(str, location))
    while ".".join(parts) not in keys():
        parts.pop()
    return ".".join(parts)


def _value_problem(key: str, value: object, kinds: set[str]) -> str:
    # For a choice of strings pydantic reports a value of another type as a wrong literal.
    if all(
        k.endswith("_type") or (not isinstance(value, str) and k == "literal_error") for k in kinds
    ):
        return f"is {_kind(value)}; allowed: {allowed_text(key)}"
    if isinstance(value, str):
        near = get_close_matches(value, _choices(_schema(key)), n=1)
        return f"is unknown; allowed: {allowed_text(key)}{did_you_mean(*map(value_text, near))}"
    return f"is out of range; allowed: {allowed_text(key)}"


def value_text(value: object) -> str:
    """Return a value as TOML on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name} = {value_text(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(value_text, value))}]"
    if isinstance(value, str | bool):
        return json.dumps(value, ensure_ascii=False)
    return str(value)  # numbers and dates


def shorten(text: str) -> str:
    """Return `text` unchanged, or its beginning and its length if it is too long."""
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
    """Return every dotted key, tables included: `optim`, `optim.lr`, `mix.cutmix.prob`."""
    return dict(_keys(Recipe, ""))


def _keys(table: type[BaseModel], prefix: str) -> Iterator[tuple[str, FieldInfo]]:
    for name, field in table.model_fields.items():
        yield prefix + name, field
        inner = table_of(field)
        if inner is not None:
            yield from _keys(inner, f"{prefix}{name}.")


@cache
def switches() -> frozenset[str]:
    """Return the dotted keys of optional tables, which `KEY = false` removes."""
    return frozenset(k for k, field in keys().items() if table_of(field) and _may_be_absent(field))


def _always_there() -> list[str]:
    return [name for name, field in Recipe.model_fields.items() if not _may_be_absent(field)]


def table_of(field: FieldInfo) -> type[BaseModel] | None:
    """Return the model of a field that is a table, optional or not; otherwise None."""
    for kind in get_args(field.annotation) or (field.annotation,):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def _may_be_absent(field: FieldInfo) -> bool:
    return types.NoneType in get_args(field.annotation)


def allowed_text(key: str) -> str:
    """Describe the allowed values of a key: `a number (at least 0, below 1)`."""
    if table_of(keys()[key]) is not None:
        return (
            "a table ({} for its defaults), or false for none" if key in switches() else "a table"
        )
    return allowed_values_text(_schema(key))


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


def allowed_values_text(schema: Values) -> str:
    """Describe a JSON schema in English."""
    if "anyOf" in schema:
        branches = [branch for branch in schema["anyOf"] if branch.get("type") != "null"]
        return " or ".join(map(allowed_values_text, branches))
    choices = list(map(value_text, _choices(schema)))
    if choices:
        return " or ".join([", ".join(choices[:-1]), choices[-1]] if choices[1:] else choices)
    if "type" not in schema:
        return "a value"
    if schema["type"] == "array" and _differ(schema.get("prefixItems", ())):
        return "[" + ", ".join(map(allowed_values_text, schema["prefixItems"])) + "]"
    if schema["type"] == "array":
        element = schema["items"] if "items" in schema else schema["prefixItems"][0]
        return f"a list{_number_of_items(schema)}, each {allowed_values_text(element)}"
    bounds = [
        f"{text} {_bound(schema[bound])}" for bound, text in BOUNDS.items() if bound in schema
    ]
    return TYPES.get(schema["type"], "text") + (f" ({', '.join(bounds)})" if bounds else "")


def _number_of_items(schema: Values) -> str:
    """Describe how many elements a list may have: ` of 2`, ` of at least 1`, or empty for any."""
    least, most = schema.get("minItems", 0), schema.get("maxItems")
    if most is not None:
        return f" of {most}" if least == most else f" of at most {most}"
    return f" of at least {least}" if least else ""


def _differ(schemas: Sequence[Values]) -> bool:
    return any(schema != schemas[0] for schema in schemas)


def _bound(number: float) -> str:
    """Return a bound as in TOML: 1_000_000, 0.5, 1e+30."""
    is_long = 10_000 <= number < 1e15 and number == int(number)
    return f"{int(number):_}" if is_long else str(number)


def _choices(schema: Values) -> list[str]:
    """Return the strings that a JSON schema lists."""
    inner = [choice for branch in schema.get("anyOf", ()) for choice in _choices(branch)]
    return [schema["const"]] if "const" in schema else [*schema.get("enum", ()), *inner]


def _nearest_key(key: str) -> str | None:
    """Return the key most similar to a mistyped one, or None.

    For a key of a loss term, only keys of the same term: those of others mean something else. For
    others, a very similar key comes first, then a key of the same name in another table, then any
    similar key.
    """
    table, _, name = key.rpartition(".")
    if table.startswith("loss.") and table in keys():
        names = [each.rpartition(".")[2] for each in keys() if each.rpartition(".")[0] == table]
        meant = "temperature" if name in NAMES_OF_TEMPERATURE else name
        return next((f"{table}.{each}" for each in get_close_matches(meant, names, n=1)), None)
    same_name = [other for other in keys() if other.split(".")[-1] == key.split(".")[-1]]
    near = (
        get_close_matches(key, keys(), n=1, cutoff=0.8)
        or get_close_matches(key, same_name, n=1, cutoff=0)
        or get_close_matches(key, keys(), n=1)
    )
    return near[0] if near else None


def leaves(tables: Values, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and value of every key in nested tables: `("optim.lr", 0.1)`."""
    for name, value in tables.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        elif value is not None:
            yield prefix + name, value
