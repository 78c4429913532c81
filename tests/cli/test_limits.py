"""Limits of the machine, and paths that it refuses: one message each."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

import cli
from tests.cli.command_line import REPO, RunCli, assert_refused

LONG = "a" * 300
LONG_PATHS = (
    ["evaluate", LONG], ["runs", LONG], ["report", LONG], ["compare", LONG, LONG],
    ["export", LONG, "--out", "x", "-f", "onnx"], ["predict", LONG, "--input", "x.png"],
)  # fmt: skip


@pytest.mark.parametrize("arguments", LONG_PATHS, ids=lambda arguments: arguments[0])
def test_a_path_that_is_too_long_is_refused(run_cli: RunCli, arguments: list[str]) -> None:
    result = run_cli(*arguments)
    assert (result.code, result.out) == (2, "")
    assert "File name too long" in result.err and len(result.err) < 400


@pytest.mark.parametrize(
    ("value", "found"),
    [(f"/{LONG}", "File name too long"), ("~no-such-user/x", "UNDERSTUDY_CACHE=")],
)
def test_a_cache_that_is_no_path_is_refused(
    run_cli: RunCli, monkeypatch: pytest.MonkeyPatch, value: str, found: str
) -> None:
    monkeypatch.setenv("UNDERSTUDY_CACHE", value)
    assert_refused(run_cli("cache", "info"), found)


@pytest.mark.parametrize(
    ("fault", "code", "found"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "x"), 1, "No space left on device (x)"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), 1, "Permission denied (x)"),
        (MemoryError(), 1, "The memory is too small"),
    ],
)
def test_a_limit_of_the_machine_is_one_message(
    run_cli: RunCli, monkeypatch: pytest.MonkeyPatch, fault: Exception, code: int, found: str
) -> None:
    def fail() -> None:
        raise fault

    monkeypatch.setattr(cli, "app", fail)
    result = run_cli()
    assert result.code == code and found in result.err and "Traceback" not in result.err


@pytest.mark.parametrize("fault", [FileNotFoundError(errno.ENOENT, "none"), ValueError("bug")])
def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, fault: Exception) -> None:
    def fail() -> None:
        raise fault

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(type(fault)):
        cli.main()


@pytest.mark.long
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_stdout_is_one_message() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, REPO / "cli.py", "recipes"],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 2 and "No space left on device" in done.stderr


def test_a_width_of_zero_columns_counts_as_unset(
    run_cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "0")
    assert "kd_cutmix" in run_cli("recipes").out


def test_values_in_a_foreign_file_are_hidden(run_cli: RunCli, tmp_path: Path) -> None:
    (tmp_path / "creds.toml").write_text('token = "hunter2"\n[aws]\nkey = "hunter3"\n')
    Path("mine").mkdir()
    Path("mine/own.toml").write_text('compose = ["kd", "../../creds.toml"]\nfoo = "shown"\n')
    result = run_cli("distill", "-r", "mine/own.toml")
    assert result.code == 2 and "token (" in result.err and "shown" in result.err
    assert "hunter" not in result.err + result.out
