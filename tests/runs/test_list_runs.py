"""Every run of a folder is a row, finished, unfinished or damaged."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import cli
from distill.errors import UserError
from distill.events import Start, Step
from distill.recipe import recipes
from distill.runs.journal import Journal
from distill.runs.list_runs import RunListing, list_runs
from distill.runs.run_folder import RunFolder, write_json, write_text
from distill.statistics import wilson
from distill.terminal.runs_table import (
    LEGEND,
    accuracy_text,
    age_text,
    fit_widths,
    runs_table,
    sort_runs,
    wrap_name,
)
from tests.runs.test_lock import holding

START = Start(
    run="x", role="student", recipe="tiny", network="ResNet [1] 8", parameters=1234,
    data="synthetic", train_images=24, val_images=8, n_classes=10, processes=1, device="cpu",
    precision="fp32", batch_size=8, epochs=4, steps_per_epoch=3, first_step=0,
)  # fmt: skip
TEST_IMAGES = 200


def begun(path: Path, *overrides: str, steps: int = 0, saved: int | None = None) -> RunFolder:
    """A run that logged so many steps of 12, and has a checkpoint."""
    run = RunFolder(path)
    write_text(run.recipe, recipes.dumps(recipes.load("tiny", overrides).recipe))
    journal = Journal(run.journal)
    journal(START)
    for step in range(1, steps + 1):
        journal(Step(step, step // 3, {}))
    if saved is not None:
        write_json(run.last / "progress.json", {"step": saved})
    return run


def finished(path: Path, right: int = 150, **changes: object) -> RunFolder:
    run = begun(path, "teacher.runs=['runs/wide', 'runs/deep']", steps=12)
    metrics = {"top1/test": right / TEST_IMAGES, "top1/val_ema": 0.8}
    result = {
        "role": "student", "recipe": "tiny+ema", "network": "ResNet [1] 8", "parameters": 1234,
        "metrics": metrics, "elapsed_s": 5.0, "finished_at": "2026-01-31T12:00:00Z",
    }  # fmt: skip
    run.weights("student").touch()
    labels = (np.arange(TEST_IMAGES) >= right).astype(np.int64)  # all are predicted as 0
    np.savez(run.evaluation, labels=labels, logits=np.zeros((TEST_IMAGES, 2), np.float32))
    write_json(run.result_file, result | changes)
    return run


def alone(folder: Path) -> RunListing:
    (row,) = list_runs(folder)
    return row


def test_a_finished_run_in_figures(tmp_path: Path) -> None:
    row = alone(finished(tmp_path / "a").path)
    assert row == RunListing(
        path=str(tmp_path / "a"),
        updated_at=1769860800.0,  # date -u -d 2026-01-31T12:00:00Z +%s
        state="finished",
        recipe="tiny+ema",
        data="synthetic",
        teachers=("runs/wide", "runs/deep"),
        parameters=1234,
        top1_test=0.75,
        top1_test_interval=wilson(150, 200),
        test_images=200,
        top1_val=0.8,
        val_split="val_ema",  # of the averaged weights, which are the saved ones
    )


def test_accuracy_without_predictions_has_no_interval(tmp_path: Path) -> None:
    run = finished(tmp_path / "a")
    run.evaluation.write_bytes(b"damaged")
    row = alone(tmp_path)
    assert (row.state, row.top1_test, row.top1_test_interval) == ("finished", 0.75, None)
    lines = printed([row], tmp_path, 100)
    assert any(re.search(r" 75\.00 \? +80\.00 ema", line) for line in lines)
    assert lines[-1] == "?: not verified: evaluation.npz is missing or damaged"
    assert "?" not in "".join(printed([alone(finished(tmp_path / "b").path)], tmp_path, 100))


def test_what_became_of_the_others(tmp_path: Path) -> None:
    begun(tmp_path / "stopped", steps=7, saved=6)
    begun(tmp_path / "unsaved", steps=2)
    begun(tmp_path / "group" / "killed", steps=2)
    (tmp_path / "group" / "killed" / ".lock").touch()
    who = {"host": "h", "process": 1, "since": "x"}
    write_json(tmp_path / "group" / "killed" / "running.json", who)
    never = begun(tmp_path / "never")
    never.journal.unlink()
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    states = {
        Path(row.path).name: (row.state, row.step, row.total_steps) for row in list_runs(tmp_path)
    }
    assert states == {
        "stopped": ("stopped", 6, 12),
        "unsaved": ("stopped", 0, 12),
        "killed": ("killed", 0, 12),
        "never": ("never began", None, None),
    }
    assert (tmp_path / "group" / "killed" / "running.json").exists(), "who only looks takes nothing"


@pytest.mark.long
def test_who_trains_now_is_seen_and_not_disturbed(tmp_path: Path) -> None:
    begun(tmp_path / "run", steps=7, saved=6)
    child = holding(tmp_path / "run")
    try:
        row = alone(tmp_path)
        assert (row.state, row.step, row.total_steps) == ("training", 7, 12)
        assert child.poll() is None
    finally:
        child.kill()
        child.wait()
    assert alone(tmp_path).state == "killed"


def test_accuracy_that_predictions_contradict(tmp_path: Path) -> None:
    row = alone(finished(tmp_path / "a", metrics={"top1/test": 0.99}).path)
    assert (row.state, row.top1_test) == ("damaged", None)
    assert row.fault is not None and "top1/test = 99.00 %" in row.fault


@pytest.fixture
def as_nobody() -> Iterator[None]:
    """Run the test as a user who may not read every folder."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield
    os.seteuid(user)


