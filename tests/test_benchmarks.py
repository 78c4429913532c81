import json
from pathlib import Path

import pytest
import torch

from benchmarks import stages
from distill.engine import build, train
from distill.engine.train import Training

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


def fresh_run() -> Training:
    recipe = stages.resolved(f"{stages.QUICK}+mixup", batch=16, rounds=1)
    torch.manual_seed(5)  # of the teacher
    return stages.prepared(recipe, build.accelerator(recipe))


def test_the_stages_are_the_step_of_a_run() -> None:
    ours, theirs, timed = fresh_run(), fresh_run(), stages.Stopwatch(torch.device("cpu"))
    before = {name: value.clone() for name, value in ours.student.state_dict().items()}
    for k in (0, 1, 20):  # twice the first view, then another
        stages.staged_step(ours, k, timed)
        train.step(theirs, k)
    assert ours.ema is not None and theirs.ema is not None
    for mine, other in ((ours.student, theirs.student), (ours.ema.module, theirs.ema.module)):
        pairs = zip(mine.state_dict().values(), other.state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(before["head.weight"], ours.student.state_dict()["head.weight"])
    assert [len(spans) for spans in timed.spans_s.values()] == [3] * (len(ORDER) - 1)


def test_a_stage_of_an_epoch_is_shared_out_over_its_steps() -> None:
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
        (["--recipe", "teacher_wrn"], "student is missing; distill wants a"),
        (["--quick", "--batch", "321"], "train.batch_size = 321 is more than the 320 training"),
    ],
)
def test_a_wrong_request_is_one_message(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        stages.main(arguments)
    assert message in capsys.readouterr().err
