"""The commands that train a run again: they make the same recipe, and so the same weights."""

import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import cli
from distill.recipe import recipe_variants, recipes
from distill.recipe.recipe_fingerprint import recipe_fingerprint
from distill.runs import lock
from distill.runs.commands_to_repeat import training_commands, with_names, without_command
from distill.runs.run_folder import NotFinished, RunFolder, write_json, write_text
from tests.make_runs import train

RUN = RunFolder(Path("runs/x"))


def result(name: str, **changed: Any) -> dict[str, Any]:
    teacher = {"runs": changed.pop("runs", []), "fingerprint": ""}
    return {"recipe": name, "role": "student", "teacher": teacher, "processes": 1} | changed


def options(name: str, overrides: list[str], typed_as: str | None = None) -> list[str]:
    """The --recipe and --set options of a run that was made with these overrides."""
    recipe = recipes.load(name, overrides).recipe
    [words] = training_commands(RUN, recipe, result(typed_as or name))
    made = recipes.load(
        words[words.index("--recipe") + 1],
        [word for before, word in pairwise(words) if before == "--set"],
    )
    assert recipe_fingerprint(made.recipe) == recipe_fingerprint(recipe)
    assert words[:3] == ["python", "cli.py", "distill"] and words[-2:] == ["--out", "runs/x"]
    return words[3 : words.index("--data")]


@pytest.mark.parametrize(
    ("name", "overrides", "expected"),
    [
        ("tiny", [], []),
        ("tiny", ["optim.lr=0.25"], ["optim.lr=0.25"]),
        ("kd", ["loss.kd.temperature=2.0"], []),
        ("tiny", ["ema={}"], ["ema={}"]),
        ("kd_cutmix+ema", ["ema=false"], ["ema=false"]),
        ("kd", ["train.minutes=3.0"], ["train.minutes=3.0"]),
        ("kd", ["student.channels=[8,16,32]"], ["student.channels=[8, 16, 32]"]),
        ("kd", ["student.network=resnet20"], ['student.network="resnet20"']),
        ("kd", ["loss.at.weight=5.0"], ["loss.at.weight=5.0"]),
    ],
)
def test_only_needed_overrides_are_given(
    name: str, overrides: list[str], expected: list[str]
) -> None:
    sets = [word for override in expected for word in ("--set", override)]
    assert options(name, overrides) == ["--recipe", name, *sets]


@pytest.mark.parametrize(
    "path", [path for _, path, _ in recipes.shipped() if "ingr" not in str(path)]
)
def test_every_shipped_recipe_is_repeated(path: Path) -> None:
    recipe = recipes.load(path.stem, ["train.seed=7", "data.seed=7"]).recipe
    role = "teacher" if recipe.student is None else "student"
    [words] = training_commands(RUN, recipe, result(path.stem, role=role))
    assert sorted(words[5 : words.index("--data")]) == sorted(
        ["--set", "--set", "train.seed=7", "data.seed=7"]
    )


def test_control_is_repeated_by_its_recipe() -> None:
    control = recipe_variants.control_recipe(recipes.load("kd").recipe)
    [words] = training_commands(RUN, control, result("kd (control)"))
    assert words[3:5] == ["--recipe", "kd"]
    assert "loss.kd=false" in words and "loss.hard.weight=1.0" in words


def test_unknown_recipe_is_repeated_from_its_file() -> None:
    recipe = recipes.load("tiny", ["optim.lr=0.25"]).recipe
    [words] = training_commands(RUN, recipe, result("gone"))
    assert words[3:5] == ["--recipe", "runs/x/recipe.toml"] and "--set" not in words


