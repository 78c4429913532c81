"""Find the control and the teacher of a finished run."""

import os
import shutil
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from distill.errors import UserError
from distill.recipe import recipe_variants, recipes
from distill.runs.run_folder import RunFolder, write_json, write_text
from distill.runs.teacher_student_summary import (
    ClosingRow,
    closing_rows,
    student_alone,
    teacher_accuracy_text,
)
from distill.terminal.progress import closing_table

TAUGHT = ("loss.kd.weight=0.9",)
ALONE = ("loss.kd=false", "loss.hard.weight=1.0")
NETWORK = "ResNet [4, 4, 3] 64-128-256"


def finished(
    path: Path,
    *overrides: str,
    role: str = "student",
    teachers: Sequence[Path] = (),
    images: str = "f00d",
    **result: Any,
) -> RunFolder:
    """A finished run as `training/run.py` leaves one, without its weights."""
    runs = list(map(str, teachers))
    recipe = recipes.load("tiny", overrides).recipe
    run = RunFolder(path)
    write_text(run.recipe, recipes.dumps(recipe_variants.with_teacher(recipe, runs)))
    content = {
        "role": role,
        "network": NETWORK,
        "parameters": 4_697_162,
        "data": {"fingerprint": images},
        "teacher": {"runs": runs, "fingerprint": "+".join(["7eac"] * len(runs)), "top1": 0.95},
        "weights": "7eac" if role == "teacher" else path.name,
        "metrics": {"top1/val": 0.91, "top1/test": 0.9},
        "elapsed_s": 107_261.0,
        "epochs": recipe.train.epochs,
    }
    write_json(run.result_file, content | result)
    return run


def names(run: RunFolder) -> list[str]:
    return [row.name for row in closing_rows(run)]


@pytest.fixture
def teacher(tmp_path: Path) -> RunFolder:
    return finished(
        tmp_path / "teachers" / "t", *ALONE, role="teacher", network="WRN-28-10",
        parameters=36_479_194, metrics={"top1/val": 0.9, "top1/val_ema": 0.9612, "top1/test": 0.96},
    )  # fmt: skip


@pytest.fixture
def student(tmp_path: Path, teacher: RunFolder) -> RunFolder:
    return finished(tmp_path / "runs" / "student", *TAUGHT, teachers=[teacher.path])


def test_teacher_is_listed_with_its_best_accuracy(teacher: RunFolder) -> None:
    row = ClosingRow(
        "teacher", "WRN-28-10", 36_479_194, 0.9612, 0.96, 107_261.0, val_split="val_ema"
    )
    assert closing_rows(teacher) == [row]


def test_a_student_without_a_teacher(tmp_path: Path) -> None:
    run = finished(tmp_path / "alone", *ALONE)
    row = ClosingRow("alone", NETWORK, 4_697_162, 0.91, 0.9, 107_261.0)
    assert closing_rows(run) == [row]


def test_accuracy_of_the_average_is_shown(tmp_path: Path) -> None:
    run = finished(tmp_path / "a", metrics={"top1/val_ema": 0.97, "top1/test": 0.96})
    assert closing_rows(run)[0].top1_val == 0.97


def test_run_without_hold_out_is_summarized(tmp_path: Path) -> None:
    run = finished(tmp_path / "alone", *ALONE, metrics={"top1/test": 0.9})
    assert closing_rows(run)[0].top1_val is None


def test_a_distilled_student_beside_its_teacher(student: RunFolder) -> None:
    assert names(student) == ["teacher", "distilled"]


def test_its_control_is_found_whatever_it_is_called(student: RunFolder) -> None:
    control = finished(student.path.parent / "x", *ALONE, metrics={"top1/test": 0.85})
    assert student_alone(student) == control
    assert names(student) == ["teacher", "alone", "distilled"]
    assert closing_rows(student)[1].top1_test == 0.85


def test_of_two_controls_the_newest(student: RunFolder) -> None:
    old, new = (finished(student.path.parent / name, *ALONE) for name in ("b", "a"))
    os.utime(old.recipe, (1, 1))
    assert student_alone(student) == new


def test_the_same_images_may_lie_elsewhere(student: RunFolder) -> None:
    control = finished(student.path.parent / "x", *ALONE, "data.source=/another/copy")
    assert student_alone(student) == control


@pytest.mark.parametrize(
    "overrides",
    [
        TAUGHT,
        ("loss.kd=false", "loss.hard.weight=0.5"),
        (*ALONE, "train.seed=1"),
        (*ALONE, "data.seed=1"),
        (*ALONE, "train.epochs=2"),
        (*ALONE, "student.width=8"),
        (*ALONE, "mix.cutmix.prob=0.5"),
    ],
)
def test_what_differs_otherwise_is_no_control(
    student: RunFolder, overrides: tuple[str, ...]
) -> None:
    finished(student.path.parent / "x", *overrides)
    assert student_alone(student) is None


