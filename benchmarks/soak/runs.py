"""Disturb real processes by kills, signals, dead ranks and full disks, then resume the run."""

import hashlib
import itertools
import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import cli
from benchmarks.soak.outcome import Outcome
from distill.models import checkpoint
from distill.runs import journal
from distill.runs.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[2]
# Sixty steps with dropout, mixup, cutmix and EMA; checkpoints within epochs too.
SETTINGS = (
    "train.epochs=6", "train.save_steps=3", "mix.mixup.prob=0.3", "student.block_dropout=0.1",
)  # fmt: skip
NO_TEACHER = ("loss.kd=false", "loss.hard.weight=1.0")
ENDLESS = (*NO_TEACHER, "train.epochs=100000", "train.save_steps=3")
# Fields of an event that differ even between equal runs: times, and paths of the weights.
NOT_COMPARED = {"at", "elapsed_s", "remaining_s", "weights"}
START_S = 300.0  # longest time to wait for the start event of a run
KILLS_PER_RUN = 10  # a run is killed at most this often; then it may finish


class Process:
    """A process that runs `python cli.py COMMAND`, with its stderr in a file.

    It is forked from a server that has already imported the libraries, which saves some seconds per
    process; everything else is as in a terminal. `environ`: additional environment variables.
    """

    _context = multiprocessing.get_context("forkserver")
    _context.set_forkserver_preload(["cli", "distill.training.run", "distill.cli.train_commands"])

    def __init__(self, command: list[str], environ: dict[str, str], stderr: Path) -> None:
        self._stderr = stderr
        self._process = self._context.Process(target=_run_cli, args=(command, environ, stderr))
        self._process.start()

    @property
    def code(self) -> int | None:
        """The exit code; None while the process runs; -N after signal N."""
        return self._process.exitcode

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process; do nothing if it has exited."""
        if self.code is None and self._process.pid is not None:
            os.kill(self._process.pid, number)

    def wait(self, seconds: float | None = None) -> str:
        """Wait until the process exits, for at most `seconds`; return what it wrote to stderr."""
        self._process.join(seconds)
        return self._stderr.read_text(errors="replace")


def _run_cli(command: list[str], environ: dict[str, str], stderr: Path) -> None:
    """Run `python cli.py COMMAND` in the forked process.

    `environ`: additional environment variables. `stderr`: the file that receives stderr.
    """
    os.environ.update(environ)
    os.chdir(ROOT)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    sys.argv = [str(ROOT / "cli.py"), *command]
    cli.main()


class TinyRuns:
    """Starts the same short run in several folders, and compares each with an undisturbed one.

    The constructor trains the teacher and the undisturbed run in `folder`, if they do not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._numbers = itertools.count()  # thread-safe
        os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}  # before the first fork
        self.teacher = folder / "teacher"
        teacher = ["train-teacher", "-r", "tiny", *_options(NO_TEACHER), "--out", str(self.teacher)]
        if not RunFolder(self.teacher).is_finished:
            self._finish(teacher)
        self.undisturbed = RunFolder(folder / "undisturbed")
        if not self.undisturbed.is_finished:
            self._finish(self.command(self.undisturbed.path))

    def command(self, out: Path, *more: str) -> list[str]:
        """Return the command that trains the student into `out`; `more`: additional arguments."""
        return ["distill", "-r", "tiny+cutmix+ema", "--teacher", str(self.teacher),
                *_options(SETTINGS), "--out", str(out), *more]  # fmt: skip

    def start(self, command: list[str], **environ: str) -> Process:
        """Start a process with a command of the CLI, without waiting for it.

        `environ`: additional environment variables.
        """
        stderr = self.folder / f"stderr-{next(self._numbers)}"
        return Process(command, {"UNDERSTUDY_CACHE": str(self.folder / "cache")} | environ, stderr)

    def begin(self, command: list[str], out: Path, **environ: str) -> Process:
        """Start a process, and wait until its run has begun or it has exited.

        The run in `out` has begun when its journal has a new `start` event.
        """
        n_starts = _count_starts(out)
        child = self.start(command, **environ)
        until = time.monotonic() + START_S
        while child.code is None and _count_starts(out) == n_starts and time.monotonic() < until:
            time.sleep(0.01)
        return child

    def is_undisturbed(self, out: Path) -> bool:
        """Whether the run in `out` ended exactly as the undisturbed one.

        Compares every tensor of the last checkpoint, the sha256 of the weights, and the journal
        without its times.
        """
        run = RunFolder(out)
        return (
            run.is_finished
            and _tensors(run) == _tensors(self.undisturbed)
            and _events(run) == _events(self.undisturbed)
            and run.result()["weights"] == self.undisturbed.result()["weights"]
        )

    def _finish(self, command: list[str]) -> None:
        child = self.start(command)
        printed = child.wait()
        if child.code:
            raise RuntimeError(printed)


