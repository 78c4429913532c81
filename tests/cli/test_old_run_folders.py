"""Run folders and cached logits that an earlier version of the program wrote.

`old_runs/` was written by commit 64fa2f7, the last one before packages and symbols were renamed:

    python cli.py train-teacher --recipe tiny --set loss.kd=false --set loss.hard.weight=1
        --set teacher.network=resnet --set teacher.stages=2 --set teacher.blocks=1
        --set teacher.width=8 --out runs/teacher
    python cli.py distill … --out runs/student
    python cli.py distill … --set train.save_steps=1 --out runs/unfinished    (SIGTERM in epoch 2)

`…` is `DISTILL` below. Best weights, finished runs' checkpoints and the teacher's predictions were
deleted afterwards to save space.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

import cli

OLD_RUNS = Path(__file__).parent / "old_runs"
DISTILL = [
    "distill", "--recipe", "tiny", "--teacher", "runs/teacher",
    "--set", "cache={}", "--set", "train.epochs=3", "--set", "ema.decay=0.9",
]  # fmt: skip


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the old folders as `runs/` of the current folder, and of the old cache."""
    copied = tmp_path / "runs"
    shutil.copytree(OLD_RUNS, copied)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(copied / "cache"))
    return copied


def run_command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """Run `python cli.py …` in this process; it must exit with 0."""
    monkeypatch.setattr(sys, "argv", ["cli.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0


def result(run: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((run / "result.json").read_text())
    return read


def losses(run: Path) -> list[float]:
    """The total loss of every logged step."""
    events = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    return [e["metrics"]["loss/total"] for e in events if e["event"] == "step"]


def test_old_runs_are_listed(monkeypatch, capsys) -> None:
    run_command(monkeypatch, "runs", "--json")
    listed = {Path(row["path"]).name: row for row in json.loads(capsys.readouterr().out)}
    assert set(listed) == {"teacher", "student", "unfinished"}
    assert listed["student"]["top1_test"] == result(OLD_RUNS / "student")["metrics"]["top1/test"]


@pytest.mark.long
def test_an_old_run_is_evaluated_exported_and_reported(runs: Path, monkeypatch, capsys) -> None:
    run_command(monkeypatch, "evaluate", "runs/student", "--json")
    measured = json.loads(capsys.readouterr().out)
    assert measured["top1"] == pytest.approx(
        result(OLD_RUNS / "student")["metrics"]["top1/test"], abs=1e-3
    )
    run_command(monkeypatch, "export", "runs/student", "--format", "safetensors", "--out", "out")
    run_command(monkeypatch, "report", "runs/student")
    assert (runs / "student" / "report.html").exists()


@pytest.mark.long
def test_old_cached_logits_are_read(runs: Path, monkeypatch, capsys) -> None:
    before = {path: path.stat().st_mtime_ns for path in runs.glob("cache/targets/*/*")}
    run_command(monkeypatch, *DISTILL, "--out", "runs/again")
    assert {path: path.stat().st_mtime_ns for path in runs.glob("cache/targets/*/*")} == before
    assert losses(runs / "again") == pytest.approx(losses(OLD_RUNS / "student"), rel=1e-3)


@pytest.mark.long
def test_an_old_checkpoint_is_resumed(runs: Path, monkeypatch) -> None:
    saved = ["--set", "train.save_steps=1", "--out", "runs/unfinished"]
    run_command(monkeypatch, *DISTILL, *saved, "--resume")
    assert losses(runs / "unfinished") == pytest.approx(losses(OLD_RUNS / "student"), rel=1e-3)
    assert result(runs / "unfinished")["epochs"] == 3