def test_own_network_is_named_by_set(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text("def small(classes: int): ...\n")
    network = f"{tmp_path}/nets.py:small"
    recipe = recipes.load("kd", [f"student.network={network}"]).recipe
    student = recipe.student.model_copy(update={"code": "a" * 64})  # type: ignore[union-attr]
    recipe = recipe.model_copy(update={"student": student})
    [words] = training_commands(RUN, recipe, result("kd"))
    assert f'student.network="{network}"' in words and "a" * 64 not in " ".join(words)


def test_several_processes_are_launched() -> None:
    recipe = recipes.load("tiny").recipe
    [words] = training_commands(RUN, recipe, result("tiny", processes=2))
    assert words[:5] == ["accelerate", "launch", "--num_processes", "2", "cli.py"]


def test_missing_teacher_has_no_command() -> None:
    recipe = recipes.load("tiny", ["teacher.runs=['runs/gone']"]).recipe
    known = result("tiny", runs=["runs/gone"])
    commands = training_commands(RUN, recipe, known)
    assert len(commands) == 1 and "runs/gone" in commands[0]
    assert without_command(commands, known) == ["runs/gone"]


def test_only_paths_are_renamed() -> None:
    words = ["python", "cli.py", "distill", "--set", "a", "--teacher", "a", "--out", "b"]
    assert with_names([words], {"a": "TEACHER", "b": "STUDENT"}) == [
        ["python", "cli.py", "distill", "--set", "a", "--teacher", "TEACHER", "--out", "STUDENT"]
    ]


@pytest.mark.long
def test_typed_commands_repeat_teacher_and_student(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sets = ("train.epochs=1", "data.train_images=320")
    train(Path("runs/t"), *sets, "loss.kd=false", "loss.hard.weight=1", role="teacher")
    student, _ = train(
        Path("runs/s"), *sets, "teacher.runs=['runs/t']", "loss.kd.temperature=3", "train.seed=5"
    )
    before = student.result()
    commands = before["commands"]
    assert [words[2] for words in commands] == ["train-teacher", "distill"]
    assert commands == training_commands(student, recipes.read(student.recipe), before)
    assert without_command(commands, before) == []
    shutil.rmtree("runs")
    for words in commands:
        done = CliRunner().invoke(cli.app, words[2:])
        assert done.exit_code == 0, done.output
    after = student.result()
    for key in ("recipe_fingerprint", "weights", "commands"):
        assert after[key] == before[key]
    assert after["teacher"] == before["teacher"]


# Unfinished runs


def unfinished(path: Path, *typed: str, has_checkpoint: bool = True) -> RunFolder:
    """Write the files of a run of `tiny` that was cut off; `typed`: its command after python."""
    folder = RunFolder(path)
    recipe = recipes.load("tiny", ["optim.lr=0.25", 'teacher.runs=["runs/my teacher"]']).recipe
    write_text(folder.recipe, recipes.of_run(recipe))
    if has_checkpoint:
        write_json(folder.last / "progress.json", {"role": "student"})
    if typed:
        known = {"command": list(typed), "packages": {}, "source": "0" * 64}
        write_json(folder.environment, known)
    return folder


def refusal(folder: RunFolder) -> list[str]:
    with pytest.raises(NotFinished) as caught:
        folder.result()
    return str(cli.with_advice(caught.value)).splitlines()


def test_unfinished_run_names_both_commands(tmp_path: Path) -> None:
    folder = unfinished(tmp_path / "a b")
    assert refusal(folder) == [
        f"run {folder.path} is not finished: it has no result.json.",
        f"Continue it: python cli.py distill --recipe '{folder.recipe}' "
        f"--teacher 'runs/my teacher' --data synthetic --out '{folder.path}' --resume",
        f"Or end it with its best weights so far: python cli.py finish '{folder.path}'",
    ]


def test_run_without_checkpoint_can_only_be_continued(tmp_path: Path) -> None:
    folder = unfinished(tmp_path / "run", has_checkpoint=False)
    assert refusal(folder)[1:] == [
        "To continue, type the command that began it again, with --out RUN --resume."
    ]


@pytest.mark.parametrize(("verb", "n_lines"), [("seeds", 3), ("study", 3), ("sweep", 2)])
def test_run_of_several_continues_with_their_command(
    tmp_path: Path, verb: str, n_lines: int
) -> None:
    lines = refusal(unfinished(tmp_path / "run", "cli.py", verb, "--out", "x y"))
    assert lines[1] == f"Continue it: python cli.py {verb} --out 'x y'" and len(lines) == n_lines


def test_run_in_training_is_to_be_waited_for(tmp_path: Path) -> None:
    folder = unfinished(tmp_path / "run")
    with lock.lock_run_folder(folder.path):
        assert refusal(folder)[1].startswith("It is being trained by process ")
