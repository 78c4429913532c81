"""Processes of their own: exit codes, imports, the time until help is shown."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.command_line import ALONE, REPO, SMALL, RunCli, start_cli


@pytest.mark.long
def test_only_the_first_process_prints(run_cli: RunCli, monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments in (["recipes", "nothing"], ["distil"], ["recipes"]):
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", "0")
        first = run_cli(*arguments)
        monkeypatch.setenv("RANK", "1")
        second = run_cli(*arguments)
        assert first.code == second.code
        assert first.out + first.err != ""
        assert second.out + second.err == ""


def test_rank_without_world_size_prints(run_cli: RunCli, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable left in the environment must not silence the only process."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("RANK", "1")
    assert run_cli("recipes").out != ""


HEAVY = ("torch", "numpy", "timm", "accelerate", "PIL")


REPORT_IMPORTS = f"""
import atexit, sys, time
sys.path.insert(0, {str(REPO)!r})

@atexit.register
def report():
    heavy = [name for name in {HEAVY} if name in sys.modules]
    print("HEAVY", heavy, "SECONDS", time.process_time(), file=sys.stderr)

import cli
cli.main()
"""


@pytest.mark.long
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["recipes"], 0),
        (["recipes", "kd_cutmix+quickstart"], 0),
        (["params"], 0),
        (["distill", "--set", "student.width=128"], 2),
        (["distill", "--set", "optim.lrr=1"], 2),
        (["evaluate", "runs/none"], 2),
    ],
)
def test_light_commands_import_no_torch(arguments: list[str], code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", REPORT_IMPORTS, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code
    assert "HEAVY [] SECONDS" in done.stderr, done.stderr


@pytest.mark.long
def test_help_is_fast() -> None:
    seconds = []
    for _ in range(3):
        command = [sys.executable, "-c", REPORT_IMPORTS, "--help"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "train-teacher" in done.stdout
        seconds.append(float(done.stderr.split()[-1]))
    assert min(seconds) < 1.5, "of the processor; 0.6 on an idle core of 2 GHz"


def test_help_shows_text_in_brackets(run_cli: RunCli) -> None:
    result = run_cli("distill", "--help")
    assert "the best on held-out images" in re.sub(r"[\s│]+", " ", result.out)
    assert "runs/<recipe>-<time>" in result.out


@pytest.mark.long
def test_a_real_process_ends_as_the_shell_expects(pets: Path, tmp_path: Path) -> None:
    out = tmp_path / "the run"
    command = ["distill", *SMALL, *ALONE, "--data", str(pets), "--out", str(out)]
    wrong = start_cli(*command, "--set", "train.epochs=1.5")
    _, message = wrong.communicate(timeout=60)
    assert wrong.returncode == 2
    assert message == (
        "1 fault in tiny\n"
        "  train.epochs = 1.5 (--set) is a number; allowed: a whole number (at least 1, at most "
        "1_000_000)\n"
    )
    quiet = {"UNDERSTUDY_CACHE": str(tmp_path), "OMP_NUM_THREADS": "1"}
    long = start_cli(*command, "--set", "train.epochs=100000", **quiet)
    try:
        assert long.stderr is not None
        assert any(line.startswith("epoch 1/") for line in long.stderr), "it must have begun"
        long.terminate()
        _, last_words = long.communicate(timeout=60)
    finally:
        long.kill()
    assert long.returncode == 143
    assert "Traceback" not in last_words
    assert last_words.splitlines()[-2].endswith(f"with --out '{out}' --resume")