def test_private_folder_hides_no_other_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    finished(tmp_path / "mine")
    finished(tmp_path / "group" / "mine")
    private = [tmp_path / "notes", finished(tmp_path / "group" / "run").path]
    for path in private:
        path.mkdir(exist_ok=True)
        path.chmod(0)
    unlisted = tmp_path / "unlisted"
    unlisted.mkdir(mode=0o311)
    for path in (tmp_path, tmp_path / "group"):
        path.chmod(0o755)
    monkeypatch.chdir(tmp_path)  # its parents may be private too
    request.getfixturevalue("as_nobody")
    rows = {row.path: (row.state, row.fault) for row in list_runs(Path())}
    denied = ("unreadable", "it cannot be read: Permission denied")
    assert rows == {
        "mine": ("finished", None), "group/mine": ("finished", None),
        "notes": denied, "group/run": denied, "unlisted": denied,
    }  # fmt: skip


def drop(name: str) -> Callable[[RunFolder], None]:
    return lambda run: (run.path / name).unlink()


def fill(name: str, text: str) -> Callable[[RunFolder], None]:
    return lambda run: (run.path / name).write_text(text) and None


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (drop("recipe.toml"), "recipe.toml is missing"),
        (drop("student.safetensors"), "student.safetensors is missing"),
        (fill("recipe.toml", "x = 1"), "x = 1 (.*) is not a key"),
        (fill("recipe.toml", "\0"), "a/recipe.toml"),
        (fill("result.json", "{"), "result.json is damaged: it is not JSON"),
        (
            fill("result.json", "[]"),
            "result.json is damaged: it contains a list instead of a table",
        ),
        (fill("result.json", '{"role": "student"}'), "result.json has no 'metrics'"),
    ],
)
def test_damaged_run_is_an_explained_row(
    tmp_path: Path, damage: Callable[[RunFolder], None], fault: str
) -> None:
    damage(finished(tmp_path / "a"))
    finished(tmp_path / "sound")
    rows = {Path(row.path).name: row for row in list_runs(tmp_path)}
    assert rows["sound"].state == "finished"
    assert rows["a"].state == "damaged"
    assert rows["a"].fault and re.search(fault, rows["a"].fault)
    assert "\n" not in rows["a"].fault


def test_a_damaged_journal(tmp_path: Path) -> None:
    run = begun(tmp_path / "a", steps=2)
    run.journal.write_text("{\n" + run.journal.read_text())
    row = alone(tmp_path)
    assert (row.state, row.fault) == (
        "damaged",
        f"{run.journal}, line 1 is not JSON: Expecting property name enclosed in double quotes "
        "at column 2.",
    )


# In order


def rows() -> list[RunListing]:
    return [
        RunListing("b", 10.0, "finished", "kd", "d", ("t",), 5, 0.7, top1_val=0.9),
        RunListing("a", 30.0, "stopped", "dkd", "e", (), 9, step=1, total_steps=2),
        RunListing("c", 20.0, "damaged", None, None, (), None, 0.8, top1_val=0.5),
    ]


@pytest.mark.parametrize(
    ("column", "order"),
    [
        ("age", "acb"),
        ("run", "abc"),
        ("recipe", "abc"),
        ("teacher", "bac"),
        ("data", "bac"),
        ("parameters", "abc"),
        ("test", "cba"),
        ("val", "bca"),
        ("state", "cba"),
    ],
)
def test_runs_are_sorted_by_a_column(column: str, order: str) -> None:
    assert "".join(row.path for row in sort_runs(rows(), column)) == order


