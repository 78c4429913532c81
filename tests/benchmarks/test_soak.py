"""The soak with small counts: every part runs, and its rows become the table."""

import json
import os
import pickle
import signal
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest

from benchmarks.soak import __main__ as soak
from benchmarks.soak import commands, names, pickles, run_files, watched
from benchmarks.soak.outcome import Outcome
from distill.files import redact_urls

pytestmark = pytest.mark.slow  # a benchmark's script, not the library

FAST = {"recipes": 300, "damage": 100, "pickles": 10, "archives": 10, "urls": 10}
ON_RUNS = {"names": 10, "folders": 4, "run_files": 18}  # these train some tiny runs first


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A page and results in a temporary folder."""
    path = tmp_path / "page.md"
    path.write_text(f"before\n{soak.BEGIN}\nold\n{soak.END}\nafter\n")
    monkeypatch.setattr(soak, "PAGE", path)
    monkeypatch.setattr(soak, "RESULTS", tmp_path / "results.json")
    for name in ("UNDERSTUDY_CACHE", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # what the soak sets is undone
    return path


@pytest.mark.parametrize("parts", [FAST, ON_RUNS], ids=["files", "runs"])
def test_hostile_files_are_refused_in_words(
    parts: dict[str, int], page: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tries = [f"--tries={part}={n}" for part, n in parts.items()]
    here = Path.cwd()
    with pytest.raises(SystemExit) as ended:
        soak.main([*parts, *tries])
    assert ended.value.code == 0, capsys.readouterr().out
    assert Path.cwd() == here
    known = json.loads(soak.RESULTS.read_text())
    assert list(known) == sorted(parts)
    for part, rows in known.items():
        assert all(row["tried"] == row["survived"] > 0 for row in rows), part
    lines = page.read_text().splitlines()
    assert lines[0] == "before" and lines[-1] == "after" and "old" not in lines
    assert sum(line.startswith("| ") for line in lines) == 2 + sum(map(len, known.values()))


def test_killed_processes_resume(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = [f"--tries={part}=1" for part in ("kills", "deaths")]
    with pytest.raises(SystemExit) as ended:
        soak.main(["kills", "deaths", *few])
    assert ended.value.code == 0, capsys.readouterr().out
    assert "| kill -9 at a random moment of the training | 1 | 1 |" in page.read_text()


def test_failed_tries_are_printed(
    page: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(*_: object) -> list[Outcome]:
        outcome = Outcome("rain", "an umbrella")
        outcome.count(True, "")
        outcome.count(False, "wet feet")
        return [outcome]

    monkeypatch.setitem(soak.PARTS, "names", failing)
    with pytest.raises(SystemExit) as ended:
        soak.main(["names"])
    assert ended.value.code == 1
    assert "| rain | 2 | 1 | an umbrella |" in page.read_text()
    assert capsys.readouterr().out.splitlines() == ["rain: 1 of 2", "wet feet"]
    with pytest.raises(SystemExit, match="2"):
        soak.main(["weather"])


# The attacks are attacks: without the defence they succeed, and the soak notices.


def test_code_that_runs_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read by plain pickle, a call of the soak leaves the mark."""
    neighbour = watched.Neighbour(tmp_path / "n")
    system = ("os", "system", lambda mark: (f"touch {mark}",))
    monkeypatch.setattr(pickles, "CALLS", [system])
    monkeypatch.setattr(pickles, "any_callable", lambda chance: ("os", "system"))
    for seed in range(20):
        with suppress(Exception):
            pickle.loads(b"\x80\x04" + pickles.call(str(neighbour.mark), Random(seed)) + b".")
    assert neighbour.change() == "code ran: the mark is there"
    assert neighbour.change() == ""


def test_a_changed_neighbour_is_noticed(tmp_path: Path) -> None:
    neighbour = watched.Neighbour(tmp_path / "n")
    assert neighbour.change() == ""
    (tmp_path / "n/epochs/epoch-9.safetensors").unlink()
    assert neighbour.change() == "a file outside the folder was written or deleted"
    (tmp_path / "n/new").symlink_to("file")
    assert neighbour.change() == "a file outside the folder was written or deleted"


@pytest.mark.parametrize(
    ("writer", "module", "function"),
    [
        (names._tables, "distill.report.table_html_csv_latex", "csv_cell"),
        (names._tables, "distill.report.table_html_csv_latex", "latex"),
        (names._html, "distill.report.page", "visible_lines"),
        (names._terminal, "distill.terminal.literal_console", "visible_lines"),
    ],
)
def test_a_writer_without_escapes_is_noticed(
    writer: "names.Write", module: str, function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    four = ["\x1b[31m", "=1+1", "\\input{x}", '""";x']
    assert writer(four) == ""
    monkeypatch.setattr(f"{module}.{function}", lambda text: text)
    assert writer(four)


def test_a_url_with_its_secret_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.soak.urls import url_secrets

    monkeypatch.setattr(redact_urls, "hide_secrets", lambda text: text)
    outcomes = url_secrets(tmp_path, 5, 0)
    assert [each.survived < each.tried for each in outcomes].count(True) >= 2


@pytest.mark.parametrize(
    ("ended", "fault"),
    [
        (commands.Ended(0, "", "fine", ""), ""),
        (commands.Ended(2, "", "", "runs/a/result.json is damaged"), ""),
        (commands.Ended(None, "KeyError: 'x'", "", ""), "KeyError: 'x'"),
        (commands.Ended(2, "", "", "it is damaged"), "a message without result.json"),
        (commands.Ended(1, "", "", "Traceback (most recent call last)"), "a traceback"),
        (commands.Ended(2, "", "", ""), "exit 2 without a message"),
        (commands.Ended(0, "", "\x1b[31m", ""), "prints"),
        (commands.Ended(137, "", "", "result.json"), "exit 137"),
    ],
)
def test_how_a_command_ended_is_judged(ended: commands.Ended, fault: str) -> None:
    found = commands.fault_of(ended, "result.json")
    assert found.startswith(fault) and bool(found) == bool(fault)


def test_a_command_that_hangs_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "LIMIT_S", 1)
    monkeypatch.setattr(commands.cli, "main", signal.pause)
    assert commands.run("runs").exception == "Hanging: runs for more than 1 s"


def test_a_command_that_fails_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise KeyError("metrics")

    monkeypatch.setattr(commands.cli, "main", fail)
    assert commands.run("runs").exception == "KeyError: 'metrics'"


def test_changes_of_files_reproduce_by_seed(tmp_path: Path) -> None:
    path = tmp_path / "result.json"

    def changed(seed: int) -> bytes:
        path.write_text(json.dumps({"role": "student", "metrics": {"top1/test": 0.5}}))
        run_files.FILES["result.json"](path, Random(seed))
        return path.read_bytes()

    assert changed(3) == changed(3)
    assert len({changed(seed) for seed in range(20)}) > 10
