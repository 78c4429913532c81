"""A network is loaded with the recipe that its run finished with."""

import json
import shutil
from pathlib import Path

import pytest

from distill.components.build_network import load_trained
from distill.errors import UserError
from distill.recipe import recipes
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


def test_paths_may_be_edited(distilled: tuple[RunFolder, object], tmp_path: Path) -> None:
    run = RunFolder(shutil.copytree(distilled[0].path, tmp_path / "run"))
    recipe = recipes.with_source(recipes.read(run.recipe), "moved/data")
    run.recipe.write_text(recipes.dumps(recipes.with_teacher(recipe, ["moved/teacher"])))
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
