"""`distill` and `train-teacher`: refused requests, whole runs, notes and early ends."""

import json
import os
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
import torch

from distill.recipe import recipes
from distill.runs.journal import Journal, read
from distill.runs.run_folder import RunFolder
from distill.training import loop
from tests.cli.command_line import (
    ALONE,
    SMALL,
    RunCli,
    after_each_epoch,
    assert_refused,
    write_batches,
    write_pets,
)


def test_missing_images_are_refused(run_cli: RunCli) -> None:
    assert_refused(
        run_cli("distill", *SMALL, *ALONE, "--data", "nowhere"), "data source 'nowhere' is nei"
    )
    assert_refused(
        run_cli("distill", *SMALL, *ALONE, "--data", "cifar10"), "CIFAR-10 is in none of these"
    )
    assert_refused(run_cli("data", "info", "nowhere"), "data source 'nowhere' is neither")
    assert list(Path().iterdir()) == [], "a refused run must leave nothing behind"


def test_truncated_batch_file_is_named(run_cli: RunCli, tmp_path: Path) -> None:
    folder = write_batches(tmp_path / "set")
    whole = (folder / "data_batch_3").read_bytes()
    (folder / "data_batch_3").write_bytes(whole[:6000])
    found = "data_batch_3: truncated, 6,000 bytes, while its images need 12,288"
    assert_refused(
        run_cli("distill", *SMALL, *ALONE, "--data", folder), f"1 fault in {folder}", found
    )


def test_one_unreadable_image_is_named(run_cli: RunCli, pets: Path) -> None:
    (pets / "train" / "dog" / "7.png").write_bytes(b"no image")
    result = run_cli("distill", *SMALL, *ALONE, "--data", pets)
    assert_refused(result, f"1 fault in {pets}", "train/dog/7.png: unreadable")


