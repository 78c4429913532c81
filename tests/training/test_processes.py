"""Two processes over gloo are one process: the same batches, the same student."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from distill.components.data_pipeline import split_images
from distill.components.network import load_trained
from distill.data.sources import image_set
from distill.evaluation.evaluate import EvalOptions, evaluate_run
from distill.evaluation.predict import measure
from distill.recipe import recipes
from distill.runs import journal
from distill.runs.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes"]

pytestmark = pytest.mark.multi


def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def torchrun_options(processes: int) -> list[object]:
    """So many processes here, meeting at a port of their own."""
    return ["--nproc_per_node", processes, "--master_port", free_port()]


def launcher(processes: int) -> list[object]:
    """What starts so many of them; one needs nobody."""
    return [sys.executable] if processes == 1 else [*TORCHRUN, *torchrun_options(processes)]


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


MIXED = ("mix.cutmix.prob=0.5",)
RELATIONS = (
    "optim.lr=0.01",
    *(f"loss.{term}.weight=1" for term in ("dist", "sp", "pkt", "rkd", "vid")),
    *(f'loss.sp.{whose}_tap="maps"' for whose in ("student", "teacher")),
    *(f'loss.vid.{whose}_taps=["maps"]' for whose in ("student", "teacher")),
)
HINT_THEN_ANSWERS = (
    "loss.hard=false",
    "loss.vid.weight=1",
    *(f'loss.vid.{whose}_taps=["maps"]' for whose in ("student", "teacher")),
    "loss.vid.when.end=0.4",
    "loss.kd.when.begin=0.4",
)


def steps(
    out: Path, processes: int, accumulate: int = 1, overrides: tuple[str, ...] = MIXED
) -> dict[str, np.ndarray]:
    """A few steps of a network without batch norm; see two_processes.py."""
    script = ROOT / "tests" / "training" / "two_processes.py"
    done = launch(*launcher(processes), script, out, accumulate, *overrides)
    assert "FutureWarning" not in done.stderr, "a function that the next torch may not have"
    return dict(np.load(out))


def test_terms_that_compare_samples_see_the_whole_batch_and_learn_in_all_processes(
    tmp_path,
) -> None:
    """Relations of a half batch are others; what a term has learnt must be the same everywhere."""
    one = steps(tmp_path / "one.npz", 1, overrides=RELATIONS)
    two = steps(tmp_path / "two.npz", 2, overrides=RELATIONS)
    for name in ("losses", "weights", "average"):
        assert np.allclose(one[name], two[name], atol=1e-4), name
    assert np.ptp(one["losses"]) > 1e-3, "the net must have moved"


def test_a_hint_of_maps_alone_and_then_answers_are_the_same_in_two_processes(tmp_path) -> None:
    """The hint leaves the classifier, and the answers leave the hint's layer, without a reader."""
    one = steps(tmp_path / "one.npz", 1, overrides=HINT_THEN_ANSWERS)
    two = steps(tmp_path / "two.npz", 2, overrides=HINT_THEN_ANSWERS)
    for name in ("losses", "weights", "average"):
        assert np.allclose(one[name], two[name], atol=1e-5), name
    assert one["losses"][:4].min() > one["losses"][4:].max(), "another term must have begun"


def test_accumulating_and_four_processes_see_the_same_batches_and_train_the_same_net(
    tmp_path,
) -> None:
    """Without batch norm: each process would normalise by its own rows."""
    one = steps(tmp_path / "one.npz", 1)
    assert len(set(one["batches"])) == len(one["batches"]) == 8
    assert np.ptp(one["losses"]) > 1e-3, "the net must have moved"
    for processes, accumulate in ((2, 2), (4, 1)):
        other = steps(tmp_path / "other.npz", processes, accumulate)
        assert other["n"] == processes
        assert list(other["batches"]) == list(one["batches"]), "to the bit"
        for name in ("losses", "weights", "average"):
            assert np.allclose(one[name], other[name], atol=1e-5), name


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="two GPUs are needed")
def test_with_synchronised_batch_norm_two_gpus_train_the_same_net(tmp_path) -> None:
    sets = (*MIXED, "train.sync_batch_norm=true", "train.precision='fp32'")
    script = ROOT / "tests" / "training" / "two_processes.py"
    for n in (1, 2):
        options = [*TORCHRUN, *torchrun_options(n), script, tmp_path / f"{n}.npz", 1, *sets]
        launch(*options, CUDA_VISIBLE_DEVICES="0,1")
    one, two = (dict(np.load(tmp_path / f"{n}.npz")) for n in (1, 2))
    for name in ("losses", "weights", "average"):
        assert np.allclose(one[name], two[name], atol=1e-4), name


