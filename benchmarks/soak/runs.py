"""Runs that are killed, stopped, starved of disk, bereft of a process; and whether they resume."""

import hashlib
import os
import random
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

from benchmarks.soak.outcome import Outcome
from distill.models import checkpoint
from distill.runs import journal
from distill.runs.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[2]
# Sixty steps, dropout and mixing and averages on, saved in the middle of epochs too.
SETS = (
    "train.epochs=6", "train.save_steps=3", "mix.mixup.prob=0.3", "student.block_dropout=0.1",
)  # fmt: skip
ALONE = ("loss.kd=false", "loss.hard.weight=1.0")
LONG = (*ALONE, "train.epochs=100000", "train.save_steps=3")
CLOCKS = {"at", "elapsed_s", "remaining_s", "weights"}
START_S = 60.0  # until a process must have begun


class Lives:
    """The same run, as often as it is wanted: `python cli.py distill` in folders of one place."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.environ = os.environ | {
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "UNDERSTUDY_CACHE": str(place / "cache"),
        }
        self.teacher = place / "teacher"
        teacher = ["train-teacher", "-r", "tiny", *_sets(ALONE), "--out", str(self.teacher)]
        if not RunFolder(self.teacher).is_finished:
            self._to_the_end(teacher)
        self.whole = RunFolder(place / "whole")
        if not self.whole.is_finished:
            self._to_the_end(self.command(self.whole.path))

    def command(self, out: Path, *more: str) -> list[str]:
        """A student's."""
        return ["distill", "-r", "tiny+cutmix+ema", "--teacher", str(self.teacher),
                *_sets(SETS), "--out", str(out), *more]  # fmt: skip

    def begun(self, command: list[str], out: Path, **environ: str) -> subprocess.Popen[str]:
        """A process whose run has begun, or ended: its head is in the journal."""
        heads = _heads(out)
        child = subprocess.Popen(
            [sys.executable, str(ROOT / "cli.py"), *command], cwd=ROOT,
            env=self.environ | environ, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
            text=True,
        )  # fmt: skip
        until = time.monotonic() + START_S
        while child.poll() is None and _heads(out) == heads and time.monotonic() < until:
            time.sleep(0.01)
        return child

    def is_as_if_nothing_had_happened(self, out: Path) -> bool:
        """Every tensor of the state, the weights' file, and the journal but for its clocks."""
        run = RunFolder(out)
        return (
            run.is_finished
            and _state(run) == _state(self.whole)
            and _told(run) == _told(self.whole)
            and run.result()["weights"] == self.whole.result()["weights"]
        )

    def _to_the_end(self, command: list[str]) -> None:
        subprocess.run(
            [sys.executable, str(ROOT / "cli.py"), *command], cwd=ROOT, env=self.environ,
            check=True, capture_output=True,
        )  # fmt: skip


