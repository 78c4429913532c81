"""`finish`: its messages, and what the other commands make of the run."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from distill.data.sources import load_data_set
from distill.errors import Failure
from distill.events import Step
from distill.runs import journal, lock
from distill.runs.run_folder import RunFolder
from tests.cli.command_line import ALONE, RunCli, after_each_epoch, assert_refused, unfolded
from tests.export.test_export import ELSEWHERE

pytestmark = pytest.mark.long

TRAIN = ["distill", "--recipe", "tiny", *ALONE, "--set", "train.epochs=3", "--set", "ema.decay=0.9"]
EARLY = "after 1 of 3 planned epochs (step 10 of 30)"


def interrupt() -> None:
    """End a training after the checkpoint of its first epoch, in its second."""
    raise Failure("cut off")


@pytest.fixture
def stopped(run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run that failed in its second epoch."""
    folder, epochs = RunFolder(tmp_path / "run"), [1]
    with monkeypatch.context() as patch:
        after_each_epoch(patch, lambda: interrupt() if not epochs.pop() else epochs.append(0))
        assert run_cli(*TRAIN, "--out", folder.path).code == 1
    assert journal.read(folder.journal)[-1]["epoch"] == 2
    return folder


def test_journal_without_a_recipe_is_refused(run_cli: RunCli, stopped: RunFolder) -> None:
    first, *others = stopped.journal.read_text().splitlines(keepends=True)
    row = json.loads(first)
    del row["recipe"]
    stopped.journal.write_text("".join([json.dumps(row) + "\n", *others]))
    refused = run_cli("finish", stopped.path)
    assert refused.code == 2
    assert "journal.jsonl is damaged: the event `start` lacks recipe." in refused.err


def test_cut_off_run_becomes_a_run_like_others(
    run_cli: RunCli, stopped: RunFolder, tmp_path: Path
) -> None:
    done = run_cli("finish", stopped.path)
    assert done.code == 0, done.err
    assert f"run was finished early, {EARLY}." in unfolded(done.err)
    assert "alone" in done.out
    rows = journal.events(stopped.journal)
    assert [event.step for event in rows if isinstance(event, Step)] == list(range(1, 11))

    evaluated = run_cli("evaluate", stopped.path, "--json")
    top1 = json.loads(evaluated.out)["top1"]
    assert stopped.result()["metrics"]["top1/test"] == top1
    listed = run_cli("runs", stopped.path)
    assert "finished early" in listed.out and "10/30" in listed.out
    (row,) = json.loads(run_cli("runs", stopped.path, "--json").out)
    assert (row["state"], row["is_early"], row["top1_test"]) == ("finished", True, top1)

    np.save(tmp_path / "images.npy", load_data_set.load("synthetic", "test").images[:4])
    predicted = run_cli("predict", stopped.path, "-i", tmp_path / "images.npy")
    assert predicted.code == 0, predicted.err
    page = run_cli("report", stopped.path)
    assert page.code == 0, page.err
    html = Path(page.out.strip()).read_text()
    assert f"finished early, {EARLY}" in html
    assert f"The commands train to the end. This run was finished early, {EARLY}." in html


