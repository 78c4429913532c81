"""Runs that were cut off and finished with the best weights that they had."""

import json
import re
import shutil
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from distill.components.build_accelerator import evaluation_accelerator
from distill.components.build_network import load_trained
from distill.components.data_pipeline import split_images
from distill.data.sources import load_data_set
from distill.errors import Failure, UserError
from distill.evaluation.evaluate_run import evaluate_run
from distill.evaluation.predict_split import evaluate_network
from distill.events import End, Epoch, Start, Step
from distill.models import checkpoint
from distill.recipe import recipe_variants, recipes
from distill.runs import read_predictions, read_run_folder, seed_groups, teacher_student_summary
from distill.runs.list_runs import list_runs
from distill.runs.run_folder import Role, RunFolder, early_end
from distill.terminal.runs_table import state_text
from distill.training.run import TrainingRequest, train_and_test
from tests.make_runs import EFFICIENT, Events, train, two_epochs
from tests.training.test_run import digest

pytestmark = pytest.mark.long

ALONE = ("loss.kd=false", "loss.hard.weight=1", "train.epochs=3")


def cut_off(
    out: Path, *overrides: str, step: int, epochs: int = 0, role: Role = "student"
) -> RunFolder:
    """A run whose process is gone after `step` steps and `epochs` epochs, as by a kill."""
    recipe = recipes.load("tiny", overrides).recipe
    with closing(train_and_test(TrainingRequest(role, recipe, "tiny", out))) as events:
        for event in events:
            if isinstance(event, Step | Epoch) and (event.step, event.epoch) == (step, epochs):
                break
        else:
            raise AssertionError("the run ended before")
    return RunFolder(out)


def finish(folder: RunFolder, role: Role = "student") -> Events:
    request = TrainingRequest(
        role, recipes.read(folder.recipe), "tiny", folder.path, resume=True, ends_early=True
    )
    return list(train_and_test(request))


