"""What a card states of runs beside its own: its teacher, and other seeds."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from distill.events import MEASURES
from distill.export import model_card, project1
from distill.recipe import recipes
from distill.runs.run_folder import RunFolder, write_json
from tests.runs.test_teacher_student_summary import ALONE, TAUGHT, finished


@pytest.fixture
def teacher(tmp_path: Path) -> RunFolder:
    return finished(tmp_path / "teachers" / "t", *ALONE, role="teacher", network="WRN-28-10")


def spread(run: RunFolder) -> str:
    top1 = run.result()["metrics"]["top1/test"]
    return model_card._spread(SimpleNamespace(folder=run, top1=top1))  # type: ignore[arg-type]


def test_teacher_is_described_by_its_run(tmp_path: Path, teacher: RunFolder) -> None:
    run = finished(tmp_path / "student", *TAUGHT, teachers=[teacher.path])
    described = model_card._teacher(run.result())
    assert described.startswith("a WRN-28-10 of 4,697,162 parameters with 90.00 % accuracy on the")
    note = "(not verified: evaluation.npz is missing or damaged)"
    assert described.endswith(f"test images {note} (weights `7eac`)")


def test_accuracy_without_predictions_is_not_verified(tmp_path: Path) -> None:
    run = finished(tmp_path / "s", *ALONE, metrics={f"{m}/test": 0.9 for m in MEASURES})
    known: Any = SimpleNamespace(folder=run, top1=0.9, n_test=None, interval=None)
    known.result = run.result()
    note = "(not verified: evaluation.npz is missing or damaged)"
    assert f"| accuracy | 90.00 % {note} |" in model_card._results(known)
    assert project1._tested(known) == f"the test images {note}"
    known.interval, known.n_test = (0.8, 0.95), 100
    assert "verified" not in model_card._results(known) + project1._tested(known)


def test_another_run_is_not_described_as_teacher(tmp_path: Path, teacher: RunFolder) -> None:
    run = finished(tmp_path / "student", *TAUGHT, teachers=[teacher.path])
    write_json(teacher.result_file, teacher.result() | {"weights": "0ff5"})
    assert model_card._teacher(run.result()) == (
        "a teacher whose run recorded 95.00 % accuracy on up to 1,024 held-out images "
        "(weights `7eac`; the folder of its run contains another run now)"
    )


@pytest.mark.parametrize("name", ["missing", "x" * 300])
def test_teacher_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    run = finished(tmp_path / "student", *TAUGHT, teachers=[tmp_path / name])
    assert model_card._teacher(run.result()) == (
        "a teacher whose run recorded 95.00 % accuracy on up to 1,024 held-out images "
        "(weights `7eac`)"
    )


def test_spread_is_over_other_seeds(tmp_path: Path) -> None:
    run = finished(tmp_path / "s0", *ALONE)
    assert spread(run).startswith("This is one run. ")
    finished(tmp_path / "s1", *ALONE, "train.seed=1", metrics={"top1/test": 0.8})
    finished(tmp_path / "of another role", *ALONE, "train.seed=2", role="teacher")
    assert spread(run).startswith("This is one run of 2 that differ in their seeds alone: 85.00 %")


def test_copy_of_run_is_no_other_seed(tmp_path: Path) -> None:
    run = finished(tmp_path / "s", *ALONE)
    shutil.copytree(run.path, tmp_path / "s.bak")
    finished(tmp_path / "repeated", *ALONE)
    copied = finished(tmp_path / "edited", *ALONE, "train.seed=1", weights=run.path.name)
    assert spread(run).startswith("This is one run. ")
    write_json(copied.result_file, copied.result() | {"weights": "0", "recipe_fingerprint": "0"})
    assert spread(run).startswith("This is one run. ")


def test_commands_have_no_path_of_the_machine(tmp_path: Path, teacher: RunFolder) -> None:
    run = finished(
        tmp_path / "student", *TAUGHT, f"data.source={tmp_path}", teachers=[teacher.path]
    )
    known = SimpleNamespace(folder=run, recipe=recipes.read(run.recipe), result=run.result())
    write_json(teacher.result_file, teacher.result() | {"recipe": "tiny"})
    text = model_card._training_commands(known)  # type: ignore[arg-type]
    assert str(tmp_path) not in text
    assert "cli.py train-teacher" in text and "--out runs/1\n" in text
    assert "--teacher runs/1 --data DATA --out runs/2\n" in text and "not known" not in text


def test_missing_teacher_has_no_command(tmp_path: Path) -> None:
    run = finished(tmp_path / "student", *TAUGHT, teachers=[tmp_path / "gone"], recipe="tiny")
    known = SimpleNamespace(folder=run, recipe=recipes.read(run.recipe), result=run.result())
    text = model_card._training_commands(known)  # type: ignore[arg-type]
    assert "train-teacher" not in text and str(tmp_path) not in text
    assert text.endswith("How its teacher was trained is not known here.")
