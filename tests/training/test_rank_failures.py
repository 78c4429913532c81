"""One of several processes is stopped, hangs or dies: all stop, and nothing saved is lost."""

import signal
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from torch.distributed import DistBackendError

from distill.components import build_accelerator
from distill.components.check_processes import is_lost_process
from distill.models import checkpoint
from distill.runs.journal import read
from distill.runs.run_folder import RunFolder
from tests.forked_process import ForkedProcess
from tests.training.test_processes import free_port, run_ranks, start_rank

pytestmark = pytest.mark.multi

SETS = ["--recipe", "tiny+ema", "--set", "loss.kd=false", "--set", "loss.hard.weight=1"]
LONG = [*SETS, "--set", "train.epochs=100000"]


def start_two(
    out: Path, *options: str, before: Callable[[], None] | None = None
) -> list[ForkedProcess]:
    """Start two processes that train a student in `out`."""
    port = free_port()
    command = ["cli.py", "distill", *options, "--out", out]
    return [start_rank(rank, 2, port, *command, before=before) for rank in (0, 1)]


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[list[ForkedProcess]]:
    """Two processes in the first epochs of a run that would never end."""
    children = start_two(tmp_path / "run", *LONG)
    journal = tmp_path / "run" / "journal.jsonl"
    until = time.monotonic() + 180
    try:
        # The second epoch is in the journal once the first is saved.
        while (journal.read_text() if journal.exists() else "").count('"event": "epoch"') < 2:
            assert time.monotonic() < until and all(child.poll() is None for child in children)
            time.sleep(0.05)
        yield children
    finally:
        for child in children:
            child.kill()
            child.communicate()


def saved(out: Path) -> dict[str, object]:
    return checkpoint.load(out / "last")[1]


def test_signal_to_first_process_stops_both(pair: list[ForkedProcess], tmp_path: Path) -> None:
    pair[0].send_signal(signal.SIGTERM)
    assert_both_stopped(pair, tmp_path / "run")


def assert_both_stopped(pair: list[ForkedProcess], run: Path) -> None:
    """Both end after the same step, which is saved, and the journal has every step up to it."""
    output = [child.communicate(timeout=90)[1] for child in pair]
    assert [child.returncode for child in pair] == [143, 143], output
    assert f"Stopped after step {saved(run)['step']:,}, and saved." in output[0]
    steps = [row["step"] for row in read(run / "journal.jsonl") if row["event"] == "step"]
    assert steps == list(range(1, saved(run)["step"] + 1))  # type: ignore[operator]


@pytest.mark.parametrize("dies", [0, 1])
def test_when_one_dies_the_other_fails(
    pair: list[ForkedProcess], tmp_path: Path, dies: int
) -> None:
    pair[dies].kill()
    _, output = pair[1 - dies].communicate(timeout=120)
    assert pair[1 - dies].returncode == 1, output
    assert "failed: another of its processes ended or hangs." in output
    assert saved(tmp_path / "run")["step"] >= 10  # type: ignore[operator]


def test_lost_connections_are_distinguished_from_other_faults() -> None:
    """Those of gloo's transport that do not name it came without a warning."""
    for text in (
        "Application timeout caused pair closure",
        "[::1]:4711 Connection closed by peer",
        "Read timeout [127.0.0.1]:4711",
        "[/gloo/tcp/pair.cc:456] broken pipe",
    ):
        assert is_lost_process(RuntimeError(text)), text
    assert is_lost_process(DistBackendError("NCCL error"))
    for text in ("mat1 and mat2 shapes cannot be multiplied", "CUDA out of memory", ""):
        assert not is_lost_process(RuntimeError(text)), text


def wait_six_seconds() -> None:
    """Let a process wait six seconds for the others, in place of ten minutes."""
    build_accelerator.TIMEOUT = timedelta(seconds=6)


def test_process_that_hangs_is_awaited_until_timeout(tmp_path: Path) -> None:
    pair = start_two(tmp_path / "run", *LONG, before=wait_six_seconds)
    journal = tmp_path / "run" / "journal.jsonl"
    while '"step": 3' not in (journal.read_text() if journal.exists() else ""):
        assert all(child.poll() is None for child in pair), [each.communicate() for each in pair]
        time.sleep(0.02)
    pair[1].send_signal(signal.SIGSTOP)
    try:
        _, output = pair[0].communicate(timeout=90)
    finally:
        pair[1].kill()
        pair[1].communicate()
    assert pair[0].returncode == 1, output
    assert "failed: another of its processes ended or hangs." in output


def test_divergence_ends_both_processes(tmp_path: Path) -> None:
    pair = start_two(tmp_path / "run", *LONG, "--set", "optim.lr=1e30")
    output = [child.communicate(timeout=120)[1] for child in pair]
    assert [child.returncode for child in pair] == [1, 1], output
    assert "the loss or its gradient is not finite in step" in output[0]
    assert "--step" in output[0] and "Traceback" not in output[0] + output[1]
    tensors = checkpoint.load(tmp_path / "run" / "last")[0]
    assert all(tensor.isfinite().all() for tensor in tensors["student"].values())


def test_signal_to_second_process_stops_both_and_resumes(tmp_path: Path) -> None:
    """Resumed by two processes, the run is bit for bit the uninterrupted one."""
    four = [*SETS, "--set", "train.epochs=3"]
    options = ["cli.py", "distill", *four, "--out"]
    run_ranks(2, *options, tmp_path / "whole")
    cut = tmp_path / "cut"
    children = start_two(cut, *four)
    journal = cut / "journal.jsonl"
    while '"step": 13' not in (journal.read_text() if journal.exists() else ""):
        assert all(child.poll() is None for child in children)
        time.sleep(0.01)
    children[1].send_signal(signal.SIGUSR1)
    assert_both_stopped(children, cut)
    assert 10 < saved(cut)["step"] < 30  # type: ignore[operator]
    run_ranks(2, *options, cut, "--resume")
    one, other = (
        load_file(RunFolder(tmp_path / name).weights("student")) for name in ("whole", "cut")
    )
    assert all(np.array_equal(one[name], other[name]) for name in one)
    rows = [
        [(r["step"], r["metrics"]["loss/total"]) for r in read(tmp_path / name / "journal.jsonl")
         if r["event"] == "step"]
        for name in ("whole", "cut")
    ]  # fmt: skip
    assert rows[0] == rows[1]
