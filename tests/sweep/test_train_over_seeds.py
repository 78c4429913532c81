"""Several seeds of a recipe, and its control: what is planned, and what they say together."""

import json
from pathlib import Path

import numpy as np
import pytest

from distill.errors import UserError
from distill.files.run_json_schemas import fingerprint_of_names
from distill.recipe import compare_recipes, recipe_variants, recipes
from distill.recipe.recipe_fingerprint import recipe_fingerprint
from distill.runs.run_folder import file_sha256, write_json
from distill.sweep import train_over_seeds
from distill.sweep.train_over_seeds import SeedRun


def test_each_seed_has_its_control_of_same_seed(tmp_path: Path) -> None:
    planned = train_over_seeds.plan(recipes.load("kd"), [0, 1], tmp_path, controls=True)
    assert [(each.seed, each.folder.path.name) for each in planned] == [
        (0, "seed-0"), (0, "control-0"), (1, "seed-1"), (1, "control-1"),
    ]  # fmt: skip
    for each in planned:
        assert each.resolved.recipe.train.seed == each.resolved.recipe.data.seed == each.seed
        assert set(each.resolved.recipe.loss.terms()) == (
            {"hard"} if each.is_control else {"hard", "kd"}
        )
    ran, control = planned[2].resolved.recipe, planned[3].resolved.recipe
    assert (planned[2].resolved.name, planned[3].resolved.name) == ("kd", "kd (control)")
    changed = {line.split(":")[0] for line in compare_recipes.differences(ran, control)}
    assert all(key.startswith(("loss.", "teacher")) for key in changed)


def test_who_has_no_teacher_has_no_control(tmp_path: Path) -> None:
    alone = recipes.load("student_alone")
    assert len(train_over_seeds.plan(alone, [0, 1, 2], tmp_path, controls=True)) == 3
    assert len(train_over_seeds.plan(recipes.load("kd"), [0, 1], tmp_path, controls=False)) == 2


def test_one_seed_is_no_study(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="one seed has no standard deviation; type at least --n 2"):
        train_over_seeds.plan(recipes.load("kd"), [0], tmp_path, controls=True)


def finished(
    planned: list[SeedRun], top1: list[float], data: str = "d", **tested: str
) -> list[SeedRun]:
    """Their results, without the runs."""
    for each, value in zip(planned, top1, strict=True):
        each.folder.path.mkdir(parents=True, exist_ok=True)
        teacher = "" if each.is_control else "t"
        result = {
            "role": "student", "network": "ResNet", "parameters": 7,
            "metrics": {"top1/test": value},
            "data": {"fingerprint": data, "source": "d"} | tested,
            "teacher": {"fingerprint": teacher},
        }  # fmt: skip
        each.folder.result_file.write_text(json.dumps(result))
    return planned


def test_they_are_compared_pair_by_pair(tmp_path: Path) -> None:
    planned = train_over_seeds.plan(recipes.load("kd"), [0, 1, 2], tmp_path, controls=True)
    figures = train_over_seeds.summary(finished(planned, [0.72, 0.70, 0.74, 0.70, 0.77, 0.70]))
    assert figures["top1"]["mean"] == pytest.approx(0.7433333)
    assert figures["control"]["std"] == pytest.approx(0, abs=1e-12)
    assert figures["difference"]["mean"] == pytest.approx(0.0433333)
    assert figures["difference"]["std"] == pytest.approx(0.0251661)
    t = 0.0433333 / (0.0251661 / 3**0.5)
    assert figures["p"] == pytest.approx(1 - t / (t * t + 2) ** 0.5, rel=1e-4)
    assert [row["seed"] for row in figures["runs"]] == [0, 0, 1, 1, 2, 2]


def test_runs_on_other_images_are_not_averaged(tmp_path: Path) -> None:
    planned = train_over_seeds.plan(recipes.load("kd"), [0, 1], tmp_path, controls=False)
    finished(planned[:1], [0.7])
    finished(planned[1:], [0.7], data="other")
    with pytest.raises(UserError, match="differ in their data: they cannot be summarised together"):
        train_over_seeds.summary(planned)


def test_copy_of_seed_is_not_averaged(tmp_path: Path) -> None:
    planned = train_over_seeds.plan(recipes.load("kd"), [0, 1], tmp_path, controls=False)
    for each, weights in zip(finished(planned, [0.7, 0.7]), ("ab", "cd"), strict=True):
        write_json(each.folder.result_file, each.folder.result() | {"weights": weights})
    assert train_over_seeds.summary(planned)["top1"]["n"] == 2
    last = planned[-1].folder
    write_json(last.result_file, last.result() | {"weights": "ab"})
    with pytest.raises(UserError, match="^seed-0 and seed-1 in .* have the same weights: one is"):
        train_over_seeds.summary(planned)


