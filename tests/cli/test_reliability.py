"""Real processes under signals, full disks and closed terminals: one message, nothing lost."""

import gzip
import hashlib
import os
import pty
import resource
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TextIO

import pytest

from distill.data.sources import download
from distill.models import checkpoint
from distill.runs.journal import read
from distill.runs.run_folder import RunFolder
from tests.cli.command_line import (
    ALONE,
    REPO,
    SMALL,
    CommandResult,
    RunCli,
    after_each_epoch,
    assert_refused,
)
from tests.forked_process import ForkedProcess

pytestmark = pytest.mark.long

LONG = ["--set", "train.epochs=100000"]


@pytest.fixture
def quiet(tmp_path: Path) -> dict[str, str]:
    return {"UNDERSTUDY_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def long_run(pets: Path, tmp_path: Path, quiet: dict[str, str]) -> Iterator[ForkedProcess]:
    """A run in `tmp_path/run` that would never end, in its first epochs."""
    out = ["--out", str(tmp_path / "run"), "--data", str(pets)]
    child = ForkedProcess(["cli.py", "distill", *SMALL, *ALONE, *out, *LONG], quiet)
    assert any(line.startswith("epoch 2/") for line in child.stderr), "it must have begun"
    yield child
    child.kill()
    child.communicate()


def saved_step(run: Path) -> int:
    step: int = checkpoint.load(run / "last")[1]["step"]
    return step


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 143), (signal.SIGHUP, 143)],
)
def test_signal_ends_step_saves_and_leaves_in_time(
    long_run: ForkedProcess, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    long_run.send_signal(number)
    began_at = time.monotonic()
    _, result = long_run.communicate(timeout=30)
    assert long_run.returncode == code and time.monotonic() - began_at < 10
    to_continue, to_finish = result.splitlines()[-2:]
    assert to_continue.startswith(
        f"Stopped after step {saved_step(tmp_path / 'run'):,}, and saved. To continue"
    )
    assert to_finish.startswith("Or end it with its best weights so far: python cli.py finish ")
    assert "Traceback" not in result
    rows = [row for row in read(RunFolder(tmp_path / "run").journal) if row["event"] == "step"]
    assert rows[-1]["step"] == saved_step(tmp_path / "run")


def test_second_run_in_a_folder_is_refused(
    long_run: ForkedProcess, run_cli: RunCli, pets: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    same = ("distill", *SMALL, *ALONE, *LONG, "--data", pets, "--out", run, "--resume")
    for command in (same, same[:-1]):  # with --resume and without
        assert_refused(
            run_cli(*command), f"{run} is in use: process {long_run.pid} on {socket.gethostname()}"
        )
    assert long_run.poll() is None


def test_to_resume_is_to_name_a_run(run_cli: RunCli, pets: Path) -> None:
    same = ("distill", *SMALL, *ALONE, "--data", pets, "--resume")
    assert_refused(
        run_cli(*same), "--resume continues a run, but no run was named.\nType it with --out RUN."
    )
    begun = Path("runs/begun")
    begun.mkdir(parents=True)
    (begun / "recipe.toml").touch()
    assert_refused(run_cli(*same), "Type it with --out RUN; unfinished there: runs/begun.")


def test_lock_of_a_killed_process_is_taken(
    long_run: ForkedProcess, run_cli: RunCli, pets: Path, tmp_path: Path
) -> None:
    long_run.kill()
    long_run.communicate()
    run = tmp_path / "run"
    tensors, progress = checkpoint.load(run / "last")
    epochs = progress["epoch"] + 1
    recipe = (run / "recipe.toml").read_text().replace("100000", str(epochs))
    (run / "recipe.toml").write_text(recipe)
    del progress["recipe"]  # so that the shorter recipe is taken for its own
    progress["total_steps"] = progress["total_steps"] // 100000 * epochs
    checkpoint.save(run / "last", tensors, progress)
    halves = run / ".result.json.0123456789ab", run / ".journal.jsonl.ba9876543210"
    for half in halves:
        half.touch()
    short = ["--set", f"train.epochs={epochs}"]
    same = ("distill", *SMALL, *ALONE, *short, "--data", pets, "--out", run, "--resume")
    assert f"process {long_run.pid} on {socket.gethostname()}" in run_cli(*same).err
    assert not any(half.exists() for half in halves), "what it had begun to write is gone"


def limited(size: int) -> None:
    """No file of this process may be larger."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_full_disk_ends_the_run_and_leaves_checkpoint(
    pets: Path, tmp_path: Path, quiet: dict[str, str]
) -> None:
    """The journal grows over what a file may have; what is saved is whole."""
    run = tmp_path / "run"
    command = [sys.executable, str(REPO / "cli.py"), "distill", *SMALL, *ALONE, *LONG]
    size = 60_000
    done = subprocess.run(
        [*command, "--data", str(pets), "--out", str(run)],
        env=os.environ | quiet, capture_output=True, text=True, timeout=120, check=False,
        preexec_fn=lambda: limited(size),
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    first, second = done.stderr.splitlines()[-2:]
    assert first == f"The run in {run} failed: File too large."
    assert second.startswith(
        "Its last checkpoint is intact. To continue, type the same command with "
    )
    assert "Traceback" not in done.stderr
    assert saved_step(run) > 0


def terminal(kind: str) -> tuple[TextIO, Callable[[], None]]:
    """A stream to write to, and what makes each further write fail."""
    if kind == "full disk":
        return open("/dev/full", "w", buffering=1), lambda: None
    reader, writer = pty.openpty() if kind == "closed terminal" else os.pipe()
    return open(writer, "w", buffering=1), partial(os.close, reader)


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        ("full disk", "No space"),
        ("closed pipe", "Broken pipe"),
        ("closed terminal", "Input/output"),
    ],
)
def test_a_terminal_that_fails_ends_no_run(
    run_cli: RunCli, pets: Path, monkeypatch: pytest.MonkeyPatch, kind: str, fault: str
) -> None:
    stream, lose = terminal(kind)
    done: list[int] = []

    def at_an_epoch() -> None:
        if not done:
            lose()
            with pytest.raises(OSError, match=fault):
                os.write(stream.fileno(), b"x")
        done.append(1)

    after_each_epoch(monkeypatch, at_an_epoch)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(sys, "stdout", stream)
    if kind == "full disk":  # which fails before the first epoch already
        done.append(0)
    result = run_cli("distill", *SMALL, *ALONE, "--data", pets, "--out", "runs/x")
    assert result.code == 0
    assert RunFolder(Path("runs/x")).is_finished
    stream.write("what is written later goes nowhere, and does not fail\n")
    stream.close()


@pytest.mark.parametrize("streams", [">/dev/full 2>&1", ">/dev/full 2>&-"])
def test_a_process_without_a_terminal_exits_with_0(
    streams: str, pets: Path, tmp_path: Path, quiet: dict[str, str]
) -> None:
    """Python's own flush at exit does not fail either."""
    command = [sys.executable, str(REPO / "cli.py"), "distill", *SMALL, *ALONE]
    typed = shlex.join([*command, "--data", str(pets), "--out", str(tmp_path / "run")])
    done = subprocess.run(
        f"{typed} {streams}", shell=True, env=os.environ | quiet, timeout=300, check=False
    )
    assert done.returncode == 0
    assert RunFolder(tmp_path / "run").is_finished


# Makes the terminal at stdin that of this session, and becomes the command.
OF_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_closed_terminal_saves_and_stops_the_run(
    pets: Path, tmp_path: Path, quiet: dict[str, str]
) -> None:
    """With the hangup that its session gets, as if somebody closed the window."""
    reader, writer = pty.openpty()
    command = [sys.executable, str(REPO / "cli.py"), "distill", *SMALL, *ALONE, *LONG]
    child = subprocess.Popen(
        [sys.executable, "-c", OF_TERMINAL, *command, "--data", pets, "--out", tmp_path / "run"],
        stdin=writer, stdout=writer, stderr=writer, env=os.environ | quiet, start_new_session=True,
    )  # fmt: skip
    os.close(writer)
    shown = b""
    while b"epoch 2/" not in shown:
        shown += os.read(reader, 4096)
    os.close(reader)
    assert child.wait(timeout=60) == 143
    rows = [row for row in read(RunFolder(tmp_path / "run").journal) if row["event"] == "step"]
    assert rows[-1]["step"] == saved_step(tmp_path / "run")


def test_teacher_and_images_that_go_while_it_trains(
    run_cli: RunCli, pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The teacher is in memory; the test images are wanted at the end, and asked for again."""
    distilled = run_cli(
        "train-teacher", "-r", "tiny", *SMALL[2:], *ALONE, "--data", pets, "--out", "t"
    )
    assert distilled.code == 0, distilled.err
    from distill.runs.journal import Journal

    write = Journal.__call__

    def write_and_move(journal: Journal, event: object) -> None:
        write(journal, event)  # type: ignore[arg-type]
        if type(event).__name__ == "Start":
            (pets / "test").rename(pets / "elsewhere")
            Path("t").rename("gone")

    same = ("distill", *SMALL, "--teacher", "t", "--data", pets, "--out", "s")
    with monkeypatch.context() as patched:
        patched.setattr(Journal, "__call__", write_and_move)
        result = run_cli(*same)
    assert result.code == 1 and "Traceback" not in result.err
    assert "Its last checkpoint is intact. To continue, type the same command" in result.err
    (pets / "elsewhere").rename(pets / "test")
    assert_refused(
        run_cli(*same, "--resume"),
        "teacher t is not a run: there is no such folder",
        "If its folder was moved, give the new one with --teacher RUN",
    )
    assert run_cli(*same, "--teacher", "gone", "--resume").code == 2  # two teachers
    moved = ("gone" if each == "t" else each for each in same)
    assert run_cli(*moved, "--resume").code == 0


def test_a_teacher_whose_weights_are_damaged_is_refused(run_cli: RunCli, pets: Path) -> None:
    def distilled(*more: object) -> CommandResult:
        return run_cli("distill", *SMALL, "--teacher", "t", "--data", pets, "--out", "s", *more)

    run_cli("train-teacher", "-r", "tiny", *SMALL[2:], *ALONE, "--data", pets, "--out", "t")
    weights = Path("t/teacher.safetensors")
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    assert_refused(distilled(), "t/teacher.safetensors is not the file that its run wrote")


def test_fetch_and_verify_from_the_command_line(
    run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = gzip.compress(b"images")
    archive = download.Archive("cifar-10-python.tar.gz", hashlib.md5(content).hexdigest(), 99, ())
    monkeypatch.setitem(download.ARCHIVES, "cifar10", archive)
    (tmp_path / "by hand").mkdir()
    placed = tmp_path / "by hand" / archive.name
    placed.write_bytes(content)
    found = run_cli("data", "fetch", "--into", placed.parent)
    line = f"{placed}: the official archive, md5 {archive.md5}; nothing was downloaded\n"
    assert (found.code, found.out) == (0, line)
    placed.write_bytes(content[:-1])
    assert_refused(
        run_cli("data", "fetch", "--into", placed.parent),
        f"Delete it or move it away, and type python cli.py data fetch --into {placed.parent}",
    )
    unreachable = run_cli(
        "data", "fetch", "--into", tmp_path / "new", "--mirror", "http://127.0.0.1:9/a"
    )
    assert unreachable.code == 1 and "Connection refused" in unreachable.err
    assert "give another address with --mirror URL" in unreachable.err


def test_other_images_do_not_verify(run_cli: RunCli, pets: Path) -> None:
    result = run_cli("data", "verify", pets)
    assert result.code == 1 and "but is not the published CIFAR-10" in result.err


RUN = """trap "sleep 0.2; echo saved >> calls; exit 143" TERM
echo {} "$@" > calls
while :; do sleep 0.05; done"""
CLUSTER = {
    "python": RUN.format(""),
    "accelerate": RUN.format("accelerate"),
    "srun": 'while [[ $1 == --* ]]; do shift; done; SLURM_NODEID=1 exec "$@"',
    "scontrol": '[[ $1 == show ]] && { echo node7; echo node8; } || echo "$@" >> calls',
}
MEETING = "--multi_gpu --num_machines 2 --num_processes 8 --main_process_ip node7"


@pytest.mark.parametrize(
    ("place", "command", "typed"),
    [
        ({}, "distill", "cli.py distill --out runs/a --resume"),
        ({}, "sweep", "cli.py sweep --out runs/a"),
        (
            {"SLURM_GPUS_ON_NODE": "4"},
            "distill",
            "accelerate launch --multi_gpu --num_processes 4 --main_process_port 20042 "
            "cli.py distill --out runs/a --resume",
        ),
        (
            {
                "SLURM_GPUS_ON_NODE": "4",
                "SLURM_JOB_NUM_NODES": "2",
                "SLURM_JOB_NODELIST": "node[7-8]",
            },
            "distill",
            f"accelerate launch --machine_rank 1 {MEETING} --main_process_port 20042 "
            "cli.py distill --out runs/a --resume",
        ),
    ],
)
def test_the_slurm_script_saves_and_queues_again(
    tmp_path: Path, place: dict[str, str], command: str, typed: str
) -> None:
    """With a scheduler of our own: a warning, the run's 143, and the job is queued again."""
    result = warned(tmp_path, place, command, signal.SIGUSR1)
    assert result == [typed, "saved", "requeue 42"]


def test_of_an_array_one_task_is_queued_again(tmp_path: Path) -> None:
    array = {"SLURM_ARRAY_JOB_ID": "42", "SLURM_ARRAY_TASK_ID": "7"}
    assert warned(tmp_path, array, "sweep", signal.SIGUSR1)[-1] == "requeue 42_7"


def test_second_signal_waits_until_the_run_has_saved(tmp_path: Path) -> None:
    result = warned(tmp_path, {}, "distill", signal.SIGUSR1, signal.SIGTERM)
    assert result == ["cli.py distill --out runs/a --resume", "saved"], (
        "cancelled after the warning"
    )


def test_cancelled_job_saves_and_is_not_requeued(tmp_path: Path) -> None:
    result = warned(tmp_path, {}, "distill", signal.SIGTERM)
    assert result == ["cli.py distill --out runs/a --resume", "saved"]


def warned(tmp_path: Path, place: dict[str, str], command: str, *by: signal.Signals) -> list[str]:
    """What the job's tools were asked, line by line."""
    tools = tmp_path / ".venv" / "bin"
    tools.mkdir(parents=True)
    for name, text in CLUSTER.items():
        (tools / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (tools / name).chmod(0o755)
    environ = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "42"} | place
    path = {"PATH": f"{tools}:{os.environ['PATH']}"}
    script = [str(REPO / "docs" / "slurm.sh"), command, "--out", "runs/a"]
    job = subprocess.Popen(script, env=os.environ | environ | path)
    result = tmp_path / "calls"
    while not result.exists() or not result.read_text():
        time.sleep(0.01)
    for each in by:
        job.send_signal(each)
        time.sleep(0.05)
    assert job.wait(10) == 143
    return result.read_text().splitlines()