@pytest.fixture(scope="module")
def stopped(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A student with averaged weights and held-out images, killed in its second epoch."""
    out = tmp_path_factory.mktemp("runs") / "stopped"
    held_out = "data.holdout=0.1"
    return cut_off(out, *two_epochs(teacher), held_out, step=12, epochs=1)


@pytest.fixture(scope="module")
def finished(stopped: RunFolder) -> RunFolder:
    """A copy of it, finished early."""
    copy = RunFolder(Path(shutil.copytree(stopped.path, stopped.path.with_name("finished"))))
    finish(copy)
    return copy


def test_best_epoch_becomes_the_final_weights(stopped: RunFolder, finished: RunFolder) -> None:
    result = finished.result()
    per_epoch = 10
    assert result["finished_early"] == {
        "epochs": 1, "planned_epochs": 2, "steps": per_epoch, "planned_steps": 2 * per_epoch,
    }  # fmt: skip
    assert (result["epoch"], result["epochs"]) == (1, 2)
    assert digest(finished.weights("student")) == digest(stopped.best / "epoch-1.safetensors")
    assert result["weights"] == digest(finished.weights("student"))
    assert result["evaluation"] == digest(finished.evaluation)


def test_it_is_measured_as_a_run_like_others(finished: RunFolder) -> None:
    result, measured = finished.result(), evaluate_run(finished)
    assert result["metrics"]["top1/test"] == measured["top1"]
    assert result["metrics"]["nll/test"] == pytest.approx(measured["nll"])
    predictions = read_predictions.read_run(finished)
    assert predictions is not None and predictions.teacher_logits is not None
    assert predictions.val_logits is not None
    assert len(predictions.val_logits) == result["data"]["val_images"] > 0
    top1 = float(np.mean(predictions.val_logits.argmax(1) == predictions.val_labels))
    assert result["metrics"]["top1/val_ema"] == pytest.approx(top1)


def test_forged_accuracy_leaves_the_run_unfinished(tmp_path: Path, stopped: RunFolder) -> None:
    run = RunFolder(Path(shutil.copytree(stopped.path, tmp_path / "run")))
    state, progress = checkpoint.read_verified(run.last)
    progress["best"]["metrics"]["top1/val_ema"] = 0.99
    described = progress | {"sha256": checkpoint.digest_of(state, progress)}
    (run.last / "progress.json").write_text(json.dumps(described))
    with pytest.raises(Failure, match=r"last/progress.json has top1/val_ema = 99.00 %, but the"):
        finish(run)
    assert not run.is_finished
    shutil.copy(stopped.last / "progress.json", run.last)
    finish(run)
    assert run.is_finished


def test_files_of_the_training_remain(stopped: RunFolder, finished: RunFolder) -> None:
    for name in ("recipe.toml", "environment.json", "last/state.pt"):
        assert digest(finished.path / name) == digest(stopped.path / name), name


def test_without_hold_out_last_epoch_is_used(tmp_path: Path) -> None:
    averaged = "ema.decay=0.9"
    folder = cut_off(tmp_path / "run", *ALONE, averaged, "data.holdout=0", step=25, epochs=2)
    finish(folder)
    tensors, progress = checkpoint.load(folder.last)
    assert progress["epoch"] == folder.result()["epoch"] == 2
    final = load_file(folder.weights("student"))
    assert all(final[name].equal(value) for name, value in tensors["ema"].items())
    assert not any(
        final[name].equal(value)
        for name, value in tensors["student"].items()
        if name.endswith("conv.weight")
    )
    assert {name.split("/")[1] for name in folder.result()["metrics"]} == {"test"}


@pytest.mark.parametrize("part", ["student", "ema"])
def test_before_first_epoch_current_weights_are_used(tmp_path: Path, part: str) -> None:
    averaged = ["ema.decay=0.9"] if part == "ema" else []
    often = "train.save_steps=2"
    folder = cut_off(tmp_path / "run", *ALONE, *averaged, "data.holdout=0.25", often, step=5)
    finish(folder)
    tensors, progress = checkpoint.load(folder.last)
    final, result = load_file(folder.weights("student")), folder.result()
    assert all(final[name].equal(value) for name, value in tensors[part].items())
    assert progress["step"] == result["finished_early"]["steps"] == 4
    assert result["epoch"] == result["finished_early"]["epochs"] == 0
    images = load_data_set.load("synthetic", "train")
    held_out = split_images(recipes.read(folder.recipe), images).held_out
    assert held_out is not None
    measured = evaluate_network(load_trained(folder), held_out, evaluation_accelerator())
    name = "top1/val_ema" if part == "ema" else "top1/val"
    assert result["metrics"][name] == pytest.approx(measured["top1"])


def test_statistics_of_the_average_are_re_estimated(tmp_path: Path) -> None:
    folder = cut_off(tmp_path / "run", *EFFICIENT, "train.save_steps=2", step=5)
    finish(folder)
    tensors, _ = checkpoint.load(folder.last)
    final = load_file(folder.weights("student"))
    differing = {name for name, value in tensors["ema"].items() if not final[name].equal(value)}
    assert differing
    assert all(re.search("running_|num_batches_tracked", name) for name in differing)


@pytest.mark.parametrize("step", [5, 14])
def test_deleted_result_lets_a_run_continue_unchanged(tmp_path: Path, step: int) -> None:
    overrides = [*ALONE, "ema.decay=0.9", "train.save_steps=2", "data.holdout=0.25"]
    epochs = step // 7
    folder = cut_off(tmp_path / "run", *overrides, step=step, epochs=min(epochs, 1))
    finish(folder)
    with pytest.raises(UserError, match="was finished early, after .* of 3 planned epochs"):
        train(folder.path, *overrides, resume=True)
    folder.result_file.unlink()
    train(folder.path, *overrides, resume=True)
    whole, _ = train(tmp_path / "whole", *overrides)
    assert digest(folder.weights("student")) == digest(whole.weights("student"))
    assert "finished_early" not in folder.result()
    assert {p.name for p in folder.best.iterdir()} == {p.name for p in whole.best.iterdir()}


def test_run_killed_before_its_test_is_not_early(tmp_path: Path) -> None:
    folder = cut_off(tmp_path / "run", *ALONE, step=30, epochs=3)
    (checkpoint_step,) = {checkpoint.load(folder.last)[1]["step"]}
    assert checkpoint_step < 30, "the last epoch's checkpoint is not written yet"
    whole, _ = train(tmp_path / "whole", *ALONE)
    shutil.rmtree(folder.last)
    shutil.copytree(whole.last, folder.last)
    shutil.rmtree(folder.best)
    shutil.copytree(whole.best, folder.best)
    events = finish(folder)
    assert [type(event) for event in events] == [Start, End]
    assert "finished_early" not in folder.result()
    assert digest(folder.weights("student")) == digest(whole.weights("student"))


def test_untrained_run_is_refused(tmp_path: Path) -> None:
    folder = cut_off(tmp_path / "run", *ALONE, step=2)
    with pytest.raises(
        UserError,
        match=r"has no checkpoint of a trained step.*\nContinue it: python cli.py distill ",
    ):
        finish(folder)
    assert not folder.is_finished


def test_damaged_checkpoint_falls_back_or_is_refused(tmp_path: Path, stopped: RunFolder) -> None:
    folder = RunFolder(Path(shutil.copytree(stopped.path, tmp_path / "run")))
    state = folder.last / "state.pt"
    state.write_bytes(state.read_bytes()[:-1])
    with pytest.raises(UserError, match="has no checkpoint of a trained step"):
        finish(folder)  # the previous one is of step 0
    (folder.path / "last.damaged").rename(folder.last)
    shutil.rmtree(folder.path / "last.old")
    with pytest.raises(UserError, match=r"last is damaged(?s:.*)No checkpoint is left"):
        finish(folder)


def test_other_images_are_refused(tmp_path: Path, stopped: RunFolder, pets: Path) -> None:
    folder = RunFolder(Path(shutil.copytree(stopped.path, tmp_path / "run")))
    recipe = recipe_variants.with_source(recipes.read(folder.recipe), str(pets))
    request = TrainingRequest("student", recipe, "tiny", folder.path, resume=True, ends_early=True)
    with pytest.raises(UserError):
        list(train_and_test(request))
    assert not folder.is_finished


def test_a_teacher_is_finished_too(tmp_path: Path) -> None:
    folder = cut_off(tmp_path / "run", *ALONE, step=15, epochs=1, role="teacher")
    finish(folder, "teacher")
    assert folder.result()["role"] == "teacher"
    assert folder.result()["metrics"]["top1/test"] == evaluate_run(folder)["top1"]
    student, _ = train(tmp_path / "student", f"teacher.runs=['{folder.path}']")
    assert student.result()["teacher"]["runs"] == [str(folder.path)]


def test_list_has_its_steps(finished: RunFolder) -> None:
    (row,) = list_runs(finished.path)
    assert (row.state, row.is_early, row.step, row.total_steps) == ("finished", True, 10, 20)
    assert state_text(row) == "finished early\n10/20"


def test_early_runs_are_no_seeds_of_whole_ones(tmp_path: Path) -> None:
    early = cut_off(tmp_path / "early", *ALONE, step=15, epochs=1)
    finish(early)
    whole, _ = train(tmp_path / "whole", *ALONE, "train.seed=1")
    groups = seed_groups.groups([read_run_folder.read(early), read_run_folder.read(whole)])
    assert [len(group.records) for group in groups] == [1, 1]


def test_early_run_is_no_control(tmp_path: Path, teacher: Path) -> None:
    early = cut_off(tmp_path / "alone", *ALONE, step=15, epochs=1)
    finish(early)
    runs = f"teacher.runs=['{teacher}']"
    student, _ = train(tmp_path / "student", runs, "train.epochs=3")
    assert teacher_student_summary.student_alone(student) is None
    content = json.loads(early.result_file.read_text())
    del content["finished_early"]
    early.result_file.write_text(json.dumps(content))
    assert teacher_student_summary.student_alone(student) == early


def test_early_end_is_described() -> None:
    early = {"epochs": 1, "planned_epochs": 300, "steps": 1200, "planned_steps": 39000}
    text = "after 1 of 300 planned epochs (step 1,200 of 39,000)"
    assert early_end({"finished_early": early}) == text
    assert early_end({}) == ""
