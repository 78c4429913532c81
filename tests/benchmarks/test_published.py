"""The cells of the CRD paper's table, and the command that trains one."""

import argparse
import json
import re
import sys
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future
from pathlib import Path

import pytest

from benchmarks import methods, published, published_cells, published_runs, published_time
from benchmarks.claim import RESULTS
from benchmarks.published_cells import Cell
from benchmarks.published_markdown import markdown
from benchmarks.published_runs import Plan
from distill.errors import UserError
from distill.recipe import compare_recipes, recipes
from distill.recipe.schema import Teacher
from distill.recipe.stage_pairs import with_paired_stages
from distill.runs import lock
from distill.runs.run_folder import RunFolder
from tests.make_runs import train

pytestmark = pytest.mark.slow

KD = Cell("resnet56", "resnet20", "kd")


def test_table_has_every_published_cell() -> None:
    pairs = published_cells.published()["pairs"]
    filled = [cell.method for cell in published_cells.cells()]
    assert len(pairs) == 13 and len(filled) == 162 + 11 + 6
    assert filled.count("dkd") == 11 and filled.count("dist") == 6
    assert published_cells.accuracy(KD) == 0.7066
    assert published_cells.alone("student", "resnet20") == 0.6906
    assert published_cells.alone("teacher", "resnet56") == 0.7234
    assert published_cells.accuracy(Cell("wrn-40-2", "shufflenetv1", "crd")) == 0.7605
    assert published_cells.accuracy(Cell("resnet110", "resnet20", "crd_kd")) is None
    for cell in published_cells.cells():
        assert published_cells.parse(str(cell)) == cell


def test_source_is_the_table_of_the_method() -> None:
    for method in ("kd", "at"):
        source = published_cells.source(KD._replace(method=method))
        assert source == "HobbitLong/RepDistiller, README.md"
    assert published_cells.source(KD._replace(method="dkd")).startswith("megvii-research/")
    assert published_cells.source(KD._replace(method="dist")).startswith("hunto/DIST_KD")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("resnet56/resnet20", "resnet56/resnet20 is not a cell; type TEACHER/STUDENT/METHOD"),
        ("resnet57/resnet20/kd", "resnet57 is not a teacher of the table; allowed: wrn-40-2, "),
        ("resnet57/resnet20/kd", "did you mean resnet56?"),
        ("resnet57/resnet20/kdd", "kdd is not a method of the table; allowed: kd, fitnet, "),
        ("resnet56/resnet21/kd", "resnet21 is not a student of the table"),
        ("resnet56/vgg8/kd", "resnet56/vgg8 is not a pair of the table; allowed: wrn-40-2/wrn-16"),
        ("vgg13/mobilenetv2/fsp", "fsp needs maps of equal channels"),
        ("resnet110/resnet20/dkd", "no beta of dkd was published for resnet110/resnet20"),
    ],
)
def test_unknown_cell_is_refused(text: str, found: str) -> None:
    with pytest.raises(UserError) as refused:
        published_cells.parse(text)
    assert found in str(refused.value)


@pytest.mark.parametrize(
    ("method", "epochs", "expected"),
    [
        ("kd", 240, (0, 240, (150, 180, 210))),
        ("kd", 24, (0, 24, (15, 18, 21))),
        ("kd", 6, (0, 6, (4, 5))),  # 3.75, 4.5 and 5.25
        ("kd", 1, (0, 1, ())),
        ("ab", 240, (30, 270, (180, 210, 240))),
        ("fsp", 6, (1, 7, (5, 6))),
    ],
)
def test_milestones_keep_their_share(method: str, epochs: int, expected: object) -> None:
    assert published_cells.length(method, epochs) == expected


@pytest.mark.parametrize("epochs", [1, 6, 240])
def test_recipes_of_every_cell_resolve(epochs: int) -> None:
    for cell in published_cells.cells():
        settings = published_cells.student_settings(cell, epochs)
        recipe = recipes.load(published_cells.student_recipe(cell), settings).recipe
        control = recipes.load("crd_cifar100", published_cells.control_settings(cell, epochs))
        teacher = recipes.load(
            "crd_cifar100_teacher", published_cells.teacher_settings(cell, epochs)
        )
        low = cell.student in ("mobilenetv2", "shufflenetv1", "shufflenetv2")
        assert recipe.optim.lr == control.recipe.optim.lr == (0.01 if low else 0.05)
        assert recipe.train.epochs == epochs + published_cells.length(cell.method, epochs)[0]
        assert list(control.recipe.loss.terms()) == ["hard"]
        assert control.recipe.train.epochs == teacher.recipe.train.epochs == epochs
        assert recipe.data.source == "cifar100" and recipe.student is not None
        assert recipe.student.network == cell.student


