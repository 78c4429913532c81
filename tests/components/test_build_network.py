"""A network is loaded with the recipe that its run finished with."""

import json
import shutil
from pathlib import Path

import pytest

from distill.components import build_network
from distill.components.build_network import check_weights_file, load_trained, network_name
from distill.errors import UserError
from distill.recipe import recipe_variants, recipes, schema
from distill.runs.run_folder import RunFolder


@pytest.fixture
def copied(teacher: Path, tmp_path: Path) -> RunFolder:
    return RunFolder(shutil.copytree(teacher, tmp_path / "run"))


@pytest.mark.parametrize("old, new", [("holdout = 0.1", "holdout = 0.2"), ("lr = ", "lr = 1")])
def test_edited_recipe_is_refused(copied: RunFolder, old: str, new: str) -> None:
    text = copied.recipe.read_text()
    assert old in text
    copied.recipe.write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match=r"recipe.toml is not the recipe that its run finished"):
        load_trained(copied)


def test_edited_activation_is_refused(distilled: tuple[RunFolder, object], tmp_path: Path) -> None:
    """The weights fit the other network too, which predicts something else."""
    run = RunFolder(shutil.copytree(distilled[0].path, tmp_path / "run"))
    text = run.recipe.read_text()
    assert 'activation = "relu"' in text
    run.recipe.write_text(text.replace('activation = "relu"', 'activation = "tanh"'))
    with pytest.raises(UserError, match="Restore the file, or train the run again"):
        load_trained(run)


@pytest.mark.long
@pytest.mark.parametrize("network", ["wrn-16-32", "timm/vit_large_patch16_224"])
def test_network_larger_than_its_weights_is_refused(copied: RunFolder, network: str) -> None:
    recipe = recipes.read(copied.recipe)
    assert recipe.teacher is not None
    teacher = schema.Teacher(network=network, runs=recipe.teacher.runs)
    giant = recipe.model_copy(update={"teacher": teacher})
    with pytest.raises(UserError) as caught:
        check_weights_file(giant, "teacher", 10, copied.weights("teacher"))
    assert "teacher.safetensors is not the file that its run wrote: it has " in str(caught.value)
    assert f" parameters of {network_name(giant, 'teacher', 10)} need " in str(caught.value)
    assert "\nRestore it, or train it again in another --out." in str(caught.value)


def test_loading_compares_size_before_building(
    copied: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = copied.weights("teacher")
    weights.write_bytes(weights.read_bytes()[:500])
    monkeypatch.setattr(build_network, "build_network", lambda *_: pytest.fail("was built"))
    with pytest.raises(UserError, match=r"it has 0.5 kB, and the [\d,]+ parameters of .* need"):
        load_trained(copied)
    weights.unlink()
    with pytest.raises(UserError, match="cannot be read as weights: .*No such file"):
        load_trained(copied)


def test_recorded_parameters_are_those_of_the_network(
    copied: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = json.loads(copied.result_file.read_text())
    found = result["parameters"]
    copied.result_file.write_text(json.dumps(result | {"parameters": 1234}))
    nothing = lambda _: None  # noqa: E731
    monkeypatch.setattr(build_network.check_runs_match, "check_recipe_of_result", nothing)
    match = f"contradicts the network: it has 1,234 parameters instead of {found:,}."
    with pytest.raises(UserError, match=match):
        load_trained(copied)


def test_paths_may_be_edited(distilled: tuple[RunFolder, object], tmp_path: Path) -> None:
    run = RunFolder(shutil.copytree(distilled[0].path, tmp_path / "run"))
    recipe = recipe_variants.with_source(recipes.read(run.recipe), "moved/data")
    run.recipe.write_text(recipes.dumps(recipe_variants.with_teacher(recipe, ["moved/teacher"])))
    load_trained(run)


def test_lab_note_may_be_edited(copied: RunFolder) -> None:
    recipe = recipes.read(copied.recipe)
    about = recipe.about.model_copy(update={"claim": "mine"})
    copied.recipe.write_text(recipes.dumps(recipe.model_copy(update={"about": about})))
    load_trained(copied)


def test_earlier_result_without_fingerprint_is_loaded(copied: RunFolder) -> None:
    result = json.loads(copied.result_file.read_text())
    del result["recipe_fingerprint"]
    copied.result_file.write_text(json.dumps(result))
    load_trained(copied)
