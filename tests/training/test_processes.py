"""Several processes over gloo train as one: the same batches, the same student."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from distill.components.build_network import load_trained
from distill.components.data_pipeline import split_images
from distill.data.sources import load_data_set
from distill.evaluation.evaluate_run import EvalOptions, evaluate_run
from distill.evaluation.predict_split import evaluate_network
from distill.recipe import recipes
from distill.runs import journal
from distill.runs.run_folder import RunFolder
from tests.forked_process import ForkedProcess

ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes"]

pytestmark = pytest.mark.multi


def free_port() -> int:
    """A port of this machine that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def torchrun_options(processes: int) -> list[object]:
    """So many processes here, meeting at a port of their own."""
    return ["--nproc_per_node", processes, "--master_port", free_port()]


def start_rank(
    rank: int,
    processes: int,
    port: int,
    *argv: object,
    before: Callable[[], None] | None = None,
) -> ForkedProcess:
    """Start one of several processes without a launcher, as a scheduler does: a Python script."""
    meeting = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes),
               "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # fmt: skip
    on_cpu = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
    return ForkedProcess(argv, on_cpu | (meeting if processes > 1 else {}), before)


def run_ranks(processes: int, *argv: object) -> str:
    """Run a Python script in so many processes, which must succeed; return what they printed."""
    port = free_port()
    ranks = [start_rank(rank, processes, port, *argv) for rank in range(processes)]
    try:
        printed = [rank.communicate(timeout=300)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0] * processes, printed
    return "".join(printed)