def test_synthetic_runs_are_below_real_ones() -> None:
    accuracies = {"x": ("cifar10", 0.5), "y": ("synthetic", 0.9), "z": ("data/own", 0.7)}
    listed = [
        RunListing(name, 1.0, "finished", data=data, top1_test=top1, top1_val=top1)
        for name, (data, top1) in accuracies.items()
    ]
    for column, order in {"test": "zxy", "val": "zxy", "run": "xyz"}.items():
        assert "".join(row.path for row in sort_runs(listed, column)) == order


def test_unknown_column_is_refused_with_a_suggestion() -> None:
    with pytest.raises(
        UserError, match="--sort tset is not a column; did you mean test\\?\nType one"
    ):
        sort_runs([], "tset")


# As a person sees it


def printed(runs: list[RunListing], folder: Path, width: int) -> list[str]:
    out = StringIO()
    console = Console(file=out, width=width, color_system=None)
    console.print(runs_table(runs, folder, width, now=1769860800.0 + 7300), highlight=False)
    return [line.rstrip() for line in out.getvalue().splitlines()]


@pytest.mark.parametrize("width", [80, 100, 200])
def test_the_table_fits_and_loses_nothing(tmp_path: Path, width: int) -> None:
    finished(tmp_path / "kd_cutmix+quickstart-20260131-120000")
    begun(tmp_path / "group" / "stopped", steps=7, saved=6)
    found = sort_runs(list_runs(tmp_path), "test")
    lines = printed(found, tmp_path, width)
    assert max(map(len, lines)) <= width
    assert not any("…" in line for line in lines)
    low, high = wilson(150, 200)
    figures = rf"1,234 +75.00 ±{50 * (high - low):.2f} +80.00 ema +finished +2 h$"
    assert any(re.search(figures, line) for line in lines)
    starts = [re.split("  | (?=[a-z])", line)[0] for line in lines]
    assert "kd_cutmix+quickstart-20260131-120000" in "".join(starts)
    assert any("6/12" in line for line in lines)
    assert " ".join(lines).endswith(f"{LEGEND}; data: synthetic")


@pytest.mark.parametrize("width", [80, 200])
def test_different_data_have_a_column(tmp_path: Path, width: int) -> None:
    finished(tmp_path / "real", recipe="fast_kd")
    text = recipes.dumps(recipes.load("tiny", ["data.source=data/my-birds"]).recipe)
    write_text(RunFolder(tmp_path / "real").recipe, text)
    finished(tmp_path / "toy", right=190)
    lines = printed(sort_runs(list_runs(tmp_path), "test"), tmp_path, width)
    assert max(map(len, lines)) <= width
    assert re.search(r"^run +recipe +teacher +data +params ", lines[0])
    assert lines[2].startswith("real") and " my-" in lines[2]
    assert not any("data: " in line for line in lines)


def trial(path: Path, top1: float) -> RunFolder:
    return finished(path, metrics={"top1/val": top1}, is_tested=False)


@pytest.mark.long
@pytest.mark.parametrize("group", ["sweep-lr", "search-kd/rung-1"])
def test_of_trials_the_best_is_shown(tmp_path: Path, group: str) -> None:
    for number, top1 in enumerate((0.3, 0.7, 0.5)):
        trial(tmp_path / group / f"trial-{number:04}", top1)
    trial(tmp_path / group / "trial-0003", 0.6).weights("student").unlink()
    finished(tmp_path / "alone")
    rows = list_runs(tmp_path)
    assert len(rows) == 5, "the list, and --json, has every trial"
    text = "\n".join(printed(sort_runs(rows, "run"), tmp_path, 200))
    assert re.search(rf"^{group}/trial-0001 best of 4 +.* 70.00 +finished", text, re.M)
    assert "alone" in text and "trial-0000" not in text and "trial-0002" not in text
    assert "trial-0003: student.safetensors is missing" in text, "a damaged run is not hidden"
    inside = "\n".join(printed(list_runs(tmp_path / group), tmp_path / group, 200))
    assert inside.count("trial-000") == 5 and "best of" not in inside


def test_links_between_groups_end(tmp_path: Path) -> None:
    finished(tmp_path / "group" / "a")
    (tmp_path / "group" / "up").symlink_to(tmp_path)
    assert [Path(row.path).name for row in list_runs(tmp_path)] == ["a"]


def test_narrow_terminals_cut_no_long_names(tmp_path: Path) -> None:
    for seed in range(2):
        finished(
            tmp_path / "seeds-student_alone+two_cores" / f"seed-{seed}",
            recipe="kd_cutmix+quickstart (control)",
        )
    lines = printed(sort_runs(list_runs(tmp_path), "run"), tmp_path, 80)
    assert max(map(len, lines)) <= 80
    assert lines[2].endswith(" 2 h"), "figures are not cut"
    assert "…" not in "".join(lines) and "in full" not in "".join(lines)


