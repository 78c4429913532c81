"""Checkpoints: at any step, verified, and the one before where the disk damaged the newest."""

import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from distill.errors import Failure, UserError
from distill.events import End, Epoch, Start, Step
from distill.models import checkpoint, torch_files
from distill.models.checkpoint import DamagedCheckpoint
from distill.recipe import recipes
from distill.runs import journal
from distill.runs.journal import Journal, read
from distill.runs.run_folder import RunFolder
from distill.training import loop, run
from distill.training import resume as checkpoints
from distill.training.signals import Request, Stopped
from distill.training.train_state import BestEpoch, TrainState
from tests.make_runs import prepared, train, two_epochs
from tests.training.test_run import digest, same

pytestmark = pytest.mark.long


def journalled(
    out: Path, overrides: list[str], *, resume: bool = False, stop_at: int | None = None
) -> RunFolder:
    """A run as the CLI trains it, with its journal, stopped after so many steps."""
    resolved = recipes.load("tiny", overrides)
    request = run.TrainingRequest("student", resolved.recipe, "tiny", out, resume)
    journal = Journal(RunFolder(out).journal)
    for event in run.train_and_test(request):
        journal(event)
        if isinstance(event, Step) and event.step == stop_at:
            request.stop.request = Request.TERMINATE
    return RunFolder(out)


def records(folder: RunFolder) -> list[dict[str, object]]:
    """The journal without what a clock says, and without the heads of resumed runs."""
    rows = [row for row in read(folder.journal) if row["event"] != "start"]
    times = {"at", "elapsed_s", "total_s", "remaining_s", "weights"}
    for row in rows:
        row["metrics"].pop("images_per_s", None)
    return [{k: v for k, v in row.items() if k not in times} for row in rows]


PARTIAL = ("train.batch_size=60", "train.drop_last=false")  # 320 images: 5 of 60, one of 20


def with_partial_batches(teacher: Path) -> list[str]:
    return [*two_epochs(teacher), *PARTIAL, "train.save_every=2", "cache={}"]


