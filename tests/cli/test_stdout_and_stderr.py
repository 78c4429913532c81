"""Which process prints, and what the others print if they fail."""

import sys
from io import StringIO

import pytest

from distill.cli import stdout_and_stderr
from distill.cli.stdout_and_stderr import is_main
from distill.errors import RaisedByAll
from tests.cli.command_line import RunCli


@pytest.mark.parametrize("size", ["1", "", "abc", "0", "-1"])
def test_single_process_is_first_despite_rank(size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """RANK may be left over from another program."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", size)
    assert is_main()


def test_second_of_two_is_not_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, first in (("0", True), ("1", False)):
        monkeypatch.setenv("RANK", rank)
        assert is_main() == first


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that this process would have waited."""
    seconds: list[float] = []
    monkeypatch.setattr("distill.cli.stdout_and_stderr.time.sleep", seconds.append)
    return seconds


@pytest.fixture
def second(monkeypatch: pytest.MonkeyPatch) -> StringIO:
    """What this process prints as the second of two."""
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "1"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "__stderr__", printed := StringIO())
    return printed


def test_second_process_prints_its_error_late(
    run_cli: RunCli, second: StringIO, waits: list[float]
) -> None:
    """Its launcher ends it before that if the first process failed alike."""
    result = run_cli("evaluate", "nowhere")
    assert (result.code, result.out, result.err) == (2, "", "")
    assert second.getvalue().startswith("process 1: nowhere is not a run")
    assert waits == [stdout_and_stderr.FAILURE_DELAYS_S[1]]


def test_error_of_all_is_printed_once(
    run_cli: RunCli, second: StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise RaisedByAll("refused")

    monkeypatch.setattr("distill.runs.run_folder.open_finished", refuse)
    result = run_cli("evaluate", "run")
    assert (result.code, result.err, second.getvalue()) == (2, "", "")


def test_lost_process_is_one_message(
    run_cli: RunCli, second: StringIO, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends after the other has printed why it failed."""

    def lose(*_: object) -> None:
        raise RuntimeError("[gloo/transport/tcp/pair.cc:456] Connection closed by peer")

    monkeypatch.setattr("distill.runs.run_folder.open_finished", lose)
    result = run_cli("evaluate", "run")
    assert (result.code, result.err) == (1, "")
    assert second.getvalue().startswith("The command failed: another of its processes ended")
    assert waits == [stdout_and_stderr.LOST_DELAY_S] and waits[0] > max(
        stdout_and_stderr.FAILURE_DELAYS_S
    )


def test_error_of_program_keeps_its_traceback(
    run_cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr("distill.runs.run_folder.open_finished", fail)
    with pytest.raises(RuntimeError, match="shapes"):
        run_cli("evaluate", "run")
