"""The JSON schema of recipes: accepts every shipped file, refuses what the program refuses."""

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from distill.recipe import recipe_json_schema
from distill.recipe.recipe_files import ROOT, shipped_paths
from distill.recipe.validation import check, keys, table_of

SHIPPED = [*shipped_paths(), ROOT / "recipes" / "import" / "teacher.toml"]


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    schema = json.loads(recipe_json_schema.text())
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipe_fits_the_schema(validator: Draft202012Validator, path: Path) -> None:
    validator.validate(tomllib.loads(path.read_text()))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_first_line_names_the_schema(path: Path) -> None:
    first, _, _ = path.read_text().partition("\n")
    keyword, _, reference = first.partition(" ")
    assert keyword == "#:schema"
    assert (path.parent / reference).resolve() == ROOT / recipe_json_schema.FILE


@pytest.mark.parametrize(
    "text",
    [
        "optim.lrr = 0.1",
        'optim.name = "sdg"',
        "optim.lr = 0",
        "data.holdout = 1",
        'train.epochs = "ten"',
        "train.epochs = 0",
        "train.batch_size = true",
        "train.resolution = [[0.0, 21]]",
        "train.resolution = []",
        "augment.erase.area = [0.1]",
        "augment.crop = true",
        "optim = false",
        "loss.kd = 1",
        "loss.kdd = {}",
        "loss.fsp.student_taps = ['stem']",
        "student.code = 'abc'",
        "student.args.x = { y = 1 }",
        "about.claims = ''",
    ],
)
def test_schema_refuses_what_the_program_refuses(
    validator: Draft202012Validator, text: str
) -> None:
    values = tomllib.loads(text)
    assert check(values, whole=False)[1] != []
    assert not validator.is_valid(values)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "base = 'kd'",
        "compose = ['kd', 'cutmix']",
        "loss = { kd = false, hard = {} }",
        "teacher = false",
        "optim = { lr = 1, schedule = 'cosine' }",
        "train = { compile = true }",
        "student = { blocks = [1, 0, 1], pool = 'global', args = { width = 3, names = ['a'] } }",
    ],
)
def test_parts_of_recipes_are_accepted(validator: Draft202012Validator, text: str) -> None:
    validator.validate(tomllib.loads(text))


def test_base_and_compose_exclude_each_other(validator: Draft202012Validator) -> None:
    assert not validator.is_valid({"base": "kd", "compose": ["ema"]})


def test_every_key_has_a_description() -> None:
    schema = recipe_json_schema.schema()
    described = {(name, key) for name, key, value in _properties(schema) if "description" in value}
    for key, field in keys().items():
        if table_of(field) is None:
            assert any(each == key.rpartition(".")[2] for _, each in described), key


def test_null_and_titles_are_left_out() -> None:
    schema = recipe_json_schema.schema()
    assert not any("title" in value for _, _, value in _properties(schema))
    text = json.dumps(schema)
    assert '"null"' not in text and '"default": null' not in text


def _properties(schema: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield (table, key, schema of the key) of every table."""
    for name, table in [("", schema), *schema["$defs"].items()]:
        for key, value in table.get("properties", {}).items():
            yield name, key, value