def test_other_images_are_no_control(student: RunFolder) -> None:
    finished(student.path.parent / "x", *ALONE, images="beef")
    assert student_alone(student) is None


def test_teacher_of_same_recipe_is_no_control(student: RunFolder) -> None:
    finished(student.path.parent / "x", *ALONE, role="teacher")
    assert student_alone(student) is None


def test_other_files_in_runs_are_ignored(student: RunFolder) -> None:
    beside = student.path.parent
    finished(beside / "unfinished", *ALONE).result_file.unlink()
    write_text(finished(beside / "other version", *ALONE).recipe, "[optim]\nlrr = 1\n")
    write_text(finished(beside / "cut short", *ALONE).result_file, '{"role": "stud')
    write_json(finished(beside / "older", *ALONE).result_file, {"role": "student"})
    for name, text in {"empty": "", "list": "[]", "null": "null", "deep": "[" * 100_000}.items():
        write_text(finished(beside / name, *ALONE).result_file, text)
    write_json(finished(beside / "number", *ALONE).result_file, {"role": 3})
    finished(beside / "no data", *ALONE, data=[])
    finished(beside / "no metrics", *ALONE, metrics={})
    assert names(student) == ["teacher", "distilled"]


def test_a_teacher_that_is_gone_is_named(student: RunFolder, teacher: RunFolder) -> None:
    shutil.rmtree(teacher.path)
    assert closing_rows(student)[0] == ClosingRow("teacher", f"{teacher.path} is missing")


def test_a_teacher_that_is_damaged_is_named(student: RunFolder, teacher: RunFolder) -> None:
    write_text(teacher.result_file, "[]")
    assert closing_rows(student)[0] == ClosingRow("teacher", f"{teacher.path} is damaged")


def test_another_run_at_its_path_is_no_teacher(student: RunFolder, teacher: RunFolder) -> None:
    write_json(teacher.result_file, teacher.result() | {"weights": "0ff5"})
    assert closing_rows(student)[0] == ClosingRow("teacher", f"{teacher.path} is another run now")


def test_teacher_whose_name_is_too_long(tmp_path: Path) -> None:
    run = finished(tmp_path / "student", *TAUGHT, teachers=[Path("x" * 300)])
    assert closing_rows(run)[0] == ClosingRow("teacher", f"{'x' * 300} cannot be read")


def test_several_teachers_have_a_row_each(tmp_path: Path, teacher: RunFolder) -> None:
    shutil.copytree(teacher.path, tmp_path / "teachers" / "u")
    both = [teacher.path, tmp_path / "teachers" / "u"]
    run = finished(tmp_path / "runs" / "student", *TAUGHT, teachers=both)
    assert names(run) == ["teacher", "teacher", "distilled"]


def test_training_time_and_total_time_differ(tmp_path: Path) -> None:
    run = finished(tmp_path / "alone", *ALONE, total_s=107_300.0)
    [row] = closing_rows(run)
    assert (row.training_s, row.total_s) == (107_261.0, 107_300.0)


@pytest.mark.parametrize(
    ("images", "text"),
    [
        ((5_000, 5_000, 45_000), "top1/val 95.00 %"),
        ((1_024, 6_000, 44_000), "accuracy 95.00 % on 1,024 of 6,000 held-out images"),
        ((1_024, 0, 50_000), "accuracy 95.00 % on 1,024 of 50,000 training images"),
        ((320, 0, 320), "accuracy 95.00 % on all 320 training images"),
        ((None, 5_000, 45_000), "accuracy 95.00 % on up to 1,024 of 5,000 held-out images"),
    ],
)
def test_accuracy_on_a_part_has_another_name(
    images: tuple[int | None, int, int], text: str
) -> None:
    assert teacher_accuracy_text(0.95, *images) == text
    assert teacher_accuracy_text(None, *images) == "top1/val –"


def test_an_unfinished_run_has_no_rows(student: RunFolder) -> None:
    student.result_file.unlink()
    with pytest.raises(UserError, match=f"run {student.path} is not finished"):
        closing_rows(student)


def test_no_number_breaks_at_80_columns(student: RunFolder) -> None:
    finished(student.path.parent / "x", *ALONE)
    out = StringIO()
    Console(file=out, width=80).print(closing_table(closing_rows(student)))
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    for number in ("36,479,194", "96.12 %", "96.00 %", "4,697,162", "29:47:41"):
        assert number in text
    assert "…" not in text