@pytest.fixture(scope="module")
def partial(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run with partial batches that was not interrupted."""
    return journalled(tmp_path_factory.mktemp("partial") / "whole", with_partial_batches(teacher))


@pytest.mark.parametrize("stop_at", [5, 6, 8])
def test_run_with_partial_batches_resumes_bit_for_bit(
    teacher: Path, partial: RunFolder, tmp_path: Path, stop_at: int
) -> None:
    """Stopped before and after the partial batch of the first epoch, and within the second."""
    options = with_partial_batches(teacher)
    assert [row["step"] for row in records(partial) if row["event"] == "epoch"] == [6, 12]
    with pytest.raises(Stopped):
        journalled(tmp_path / "run", options, stop_at=stop_at)
    resumed = journalled(tmp_path / "run", options, resume=True)
    assert same(partial, resumed)
    assert records(partial) == records(resumed)


def test_milestones_survive_a_resume(teacher: Path, tmp_path: Path) -> None:
    """10 steps an epoch: the rate falls after the first and the third epoch, to the step."""
    options = [
        *two_epochs(teacher),
        "train.epochs=4",
        "optim.schedule=milestones",
        "optim.milestones=[1, 3]",
        "optim.gamma=0.1",
        "optim.warmup_epochs=0.5",
    ]
    with pytest.raises(Stopped):
        journalled(tmp_path / "run", options, stop_at=14)
    rows = records(journalled(tmp_path / "run", options, resume=True))
    rates = [row["metrics"]["lr"] for row in rows if row["event"] == "step"]  # type: ignore[index]
    warmed = [0.01, 0.02, 0.03, 0.04, *[0.05] * 6]
    assert rates == pytest.approx([*warmed, *[0.005] * 20, *[0.0005] * 10])


@pytest.fixture(scope="module")
def whole(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return journalled(tmp_path_factory.mktemp("whole") / "run", two_epochs(teacher))


@pytest.mark.parametrize("stop_at", [1, 10, 13, 20])
def test_stopped_at_any_step_and_resumed_is_uninterrupted(
    whole: RunFolder, teacher: Path, tmp_path: Path, stop_at: int
) -> None:
    """Weights, averages, optimizer, files, and a journal without gap or repeat, bit for bit."""
    with pytest.raises(Stopped, match=f"stopped after step {stop_at}, and saved") as stopped:
        journalled(tmp_path / "run", two_epochs(teacher), stop_at=stop_at)
    assert stopped.value.code == 143
    assert checkpoint.load(tmp_path / "run" / "last")[1]["step"] == stop_at
    resumed = journalled(tmp_path / "run", two_epochs(teacher), resume=True)
    assert same(whole, resumed)
    assert digest(whole.weights("student")) == digest(resumed.weights("student"))
    assert records(whole) == records(resumed)


def test_stop_during_validation_repeats_the_validation(
    whole: RunFolder, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolved = recipes.load("tiny", two_epochs(teacher))
    request = run.TrainingRequest("student", resolved.recipe, "tiny", tmp_path / "run")
    journal, measure = Journal(tmp_path / "run" / "journal.jsonl"), run.loop.evaluate_network

    def interrupt(*given: object) -> object:
        if request.stop.can_wait:  # not of the teacher, before the loop
            request.stop.request = Request.INTERRUPT
        return measure(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(run.loop, "evaluate_network", interrupt)
    with pytest.raises(Stopped):
        for event in run.train_and_test(request):
            assert not isinstance(event, Epoch)
            journal(event)
    monkeypatch.undo()
    resumed = journalled(tmp_path / "run", two_epochs(teacher), resume=True)
    assert same(whole, resumed) and records(whole) == records(resumed)


@pytest.mark.parametrize("how", ["train.save_steps=3", "train.save_minutes=1e-6"])
def test_in_middle_of_epoch_it_is_saved_too(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    steps, save = [], checkpoints.save
    monkeypatch.setattr(
        checkpoints, "save", lambda training: (steps.append(training.step), save(training))
    )
    train(tmp_path / "run", *two_epochs(teacher), how)
    every = 3 if "steps" in how else 1
    assert steps[0] == 0 and steps[-1] == 20 and set(range(every, 10, every)) <= set(steps)


def test_how_often_is_saved_changes_no_bit(whole: RunFolder, teacher: Path, tmp_path: Path) -> None:
    often, _ = train(tmp_path / "often", *two_epochs(teacher), "train.save_steps=1")
    assert same(whole, often)
    assert digest(whole.weights("student")) == digest(often.weights("student"))


def flipped(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at // 8] ^= 1 << at % 8
    path.write_bytes(bytes(content))


def cut(path: Path, at: int) -> None:
    path.write_bytes(path.read_bytes()[: at // 8])


@pytest.mark.parametrize("damage", [flipped, cut])
@pytest.mark.parametrize("name", ["state.pt", "progress.json"])
def test_damage_anywhere_is_noticed(
    whole: RunFolder, tmp_path: Path, name: str, damage: Callable[[Path, int], None]
) -> None:
    chance = random.Random(0)
    for trial in range(25):
        last = tmp_path / str(trial)
        shutil.copytree(whole.last, last)
        damage(last / name, chance.randrange(8 * (last / name).stat().st_size - 16))
        with pytest.raises(
            DamagedCheckpoint, match="is damaged: its (sha256|progress.json) is not"
        ):
            checkpoint.load(last)


def test_previous_checkpoint_is_used_with_a_note(
    whole: RunFolder, teacher: Path, tmp_path: Path
) -> None:
    with pytest.raises(Stopped):
        journalled(tmp_path / "run", [*two_epochs(teacher), "train.save_steps=3"], stop_at=8)
    flipped(tmp_path / "run" / "last" / "state.pt", 12_345)
    resumed = RunFolder(tmp_path / "run")
    resolved = recipes.load("tiny", [*two_epochs(teacher), "train.save_steps=3"])
    request = run.TrainingRequest("student", resolved.recipe, "tiny", resumed.path, resume=True)
    start, *_, end = list(run.train_and_test(request))
    assert isinstance(start, Start) and start.first_step == 6 and isinstance(end, End)
    assert start.notes[0].endswith(
        "last is damaged: its sha256 is not the one it was written with: resumed from the "
        "previous one, after step 6"
    )
    assert same(whole, resumed)
    assert (tmp_path / "run" / "last.damaged").exists()
    assert checkpoint.read_progress(tmp_path / "run" / "last.old") is not None


def test_weights_damaged_at_the_end_are_no_student(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = checkpoints.save

    def save_and_damage(training: TrainState) -> None:
        save(training)
        for path in training.folder.best.glob("epoch-*"):
            if training.step == 20:
                flipped(path, 9_999)

    monkeypatch.setattr(checkpoints, "save", save_and_damage)
    with pytest.raises(Failure, match="is not the file that its run wrote: its sha256 differs"):
        train(tmp_path / "run", *two_epochs(teacher))
    assert not RunFolder(tmp_path / "run").is_finished


def test_saving_interval_may_change_on_resuming(teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        journalled(tmp_path / "run", two_epochs(teacher), stop_at=13)
    train(tmp_path / "run", *two_epochs(teacher), "train.retries=3", "train.save_steps=1",
          resume=True)  # fmt: skip


def test_damaged_weights_of_the_best_epoch_are_noticed(teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        journalled(tmp_path / "run", two_epochs(teacher), stop_at=13)
    [best] = RunFolder(tmp_path / "run").best.iterdir()
    flipped(best, 9_999)
    with pytest.raises(
        UserError,
        match=r"epoch-1.safetensors is damaged\nNo checkpoint is left: start again in another",
    ):
        train(tmp_path / "run", *two_epochs(teacher), resume=True)


def test_where_none_is_sound_all_are_named(whole: RunFolder, teacher: Path, tmp_path: Path) -> None:
    shutil.copytree(whole.path, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    for name in ("last", "last.old"):
        (tmp_path / "run" / name / "progress.json").write_text("{")
    with pytest.raises(
        UserError,
        match=r"last is damaged: .*\n.*last.old is damaged: .*\nNo checkpoint is left: start again",
    ):
        train(tmp_path / "run", *two_epochs(teacher), resume=True)


def test_a_kill_between_the_renames_leaves_one(whole: RunFolder, tmp_path: Path) -> None:
    shutil.copytree(whole.last, tmp_path / "last.old")
    shutil.copytree(whole.last, tmp_path / "last.new")
    found = checkpoint.load(checkpoint.checkpoint_folders(tmp_path / "last")[1])
    checkpoint.save(tmp_path / "last", *found)
    assert {path.name for path in tmp_path.iterdir()} == {"last", "last.old"}


def test_a_checkpoint_of_another_format_is_refused(whole: RunFolder, tmp_path: Path) -> None:
    last = tmp_path / "last"
    shutil.copytree(whole.last, last)
    progress = json.loads((last / "progress.json").read_text())
    (last / "progress.json").write_text(json.dumps({"format": 1, "step": progress["step"]}))
    with pytest.raises(UserError, match="is a checkpoint of format 1; this program reads 2"):
        checkpoint.load(last)


def test_a_full_disk_leaves_what_was_there(
    whole: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(whole.last, tmp_path / "last")
    before = (tmp_path / "last" / "state.pt").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full)  # type: ignore[attr-defined]
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(tmp_path / "last", *checkpoint.load(tmp_path / "last"))
    assert (tmp_path / "last" / "state.pt").read_bytes() == before
    assert [path.name for path in tmp_path.rglob("*") if ".pt" in path.name] == ["state.pt"]


BEST = {"epoch": 1, "metrics": {"top1/val": 0.5}, "weights": ""}
SOUND = {
    "role": "student", "step": 10, "epoch": 1, "total_steps": 10, "compiled": False,
    "elapsed_s": 2.0, "retries": 0, "lr_factor": 1.0,
    "best": BEST,
}  # fmt: skip


def forged(folder: Path, progress: dict[str, object]) -> RunFolder:
    """A checkpoint whose digest is right, whatever it says."""
    (folder / "last").mkdir(parents=True)
    progress |= {"format": checkpoint.FORMAT}
    described = progress | {"sha256": checkpoint.digest_of(b"", progress)}
    (folder / "last" / "state.pt").write_bytes(b"")
    (folder / "last" / "progress.json").write_text(json.dumps(described))
    return RunFolder(folder)


def test_best_epoch_must_be_that_of_journal(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    checkpoints._check_journal(folder, folder.last, BestEpoch(1, {"top1/val": 0.9}))  # no journal
    measured = {"loss/total": 1.0, "top1/val": 0.5, "nll/val": math.inf}
    rows = [Epoch(1, 10, measured, True, 1.0, 1.0), Epoch(2, 20, measured, False, 1.0, 1.0)]
    folder.journal.write_text("".join(journal.line(row) + "\n" for row in rows))
    for sound in ({}, {"top1/val": 0.5}, {"top1/val": 0.5, "nll/val": math.nan}):
        checkpoints._check_journal(folder, folder.last, BestEpoch(1, sound))
    message = r"last contradicts journal.jsonl: epoch 1 has top1/val = 0.9000 instead of 0.5000."
    with pytest.raises(UserError, match=message):
        checkpoints._check_journal(folder, folder.last, BestEpoch(1, {"top1/val": 0.9}))
    with pytest.raises(UserError, match=r"epoch 1 has top1/val_ema = 0.5000 instead of nan"):
        checkpoints._check_journal(folder, folder.last, BestEpoch(1, {"top1/val_ema": 0.5}))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"best": {"epoch": "../../x", "metrics": {}, "weights": "a"}}, "has 'best.epoch'"),
        ({"best": [1]}, "has 'best'"),
        ({"best": {}}, "has no best.epoch, best.metrics, best.weights"),
        ({"step": "7"}, "has 'step'"),
        ({"best": BEST | {"metrics": {"top1/val": 17.0}}}, "has 'best.metrics': top1/val = 17.0"),
        ({"best": BEST | {"metrics": {"top1/val": float("nan")}}}, "has 'best.metrics': top1/val"),
        ({"best": BEST | {"metrics": {"top1/test": 0.9}}}, "has 'best.metrics': 'top1/test' is no"),
        ({"elapsed_s": None}, "has 'elapsed_s'"),
        ({"lr_factor": float("nan")}, "has 'lr_factor'"),
    ],
)
def test_wrong_fields_of_a_checkpoint_are_named(
    tmp_path: Path, change: dict[str, object], fault: str
) -> None:
    place, damaged = checkpoints._newest_sound(forged(tmp_path, SOUND | change))
    assert place is None
    assert f"last is damaged: its progress.json {fault}" in damaged[0]


def test_state_of_another_network_is_refused(tmp_path: Path) -> None:
    training = prepared("loss.kd=false", "loss.hard.weight=1.0")
    training.folder = RunFolder(tmp_path)
    tensors = {"student": {"weight": torch.ones(2)}, "optimizer": {}, "losses": {}}
    checkpoint.save(tmp_path / "last", tensors, SOUND | training.identity)
    with pytest.raises(UserError, match="state of this run: its student has no head.bias"):
        checkpoints.resume(training)


def test_state_that_torch_cannot_load_is_damaged(tmp_path: Path) -> None:
    with pytest.raises(
        DamagedCheckpoint, match="last is damaged: its state.pt is not what torch.save writes"
    ):
        checkpoint.load(forged(tmp_path, dict(SOUND)).last)


def test_full_memory_is_no_damage_of_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be set aside, and the run would go on from an older one."""
    training = prepared("loss.kd=false", "loss.hard.weight=1.0")
    training.folder = RunFolder(tmp_path)
    tensors = {"student": {}, "optimizer": {}, "losses": {}}
    checkpoint.save(tmp_path / "last", tensors, SOUND | training.identity)
    monkeypatch.setattr(checkpoints, "restore", lambda *_: torch.empty(10**14))
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        checkpoints.resume(training)
    monkeypatch.setattr(torch_files, "_load_archive", lambda *_, **__: torch.empty(10**14))
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        checkpoint.load(tmp_path / "last")


def test_only_own_files_in_best_are_deleted(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    own = ["epoch-1.safetensors", ".epoch-12.safetensors.0123456789ab"]
    others = ["epoch-12.pth", "epoch-x.safetensors", ".epoch-notes", "epoch-1.safetensors.bak"]
    folder.best.mkdir()
    for name in (*own, *others):
        (folder.best / name).touch()
    checkpoints._delete_unreferenced_weights(folder)
    assert {path.name for path in folder.best.iterdir()} == set(others)


@pytest.mark.parametrize("name", ["best", "epochs", "last"])
def test_folder_that_became_a_link_is_left(tmp_path: Path, name: str) -> None:
    """It may lead to the weights of another run."""
    state = prepared("loss.kd=false", "loss.hard.weight=1", "train.keep_epochs=1")
    state.folder, state.epoch, state.epochs_to_save = RunFolder(tmp_path / "run"), 1, frozenset({1})
    foreign = tmp_path / "foreign" / "epoch-7.safetensors"
    foreign.parent.mkdir()
    foreign.write_bytes(b"weights")
    state.folder.path.mkdir()
    (state.folder.path / name).symlink_to(foreign.parent)
    for save in (checkpoints.save, loop._save_epoch_weights):
        with pytest.raises(UserError, match=f"{name} is a symbolic link: a run writes and deletes"):
            save(state)
    assert [*foreign.parent.iterdir()] == [foreign] and foreign.read_bytes() == b"weights"