def test_full_cell_is_the_published_recipe() -> None:
    """At 240 epochs nothing but the networks is set: the ingredients are the protocol."""
    for method in published_cells.METHODS:
        cell = Cell("resnet56", "resnet20", method)
        spec = published_cells.student_recipe(cell)
        set_here = recipes.load(spec, published_cells.student_settings(cell)).recipe
        assert compare_recipes.differences(recipes.load(spec).recipe, set_here) == []


def test_four_stages_are_all_read() -> None:
    def loss(method: str) -> dict[str, object]:
        cell = Cell("vgg13", "vgg8", method)
        settings = published_cells.student_settings(cell)
        recipe = recipes.load(published_cells.student_recipe(cell), settings).recipe
        paired = with_paired_stages(recipe, Teacher(network="vgg13"))
        return paired.loss.terms()[method].model_dump()

    stages = tuple(f"stages.{i}" for i in range(4))
    for method in ("at", "vid", "ab", "nst"):
        assert loss(method)["student_taps"] == loss(method)["teacher_taps"] == stages
    assert loss("fsp")["teacher_taps"] == ("stem", *stages)
    assert loss("sp")["student_tap"] == loss("ft")["teacher_tap"] == "stages.3"
    assert loss("fitnet")["student_tap"] == loss("fitnet")["teacher_tap"] == "stages.1"


