"""The systems of the source reports: each is the network that its report counts."""

import json
from pathlib import Path

import pytest

from distill import recipe as recipes

ROOT = Path(__file__).parents[1]
KNOWN = json.loads((ROOT / "tests/students/architectures.json").read_text())["rows"]
SYSTEMS = {  # recipe: (source, name) in architectures.json
    "nyu2022_2111": ("001", "final"),
    "nyu2022_n3_b2_c85": ("003", "final"),
    "nyu2023_og_64": ("004", "og_64.resnet"),
    "nyu2023_og": ("004", "og.resnet"),
    "nyu2023_res_512": ("004", "res_512"),
    "nyu2023_res_512_d": ("004", "res_512_d"),
    "nyu2023_resblock": ("004", "ResBlock"),
}


def test_every_system_has_a_recipe_and_every_recipe_is_one() -> None:
    shipped = {path.stem for path in (ROOT / "recipes/reports").glob("*.toml")}
    assert shipped == set(SYSTEMS)
    print(f"{len(shipped)} systems")


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_recipe_is_the_network_that_its_report_counts(name: str) -> None:
    source, system = SYSTEMS[name]
    (row,) = (r for r in KNOWN if r["source"].startswith(source) and r["name"] == system)
    resolved = recipes.load(name)
    expected = row.get("parameters_of_described_network", row["parameters"])
    assert recipes.count(name)["parameters"] == expected
    said = f"{100 * row['reported_test_accuracy']:g} %"
    assert f"The report says {said} on test" in resolved.recipe.about.claim
    for key in ("activation", "block_dropout"):
        assert getattr(resolved.recipe.student, key) == row["spec"].get(
            key, {"activation": "relu", "block_dropout": 0.0}[key]
        )


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("epochs", [1, 3, 1000])
def test_it_runs_for_any_number_of_epochs(name: str, epochs: int) -> None:
    recipe = recipes.load(name, [f"train.epochs={epochs}"]).recipe
    assert recipe.train.epochs == epochs
    assert not recipes.is_taught(recipe) and list(recipe.loss.terms()) == ["hard"]


def test_the_one_over_budget_says_so() -> None:
    assert "5,000,266" in recipes.load("nyu2023_og_64").recipe.about.claim
    with pytest.raises(recipes.RecipeError, match="has 5,000,266 parameters, 267 too many"):
        recipes.load("nyu2023_og_64", ["student.max_params=5_000_000"])


@pytest.mark.parametrize("name", ["adadelta", "adam", "rmsprop", "momentum"])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "gelu", "tanh"])
def test_the_studies_of_2023_are_within_reach(name: str, activation: str) -> None:
    sets = [f"optim.name={name}", f"student.activation={activation}"]
    recipe = recipes.load("nyu2023_res_512_d", sets).recipe
    assert (recipe.optim.name, recipe.student.activation) == (name, activation)
