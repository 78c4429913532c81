"""Write the JSON schema of recipe files, with which editors complete and check them.

It is draft 2020-12. A file may be only a part of a recipe, so that no key is required. Constraints
between keys (`constraints.py`) are not in the schema: `recipes --check` applies them too.
"""

import json
from typing import Any

from distill.recipe.schema import Recipe

FILE = "recipes/recipe.schema.json"
DRAFT = "https://json-schema.org/draft/2020-12/schema"
NULL = {"type": "null"}
NAME = {"type": "string", "minLength": 1}
NAMES = {"anyOf": [NAME, {"type": "array", "items": NAME}]}
COMPOSITION: dict[str, Any] = {
    "base": {
        "description": "The recipe that this file changes: a name, or a path ending in .toml.",
        **NAMES,
    },
    "compose": {
        "description": "The recipes that this file changes, merged from left to right; "
        "instead of base.",
        **NAMES,
    },
}


def text() -> str:
    """Return the JSON schema of a recipe file as indented JSON text."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


def schema() -> dict[str, Any]:
    """Return the JSON schema of a recipe file."""
    generated = Recipe.model_json_schema()
    definitions = {name: _table(each) for name, each in generated.pop("$defs").items()}
    properties = COMPOSITION | _table(generated)["properties"]
    return {
        "$schema": DRAFT,
        "title": "Recipe of Understudy",
        "description": "A training, or a part of one to be composed with others; docs/recipes.md.",
        "type": "object",
        "additionalProperties": False,
        "not": {"required": ["base", "compose"]},
        "properties": properties,
        "$defs": definitions,
    }


def _table(generated: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a table without titles, and without the list of required keys."""
    properties = {key: _value(each) for key, each in generated.get("properties", {}).items()}
    left_out = {"title", "required"}
    table = {key: value for key, value in generated.items() if key not in left_out}
    if "description" in table:
        table["description"] = " ".join(table["description"].split())
    return table | ({"properties": properties} if properties else {})


def _value(generated: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a key as TOML has it, without null: `false` means an absent table.

    A key that is not a table has no value for "absent", and is left out instead.
    """
    value = {key: each for key, each in generated.items() if key != "title"}
    if "description" in value:
        value["description"] = " ".join(value["description"].split())
    if value.get("default", ...) is None or "$ref" in value:
        value.pop("default", None)
    if NULL not in value.get("anyOf", ()):
        return value
    kinds = [kind for kind in value.pop("anyOf") if kind != NULL]
    if any("$ref" in kind for kind in kinds):
        kinds.append({"const": False, "description": "Remove the table of an earlier file."})
    return value | (kinds[0] if len(kinds) == 1 else {"anyOf": kinds})