def test_long_names_take_two_lines(tmp_path: Path) -> None:
    group = tmp_path / "seeds-student_alone+two_cores"
    for seed in range(2):
        finished(group / f"seed-{seed}", recipe="kd_cutmix+quickstart (control)")
    lines = printed(sort_runs(list_runs(tmp_path), "run"), tmp_path, 100)
    assert max(map(len, lines)) <= 100
    assert lines[2].endswith(" 2 h"), "figures are not cut"
    rows = lines[2:6]
    assert lines[6].startswith("test: ")
    assert len(rows) == 4, "two rows of two lines"
    for row, seed in ((rows[:2], 0), (rows[2:], 1)):
        assert row[0].startswith("seeds-") and row[1].split()[0].endswith(f"seed-{seed}")
        assert "(control)" in row[1]


@pytest.mark.parametrize(
    ("name", "width", "lines"),
    [
        ("student_alone+two_cores", 13, ["student_alone", "+two_cores"]),
        ("student_alone+two_cores", 40, ["student_alone+two_cores"]),
        ("sweep-base/trial-0010", 13, ["sweep-base/", "trial-0010"]),
        ("real/alone-0-again", 12, ["real/alone-", "0-again"]),
        (
            "seeds-student_alone+two_cores/seed-1",
            13,
            ["seeds-", "student_alone", "+two_cores/", "seed-1"],
        ),
        ("seeds/tiny/seed0-control", 8, ["seeds/", "tiny/", "seed0-", "control"]),
        ("a-b-c-d-e-f", 2, ["a-", "…f"]),
        ("unbreakable", 4, ["u…le"]),
        ("a + b", 3, ["a", "+ b"]),
    ],
)
def test_names_break_where_words_end(name: str, width: int, lines: list[str]) -> None:
    assert wrap_name(name, width).split("\n") == lines


def test_widest_column_is_shortened() -> None:
    names = [("student_alone+two_cores", "kd+ema", "wide")]
    assert fit_widths(40, names) == [23, 6, 7]
    assert fit_widths(35, names) == [22, 6, 7]
    assert fit_widths(26, names) == [13, 6, 7]
    assert fit_widths(25, names) == [12, 6, 7]
    assert fit_widths(5, names) == [3, 6, 7], "no less than the heads"


def test_age_has_one_unit() -> None:
    assert [age_text(s) for s in (-3, 59.9, 60, 3600, 200_000)] == [
        "0 s",
        "59 s",
        "1 min",
        "1 h",
        "2 d",
    ]
    assert accuracy_text(None, None) == "–"
    assert accuracy_text(0.721, (0.71, 0.73)) == "72.10 ±1.00"


# From the command line


def test_json_is_a_list_of_plain_objects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finished(tmp_path / "a")
    begun(tmp_path / "b", steps=7, saved=6)
    monkeypatch.setattr(sys, "argv", ["cli.py", "runs", str(tmp_path), "--json", "--sort", "run"])
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    printed = json.loads(capsys.readouterr().out)
    expected = [asdict(row) for row in sort_runs(list_runs(tmp_path), "run")]
    assert printed == json.loads(json.dumps(expected))
    assert [row["top1_test"] for row in printed] == [0.75, None]


def test_no_runs_and_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder, code in (([], 0), ([str(tmp_path)], 0), ([str(tmp_path / "none")], 2)):
        monkeypatch.setattr(sys, "argv", ["cli.py", "runs", *folder])
        with pytest.raises(SystemExit, match=str(code)):
            cli.main()
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        f"no runs in {place}; python cli.py plan lists the recipes that fit into your time, with "
        "their commands"
        for place in ("runs", tmp_path)
    ]
    assert printed.err.startswith(f"{tmp_path / 'none'} is not a folder.\n")


@pytest.mark.long
def test_who_only_looks_needs_no_torch() -> None:
    code = (
        "import sys; import distill.terminal.runs_table, distill.runs.compare_two_runs; "
        "sys.exit('torch' in sys.modules)"
    )
    repo = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=repo, check=False).returncode == 0


def test_finished_run_shows_its_test_accuracy(distilled) -> None:
    folder, _ = distilled
    row = alone(folder.path)
    assert (row.state, row.test_images, row.fault) == ("finished", 2000, None)
    assert row.top1_test == folder.result()["metrics"]["top1/test"]


def test_shortened_names_are_printed_in_full(tmp_path: Path) -> None:
    finished(tmp_path / ("x" * 70))
    finished(tmp_path / "short")
    lines = printed(list_runs(tmp_path), tmp_path, 80)
    assert [line for line in lines if line.startswith("in full: ")] == ["in full: " + "x" * 70]