def test_seed_that_contradicts_predictions_is_refused(tmp_path: Path) -> None:
    planned = train_over_seeds.plan(recipes.load("kd"), [0, 1], tmp_path, controls=False)
    first, _ = finished(planned, [0.4, 0.7])
    logits, labels = np.eye(4, dtype=np.float32), np.array([0, 1, 2, 0])  # 3 of 4 are right
    np.savez(first.folder.evaluation, logits=logits, labels=labels)
    result = {k: v for k, v in first.folder.result().items() if k != "class_names"}
    result["evaluation"] = file_sha256(first.folder.evaluation)
    result["data"] |= {"class_names_fingerprint": fingerprint_of_names(list("abcd"))}
    write_json(first.folder.result_file, result | {"class_names": list("abcd")})
    with pytest.raises(UserError, match=r"top1/test = 40.00 %, but the predictions .* 75.00 %"):
        train_over_seeds.summary(planned)


def test_run_with_edited_recipe_is_no_seed(tmp_path: Path) -> None:
    planned = train_over_seeds.plan(recipes.load("kd"), [0, 1], tmp_path, controls=False)
    first, second = finished(planned, [0.7, 0.7])
    second.folder.recipe.write_text(recipes.dumps(second.resolved.recipe))
    trained = {"recipe_fingerprint": recipe_fingerprint(second.resolved.recipe)}
    write_json(second.folder.result_file, second.folder.result() | trained)
    first.folder.result_file.unlink()
    train_over_seeds.check(planned)
    trained = {"recipe_fingerprint": recipe_fingerprint(first.resolved.recipe)}
    write_json(second.folder.result_file, second.folder.result() | trained)
    with pytest.raises(UserError, match=r"recipe.toml is not the recipe that its run finished"):
        train_over_seeds.check(planned)


@pytest.mark.parametrize(
    ("key", "what"),
    [("test_fingerprint", "test split"), ("class_names_fingerprint", "class names")],
)
def test_runs_of_other_test_splits_are_not_averaged(tmp_path: Path, key: str, what: str) -> None:
    planned = train_over_seeds.plan(recipes.load("kd"), [0, 1], tmp_path, controls=False)
    finished(planned[:1], [0.7], **{key: "a"})
    finished(planned[1:], [0.7], **{key: "b"})
    with pytest.raises(
        UserError, match=f"differ in their {what}: they cannot be summarised together"
    ):
        train_over_seeds.summary(planned)


def test_runs_of_earlier_version_are_averaged_with_note(tmp_path: Path) -> None:
    planned = train_over_seeds.plan(recipes.load("kd"), [0, 1], tmp_path, controls=False)
    finished(planned[:1], [0.7], test_fingerprint="a")
    finished(planned[1:], [0.8])
    [note] = train_over_seeds.summary(planned)["notes"]
    assert "1 of 2 results was written by an earlier version" in note
    finished(planned[1:], [0.8], test_fingerprint="a")
    assert "notes" not in train_over_seeds.summary(planned)


def test_recipe_without_student_is_teacher_s(tmp_path: Path) -> None:
    for name, role in (("teacher_wrn", "teacher"), ("kd", "student")):
        planned = train_over_seeds.plan(recipes.load(name), [0, 1], tmp_path, controls=False)
        assert {each.role for each in planned} == {role}


def test_the_teacher_of_the_first_run_teaches_all(tmp_path: Path) -> None:
    first, control, second, _ = train_over_seeds.plan(
        recipes.load("kd"), [0, 1], tmp_path, controls=True
    )
    assert train_over_seeds.with_same_teacher(second, first) is second.resolved, (
        "no teacher was chosen yet"
    )
    first.folder.path.mkdir()
    begun = recipe_variants.with_teacher(first.resolved.recipe, ["runs/old"])
    first.folder.recipe.write_text(recipes.dumps(begun))
    distilled = train_over_seeds.with_same_teacher(second, first).recipe
    assert distilled.teacher is not None and distilled.teacher.runs == ("runs/old",)
    assert train_over_seeds.with_same_teacher(control, first) is control.resolved
    named = recipes.load("kd", ['teacher.runs=["runs/named"]'])
    random_teachers = train_over_seeds.plan(named, [0, 1], tmp_path, controls=False)[1]
    assert train_over_seeds.with_same_teacher(random_teachers, first) is random_teachers.resolved


def test_folder_of_another_recipe_is_refused_first(tmp_path: Path) -> None:
    planned = train_over_seeds.plan(recipes.load("kd"), [0, 1], tmp_path, controls=False)
    last = planned[-1].folder
    last.path.mkdir()
    last.recipe.write_text(recipes.dumps(recipes.load("kd", ["optim.lr=0.7"]).recipe))
    with pytest.raises(UserError, match="seed-1 cannot be resumed: the recipe is not the one"):
        train_over_seeds.check(planned)


@pytest.mark.parametrize("name", ["seed-0", "control-1"])
@pytest.mark.parametrize("is_run", [True, False])
def test_folder_of_a_seed_that_is_a_link(tmp_path: Path, name: str, is_run: bool) -> None:
    planned = train_over_seeds.plan(recipes.load("kd"), [0, 1], tmp_path / "seeds", controls=True)
    [linked] = [each for each in planned if each.folder.path.name == name]
    (tmp_path / "elsewhere").mkdir()
    if is_run:
        recipe = recipes.dumps(linked.resolved.recipe)
        (tmp_path / "elsewhere" / "recipe.toml").write_text(recipe)
    linked.folder.path.parent.mkdir()
    linked.folder.path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=rf"^{linked.folder.path} is a symbolic link: .*\nDelete "):
        train_over_seeds.check(planned)