def kills(folder: Path, tries: int, seed: int) -> list[Outcome]:
    """Kill runs with SIGKILL at random moments of the training, `tries` times in total, and resume.

    Each run must end exactly as an undisturbed one.
    """
    runs = TinyRuns(folder)
    workers = min(2, len(os.sched_getaffinity(0)))
    shares = [tries // workers + (worker < tries % workers) for worker in range(workers)]
    with ThreadPoolExecutor(workers) as pool:
        pending = [
            pool.submit(
                _kill_and_resume, runs, f"killed-{seed}-{n}", share, random.Random(seed + n)
            )
            for n, share in enumerate(shares)
        ]
    outcome = Outcome(
        "kill -9 at a random moment of the training",
        "`--resume` continues the run and prints which process was killed",
    )
    for each in pending:
        for n_kills, is_well, out in each.result():
            for _ in range(n_kills):
                outcome.count(is_well, out)
    return [outcome]


def _kill_and_resume(
    runs: TinyRuns, name: str, tries: int, chance: random.Random
) -> list[tuple[int, bool, str]]:
    """Kill and resume runs, `tries` times in total; let each finish after at most KILLS_PER_RUN.

    `name`: prefix of the run folders. Returns for each run how often it was killed, whether it
    ended exactly as the undisturbed run, and its folder.
    """
    finished, left = [], tries
    while left > 0:
        out, killed = runs.folder / f"{name}-{left}", 0
        while not RunFolder(out).is_finished:
            child = runs.begin(runs.command(out, "--resume"), out)
            if killed < min(left, KILLS_PER_RUN):
                time.sleep(chance.uniform(0, 1.5))
                child.send(signal.SIGKILL)
            child.wait()
            killed += child.code == -signal.SIGKILL
        finished.append((killed, runs.is_undisturbed(out), str(out)))
        left -= killed
    return finished


def stops(folder: Path, tries: int, seed: int) -> list[Outcome]:
    """Send SIGTERM, SIGUSR1 and SIGINT to runs at random moments, `tries` times each.

    Each run must exit with its code within 10 s, and end exactly as an undisturbed one after it was
    resumed.
    """
    runs, chance = TinyRuns(folder), random.Random(seed)
    codes = {signal.SIGTERM: 143, signal.SIGUSR1: 143, signal.SIGINT: 130}
    return [_stop(runs, number, code, tries, chance) for number, code in codes.items()]


def _stop(
    runs: TinyRuns, number: signal.Signals, code: int, tries: int, chance: random.Random
) -> Outcome:
    """Send the signal `number` to `tries` runs, and resume them; `code`: the exit code required."""
    outcome = Outcome(
        f"{number.name} at a random moment of the training",
        f"the step that was saved and how to resume, exit {code} within 10 s",
        longest_s=0.0,
    )
    while outcome.tried < tries:
        out = runs.folder / f"stopped-{number.name}-{outcome.tried}"
        child = runs.begin(runs.command(out), out)
        time.sleep(chance.uniform(0, 1.5))
        sent_at = time.monotonic()
        child.send(number)
        printed = child.wait()
        if child.code == 0:  # it had finished before the signal
            shutil.rmtree(out)
            continue
        spent_s = time.monotonic() - sent_at
        runs.begin(runs.command(out, "--resume"), out).wait()
        is_well = child.code == code and spent_s < 10 and "--resume" in printed
        outcome.count(is_well and runs.is_undisturbed(out), f"{out}: {child.code} {printed}")
        outcome.longest_s = max(outcome.longest_s or 0.0, spent_s)
    return outcome


def deaths(folder: Path, tries: int, seed: int) -> list[Outcome]:
    """Kill one of the two processes of a run with SIGKILL, in `tries` runs.

    The other process must exit with code 1 within 60 s, and the run must resume.
    """
    runs, chance = TinyRuns(folder), random.Random(seed)
    outcome = Outcome(
        "kill -9 of one of two processes",
        "the other one prints that a process of the run ended or hangs, exit 1",
        longest_s=0.0,
    )
    for attempt in range(tries):
        out, environ = folder / f"two-{seed}-{attempt}", _rendezvous()
        command = ["distill", "-r", "tiny", *_options(ENDLESS), "--out", str(out)]
        first = runs.start(command, **environ, RANK="0", LOCAL_RANK="0")
        second = runs.begin(command, out, **environ, RANK="1", LOCAL_RANK="1")
        time.sleep(chance.uniform(0.3, 1.5))
        killed, other = (first, second) if attempt % 2 == 0 else (second, first)
        killed.send(signal.SIGKILL)
        killed_at = time.monotonic()
        printed = other.wait(120)
        spent_s = time.monotonic() - killed_at
        killed.wait()
        is_well = (
            other.code == 1
            and "another of its processes ended" in printed
            and spent_s < 60
            and _resumes(runs, command, out)
        )
        outcome.count(is_well, f"{out}: {other.code}, {printed[-300:]}")
        outcome.longest_s = max(outcome.longest_s or 0.0, spent_s)
    return [outcome]


def _resumes(runs: TinyRuns, command: list[str], out: Path) -> bool:
    """Whether the run resumes from its last checkpoint in one process, which is then stopped by
    SIGTERM.
    """
    step = checkpoint.load(out / "last")[1]["step"]
    child = runs.begin([*command, "--resume"], out)
    child.send(signal.SIGTERM)
    child.wait()
    starts = [row for row in journal.read(RunFolder(out).journal) if row["event"] == "start"]
    return child.code == 143 and len(starts) == 2 and starts[-1]["first_step"] == step


def disks(folder: Path, tries: int, seed: int) -> list[Outcome]:
    """Run `tries` runs on file systems that become full, and resume them with more space.

    Each run must report the full disk, and end exactly as an undisturbed one after it was resumed.
    Needs root.
    """
    runs, chance = TinyRuns(folder), random.Random(seed)
    outcome = Outcome(
        "a disk that is full",
        "“No space left on device”, and that the last checkpoint is complete; exit 1",
    )
    for attempt in range(tries):
        with _small_disk(folder / f"disk-{attempt}", chance.randrange(150, 1200)) as disk:
            out = disk / "run"
            child = runs.begin(runs.command(out), out)
            printed = child.wait()
            is_well = child.code == 0 or (
                child.code == 1
                and "No space left on device" in printed
                and "Traceback" not in printed
            )
            _mount("remount,size=64m", disk)
            runs.begin(runs.command(out, "--resume"), out).wait()
            outcome.count(
                is_well and runs.is_undisturbed(out),
                f"{out}: {child.code} {printed[-300:]}",
            )
    return [outcome]


@contextmanager
def _small_disk(folder: Path, kilobytes: int) -> Iterator[Path]:
    """Mount a file system in memory, of `kilobytes`, at `folder`; unmount it at the end.

    Raises PermissionError if mounting fails.
    """
    folder.mkdir(parents=True)
    _mount(f"size={kilobytes}k", folder, new=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=False)


def _mount(options: str, folder: Path, *, new: bool = False) -> None:
    what = ["-t", "tmpfs", "tmpfs"] if new else []
    for _ in range(50):  # a file that is being written makes the mount busy for a moment
        done = subprocess.run(
            ["mount", "-o", options, *what, folder], check=False, capture_output=True, text=True
        )
        if not done.returncode:
            return
        time.sleep(0.02)
    raise PermissionError(f"mount -o {options} {folder}: {done.stderr.strip()}")


def _rendezvous() -> dict[str, str]:
    """Return the environment variables with which two processes form a process group on the CPU."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
    }


def _options(overrides: tuple[str, ...]) -> list[str]:
    return [word for override in overrides for word in ("--set", override)]


def _count_starts(out: Path) -> int:
    path = RunFolder(out).journal
    return path.read_text().count('"event": "start"') if path.exists() else 0


def _events(run: RunFolder) -> list[dict[str, Any]]:
    """Return the events of a run's journal that must be the same in equal runs.

    Start and estimate events, times, paths and throughput are left out.
    """
    rows = [row for row in journal.read(run.journal) if row["event"] not in ("start", "estimate")]
    for row in rows:
        row["metrics"].pop("images_per_s", None)
    return [{key: value for key, value in row.items() if key not in NOT_COMPARED} for row in rows]


def _tensors(run: RunFolder) -> dict[str, str]:
    """Return the sha256 of every tensor in the run's last checkpoint, by its dotted name."""
    found: dict[str, str] = {}

    def walk(name: str, value: object) -> None:
        if isinstance(value, torch.Tensor):
            found[name] = hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest()
        elif isinstance(value, dict):
            for key, item in value.items():
                walk(f"{name}.{key}", item)

    walk("", checkpoint.load(run.last)[0])
    return found


PARTS: dict[str, Callable[[Path, int, int], list[Outcome]]] = {
    "kills": kills,
    "stops": stops,
    "deaths": deaths,
    "disks": disks,
}