def test_existing_run_folder_is_refused(run_cli: RunCli, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.toml").touch()
    result = run_cli("distill", *SMALL, *ALONE, "--out", tmp_path / "run")
    assert_refused(
        result, f"{tmp_path / 'run'} already contains a run.\nContinue it with --resume", lines=2
    )


@pytest.mark.parametrize("out", ["file", "file/run"])
def test_file_is_refused_as_run_folder(run_cli: RunCli, tmp_path: Path, out: str) -> None:
    (tmp_path / "file").touch()
    result = run_cli("distill", *SMALL, *ALONE, "--out", tmp_path / out)
    file = tmp_path / "file"
    assert_refused(result, f"{tmp_path / out} cannot be a run folder: {file} is a file.", lines=2)


@pytest.mark.skipif(sys.platform != "linux", reason="not even root writes in /proc")
def test_unwritable_folder_is_refused(run_cli: RunCli) -> None:
    result = run_cli("distill", *SMALL, *ALONE, "--out", "/proc/run")
    assert_refused(
        result, "/proc/run cannot be a run folder: nothing can be written in /proc (", lines=2
    )


def test_missing_teacher_is_refused_with_advice(run_cli: RunCli, pets: Path) -> None:
    result = run_cli("distill", *SMALL, "--data", pets)
    assert_refused(result, "none was named", "runs/", "train-teacher --recipe tiny --set loss.kd=")


def test_teacher_of_other_classes_is_refused(run_cli: RunCli, teacher: Path, pets: Path) -> None:
    result = run_cli("distill", *SMALL, "--data", pets, "--teacher", teacher)
    assert_refused(result, f"teacher {teacher} has 10 classes, the data has 2")


def test_every_unsuitable_teacher_is_named(
    run_cli: RunCli, teacher: Path, pets: Path, tmp_path: Path
) -> None:
    shutil.copytree(teacher, tmp_path / "bare")
    (tmp_path / "bare" / "teacher.safetensors").unlink()
    both = ["--teacher", tmp_path / "bare", "--teacher", teacher]
    result = run_cli("distill", *SMALL, "--data", pets, *both)
    assert_refused(result, f"{tmp_path / 'bare'} has no teacher.safetensors", "has 10 classes")
    result = run_cli("distill", *SMALL, "--data", pets, "--teacher", "runs/none")
    assert_refused(result, "runs/none is not a run: there is no such folder")


@pytest.mark.long
def test_train_distill_evaluate_and_resume(run_cli: RunCli, tmp_path: Path) -> None:
    data = write_pets(tmp_path / 'it\'s "my" 🐈')
    result = run_cli("train-teacher", *SMALL, *ALONE, "--data", data, "--out", "runs/teacher")
    assert result.code == 0
    assert "teacher" in result.out
    assert "epoch 2/2" in result.err
    assert run_cli("distill", *SMALL, *ALONE, "--data", data, "--out", "runs/alone").code == 0

    distilled = run_cli(
        "distill", *SMALL, "--data", data
    )  # the teacher that is there, a folder of its own
    assert distilled.code == 0
    (run,) = (path for path in Path("runs").iterdir() if path.name.startswith("tiny-"))
    assert re.search(r"^teacher +runs/teacher, ", distilled.err, re.MULTILINE)
    assert re.search(rf"^run +{run}$", distilled.err, re.MULTILINE)
    assert recipes.read(run / "recipe.toml").data.source == str(data)
    rows = re.findall(r"^(\S.*?)  ", distilled.out, re.MULTILINE)
    assert rows == ["teacher", "alone", "distilled"]
    kinds = [row["event"] for row in read(RunFolder(run).journal)]
    assert kinds == ["start", *[*["step"] * 3, "epoch"] * 2, "end"]

    measured = json.loads(run_cli("evaluate", run, "--json").out)
    assert (measured["n"], measured["data"]) == (16, str(data))
    again = run_cli("distill", *SMALL, "--data", data, "--out", run, "--resume")
    assert again.code == 0 and "distilled" in again.out
    other = ["--resume", "--set", "optim.lr=0.5"]
    changed = run_cli("distill", *SMALL, "--data", data, "--out", run, *other)
    assert changed.code == 2 and re.search(r"optim.lr: .* -> 0.5", changed.err)
    assert again.err == f"{run} is finished: nothing to do.\n"


@pytest.mark.long
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 143), (signal.SIGHUP, 143)],
)
def test_stopped_run_names_commands_to_continue_and_finish(
    run_cli: RunCli, pets: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(number)
    command = ["distill", *SMALL, *ALONE, "--data", str(pets)]
    with monkeypatch.context() as patched:
        after_each_epoch(patched, lambda: os.kill(os.getpid(), number))
        result = run_cli(*command)
    assert (result.code, result.out) == (code, "")
    assert "Traceback" not in result.err
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(number)) == handlers

    with monkeypatch.context() as patched:
        after_each_epoch(patched, lambda: os.kill(os.getpid(), number))
        several = run_cli("seeds", *SMALL, *ALONE, "--data", pets, "--n", 2, "--out", "s")
    assert several.code == code
    again = "Stopped after step 4, and saved. To continue, type the same command again"
    assert several.err.splitlines()[-1] == again

    (run,) = Path("runs").iterdir()
    advice, finish = result.err.splitlines()[-2:]
    assert advice == (
        "Stopped after step 4, and saved. To continue, type the same command with "
        f"--out {run} --resume"
    )
    assert finish == f"Or end it with its best weights so far: python cli.py finish {run}"
    resumed = run_cli(*command, *shlex.split(advice.split("with ")[-1]))
    assert resumed.code == 0
    assert re.search(r"^resumed +at step 4$", resumed.err, re.MULTILINE)
    assert RunFolder(run).is_finished


@pytest.mark.long
def test_hangup_ignored_by_nohup_is_ignored(
    run_cli: RunCli, pets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    after_each_epoch(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGHUP))
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        result = run_cli("distill", *SMALL, *ALONE, "--data", pets, "--out", "runs/x")
    finally:
        signal.signal(signal.SIGHUP, before)
    assert result.code == 0, result.err
    assert RunFolder(Path("runs/x")).is_finished


@pytest.mark.long
def test_note_names_a_replaced_network(run_cli: RunCli, pets: Path) -> None:
    Path("mine.toml").write_text("[student]\nwidth = 5\n[teacher]\nwiden = 2\n")
    result = run_cli("distill", *SMALL, "--recipe", "tiny+mine.toml", *ALONE, "--data", pets)
    assert result.code == 0, result.err
    notes = re.findall(r"^note: (.* replaces .*)$", result.err, re.MULTILINE)
    assert notes == [
        "mine replaces the network of tiny: ResNet [1, 1] 4-8 -> ResNet [1, 1] 5-10"
    ], "a student's run does not train the teacher"
    result = run_cli("recipes", "fast_teacher+two_cores")
    assert result.err == (
        "note: two_cores replaces the network of fast_teacher: ResNet [1, 1, 1] 128-384-512 pooled "
        "-> WRN-16-2\n"
    )