def launch(*command: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run to the end on the CPU, one thread a process."""
    environment = (
        os.environ
        | {
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONPATH": str(ROOT),
        }
        | variables
    )
    done = subprocess.run(
        [str(word) for word in command],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


RELATIONS = (
    "optim.lr=0.01",
    *(f"loss.{term}.weight=1" for term in ("dist", "sp", "pkt", "rkd", "vid", "ctkd")),
    "loss.cc.weight=0.02",
    "loss.mlkd.weight=0.1",
    *(f'loss.sp.{network}_tap="maps"' for network in ("student", "teacher")),
    *(f'loss.vid.{network}_taps=["maps"]' for network in ("student", "teacher")),
)
HINT_THEN_LOGITS = (
    "loss.hard=false",
    "loss.vid.weight=1",
    *(f'loss.vid.{network}_taps=["maps"]' for network in ("student", "teacher")),
    "loss.vid.when.end=0.4",
    "loss.kd.when.begin=0.4",
)
CASES = {
    "relations": RELATIONS,
    "hint": HINT_THEN_LOGITS,
    "mixed": ("mix.cutmix.prob=0.5",),
    "accumulated": ("mix.cutmix.prob=0.5", "train.accumulate=2"),
    # 320 images: 5 batches of 60, and one of 20, of which each process has 10.
    "partial": (*RELATIONS, "train.epochs=2", "train.batch_size=60", "train.drop_last=false"),
    # The 8 steps are more than one epoch of 7.
    "cached": ("train.epochs=2", "train.batch_size=44", "cache={}"),
    # 8 steps are two epochs of 4.
    "one_teacher_per_view": (
        *("train.epochs=2", "train.batch_size=70", "cache={}", "teacher.runs=['a', 'b']"),
        *("teacher.draw=one", "teacher.weights=[1, 3]", "teacher.mirror=true"),
    ),
}
Saved = dict[str, np.ndarray]


def train_cases(folder: Path, processes: int, *names: str) -> Path:
    """A few steps of a network without batch norm for each case; see two_processes.py."""
    cases = json.dumps({name: CASES[name] for name in names})
    printed = run_ranks(processes, "tests/training/two_processes.py", folder, cases)
    assert "FutureWarning" not in printed, "a function that the next torch may not have"
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Path:
    """Every case in one process."""
    return train_cases(tmp_path_factory.mktemp("one"), 1, *CASES)


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """Every case in two processes."""
    return train_cases(tmp_path_factory.mktemp("two"), 2, *CASES)


def load(folder: Path, case: str) -> Saved:
    return dict(np.load(folder / f"{case}.npz"))


def assert_same_training(one: Saved, other: Saved, tolerance: float) -> None:
    for name in ("losses", "weights", "average"):
        assert np.allclose(one[name], other[name], atol=tolerance), name


def test_terms_that_compare_samples_see_whole_batch(one: Path, two: Path) -> None:
    """Relations of a half batch are others; what a term has learnt must be the same everywhere."""
    alone = load(one, "relations")
    assert_same_training(alone, load(two, "relations"), 1e-4)
    assert np.ptp(alone["losses"]) > 1e-3, "the net must have moved"


def test_partial_batch_trains_equally_in_two_processes(one: Path, two: Path) -> None:
    alone, other = load(one, "partial"), load(two, "partial")
    assert list(other["batches"]) == list(alone["batches"]) and len(set(alone["batches"])) == 8
    assert_same_training(alone, other, 1e-4)


def test_hint_then_logits_train_equally_in_two_processes(one: Path, two: Path) -> None:
    """The hint does not use the classifier, and the logits do not use the hint's layer."""
    alone = load(one, "hint")
    assert_same_training(alone, load(two, "hint"), 1e-5)
    assert alone["losses"][:4].min() > alone["losses"][4:].max(), "another term must have begun"


def test_accumulating_and_four_processes_train_equally(one: Path, two: Path, tmp_path) -> None:
    """Without batch norm: each process would normalise by its own rows."""
    alone = load(one, "mixed")
    assert len(set(alone["batches"])) == len(alone["batches"]) == 8
    assert np.ptp(alone["losses"]) > 1e-3, "the net must have moved"
    four = train_cases(tmp_path, 4, "mixed")
    for processes, other in ((2, load(two, "accumulated")), (4, load(four, "mixed"))):
        assert other["n"] == processes
        assert list(other["batches"]) == list(alone["batches"]), "to the bit"
        assert_same_training(alone, other, 1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="two GPUs are needed")
def test_synchronised_batch_norm_trains_equally_on_two_gpus(tmp_path) -> None:
    cases = json.dumps(
        {"synchronised": [*CASES["mixed"], "train.sync_batch_norm=true", "train.precision='fp32'"]}
    )
    script = ROOT / "tests" / "training" / "two_processes.py"
    for n in (1, 2):
        options = [*TORCHRUN, *torchrun_options(n), script, tmp_path / str(n), cases]
        launch(*options, CUDA_VISIBLE_DEVICES="0,1")
    assert_same_training(*(load(tmp_path / str(n), "synchronised") for n in (1, 2)), 1e-4)


def test_logits_of_each_process_are_cached_together(one: Path, two: Path) -> None:
    files = [
        file for folder in (one, two) for file in (folder / "cached-cache").rglob("view-*.npz")
    ]
    alone, shared = (np.load(file)["array"] for file in files)
    assert np.array_equal(np.isnan(alone), np.isnan(shared)) and 0.9 < (~np.isnan(alone)).mean() < 1
    assert np.allclose(alone, shared, atol=1e-3, equal_nan=True)


def test_one_teacher_per_view_in_two_processes(one: Path, two: Path) -> None:
    """Each of two views has a teacher, weighed and mirrored; their logits are cached together."""
    alone, shared = map(views_by_teacher, (one, two))
    assert alone.keys() == shared.keys() == {("b", "view-00000.npz"), ("a", "view-00001.npz")}
    for key, logits in alone.items():
        assert np.allclose(logits, shared[key], atol=1e-3, equal_nan=True), key


def views_by_teacher(folder: Path) -> dict[tuple[str, str], np.ndarray]:
    views = {}
    for about in (folder / "one_teacher_per_view-cache").rglob("about.json"):
        teacher = json.loads(about.read_text())["depends"]["teacher"]
        [view] = about.parent.glob("view-*.npz")
        views[teacher, view.name] = np.load(view)["array"]
    return views


def program(out: Path, teacher: Path) -> list[object]:
    """The command that distils a student for 20 steps."""
    options = ["--recipe", "tiny+cutmix+ema", "--teacher", teacher, "--out", out]
    return ["cli.py", "distill", *options, "--set", "train.epochs=2"]


def losses(run: Path) -> list[float]:
    """Of each step of a run, in order."""
    return [row["metrics"]["loss/total"] for row in journal.read(run / "journal.jsonl")
            if row["event"] == "step"]  # fmt: skip


def assert_saved_weights_have_the_measured_figures(run: RunFolder) -> None:
    """One process, measuring the weights file, finds what the run's processes found together."""
    images = load_data_set.load("synthetic", "train")
    held_out = split_images(recipes.read(run.recipe), images).held_out
    found = evaluate_network(load_trained(run), held_out, Accelerator())
    known = run.result()["metrics"]
    assert found["top1"] == known["top1/val_ema"]
    assert found["nll"] == pytest.approx(known["nll/val_ema"], rel=1e-5)


def test_torchrun_and_accelerate_launch_run_the_program(teacher, tmp_path) -> None:
    run_ranks(1, *program(tmp_path / "one", teacher))
    launch(*TORCHRUN, *torchrun_options(2), *program(tmp_path / "torchrun", teacher))
    by_accelerate = [*ACCELERATE, 2, "--main_process_port", free_port()]
    launch(*by_accelerate, *program(tmp_path / "accelerate", teacher), ACCELERATE_USE_CPU="true")
    names = ("one", "torchrun", "accelerate")
    one, torchrun, accelerate = (losses(tmp_path / name) for name in names)
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
    for name in ("one", "torchrun"):
        assert_saved_weights_have_the_measured_figures(RunFolder(tmp_path / name))
    sizes = {len(journal.read(tmp_path / name / "journal.jsonl")) for name in ("one", "torchrun")}
    assert len(sizes) == 1, "one process alone writes the journal"


@pytest.mark.slow
def test_evaluate_is_equal_in_two_processes(distilled) -> None:
    """2,000 and 33 images, mirrored and corrupted: no share is counted twice."""
    requested = EvalOptions(mirror=True, robustness=True, robustness_images=33)
    options = ["--mirror", "--robustness", "--robustness-images", 33, "--json"]
    command = ["cli.py", "evaluate", distilled[0].path, *options]
    two = json.loads(launch(*TORCHRUN, *torchrun_options(2), *command).stdout)
    one = evaluate_run(distilled[0], requested)
    assert two["n"] == 2000 and two["robustness"]["n"] == 33
    for name in ("top1", "confusion", "per_class"):
        assert two[name] == one[name], name
    for name in ("nll", "temperature", "teacher_kl"):
        assert two[name] == pytest.approx(one[name], rel=1e-5), name
    assert two["mirror"]["top1"] == one["mirror"]["top1"]
    assert two["robustness"] == one["robustness"]
