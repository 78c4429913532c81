"""Tests of the benchmarks that measure speed."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import ceilings, peers, resolution, scaling, stages, workers
from benchmarks.contenders import CONTENDERS
from benchmarks.pairs import PAIRS
from benchmarks.peers import Entrant, Unequal
from distill.components.build_network import build_network
from distill.training import loop
from distill.training.train_state import TrainState

pytestmark = pytest.mark.slow  # a benchmark's script, not the library

REPOSITORY = Path(__file__).parents[2]
LOSSES = {"honest": [0.25, 0.24], "lazy": [0.25, 0.2405]}  # two thousandths apart
ORDER = [
    "draw of a view",
    "augment",
    "mix",
    "teacher forward",
    "student forward",
    "loss",
    "backward",
    "optimizer",
    "EMA",
    "evaluation",
]


def fresh_run() -> TrainState:
    recipe = stages.resolved(f"{stages.QUICK}+mixup", batch=16, rounds=1)
    torch.manual_seed(5)  # of the teacher
    return stages.prepared(recipe)


def test_the_stages_are_the_step_of_a_run() -> None:
    ours, theirs, timed = fresh_run(), fresh_run(), stages.Stopwatch(torch.device("cpu"))
    before = {name: value.clone() for name, value in ours.model.state_dict().items()}
    for k in (0, 1, 20):  # twice the first view, then another
        stages.staged_step(ours, k, timed)
        loop.step(theirs, k)
    assert ours.ema is not None and theirs.ema is not None
    for mine, other in ((ours.model, theirs.model), (ours.ema.module, theirs.ema.module)):
        pairs = zip(mine.state_dict().values(), other.state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(before["head.weight"], ours.model.state_dict()["head.weight"])
    assert [len(spans) for spans in timed.spans_s.values()] == [3] * (len(ORDER) - 1)


def test_stage_of_an_epoch_is_shared_among_steps() -> None:
    shares = stages.shares({"evaluation": 4.0, "backward": 3.0}, steps_per_epoch=4)
    assert shares["evaluation"] == {"span_s": 4.0, "share": 0.25}  # 1 s of 1 + 3
    assert shares["backward"] == {"span_s": 3.0, "share": 0.75}


def test_quick_measures_every_stage(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stages.main(["--quick", "--batch", "16", "--json"])
    content = json.loads(capsys.readouterr().out)
    assert list(content["stages"]) == ORDER
    assert all(figures["span_s"] > 0 for figures in content["stages"].values())
    assert sum(figures["share"] for figures in content["stages"].values()) == pytest.approx(1)
    assert content["images_per_s"] == pytest.approx(16 / content["whole_step_s"])
    assert (content["batch_size"], content["steps_per_epoch"]) == (16, 320 // 16)
    assert content["teacher"] == "WRN-10-1"
    assert not list(tmp_path.iterdir())  # a measurement leaves no run behind


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "0"], "--rounds 0 measures nothing; type 1 or more"),
        (["--recipe", "tinny"], "'tinny' is not in recipes/; did you mean tiny"),
        (["--recipe", "teacher_wrn"], "student is missing; distill needs a"),
        (["--quick", "--batch", "321"], "train.batch_size = 321 is more than the 320 training"),
    ],
)
def test_a_wrong_request_is_one_message(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        stages.main(arguments)
    assert message in capsys.readouterr().err


# Beside others


@pytest.fixture(scope="module")
def raced() -> dict[str, Any]:
    """The smallest pair, one round of two steps; torchdistill too where it is installed."""
    command = "benchmarks.peers --pair tiny --data synthetic --batch 32 --rounds 1 --steps 2 --json"
    done = subprocess.run(
        [sys.executable, "-m", *command.split()],
        capture_output=True,
        text=True,
        check=True,
        cwd=REPOSITORY,
    )
    content: dict[str, Any] = json.loads(done.stdout)
    return content


def test_every_contender_is_measured(raced: dict[str, Any]) -> None:
    assert raced["pair"] == "tiny"
    assert set(raced["contenders"]) >= set(CONTENDERS) - {"torchdistill"}
    for figures in raced["contenders"].values():
        assert figures["images_per_s"] > 0
        assert figures["share_of_peak"] > 0
    fastest = max(
        figures["images_per_s"]
        for name, figures in raced["contenders"].items()
        if name in ("naive", "timm", "torchdistill")
    )
    for ours in ("online", "cached"):
        speed = raced["contenders"][ours]["images_per_s"]
        assert raced[f"{ours}_over_best_peer"] == pytest.approx(speed / fastest)


def test_all_contenders_do_the_same_work(raced: dict[str, Any]) -> None:
    """The same first loss takes the same networks, batch and loss; the second, the same step."""
    for which in ("first_loss", "second_loss"):
        losses = [figures[which] for figures in raced["contenders"].values()]
        assert losses == pytest.approx([losses[0]] * len(losses), rel=1e-3)
    first, second = (raced["contenders"]["online"][f"{n}_loss"] for n in ("first", "second"))
    assert abs(first - second) > 1e-3 * first, "the step must be seen"


@pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists(), reason="memory is Linux's to tell"
)
def test_the_memory_is_that_of_all_processes(raced: dict[str, Any]) -> None:
    grown = "import time; held = bytearray(300 << 20); print(flush=True); time.sleep(60)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grown!r}])"
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert 300 < peers.memory_mib(process.pid) < 400
        subprocess.run(["pkill", "-P", str(process.pid)], check=True)
    assert peers.memory_mib(2**22 + 1) == 0
    assert all(figures["peak_mib"] > 200 for figures in raced["contenders"].values())


def test_other_work_is_seen() -> None:
    honest, lazy = (Entrant(name, None, losses) for name, losses in LOSSES.items())  # type: ignore[arg-type]
    peers.check_equal([honest, honest])
    unmeasured = Entrant("unmeasured", None, [float("nan"), 0.24])  # type: ignore[arg-type]
    for pair in ([honest, unmeasured], [unmeasured, honest], [unmeasured, unmeasured]):
        with pytest.raises(Unequal, match="does not do the same work"):
            peers.check_equal(pair)
    with pytest.raises(
        Unequal, match="lazy does not do the same work as honest: the first two losses on"
    ):
        peers.check_equal([honest, lazy])


def test_a_recipe_of_a_pair_trains_the_pair() -> None:
    for pair in PAIRS.values():
        recipe = pair.recipe("synthetic", 128, stored=False)
        trained = build_network(recipe, pair.role, 10)
        shapes = [parameter.shape for parameter in pair.student().parameters()]
        assert [parameter.shape for parameter in trained.parameters()] == shapes
        assert not recipe.mix.ways()
        assert recipe.ema is None


def test_ceilings_are_counted_and_timed(capsys: pytest.CaptureFixture[str]) -> None:
    ceilings.main(["--quick", "--json"])
    content = json.loads(capsys.readouterr().out)
    for name in ("product_flops", "convolution_flops", "copy_bytes"):
        assert 1e8 < content[name] < 1e16
        assert 0 < content["typical"][name] <= 1
    naps = iter([0.0, 0.01, 0.03, 0.02, 0.05] + [0.01] * 20)
    slept = ceilings.spans(lambda: time.sleep(next(naps)), torch.device("cpu"), 0.1)
    assert slept[:4] == pytest.approx([0.01, 0.03, 0.02, 0.05], abs=5e-3)
    assert ceilings.Rate.of(6.0, [3.0, 2.0, 8.0]) == ceilings.Rate(best=3.0, typical=2 / 3)


def test_growth_is_measured_against_the_first_point() -> None:
    points = {100: {"epoch_s": 2.0, "ms": 20.0}, 300: {"epoch_s": 9.0, "ms": 30.0}}
    by_images, by_cost = (scaling.ratios(points, by) for by in ("epoch_s", "ms"))
    assert [each["ratio"] for each in by_images.values()] == [1.0, 1.5]
    assert [each["ratio"] for each in by_cost.values()] == [1.0, 1.5]


def test_a_point_of_growth_is_a_whole_run(capsys: pytest.CaptureFixture[str]) -> None:
    scaling.main(["images", "--quick", "--rounds", "1", "--json"])
    content = json.loads(capsys.readouterr().out)
    assert list(content["axes"]) == ["images"]
    points = content["axes"]["images"]
    assert list(points) == ["160", "320"]
    for figures in points.values():
        assert figures["startup_s"] > 0
        assert figures["ms"] == pytest.approx(1000 / figures["images_per_s"])


def test_steps_are_timed_at_every_side(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    seen: list[int] = []
    step = resolution.loop.step

    def watched(run, k):  # type: ignore[no-untyped-def]
        seen.append(run.loader.view(0).pipeline.side or run.loader.size)
        return step(run, k)

    monkeypatch.setattr(resolution.loop, "step", watched)
    sides = ["--sides", "20", "32", "--rounds", "2"]
    resolution.main(["--recipe", "tiny", "--set", "loss.kd=false", *sides])
    content = json.loads(capsys.readouterr().out)
    assert seen == [20, 20, 32, 32, 32, 20, 20, 32], "warm-up, then there and back"
    assert content["sides"]["32"]["speedup"] == 1.0
    for figures in content["sides"].values():
        assert figures["images_per_s"] > 0 and figures["images_per_cpu_s"] > 0


def h200(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["benchmarks/h200.sh", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=REPOSITORY,
        env=os.environ | {"OUT": str(out), "RUNS": str(out / "runs"), "PYTHON": sys.executable},
    )


def test_a_section_that_is_there_is_not_repeated(tmp_path: Path) -> None:
    done = h200(tmp_path, "--quick", "ceilings")
    assert done.returncode == 0, done.stderr
    measured = (tmp_path / "ceilings.json").read_text()
    assert json.loads(measured)["type"] in ("float32", "bfloat16")
    again = h200(tmp_path, "--quick", "ceilings")
    assert "ceilings.json exists" in again.stderr
    assert (tmp_path / "ceilings.json").read_text() == measured
    wrong = h200(tmp_path, "ceiling")
    assert wrong.returncode == 2
    assert "unknown section ceiling; allowed: ceilings stages" in wrong.stderr


def test_all_sections_in_the_size_of_a_cpu(tmp_path: Path) -> None:
    done = h200(tmp_path, "--quick")
    assert done.returncode == 0, done.stderr
    made = {path.stem for path in tmp_path.glob("*.json")}
    assert made == {
        *(
            "ceilings",
            "stages",
            "peers-wrn",
            "peers-resnet",
            "teacher",
            "student",
            "compiled",
            "cached",
        )
    }


def test_trials_per_hour_exclude_start_and_end() -> None:
    rows = [
        {"began": "2026-01-01T10:00:00.000", "ended": "2026-01-01T10:00:30.000", "workers": ["a"]},
        {"began": "2026-01-01T10:00:10.000", "ended": "2026-01-01T10:00:50.000", "workers": ["b"]},
        {"began": "2026-01-01T10:00:30.000", "ended": "2026-01-01T10:01:00.000", "workers": ["a"]},
    ]
    assert workers.hourly(rows, 2) == 180
    with pytest.raises(SystemExit, match="only 2 of 3 workers had a trial"):
        workers.hourly(rows, 3)