def kills(place: Path, tries: int, seed: int, workers: int = 2) -> list[Outcome]:
    """`kill -9` at a random moment after the head of the run, again and again until it ends."""
    lives = Lives(place)
    shares = [tries // workers + (worker < tries % workers) for worker in range(workers)]
    with ThreadPoolExecutor(workers) as pool:
        chains = [
            pool.submit(
                _chains, lives, f"killed-{seed}-{worker}", share, random.Random(seed + worker)
            )
            for worker, share in enumerate(shares)
        ]
    outcome = Outcome(
        "kill -9 at a random moment of the training",
        "with --resume the run goes on; its head names who was killed",
    )
    for chain in chains:
        for n, is_well, out in chain.result():
            for _ in range(n):
                outcome.count(is_well, out)
    return [outcome]


def _chains(
    lives: Lives, name: str, tries: int, chance: random.Random
) -> list[tuple[int, bool, str]]:
    """Runs, each killed some times and then finished: how often, whether it was well, where."""
    chains, left = [], tries
    while left > 0:
        out, killed = lives.place / f"{name}-{left}", 0
        while not RunFolder(out).is_finished:
            child = lives.begun(lives.command(out, "--resume"), out)
            if left > killed:
                time.sleep(chance.uniform(0, 1.5))
                if child.poll() is None:
                    child.kill()
                    killed += 1
            child.communicate()
        chains.append((killed, lives.is_as_if_nothing_had_happened(out), str(out)))
        left -= killed
    return chains


def stops(place: Path, tries: int, seed: int) -> list[Outcome]:
    """SIGTERM, SIGUSR1 and Ctrl-C at random moments: exit code, time, and the resumed run."""
    lives, chance = Lives(place), random.Random(seed)
    wanted = {signal.SIGTERM: 143, signal.SIGUSR1: 143, signal.SIGINT: 130}
    outcomes = []
    for number, code in wanted.items():
        outcome = Outcome(
            f"{number.name} at a random moment of the training",
            f"“Stopped after step N, and saved. To go on, …”, exit {code} within 10 s",
            longest_s=0.0,
        )
        while outcome.tried < tries:
            out = place / f"stopped-{number.name}-{outcome.tried}"
            child = lives.begun(lives.command(out), out)
            time.sleep(chance.uniform(0, 1.5))
            began_at = time.monotonic()
            child.send_signal(number)
            child.communicate()
            if child.returncode == 0:  # it had ended already
                continue
            spent_s = time.monotonic() - began_at
            again = lives.begun(lives.command(out, "--resume"), out)
            again.communicate()
            is_well = child.returncode == code and spent_s < 10
            outcome.count(
                is_well and lives.is_as_if_nothing_had_happened(out), f"{out}: {child.returncode}"
            )
            outcome.longest_s = max(outcome.longest_s or 0.0, spent_s)
        outcomes.append(outcome)
    return outcomes


def deaths(place: Path, tries: int, seed: int) -> list[Outcome]:
    """`kill -9` of one of two processes: the other leaves, and the run resumes."""
    lives, chance = Lives(place), random.Random(seed)
    outcome = Outcome(
        "kill -9 of one of two processes",
        "the other ends with “another of its processes ended or hangs”, exit 1",
        longest_s=0.0,
    )
    for attempt in range(tries):
        out, meeting = place / f"two-{seed}-{attempt}", _meeting()
        command = ["distill", "-r", "tiny", *_sets(LONG), "--out", str(out)]
        pair = [
            lives.begun(command, out, RANK=str(rank), LOCAL_RANK=str(rank), **meeting)
            if rank
            else _at_once(lives, command, meeting)
            for rank in (0, 1)
        ]
        time.sleep(chance.uniform(0.3, 1.5))
        dies = attempt % 2
        pair[dies].kill()
        began_at = time.monotonic()
        _, said = pair[1 - dies].communicate(timeout=120)
        spent_s = time.monotonic() - began_at
        pair[dies].communicate()
        step = checkpoint.load(out / "last")[1]["step"]
        again = lives.begun([*command, "--resume"], out)
        again.send_signal(signal.SIGTERM)
        _, later = again.communicate()
        is_well = (
            pair[1 - dies].returncode == 1
            and "another of its processes ended" in said
            and spent_s < 60
            and again.returncode == 143
            and (step == 0 or f"at step {step:,}" in " ".join(later.split()))
        )
        outcome.count(is_well, f"{out}: {pair[1 - dies].returncode}, {said[-300:]}, {later[-300:]}")
        outcome.longest_s = max(outcome.longest_s or 0.0, spent_s)
    return [outcome]


def disks(place: Path, tries: int, seed: int) -> list[Outcome]:
    """A file system that is full while the run writes; then there is room."""
    lives, chance = Lives(place), random.Random(seed)
    full = Outcome(
        "a disk that is full",
        "“… failed: No space left on device. Its last checkpoint is intact.”, exit 1",
    )
    for attempt in range(tries):
        with _small_disk(place / f"disk-{attempt}", chance.randrange(150, 1200)) as disk:
            out = disk / "run"
            child = lives.begun(lives.command(out), out)
            _, said = child.communicate()
            is_well = child.returncode == 0 or (
                child.returncode == 1
                and "No space left on device" in said
                and "Traceback" not in said
            )
            _mount("remount,size=64m", disk)
            again = lives.begun(lives.command(out, "--resume"), out)
            again.communicate()
            full.count(
                is_well and lives.is_as_if_nothing_had_happened(out),
                f"{out}: {child.returncode} {said[-300:]}",
            )
    return [full]


@contextmanager
def _small_disk(place: Path, kilobytes: int) -> Iterator[Path]:
    """A file system in memory of that size. Needs the right to mount."""
    place.mkdir(parents=True)
    _mount(f"size={kilobytes}k", place, new=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=False)


def _mount(options: str, place: Path, *, new: bool = False) -> None:
    what = ["-t", "tmpfs", "tmpfs"] if new else []
    for _ in range(50):  # a file that is being written keeps it busy for a moment
        done = subprocess.run(
            ["mount", "-o", options, *what, place], check=False, capture_output=True, text=True
        )
        if not done.returncode:
            return
        time.sleep(0.02)
    raise PermissionError(f"mount -o {options} {place}: {done.stderr.strip()}")


def _at_once(lives: Lives, command: list[str], meeting: dict[str, str]) -> subprocess.Popen[str]:
    """The first of two processes: nothing is written before the second comes."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "cli.py"), *command], cwd=ROOT,
        env=lives.environ | meeting | {"RANK": "0", "LOCAL_RANK": "0"},
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip


def _meeting() -> dict[str, str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
    }


def _sets(overrides: tuple[str, ...]) -> list[str]:
    return [word for each in overrides for word in ("--set", each)]


def _heads(out: Path) -> int:
    path = RunFolder(out).journal
    return path.read_text().count('"event": "start"') if path.exists() else 0


def _told(run: RunFolder) -> list[dict[str, Any]]:
    rows = [row for row in journal.read(run.journal) if row["event"] != "start"]
    for row in rows:
        row["metrics"].pop("images_per_s", None)
    return [{key: value for key, value in row.items() if key not in CLOCKS} for row in rows]


def _state(run: RunFolder) -> dict[str, str]:
    """A digest of every tensor that a checkpoint holds, by its dotted name."""
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
