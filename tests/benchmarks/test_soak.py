"""The soak in small: every part of it runs, and what it says becomes the table."""

import json
import pickle
from pathlib import Path

import pytest

from benchmarks.soak import __main__ as soak
from benchmarks.soak import files
from benchmarks.soak.outcome import Outcome
from distill.data.sources import unpickle


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A page and results of our own."""
    path = tmp_path / "page.md"
    path.write_text(f"before\n{soak.BEGIN}\nold\n{soak.END}\nafter\n")
    monkeypatch.setattr(soak, "PAGE", path)
    monkeypatch.setattr(soak, "RESULTS", tmp_path / "results.json")
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    return path


def test_what_needs_no_process_is_all_well(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        soak.main(
            ["recipes", "damage", "hostile", "--tries", "recipes=300", "--tries", "damage=100"]
        )
    assert ended.value.code == 0, capsys.readouterr().out
    known = json.loads(soak.RESULTS.read_text())
    tried = {row["fault"]: row["tried"] for rows in known.values() for row in rows}
    assert sum(n for fault, n in tried.items() if "a bit turned" in fault) >= 100
    assert tried["a recipe of random parts, keys, values and damage"] == 300
    assert tried["a hostile pickle, checkpoint or archive"] >= 20
    lines = page.read_text().splitlines()
    assert lines[0] == "before" and lines[-1] == "after" and "old" not in lines
    assert sum(line.startswith("| ") for line in lines) == 2 + len(tried)


@pytest.mark.slow
def test_real_processes_killed_stopped_and_bereft(
    page: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = [f"--tries={part}=1" for part in ("kills", "deaths")]
    with pytest.raises(SystemExit) as ended:
        soak.main(["kills", "deaths", *few])
    assert ended.value.code == 0, capsys.readouterr().out
    assert "| kill -9 at a random moment of the training | 1 | 1 |" in page.read_text()


def test_what_is_not_well_is_named_and_fails(
    page: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unwell(*_: object) -> list[Outcome]:
        outcome = Outcome("rain", "an umbrella")
        outcome.count(True, "")
        outcome.count(False, "wet feet")
        return [outcome]

    monkeypatch.setitem(soak.PARTS, "hostile", unwell)
    with pytest.raises(SystemExit) as ended:
        soak.main(["hostile"])
    assert ended.value.code == 1
    assert "| rain | 2 | 1 | an umbrella |" in page.read_text()
    assert capsys.readouterr().out.splitlines() == ["rain: 1 of 2", "wet feet"]
    with pytest.raises(SystemExit, match="2"):
        soak.main(["weather"])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a mark left open
def test_code_that_runs_would_be_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attacks are attacks: read by plain pickle they leave their mark."""
    monkeypatch.setattr(unpickle, "loads", pickle.loads)
    [outcome] = files.hostile(tmp_path, 1, 0)
    assert outcome.survived < outcome.tried
    assert any("os.system" in failure for failure in outcome.failures)
