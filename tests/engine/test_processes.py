"""Two processes over gloo are one process: the same batches, the same student."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from distill.show import journal

ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node"]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes"]

pytestmark = pytest.mark.multi


def launch(*command: object) -> subprocess.CompletedProcess[str]:
    """Run to the end on the CPU, one thread a process."""
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [str(word) for word in command],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


def steps(out: Path, processes: int, accumulate: int = 1) -> dict[str, np.ndarray]:
    """A few steps of a network without batch norm; see two_processes.py."""
    port = ["--master_port", str(29_500 + os.getpid() % 1000)]
    script = ROOT / "tests" / "engine" / "two_processes.py"
    launch(*TORCHRUN, processes, *port, script, out, accumulate)
    return dict(np.load(out))


def test_without_batch_norm_two_processes_and_accumulation_train_the_same_net(tmp_path) -> None:
    one = steps(tmp_path / "one.npz", 1)
    two = steps(tmp_path / "two.npz", 2)
    parts = steps(tmp_path / "parts.npz", 2, accumulate=2)
    assert (one["n"], two["n"], parts["n"]) == (1, 2, 2)
    for other in (two, parts):
        for name in ("losses", "weights", "average"):
            assert np.allclose(one[name], other[name], atol=1e-5), name
    assert np.ptp(one["losses"]) > 1e-3, "the net must have moved"


def student(out: Path, teacher: Path, *launcher: object) -> list[float]:
    """The whole program over a launcher; the losses of its steps."""
    options = ["--recipe", "tiny+cutmix", "--teacher", teacher, "--out", out]
    launch(*launcher, "cli.py", "distill", *options, "--set", "train.epochs=2")
    return [row["metrics"]["loss/total"] for row in journal.read(out / "journal.jsonl")
            if row["event"] == "step"]  # fmt: skip


def test_the_program_over_torchrun_and_accelerate_launch(teacher, tmp_path) -> None:
    port = ["--master_port", str(28_500 + os.getpid() % 1000)]
    main_port = ["--main_process_port", str(27_500 + os.getpid() % 1000)]
    one = student(tmp_path / "one", teacher, sys.executable)
    torchrun = student(tmp_path / "torchrun", teacher, *TORCHRUN, 2, *port)
    accelerate = student(tmp_path / "accelerate", teacher, *ACCELERATE, 2, *main_port)
    assert len(one) == len(torchrun) == 20
    # Each process normalises its half of the batch by that half's statistics: the curves agree
    # closely at first and apart from this.
    assert np.allclose(one, torchrun, rtol=0.1)
    assert np.allclose(torchrun, accelerate, rtol=1e-5)
    for name, processes in (("one", 1), ("torchrun", 2), ("accelerate", 2)):
        result = json.loads((tmp_path / name / "result.json").read_text())
        assert result["processes"] == processes
        head = journal.read(tmp_path / name / "journal.jsonl")[0]
        assert head["processes"] == processes
    sizes = {len(journal.read(tmp_path / name / "journal.jsonl")) for name in ("one", "torchrun")}
    assert len(sizes) == 1, "one process alone writes the journal"
