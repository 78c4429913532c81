"""`recipes`: the list, one recipe and the schema as JSON."""

import json

import pytest

from distill.recipe import recipe_json_schema, recipes
from tests.cli.command_line import RunCli


def test_a_recipe_is_printed_as_json(run_cli: RunCli) -> None:
    result = run_cli("recipes", "kd+ema", "--set", "optim.lr=0.3", "--json")
    resolved = recipes.load("kd+ema", ["optim.lr=0.3"]).recipe
    assert json.loads(result.out) == resolved.model_dump(mode="json", exclude_none=True)
    assert json.loads(result.out)["optim"]["lr"] == 0.3
    assert result.code == 0 and result.err == ""


@pytest.mark.long
def test_notes_do_not_disturb_json(run_cli: RunCli) -> None:
    result = run_cli("recipes", "kd", "--set", "mix.cutmix=false", "--json")
    assert json.loads(result.out)["loss"]["kd"]["temperature"] == 2.0
    assert "note: --set mix.cutmix=false removes nothing" in result.err


def test_the_list_is_printed_as_json(run_cli: RunCli) -> None:
    rows = json.loads(run_cli("recipes", "--json").out)
    assert [row["name"] for row in rows] == [name for name, _, _ in recipes.shipped()]
    assert rows[0].keys() == {"name", "path", "about"} and rows[0]["about"]["claim"]


def test_the_schema_is_printed(run_cli: RunCli) -> None:
    assert run_cli("recipes", "--schema").out == recipe_json_schema.text()


def test_contradictory_options_are_refused(run_cli: RunCli) -> None:
    result = run_cli("recipes", "kd", "--schema")
    assert result.code == 2
    assert result.err == (
        "a recipe to print, --check, --diff and --schema exclude each other; give one of them\n"
    )
    result = run_cli("recipes", "--check", "kd", "--json")
    assert result.code == 2
    assert result.err == "--json prints the list or one recipe: type recipes NAME --json\n"


def test_an_ingredient_is_printed(run_cli: RunCli) -> None:
    result = run_cli("recipes", "cutmix", "--set", "mix.cutmix.prob=0.3")
    assert result.code == 0
    assert "[mix.cutmix]" in result.out and "[optim]" not in result.out
    assert "prob = 0.3" in result.out and "# --set" in result.out
    assert result.err == (
        "note: cutmix is an ingredient, to be composed with a recipe: kd+cutmix\n"
    )
    result = run_cli("recipes", "cutmix", "--json")
    assert result.code == 0 and json.loads(result.out).keys() == {"about", "mix"}
    assert run_cli("recipes", "cutmix", "--set", "mix.cutmix.prob=3").code == 2
