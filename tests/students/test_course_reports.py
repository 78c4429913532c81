"""The systems of the source reports: each is the network that its report counts."""

import json
from pathlib import Path

import pytest

from distill.recipe import recipes
from distill.recipe.count_parameters import count_networks

ROOT = Path(__file__).parents[2]
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


def test_report_systems_and_recipes_correspond() -> None:
    shipped = {path.stem for path in (ROOT / "recipes/reports").glob("*.toml")}
    assert shipped == set(SYSTEMS)
    print(f"{len(shipped)} systems")


@pytest.mark.parametrize("name", SYSTEMS)
def test_recipe_has_the_reported_parameters(name: str) -> None:
    source, system = SYSTEMS[name]
    (row,) = (r for r in KNOWN if r["source"].startswith(source) and r["name"] == system)
    resolved = recipes.load(name)
    expected = row.get("parameters_of_described_network", row["parameters"])
    assert count_networks(name)["parameters"] == expected
    accuracy = f"{100 * row['reported_test_accuracy']:g} %"
    assert f"the report gives {accuracy} on test" in resolved.recipe.about.claim
    for key in ("activation", "block_dropout"):
        assert getattr(resolved.recipe.student, key) == row["spec"].get(
            key, {"activation": "relu", "block_dropout": 0.0}[key]
        )


def test_the_training_is_that_of_the_report() -> None:
    """Optimizer, peak, momentum, decay, schedule, batch, epochs, share held out."""
    trained = {}
    for name in SYSTEMS:
        recipe = recipes.load(name).recipe
        made, loop = recipe.optim, recipe.train
        trained[name] = (
            made.name, made.lr, made.momentum, made.weight_decay, made.schedule,
            loop.batch_size, loop.epochs, recipe.data.holdout,
        )  # fmt: skip
    of_2023 = ("momentum", 0.1, 0.0, 0.0, "cosine", 128, 200, 0.1)
    assert trained == {
        "nyu2022_2111": ("adam", 0.001, 0.9, 0.0, "constant", 128, 20, 0.2),
        "nyu2022_n3_b2_c85": ("adam", 0.001, 0.9, 0.0, "step", 64, 500, 0.0),
    } | {name: of_2023 for name in SYSTEMS if name.startswith("nyu2023")}
    stepped = recipes.load("nyu2022_n3_b2_c85").recipe.optim
    assert (stepped.step_epochs, stepped.gamma) == (10, 0.9)


def test_the_images_are_changed_as_in_the_report() -> None:
    changed = {
        name: recipes.load(name).recipe.augment.model_dump(exclude_defaults=True)
        for name in SYSTEMS
    }
    plain = {"crop": {}, "flip": {}}  # by their defaults: 4 pixels, one in two
    wide = {
        "affine": {"scale": (0.8, 1.2), "shear": 10.0},
        "rotate": {"degrees": 10.0},
        "jitter": {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2},
    }
    turned = {"rotate": {"degrees": 20.0}}
    assert changed == {
        "nyu2022_2111": plain,
        "nyu2022_n3_b2_c85": plain | wide,
    } | {name: plain | turned for name in SYSTEMS if name.startswith("nyu2023")}


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("epochs", [1, 3, 1000])
def test_it_runs_for_any_number_of_epochs(name: str, epochs: int) -> None:
    recipe = recipes.load(name, [f"train.epochs={epochs}"]).recipe
    assert recipe.train.epochs == epochs
    assert not recipes.has_teacher(recipe) and list(recipe.loss.terms()) == ["hard"]


def test_recipe_over_budget_is_refused() -> None:
    assert "5,000,266" in recipes.load("nyu2023_og_64").recipe.about.claim
    with pytest.raises(recipes.RecipeError, match="has 5,000,266 parameters, 267 too many"):
        recipes.load("nyu2023_og_64", ["student.max_params=5_000_000"])


@pytest.mark.parametrize("name", ["adadelta", "adam", "rmsprop", "momentum"])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "gelu", "tanh"])
def test_sweeps_of_the_2023_report_can_be_expressed(name: str, activation: str) -> None:
    sets = [f"optim.name={name}", f"student.activation={activation}"]
    recipe = recipes.load("nyu2023_res_512_d", sets).recipe
    assert (recipe.optim.name, recipe.student.activation) == (name, activation)
