"""A loss or gradient that is not finite: reported, not saved, rolled back and replayed."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from distill.errors import UserError
from distill.models import checkpoint
from distill.recipe import recipes
from distill.runs.run_folder import RunFolder
from distill.training import loop, run
from distill.training.divergence import Diverged, DivergenceMonitor
from distill.training.reproduce_step import repeat_step
from distill.training.signals import Stopped
from tests.make_runs import two_epochs
from tests.training.test_resume import journalled, read

NAN, ONE = torch.tensor(float("nan")), torch.tensor(1.0)


@pytest.mark.parametrize(("loss", "gradient"), [(NAN, ONE), (ONE, NAN), (NAN, None)])
def test_on_a_cpu_it_is_known_at_once(loss: torch.Tensor, gradient: torch.Tensor | None) -> None:
    watch = DivergenceMonitor(Accelerator())
    watch.record(1, ONE, ONE)
    with pytest.raises(Diverged, match="not finite in step 7"):
        watch.record(7, loss, gradient)


def test_deferred_divergence_names_the_first_step() -> None:
    watch = DivergenceMonitor(Accelerator())
    watch.at_once = False
    for step, loss in ((1, ONE), (2, NAN), (3, ONE), (4, NAN)):
        watch.record(step, loss, ONE)
    with pytest.raises(Diverged, match="not finite in step 2"):
        watch.raise_if_diverged()
    watch.reset()
    watch.raise_if_diverged()


def poisoned(monkeypatch: pytest.MonkeyPatch, at: int, times: int = 1) -> None:
    """The learning rate is well; step `at` (from 0) has a gradient that is not, so many times."""
    left = [times]
    norm = loop.clip_gradient

    def clipped(training: loop.TrainState) -> torch.Tensor | None:
        if training.step == at and left[0]:
            left[0] -= 1
            for parameter in training.parameters():
                assert parameter.grad is not None
                parameter.grad.fill_(float("nan"))
        return norm(training)

    monkeypatch.setattr(loop, "clip_gradient", clipped)


@pytest.mark.long
def test_it_reaches_neither_weights_nor_checkpoint(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned(monkeypatch, at=13)
    with pytest.raises(Diverged, match="not finite in step 14") as diverged:
        journalled(tmp_path / "run", [*two_epochs(teacher), "train.save_steps=4"])
    assert diverged.value.step == 14
    tensors, progress = checkpoint.load(tmp_path / "run" / "last")
    assert progress["step"] == 10
    assert all(tensor.isfinite().all() for tensor in tensors["student"].values())


@pytest.mark.long
def test_rollback_lowers_rate_as_often_as_allowed(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned(monkeypatch, at=13, times=2)
    sets = [*two_epochs(teacher), "train.save_steps=4", "train.retries=2", "train.retry_lr=0.1"]
    folder = journalled(tmp_path / "run", sets)
    rows = read(folder.journal)
    retries = [row for row in rows if row["event"] == "retry"]
    assert [(row["diverged_step"], row["first_step"]) for row in retries] == [(14, 10), (14, 10)]
    assert [row["lr_factor"] for row in retries] == pytest.approx([0.1, 0.01])
    steps = [row["step"] for row in rows if row["event"] == "step"]
    assert steps == list(range(1, 21)), "each step once"
    rates = {row["step"]: row["metrics"]["lr"] for row in rows if row["event"] == "step"}
    assert rates[11] < 0.01 * rates[10]
    assert checkpoint.load(folder.last)[1]["retries"] == 2


@pytest.mark.long
def test_without_a_retry_left_it_ends(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned(monkeypatch, at=13, times=3)
    resolved = recipes.load("tiny", [*two_epochs(teacher), "train.retries=2"])
    events = run.train_and_test(
        run.TrainingRequest("student", resolved.recipe, "tiny", tmp_path / "run")
    )
    seen: list[object] = []
    with pytest.raises(Diverged, match="not finite in step 14"):
        seen.extend(events)  # extend keeps what came before
    events.close()  # type: ignore[attr-defined]


@pytest.mark.long
def test_any_step_can_be_seen_again(teacher: Path, tmp_path: Path) -> None:
    """Its losses and rate are the journal's, whatever checkpoint it begins at."""
    sets = [*two_epochs(teacher), "train.save_steps=4"]
    with pytest.raises(Stopped):
        journalled(tmp_path / "run", sets, stop_at=17)
    folder = RunFolder(tmp_path / "run")
    rows = {r["step"]: r["metrics"] for r in read(folder.journal) if r["event"] == "step"}
    before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    for step, begins_at in ((3, 0), (16, 14), (17, 14)):
        taken = repeat_step(folder, step)
        assert taken["from_step"] == begins_at and taken["is_finite"]
        for name in ("loss/hard", "loss/kd", "loss/total", "lr"):
            assert taken[name] == rows[step][name], (step, name)
        assert taken["gradient_norm"] > 0
    assert before == {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}


@pytest.mark.long
def test_a_step_that_diverged_shows_what_it_was(teacher: Path, tmp_path: Path) -> None:
    sets = [f"teacher.runs=['{teacher}']", "optim.lr=1e30", "optim.schedule='constant'"]
    with pytest.raises(Diverged) as diverged:
        journalled(tmp_path / "run", sets)
    taken = repeat_step(RunFolder(tmp_path / "run"), diverged.value.step)
    assert taken["step"] == diverged.value.step and not taken["is_finite"]


def test_a_step_that_is_none(finished_run: RunFolder) -> None:
    with pytest.raises(UserError, match=r"--step 21 is not a step of .*; allowed: 1 to 20"):
        repeat_step(finished_run, 21)
    with pytest.raises(UserError, match=r"--step 0 is not a step of"):
        repeat_step(finished_run, 0)


@pytest.fixture
def finished_run(distilled: tuple[RunFolder, object]) -> RunFolder:
    return distilled[0]


def test_a_run_without_checkpoint_has_no_steps(teacher: Path, tmp_path: Path) -> None:
    recipe = RunFolder(teacher).recipe.read_text()
    (tmp_path / "recipe.toml").write_text(recipe)
    with pytest.raises(UserError, match="has no checkpoint, so none of its steps can be repeated"):
        repeat_step(RunFolder(tmp_path), 1)
