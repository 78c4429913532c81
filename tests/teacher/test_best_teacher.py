"""Which finished teacher is taken if none is named, and what is noted of the choice."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from distill.events import End, Start
from distill.runs.run_folder import RunFolder
from distill.teacher.best_teacher import choose_best
from tests.make_runs import train

DAYS = {"monday": "2026-01-05T00:00:00Z", "tuesday": "2026-01-06T00:00:00Z"}


def edited(
    teacher: Path, out: Path, day: str, n_held_out: int | None = None, **metrics: Any
) -> Path:
    """A copy of a teacher's run that finished on another day, with other accuracies."""
    shutil.copytree(teacher, out)
    result = json.loads((out / "result.json").read_text())
    result["finished_at"] = DAYS[day]
    if n_held_out is not None:
        result["data"]["val_images"] = n_held_out
    others = {name: value for name, value in result["metrics"].items() if "top1/val" not in name}
    result["metrics"] = others | {f"top1/{split}": value for split, value in metrics.items()}
    (out / "result.json").write_text(json.dumps(result))
    return out


@pytest.mark.long
def test_the_better_teacher_is_taken_not_the_newest(teacher: Path, tmp_path: Path) -> None:
    edited(teacher, tmp_path / "older", "monday", val_ema=0.28)
    edited(teacher, tmp_path / "newer", "tuesday", val_ema=0.16)
    folder, events = train(tmp_path / "student")
    start = events[0]
    assert isinstance(start, Start) and start.teacher == str(tmp_path / "older")
    n = json.loads((teacher / "result.json").read_text())["data"]["val_images"]
    [note] = [each for each in start.notes if "no --teacher" in each]
    assert note == (
        f"no --teacher was given: {tmp_path / 'older'} is used, the best of 2 on the same "
        f"{n:,} held-out images, 28.00 %; the next is {tmp_path / 'newer'}, 16.00 %"
    )
    assert isinstance(events[-1], End)
    assert folder.result()["teacher"]["runs"] == [str(tmp_path / "older")]


def test_newest_teacher_wins_without_hold_out(teacher: Path, tmp_path: Path) -> None:
    older = edited(teacher, tmp_path / "older", "monday", 0)
    newer = edited(teacher, tmp_path / "newer", "tuesday", 0)
    chosen, [note] = choose_best([RunFolder(older), RunFolder(newer)], 0)
    assert chosen.path == newer
    assert note == (
        f"no --teacher was given: {newer} is used, the newest of 2, since they have no accuracy "
        f"on the same held-out images; the next is {older}"
    )


def test_teachers_with_same_hold_out_come_first(teacher: Path, tmp_path: Path) -> None:
    """An accuracy on other images is no reason to take a teacher."""
    same = edited(teacher, tmp_path / "same", "monday", 500, val=0.3)
    other = edited(teacher, tmp_path / "other", "tuesday", 1000, val=0.9)
    chosen, [note] = choose_best([RunFolder(other), RunFolder(same)], 500)
    assert chosen.path == same
    assert note.endswith(
        "is used, the only one with 500 held-out images, 30.00 %; not compared, "
        f"because they held out other images: {other}"
    )


def test_accuracies_on_different_images_are_not_compared(teacher: Path, tmp_path: Path) -> None:
    older = edited(teacher, tmp_path / "older", "monday", 500, val=0.9)
    newer = edited(teacher, tmp_path / "newer", "tuesday", 1000, val=0.3)
    chosen, [note] = choose_best([RunFolder(older), RunFolder(newer)], 0)
    assert chosen.path == newer and "the newest of 2, since they have no accuracy" in note


def test_accuracy_of_best_weights_counts(teacher: Path, tmp_path: Path) -> None:
    """With `train.validate_both` the network itself is measured too, but the average is saved."""
    both = edited(teacher, tmp_path / "both", "monday", 500, val=0.9, val_ema=0.2)
    own = edited(teacher, tmp_path / "own", "monday", 500, val=0.3)
    assert choose_best([RunFolder(both), RunFolder(own)], 500)[0].path == own


def test_of_equally_good_teachers_the_newest(teacher: Path, tmp_path: Path) -> None:
    older = edited(teacher, tmp_path / "older", "monday", 500, val=0.3)
    newer = edited(teacher, tmp_path / "newer", "tuesday", 500, val=0.3)
    assert choose_best([RunFolder(older), RunFolder(newer)], 500)[0].path == newer


def test_a_teacher_alone_is_taken_without_a_note(teacher: Path, tmp_path: Path) -> None:
    alone = RunFolder(edited(teacher, tmp_path / "alone", "monday", 500, val=0.3))
    assert choose_best([alone], 500) == (alone, [])


def test_teacher_with_a_confirmed_accuracy_comes_first(teacher: Path, tmp_path: Path) -> None:
    """One without predictions of its held-out images, or with another journal, comes last."""
    true = RunFolder(shutil.copytree(teacher, tmp_path / "true"))
    n = true.result()["data"]["val_images"]
    forged = RunFolder(edited(teacher, tmp_path / "forged", "tuesday", n, val=0.99))
    assert choose_best([forged, true], n)[0] == true
    forged.evaluation.unlink()
    assert choose_best([forged, true], n)[0] == true


@pytest.mark.long
def test_run_found_by_two_paths_is_one_teacher(
    teacher: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """The folder beside --out may be `runs/` itself."""
    monkeypatch.chdir(tmp_path)
    edited(teacher, tmp_path / "runs" / "teacher", "monday", val_ema=0.28)
    _, events = train(tmp_path / "runs" / "student")
    start = events[0]
    assert isinstance(start, Start) and not [n for n in start.notes if "no --teacher" in n]