def test_what_the_teacher_told_each_process_is_stored_together(tmp_path) -> None:
    script = ROOT / "tests" / "training" / "two_processes.py"
    kept = []
    for processes in (1, 2):
        place = tmp_path / str(processes)
        sets = (
            "train.epochs=2",
            "train.batch_size=44",
            "cache={}",
        )  # the 8 steps are more than one epoch of 7
        launch(
            *launcher(processes), script, tmp_path / "out.npz", 1, *sets,
            UNDERSTUDY_CACHE=str(place),
        )  # fmt: skip
        (file,) = place.rglob("view-*.npz")
        kept.append(np.load(file)["array"])
    one, two = kept
    assert np.array_equal(np.isnan(one), np.isnan(two)) and 0.9 < (~np.isnan(one)).mean() < 1
    assert np.allclose(one, two, atol=1e-3, equal_nan=True)


def test_one_of_several_teachers_is_the_same_in_two_processes(tmp_path) -> None:
    """Each of two views has a teacher, weighed and mirrored; their logits are cached together."""
    script = ROOT / "tests" / "training" / "two_processes.py"
    kept = []
    for processes in (1, 2):
        place = tmp_path / str(processes)
        sets = (
            *("train.epochs=2", "train.batch_size=70", "cache={}", "teacher.runs=['a', 'b']"),
            *("teacher.draw=one", "teacher.weights=[1, 3]", "teacher.mirror=true"),
        )  # 8 steps are two epochs of 4
        launch(
            *launcher(processes), script, tmp_path / "out.npz", 1, *sets,
            UNDERSTUDY_CACHE=str(place),
        )  # fmt: skip
        kept.append({})
        for about in place.rglob("about.json"):
            teacher = json.loads(about.read_text())["depends"]["teacher"]
            [view] = about.parent.glob("view-*.npz")
            kept[-1][teacher, view.name] = np.load(view)["array"]
    one, two = kept
    assert one.keys() == two.keys() == {("b", "view-00000.npz"), ("a", "view-00001.npz")}
    for key, logits in one.items():
        assert np.allclose(logits, two[key], atol=1e-3, equal_nan=True), key


def student(out: Path, teacher: Path, *launcher: object, **variables: str) -> list[float]:
    """The whole program over a launcher; the losses of its steps."""
    options = ["--recipe", "tiny+cutmix+ema", "--teacher", teacher, "--out", out]
    launch(*launcher, "cli.py", "distill", *options, "--set", "train.epochs=2", **variables)
    return losses(out)


def losses(run: Path) -> list[float]:
    """Of each step of a run, in order."""
    return [row["metrics"]["loss/total"] for row in journal.read(run / "journal.jsonl")
            if row["event"] == "step"]  # fmt: skip


def assert_kept_is_what_was_measured(run: RunFolder) -> None:
    """One process, measuring the weights file, finds what the run's processes found together."""
    images = image_set.load("synthetic", "train")
    held_out = split_images(recipes.read(run.recipe), images).held_out
    found = measure(load_trained(run), held_out, Accelerator())
    known = run.result()["metrics"]
    assert found["top1"] == known["top1/val_ema"]
    assert found["nll"] == pytest.approx(known["nll/val_ema"], rel=1e-5)


def test_the_program_over_torchrun_and_accelerate_launch(teacher, tmp_path) -> None:
    port = ["--main_process_port", free_port()]
    one = student(tmp_path / "one", teacher, sys.executable)
    torchrun = student(tmp_path / "torchrun", teacher, *TORCHRUN, *torchrun_options(2))
    accelerate = student(
        tmp_path / "accelerate", teacher, *ACCELERATE, 2, *port, ACCELERATE_USE_CPU="true"
    )
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
        assert_kept_is_what_was_measured(RunFolder(tmp_path / name))
    sizes = {len(journal.read(tmp_path / name / "journal.jsonl")) for name in ("one", "torchrun")}
    assert len(sizes) == 1, "one process alone writes the journal"


@pytest.mark.slow
def test_a_run_measured_by_two_processes_is_the_same_run(distilled) -> None:
    """2,000 and 33 images, mirrored and corrupted: no share is counted twice."""
    asked = EvalOptions(mirror=True, robustness=True, robustness_images=33)
    options = ["--mirror", "--robustness", "--robustness-images", 33, "--json"]
    command = ["cli.py", "evaluate", distilled[0].path, *options]
    two = json.loads(launch(*TORCHRUN, *torchrun_options(2), *command).stdout)
    one = evaluate_run(distilled[0], asked)
    assert two["n"] == 2000 and two["robustness"]["n"] == 33
    for name in ("top1", "confusion", "per_class"):
        assert two[name] == one[name], name
    for name in ("nll", "temperature", "teacher_kl"):
        assert two[name] == pytest.approx(one[name], rel=1e-5), name
    assert two["mirror"]["top1"] == one["mirror"]["top1"]
    assert two["robustness"] == one["robustness"]
