"""A search for a teacher names every finished one that it cannot use, and why."""

import shutil
from pathlib import Path

import pytest

from distill.components.data_pipeline import split_images
from distill.errors import UserError
from distill.recipe import recipes
from distill.teacher import selection
from tests.make_runs import drawn

OLD_RUNS = Path(__file__).parents[1] / "cli" / "old_runs"


def search(place: Path) -> None:
    recipe = recipes.load("tiny").recipe
    images = drawn()
    selection.resolve_teachers(recipe, images, split_images(recipe, images), None, [place], "tiny")


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("holdout = 0.1", "holdout = 0.2", "recipe that its run finished with|held out"),
        ("[data]", "[data", "recipe.toml"),
    ],
)
def test_unusable_teachers_are_named(tmp_path: Path, old: str, new: str, reason: str) -> None:
    shutil.copytree(OLD_RUNS / "teacher", tmp_path / "teacher")
    shutil.copytree(OLD_RUNS / "student", tmp_path / "student")
    path = tmp_path / "teacher" / "recipe.toml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UserError) as caught:
        search(tmp_path)
    first, passed, *advice = str(caught.value).splitlines()
    assert first.startswith("the recipe needs a teacher; none was named")
    assert passed.startswith(f"{tmp_path / 'teacher'} is passed over: ")
    assert any(part in passed for part in reason.split("|"))
    assert advice[0].startswith("Train one: ") and len(advice) == 2