def test_one_number_of_seeds_is_a_count() -> None:
    assert published.seeds([2]) == [0, 1]
    assert published.seeds([4, 3]) == [3, 4]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ([], "type either --cell TEACHER/STUDENT/METHOD or --table"),
        (["--cell", "resnet56/resnet20/kd", "--epochs", "0"], "--epochs is 0; allowed: 1 or more"),
        (["--cell", "resnet56/resnet20/kd", "--seeds", "0"], "--seeds has no seed"),
        (["--cell", "resnet56/resnet20/kd", "--set", "optim.rate=1"], "optim.rate"),
    ],
)
def test_faulty_command_is_refused(words: list[str], found: str, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        published.main(words)
    assert found in capsys.readouterr().err


def test_every_option_has_a_help_text() -> None:
    parser, _ = published.arguments_of(["--table"])
    assert [each.dest for each in parser._actions if not each.help] == []


def test_dry_run_prints_commands_and_time(tmp_path: Path, capsys) -> None:
    words = ["--cell", "resnet56/resnet20/at", "--seeds", "3", "4", "--out", str(tmp_path)]
    published.main([*words, "--dry-run"])
    printed = capsys.readouterr()
    source, estimate = printed.err.splitlines()
    assert source == (
        "published: 70.55 % for resnet56/resnet20/at (HobbitLong/RepDistiller, README.md), 69.06 % "
        "for the student alone, 72.34 % for the teacher"
    )
    assert re.fullmatch(
        r"estimated time here \(cpu, 1 thread a run\): .* of training in all; 1 run of the teacher "
        r"of about .*, 2 runs of the student with the method of about .*, 2 runs of the student "
        r"alone of about .*",
        estimate,
    )
    lines = printed.out.splitlines()
    assert [line.split()[2] for line in lines] == ["train-teacher", *["distill"] * 4]
    assert all(line.endswith("--resume") for line in lines)
    assert "--recipe crd_cifar100+published_at" in lines[4] and "data.seed=4" in lines[4]
    teacher, out = tmp_path / "teacher_resnet56", tmp_path / "resnet56_resnet20_at_seed4"
    assert f"--teacher {teacher} --out {out}" in lines[4]
    assert "--set train.keep_epochs=240" in lines[0]
    assert list(tmp_path.iterdir()) == []


def test_keys_of_the_method_are_not_the_controls(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(published_time, "estimate_text", lambda planned: "")  # takes ten seconds
    words = ["--cell", "resnet56/resnet20/kd", "--seeds", "1", "--out", str(tmp_path), "--dry-run"]
    words += ["--set", "loss.kd.temperature=2", "cache={}", "--set", "train.precision=bf16"]
    published.main(words)
    teacher, control, method = capsys.readouterr().out.splitlines()
    assert all("train.precision=bf16" in line for line in (teacher, control, method))
    for line in (teacher, control):
        assert "temperature" not in line and "cache" not in line
    assert "loss.kd.temperature=2" in method and "cache={}" in method


def test_teacher_of_another_network_is_refused(teacher: Path, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        published.main(["--cell", "resnet56/resnet20/kd", "--teacher", str(teacher)])
    printed = " ".join(capsys.readouterr().err.split())
    assert "and the teacher of the cell is resnet56; give a run of resnet56" in printed


def test_table_has_no_distance_for_shorter_trainings() -> None:
    cell = json.loads((RESULTS / "published" / "resnet56_resnet20_kd_6_epochs.json").read_text())
    assert cell["distance"]["method/best_on_test"] < -100
    row = markdown([cell]).splitlines()[-1].split(" | ")
    assert row[3:6] == ["42.59 ± 0.12", "70.66", ""]


def test_distance_is_in_standard_errors() -> None:
    values = {"n": 4, "mean": 0.71, "std": 0.004}
    assert published.standard_errors(values, 0.706) == pytest.approx(2.0)
    assert published.standard_errors(values | {"std": None}, 0.706) is None
    assert published.standard_errors(values, None) is None


def test_cell_is_trained_and_written(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(published_runs, "train", in_this_process)
    monkeypatch.setattr(published_runs, "ThreadPoolExecutor", InTurn)
    out, results = tmp_path / "runs", tmp_path / "results"
    words = ["--cell", "resnet56/resnet20/kd", "--epochs", "1", "--data", "synthetic"]
    words += ["--out", str(out), "--results", str(results)]
    words += ["--set", "data.train_images=100", "teacher.network=resnet8"]
    published.main([*words, "--seeds", "1"])
    file = results / "resnet56_resnet20_kd_1_epochs.json"
    one = json.loads(file.read_text())
    assert not one["is_reproduction"]
    assert one["departures"][:2] == [
        "1 epoch instead of 240",
        "100 training images of 10 classes instead of CIFAR-100",
    ]
    assert one["seeds"] == {"method": [0], "control": [0]}
    runs = {name: RunFolder(out / f"{name}_seed0_1_epochs") for name in (KD.name, "alone_resnet20")}
    accuracy = {name: published.top1(run) for name, run in runs.items()}
    assert one["method"]["last_epoch"]["values"] == [accuracy[KD.name]]
    assert one["difference"]["mean"] == accuracy[KD.name] - accuracy["alone_resnet20"]
    best = one["method"]["best_on_test"]
    assert best["mean"] == pytest.approx(accuracy[KD.name], abs=1e-3)  # the only epoch
    assert "no epoch is selected by it" in best["note"]
    assert one["published"]["method"] == 0.7066
    assert one["full_cell"]["minutes_per_run"]["method"] == 240 * one["minutes"]["method"]["mean"]
    assert str(tmp_path) not in file.read_text()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    published.main([*words, "--seeds", "2"])
    both = json.loads(file.read_text())
    assert both["seeds"]["method"] == [0, 1]
    assert both["method"]["last_epoch"]["n"] == 2
    assert {path: path.stat().st_mtime_ns for path in before} == before
    capsys.readouterr()
    published.main(["--table", "--results", str(results)])
    assert "resnet56/resnet20/kd | 2 |" in capsys.readouterr().out
    assert (results / "README.md").read_text() == markdown([both])
    with pytest.raises(SystemExit, match="2"):  # other runs, fewer seeds
        published.main([*words[:-1], "--seeds", "1", "--out", str(tmp_path / "other")])
    printed = capsys.readouterr().err
    assert "has the seeds 1, which" in printed and "give another --results" in printed
    assert json.loads(file.read_text()) == both


class InTurn:
    """A pool that runs each call at once: torch.fx traces networks of one thread only."""

    def __init__(self, workers: int) -> None:
        assert workers == 1

    def __enter__(self) -> "InTurn":
        return self

    def __exit__(self, *raised: object) -> None:
        pass

    def shutdown(self, **how: object) -> None:
        pass

    def submit(self, function: Callable[..., None], *arguments: object) -> "Future[None]":
        future: Future[None] = Future()
        try:
            future.set_result(function(*arguments))
        except UserError as fault:
            future.set_exception(fault)
        return future


def in_this_process(line: list[str], out: Path) -> None:
    """What a worker types, without a process of its own."""
    if RunFolder(out).is_finished:
        return
    sets = [line[i + 1] for i, word in enumerate(line) if word == "--set"]
    sets.append(f"data.source={line[line.index('--data') + 1]}")
    if "--teacher" in line:
        sets.append(f"teacher.runs=['{line[line.index('--teacher') + 1]}']")
    role = "teacher" if line[2] == "train-teacher" else "student"
    train(out, *sets, recipe=line[line.index("--recipe") + 1], role=role)


@pytest.fixture
def planned(tmp_path: Path) -> Plan:
    """The runs of a cell with two seeds."""
    given = argparse.Namespace(
        out=tmp_path, epochs=240, data=None, teacher=None, seeds=[0, 1], overrides=[]
    )
    return published.plan(KD, given)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of runs that were trained, without training them."""
    names: list[str] = []

    def succeeds(line: list[str], out: Path) -> None:
        lock.check_free(out)
        names.append(out.name)

    monkeypatch.setattr(published_runs, "train", succeeds)
    monkeypatch.setattr(published_runs, "top1", lambda run: 0.7)
    monkeypatch.setattr(published_runs, "POLL_S", 0.01)
    return names


def test_failed_run_does_not_stop_the_others(planned: Plan, trained, monkeypatch) -> None:
    succeeds = published_runs.train

    def fails(line: list[str], out: Path) -> None:
        if out.name.startswith("alone_resnet20_seed0"):
            raise UserError("the run alone failed")
        succeeds(line, out)

    monkeypatch.setattr(published_runs, "train", fails)
    with pytest.raises(UserError, match="the run alone failed"):
        list(published_runs.carried_out(planned, 2))
    assert sorted(trained) == [
        "alone_resnet20_seed1", "resnet56_resnet20_kd_seed0", "resnet56_resnet20_kd_seed1",
        "teacher_resnet56",
    ]  # fmt: skip
    assert trained.index("teacher_resnet56") < trained.index("resnet56_resnet20_kd_seed0")


def test_students_of_a_failed_teacher_are_not_trained(planned: Plan, trained, monkeypatch) -> None:
    succeeds = published_runs.train

    def fails(line: list[str], out: Path) -> None:
        if out.name.startswith("teacher"):
            raise UserError("the teacher failed")
        succeeds(line, out)

    monkeypatch.setattr(published_runs, "train", fails)
    with pytest.raises(UserError, match="^the teacher failed$"):
        list(published_runs.carried_out(planned, 2))
    assert sorted(trained) == ["alone_resnet20_seed0", "alone_resnet20_seed1"]


@pytest.mark.parametrize("name", ["teacher_resnet56", "alone_resnet20_seed0"])
def test_run_of_another_process_is_waited_for(name: str, planned: Plan, trained, capsys) -> None:
    """The others are trained meanwhile; students of a held teacher when it is free."""
    [held] = [run.out for run in planned.runs if run.out.name == name]
    with lock.lock_run_folder(held):
        runs = published_runs.carried_out(planned, 1)
        for _ in range(2 if name.startswith("teacher") else 4):
            next(runs)
        assert name not in trained
    list(runs)
    assert sorted(trained) == sorted(run.out.name for run in planned.runs)
    if name.startswith("teacher"):
        assert trained.index(name) == 2  # after the controls, before the students
    lines = capsys.readouterr().err.splitlines()
    assert f"{name}: training, with the output in {held}.log" in lines
    assert lines[-1].endswith(": finished with 70.00 % on test")


def test_nothing_begins_after_an_interruption(planned: Plan, trained) -> None:
    runs = published_runs.carried_out(planned, 1)
    next(runs)
    runs.close()
    assert len(trained) < len(planned.runs)
    before = list(trained)
    time.sleep(0.05)
    assert trained == before


def test_interruption_names_how_to_continue(tmp_path: Path, trained, monkeypatch, capsys) -> None:
    def interrupted(planned: Plan, workers: int) -> Generator[None]:
        yield
        raise KeyboardInterrupt

    monkeypatch.setattr(published, "carried_out", interrupted)
    words = ["--cell", "resnet56/resnet20/kd", "--data", "synthetic", "--out", str(tmp_path)]
    with pytest.raises(SystemExit, match="130"):
        published.main(words)
    assert "Stopped. Type the same command to continue." in capsys.readouterr().err


def test_end_of_a_failed_runs_output_is_shown(tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.with_suffix(".log").write_text("of an earlier call\n")
    program = "print('one'); print('two\\x1b[31m'); raise SystemExit(3)"
    with pytest.raises(UserError) as failed:
        methods.train([sys.executable, "-c", program], out)
    assert f"{out} failed with exit code 3; {out}.log ends with\n  one\n  two\\x1b" in str(
        failed.value
    )
    assert "earlier" not in str(failed.value)
    assert out.with_suffix(".log").read_text().startswith("of an earlier call\none\n")


def test_missing_images_are_found_before_any_training(tmp_path: Path, capsys, trained) -> None:
    words = [
        "--cell",
        "resnet56/resnet20/kd",
        "--data",
        str(tmp_path),
        "--out",
        str(tmp_path / "o"),
    ]
    with pytest.raises(SystemExit, match="2"):
        published.main(words)
    assert str(tmp_path) in capsys.readouterr().err and trained == []