def test_grader_measures_what_evaluate_does(
    run_cli: RunCli, stopped: RunFolder, tmp_path: Path
) -> None:
    assert run_cli("finish", stopped.path).code == 0
    out = tmp_path / "hand-in"
    formats = ("-f", "project1", "-f", "torch-export", "-f", "safetensors")
    exported = run_cli("export", stopped.path, *formats, "--out", out)
    assert exported.code == 0, exported.err
    card = unfolded((out / "README.md").read_text())
    assert f"3 epochs, finished early {EARLY}, weights of epoch 1" in card
    assert f"They train to the end; this run was finished early, {EARLY}:" in card
    code = unfolded((out / "project1_model.py").read_text())
    assert f"recipe tiny and finished early, {EARLY}." in code and "for 3 epochs" not in code
    test = load_data_set.load("synthetic", "test")
    np.savez(tmp_path / "test.npz", images=test.images, labels=test.labels)
    graded = subprocess.run(
        [sys.executable, "-I", "-c", ELSEWHERE, out, tmp_path / "test.npz"],
        capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    evaluated = json.loads(run_cli("evaluate", stopped.path, "--json").out)
    assert json.loads(graded.stdout)["top1"] == evaluated["top1"]


def test_moved_images_and_teacher_can_be_named(
    run_cli: RunCli, pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = ["--set", "train.batch_size=8", "--set", "data.train_images=24", "--data", pets]
    train = ["train-teacher", "--recipe", "tiny", *ALONE, *few, "--out", tmp_path / "teacher"]
    assert run_cli(*train).code == 0
    distil = ["distill", "--recipe", "tiny", *few, "--teacher", tmp_path / "teacher"]
    with monkeypatch.context() as patch:
        after_each_epoch(patch, interrupt)
        often = ["--set", "train.save_steps=1"]
        assert run_cli(*distil, *often, "--out", tmp_path / "run").code == 1
    pets.rename(tmp_path / "animals")
    (tmp_path / "teacher").rename(tmp_path / "moved")
    assert_refused(run_cli("finish", tmp_path / "run"), "pets")
    places = ["--data", tmp_path / "animals", "--teacher", tmp_path / "moved"]
    done = run_cli("finish", tmp_path / "run", *places)
    assert done.code == 0, done.err
    assert run_cli("evaluate", tmp_path / "run", "--data", tmp_path / "animals").code == 0


def test_finished_run_is_refused(run_cli: RunCli, distilled: tuple[RunFolder, object]) -> None:
    path = distilled[0].path
    result = run_cli("finish", path)
    assert_refused(
        result, f"run {path} is finished already", f"python cli.py evaluate {path}", lines=2
    )


def test_training_run_is_refused(run_cli: RunCli, stopped: RunFolder) -> None:
    with lock.lock_run_folder(stopped.path):
        result = run_cli("finish", stopped.path)
    assert_refused(
        result,
        f"{stopped.path} is in use: process ",
        f"type python cli.py finish {stopped.path} again; or wait",
        lines=2,
    )


def test_run_without_checkpoint_is_refused(run_cli: RunCli, stopped: RunFolder) -> None:
    for name in ("last", "last.old"):
        shutil.rmtree(stopped.path / name)
    assert_refused(
        run_cli("finish", stopped.path),
        f"run {stopped.path} has no checkpoint, so it has no weights to finish with.",
        "Continue it: python cli.py distill --recipe tiny ",
        lines=2,
    )


def test_damaged_run_is_refused(run_cli: RunCli, stopped: RunFolder) -> None:
    kept = stopped.recipe.read_text()
    stopped.recipe.write_text("[train]\nepochs = 'many'\n")
    assert_refused(run_cli("finish", stopped.path), "train.epochs")
    stopped.recipe.write_text(kept)
    shutil.rmtree(stopped.path / "last.old")
    (stopped.last / "progress.json").write_text("{")
    assert_refused(
        run_cli("finish", stopped.path),
        f"run {stopped.path} cannot be finished: the progress.json of its checkpoint is damaged.",
        "train again in another --out",
        lines=2,
    )


def test_folder_without_a_run_is_refused(run_cli: RunCli, tmp_path: Path) -> None:
    assert_refused(run_cli("finish", tmp_path / "none"), "is not a run: there is no such folder")


def test_resuming_a_run_finished_early_is_refused(run_cli: RunCli, stopped: RunFolder) -> None:
    assert run_cli("finish", stopped.path).code == 0
    before = sorted(path.name for path in stopped.path.rglob("*"))
    resumed = run_cli(*TRAIN, "--out", stopped.path, "--resume")
    assert_refused(
        resumed, f"{stopped.path} was finished early, {EARLY}", "Or delete", "another --out"
    )
    assert sorted(path.name for path in stopped.path.rglob("*")) == before
    assert_refused(run_cli("finish", stopped.path), "is finished already")
