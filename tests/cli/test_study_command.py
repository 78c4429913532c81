"""`study`: what it trains, what it prints, and that the same command continues it."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from distill.errors import Failure
from distill.recipe import recipes
from distill.runs.run_folder import RunFolder
from distill.sweep import plan_teacher_and_students
from tests.cli.command_line import ALONE, RunCli, after_each_epoch, assert_refused, unfolded
from tests.evaluation.test_evaluate_run import forged

pytestmark = pytest.mark.long

FEW = [
    "--recipe", "tiny", "--set", "data.holdout=0.25", "--set", "data.train_images=24",
    "--set", "train.batch_size=8", "--set", "train.epochs=2",
    "--teacher-set", "train.batch_size=8",
]  # fmt: skip


def test_teacher_control_and_student_are_compared(run_cli: RunCli, pets: Path) -> None:
    same = ("study", *FEW, "--data", pets, "--out", "s")
    first = run_cli(*same)
    assert first.code == 0, first.err
    assert re.findall(r"^run \d of \d: .*", first.err, re.MULTILINE) == [
        "run 1 of 3: teacher", "run 2 of 3: alone", "run 3 of 3: distilled",
    ]  # fmt: skip
    runs = {name: RunFolder(Path("s") / name) for name in ("teacher", "alone", "distilled")}
    results = {name: run.result() for name, run in runs.items()}
    assert results["distilled"]["teacher"]["runs"] == ["s/teacher"]
    assert results["alone"]["teacher"]["runs"] == []
    assert [results[name]["epochs"] for name in runs] == [1, 2, 2]
    assert results["teacher"]["data"]["val_images"] == 8, "--set data.… is for the teacher too"
    control = recipes.read(runs["alone"].recipe)
    student = recipes.read(runs["distilled"].recipe)
    assert control.student == student.student and not recipes.has_teacher(control)

    lines = unfolded(first.out)
    for name in runs:
        assert f"{100 * results[name]['metrics']['top1/test']:.2f} %" in lines
    assert first.out.splitlines()[-1] == "s/report.html"
    page = Path("s/report.html").read_text()
    assert all(name in page for name in runs)

    again = run_cli(*same, "--json")
    facts = json.loads(again.out)
    assert again.err.count("is finished: nothing to do.") == 3
    top1 = {row["name"]: row["top1_test"] for row in facts["rows"]}
    assert top1 == {name: result["metrics"]["top1/test"] for name, result in results.items()}
    assert facts["difference"] == pytest.approx(top1["distilled"] - top1["alone"])
    assert facts["evaluation"]["top1"] == top1["distilled"]
    assert facts["report"] == "s/report.html"


def test_forged_control_is_refused(run_cli: RunCli, pets: Path) -> None:
    same = ("study", *FEW, "--data", pets, "--out", "s")
    assert run_cli(*same).code == 0
    alone = RunFolder(Path("s/alone"))
    forged(alone, -np.load(alone.evaluation)["logits"])
    Path("s/report.html").unlink()
    assert_refused(run_cli(*same), "the files are not of one run")
    assert not Path("s/report.html").exists()


def test_same_command_continues_a_study(
    run_cli: RunCli, pets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt() -> None:
        epochs.pop()
        if not epochs:
            raise Failure("cut off")

    same, epochs = ("study", *FEW, "--data", pets, "--out", "s"), [1, 2, 3, 4]
    with monkeypatch.context() as patch:
        after_each_epoch(patch, interrupt)
        ended = run_cli(*same)
    assert ended.code == 1
    assert "To continue, type the same command again" in ended.err
    finished = [run.is_finished for run in map(RunFolder, map(Path, ("s/teacher", "s/alone")))]
    assert finished == [True, True] and not RunFolder(Path("s/distilled")).is_finished
    done = run_cli(*same)
    assert done.code == 0, done.err
    assert done.err.count("is finished: nothing to do.") == 2
    assert_refused(run_cli(*same, "--set", "optim.lr=0.5"), "the recipe is not the one it began")


def test_several_seeds_are_summarised(run_cli: RunCli, pets: Path) -> None:
    done = run_cli("study", *FEW, "--data", pets, "--out", "s", "--seeds", 2, "--json")
    assert done.code == 0, done.err
    facts = json.loads(done.out)
    assert [Path(row["run"]).name for row in facts["runs"]] == [
        "seed-0", "control-0", "seed-1", "control-1",
    ]  # fmt: skip
    assert facts["top1"]["n"] == 2 and facts["control"]["n"] == 2
    assert RunFolder(Path("s/seed-1")).result()["teacher"]["runs"] == ["s/teacher"]
    assert Path(facts["report"]).exists()


def test_trained_teacher_is_used(run_cli: RunCli, pets: Path) -> None:
    few = [word for word in FEW[:-2] if word != "--teacher-set"]
    assert run_cli("train-teacher", *few, *ALONE, "--data", pets, "--out", "t").code == 0
    done = run_cli("study", *few, "--data", pets, "--out", "s", "--teacher", "t")
    assert done.code == 0, done.err
    assert not Path("s/teacher").exists()
    assert RunFolder(Path("s/distilled")).result()["teacher"]["runs"] == ["t"]
    assert Path("s/report.html").exists()


def test_unsuitable_teacher_is_refused_before_training(
    run_cli: RunCli, pets: Path, teacher: Path
) -> None:
    few = FEW[:-2]
    result = run_cli("study", *few, "--data", pets, "--out", "s", "--teacher", teacher)
    assert_refused(result, f"teacher {teacher} has 10 classes, the data has 2")
    assert not Path("s").exists()


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["-r", "student_alone"], "recipe student_alone has no term that needs a teacher"),
        (["-r", "tiny", "-t", "t", "--teacher-set", "optim.lr=1"], "Remove --teacher-set, or"),
        (["-r", "tiny", "--seeds", "2", "-s", "train.seed=1"], "--seeds 2 sets train.seed itself"),
        (["-r", "tiny", "--teacher-set", "optim.lrr=1"], "optim.lrr"),
        (
            ["-r", "tiny", "-s", "data.holdout=0.2", "--teacher-set", "data.holdout=0"],
            "Type --teacher-set data.holdout=0.2.",
        ),
        (["-r", "tiny", "--teacher-set", "loss.kd={}"], "train-teacher has none"),
    ],
)
def test_wrong_requests_leave_nothing(run_cli: RunCli, arguments: list[str], found: str) -> None:
    assert_refused(run_cli("study", *arguments), found)
    assert list(Path().iterdir()) == []


def test_other_files_at_the_report_are_refused(run_cli: RunCli, pets: Path) -> None:
    Path("s").mkdir()
    Path("s/report.html").write_text("mine")
    result = run_cli("study", *FEW, "--data", pets, "--out", "s")
    assert_refused(result, "s/report.html exists and is not a report written by this program")
    assert [path.name for path in Path("s").iterdir()] == ["report.html"]


def test_teacher_has_images_and_network_of_student() -> None:
    assert plan_teacher_and_students.teacher_recipe("kd_cutmix+quickstart", []) == (
        "teacher_wrn+quickstart",
        [],
    )
    overrides = [
        "data.source=x", "teacher.widen=4", "teacher.mirror=true", "teacher.weights=[1]",
        "train.epochs=3", "teacher.runs=['r']",
    ]  # fmt: skip
    assert plan_teacher_and_students.teacher_recipe("tiny", overrides) == (
        "tiny",
        ["loss.kd=false", "loss.hard.weight=1", "data.source=x", "teacher.widen=4"],
    )
