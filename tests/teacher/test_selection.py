"""A search for a teacher names every finished one that it cannot use, and why."""

import shutil
from pathlib import Path

import pytest

from distill.components.data_pipeline import split_images
from distill.errors import UserError
from distill.recipe import recipes
from distill.runs.run_folder import RunFolder
from distill.teacher import selection
from networks import user_code
from tests.make_runs import drawn, train

OLD_RUNS = Path(__file__).parents[1] / "cli" / "old_runs"


def search(place: Path) -> None:
    recipe = recipes.load("tiny").recipe
    images = drawn()
    selection.resolve_teachers(recipe, images, split_images(recipe, images), None, [place], "tiny")


@pytest.mark.long
def test_other_holdout_of_a_candidate_is_named(tmp_path: Path) -> None:
    path = tmp_path / "teacher"
    train(path, "loss.kd=false", "loss.hard.weight=1.0", "data.holdout=0.04", role="teacher")
    recipe = recipes.load("tiny", ["data.holdout=0.2"]).recipe
    images = drawn()
    with pytest.raises(UserError) as caught:
        selection.resolve_teachers(
            recipe, images, split_images(recipe, images), None, [tmp_path], "tiny"
        )
    assert f"\n{path} was skipped: it was trained on " in str(caught.value)
    assert "epoch on: it held out " in str(caught.value)
    assert "\nType --set data.holdout=0.04, the teacher's own" in str(caught.value)


def test_missing_teacher_may_have_moved_only_if_resumed(tmp_path: Path) -> None:
    recipe = recipes.load("tiny", [f"teacher.runs=['{tmp_path / 'gone'}']"]).recipe
    images = drawn()
    split = split_images(recipe, images)
    for is_resumed in (False, True):
        with pytest.raises(UserError, match="gone is not a run: there is no such folder") as caught:
            selection.load_teacher(recipe, images, split, is_resumed)
        assert ("If its folder was moved" in str(caught.value)) is is_resumed


def test_teacher_whose_code_may_not_run_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(run: RunFolder) -> None:
        user_code.build("nets.py:small", {}, normalize=True, classes=2, image_size=32, sha256=None)

    monkeypatch.setattr(selection, "load_trained_and_sha256", refuse)
    with pytest.raises(UserError) as caught:
        selection._load(RunFolder(Path("runs/mine")))
    message = str(caught.value)
    assert message.startswith("teacher runs/mine: the network is defined by the code of nets.py")
    assert message.endswith("\nOr name another teacher with --teacher OTHER.")


def test_unfinished_teacher_is_passed_over(tmp_path: Path) -> None:
    shutil.copytree(OLD_RUNS / "unfinished", tmp_path / "unfinished")
    progress = tmp_path / "unfinished" / "last" / "progress.json"
    progress.write_text(progress.read_text().replace('"student"', '"teacher"'))
    with pytest.raises(UserError, match=r"unfinished was skipped: it is not finished; finish"):
        search(tmp_path)


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
    assert passed.startswith(f"{tmp_path / 'teacher'} was skipped: ")
    assert any(part in passed for part in reason.split("|"))
    assert advice[0].startswith("Train one: ") and len(advice) == 2