@pytest.mark.long
def test_note_lists_keys_without_effect(run_cli: RunCli, pets: Path) -> None:
    idle = ["loss.hard.weight=0", "loss.hard.label_smoothing=0.1", "loss.kd.weight=0"]
    more = [*idle, "loss.mse={}", "train.validate_both=true", "loss.at=false"]
    sets = [word for each in more for word in ("--set", each)]
    assert run_cli("train-teacher", *SMALL, *ALONE, "--data", pets, "--out", "runs/t").code == 0
    result = run_cli("distill", *SMALL, *sets, "--data", pets)
    assert result.code == 0, result.err
    notes = re.findall(r"^note: (.*)$", result.err, re.MULTILINE)
    assert [note for note in notes if "no effect" in note or "nothing" in note] == [
        "--set loss.at=false removes nothing: the terms of the recipe are hard, kd, mse",
        "loss.hard.label_smoothing = 0.1 has no effect: loss.hard.weight is 0; type "
        "--set loss.hard.weight=1 to train on labels",
        "train.validate_both = true has no effect: the recipe has no [ema], so there is one "
        "network to measure; type --set ema={} for averaged weights",
    ]


@pytest.mark.long
def test_a_diverged_run_fails_with_one_message(run_cli: RunCli, pets: Path) -> None:
    wild = ["--set", "optim.lr=1e30"]
    result = run_cli("distill", *SMALL, *ALONE, *wild, "--data", pets, "--out", "runs/x")
    assert (result.code, result.out) == (1, "")
    assert "Traceback" not in result.err
    happened, look, advice = result.err.splitlines()[-3:]
    assert happened == "The run in runs/x failed: the loss or its gradient is not finite in step 2."
    assert look == "To repeat that step: python cli.py replay runs/x --step 2"
    assert "--set optim.clip=1" in advice and "--set train.retries=3" in advice
    again = run_cli("replay", "runs/x", "--step", 2, "--json")
    assert again.code == 0 and not json.loads(again.out)["is_finite"]


def test_a_device_without_enough_memory_is_one_message(
    run_cli: RunCli, pets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever process runs out of memory prints it."""
    monkeypatch.setattr("distill.cli.stdout_and_stderr.is_main", lambda: False)
    monkeypatch.setattr(sys, "__stderr__", message := StringIO())

    def fill(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nmore")

    monkeypatch.setattr(loop, "step", fill)
    result = run_cli("distill", *SMALL, *ALONE, "--data", pets, "--out", "runs/x")
    assert (result.code, result.out) == (1, "")
    full = "the device's memory is full: CUDA out of memory. Tried to allocate 9 GiB.\n"
    assert full in message.getvalue()
    assert "--set train.accumulate=2, the same batch in smaller parts" in message.getvalue()


def allocate_too_much(*_: object) -> None:
    torch.empty(10**14)


def too_large_for_numpy(*_: object) -> None:
    raise MemoryError("Unable to allocate 7.11 PiB for an array with shape (1000000000000000,)")


@pytest.mark.parametrize(
    ("fill", "message"),
    [
        (allocate_too_much, "the host's memory is full: 400000.0 GB more could not be allocated"),
        (too_large_for_numpy, "the host's memory is full: Unable to allocate 7.11 PiB for an"),
    ],
)
def test_a_host_without_enough_memory_is_one_message(
    run_cli: RunCli,
    pets: Path,
    monkeypatch: pytest.MonkeyPatch,
    fill: Callable[..., None],
    message: str,
) -> None:
    """On a CPU torch raises a bare RuntimeError."""
    monkeypatch.setattr(sys, "__stderr__", stderr := StringIO())
    monkeypatch.setattr(loop, "step", fill)
    result = run_cli("distill", *SMALL, *ALONE, "--data", pets, "--out", "runs/x")
    assert (result.code, result.out) == (1, "")
    assert f"The run in runs/x failed: {message}" in stderr.getvalue()
    assert "A step has 8 images (train.batch_size). " in stderr.getvalue()
    assert "--set train.accumulate=2, the same batch in smaller parts" in stderr.getvalue()
    assert "Traceback" not in result.err + stderr.getvalue()


def test_unexpected_error_has_its_traceback(
    run_cli: RunCli, pets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def burn(*_: object) -> None:
        raise ZeroDivisionError("one over zero")

    monkeypatch.setattr(Journal, "__call__", burn)
    with pytest.raises(ZeroDivisionError, match="one over zero"):
        run_cli("distill", *SMALL, *ALONE, "--data", pets)
