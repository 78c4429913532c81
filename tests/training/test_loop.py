"""The parts of the step and the loop, by themselves."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from timm.utils import ModelEmaV3
from torch import nn

from distill.components.data_pipeline import split_images
from distill.components.read_test_split import SplitIdentity
from distill.data.loader import Batch
from distill.evaluation.predict_split import evaluate_network
from distill.events import Epoch
from distill.metrics import measures
from distill.models import checkpoint
from distill.recipe import recipes
from distill.teacher.teacher import FrozenTeacher, LiveTeacher, Teacher, TeacherOutput
from distill.training import loop
from distill.training.divergence import Diverged
from distill.training.environment import precision_name
from distill.training.mean_losses import RunningMeans
from distill.training.start_notes import start_notes
from tests.make_runs import drawn, prepared, train

ALONE = ("loss.kd=false", "loss.hard.weight=1.0")
MEASURES = ("top1", "nll", "ece")


@pytest.mark.long
def test_short_epoch_has_its_speed(tmp_path: Path) -> None:
    """Of epochs of three steps, only the second one logs a step if every fifth is logged."""
    _, events = train(
        tmp_path / "run", *ALONE, "data.train_images=24", "data.holdout=0.25",
        "train.batch_size=8", "train.epochs=3", "train.log_every=5",
    )  # fmt: skip
    measured = [event.metrics for event in events if isinstance(event, Epoch)]
    assert ["images_per_s" in metrics for metrics in measured] == [True, False, True]
    assert all(metrics.get("images_per_s", 1.0) > 0 for metrics in measured)


@pytest.mark.long
def test_golden_losses_of_tiny(teacher, tmp_path) -> None:
    """Ten steps of everything. A sign flipped in any loss, draw or augmentation shows here."""
    _, events = train(tmp_path / "golden", f"teacher.runs=['{teacher}']")
    measured = [e.metrics["loss/hard"] for e in events[1:11]]
    assert measured == pytest.approx(GOLDEN_HARD, rel=1e-4)
    assert [e.metrics["loss/kd"] for e in events[1:11]] == pytest.approx(GOLDEN_KD, rel=1e-3)


GOLDEN_HARD = [
    2.348678, 2.371706, 2.422885, 2.41265, 2.241723,
    2.356948, 2.353752, 2.347664, 2.309749, 2.273829,
]  # fmt: skip
GOLDEN_KD = [
    0.070181, 0.066156, 0.06212, 0.057818, 0.053362,
    0.049567, 0.046482, 0.044115, 0.042224, 0.042244,
]  # fmt: skip


COMPARING = ("dist", "sp", "pkt", "rkd", "crd")
WITH_PARAMETERS = ("fitnet", "vid", "reviewkd")


@pytest.mark.long
@pytest.mark.parametrize("name", [*COMPARING, *WITH_PARAMETERS])
def test_terms_are_finite_on_last_two_images(teacher, name: str) -> None:
    """42 images in batches of 20: terms and batch norms get two images in the last one."""
    small = {"crd": "loss.crd.negatives=16", "reviewkd": "loss.reviewkd.width=8"}
    run = prepared(
        f"teacher.runs=['{teacher}']", "student.stages=3", "train.epochs=2", "data.train_images=42",
        "train.batch_size=20", "train.drop_last=false", f"loss.{name}.weight=1",
        small.get(name, f"loss.{name}.weight=1"),
    )  # fmt: skip
    assert [run.loader.images_in(k) for k in range(3)] == [20, 20, 2]
    run.model_ddp.train()
    for k in range(4):
        losses = loop.step(run, k)
        assert losses[name].isfinite() and losses["total"].isfinite()
    assert all(parameter.isfinite().all() for parameter in run.parameters())


def test_a_frozen_network_cannot_wake() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten())
    frozen = FrozenTeacher(net)
    before = {name: t.clone() for name, t in frozen.state_dict().items()}
    frozen.train()
    nn.Sequential(frozen).train()
    images = torch.rand(4, 3, 8, 8)
    logits = [frozen(images) for _ in range(10)]
    assert not frozen.training and not net.training and not net[1].training
    assert all(torch.equal(a, logits[0]) for a in logits)
    for name, t in frozen.state_dict().items():
        assert torch.equal(t, before[name])


def test_live_teacher_returns_float32_without_graph() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 10))
    live = LiveTeacher(FrozenTeacher(net), Accelerator(), loader=None)  # type: ignore[arg-type]
    view, rows, images = None, torch.arange(2), torch.rand(2, 3, 2, 2)
    logits = live.mixed_outputs(view, rows, images).logits  # type: ignore[arg-type]
    assert logits.dtype == torch.float32 and not logits.requires_grad
    assert not logits.is_inference()
    assert torch.equal(logits, net(images))
    batch = Batch(view, rows, images, torch.zeros(2, 10))  # type: ignore[arg-type]
    assert Teacher()(batch, frozenset({"teacher"})) == TeacherOutput()


def test_average_warms_up_by_the_formula() -> None:
    """min(d, (1 + t) / (10 + t)) at update t = 0, 1, …, parameters and running statistics alike."""
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    ema = ModelEmaV3(net, decay=0.3, use_warmup=True, warmup_gamma=9, warmup_power=1)
    weight = net[0].weight.item()
    for t in range(6):
        with torch.no_grad():
            net[0].weight.fill_(t)
            net[1].running_mean.fill_(t)
            net[1].num_batches_tracked.fill_(t)
        ema.update(net, step=t + 2)
        decay = min(0.3, (1 + t) / (10 + t))
        weight = decay * weight + (1 - decay) * t
        assert ema.module[0].weight.item() == pytest.approx(weight, rel=1e-5)
    assert ema.module[1].running_mean.item() > 0
    assert ema.module[1].num_batches_tracked.item() == 5  # copied, not averaged


def test_means_cover_values_since_last_read() -> None:
    means = RunningMeans()
    for value in (1.0, 2.0, 6.0):
        means.add({"a": torch.tensor(value), "b": torch.tensor(-value)})
    assert means.read(Accelerator()) == {"a": 3.0, "b": -3.0}
    assert means.read(Accelerator()) == {}
    means.add({"a": torch.tensor(5.0)})
    assert means.read(Accelerator()) == {"a": 5.0}


def test_mean_of_later_term_covers_its_steps() -> None:
    means = RunningMeans()
    means.add({"a": torch.tensor(1.0)})
    means.add({"a": torch.tensor(3.0), "b": torch.tensor(8.0)})
    assert means.read(Accelerator()) == {"a": 2.0, "b": 8.0}


def test_measures_by_hand() -> None:
    # Two classes; p = 0.8 right, 0.8 wrong, 0.6 right: top1 2/3.
    p = torch.tensor([[0.8, 0.2], [0.8, 0.2], [0.4, 0.6]])
    values = measures(p.log().numpy(), np.array([0, 1, 1]))
    assert values["top1"] == pytest.approx(2 / 3)
    assert values["nll"] == pytest.approx(-(math.log(0.8) + math.log(0.2) + math.log(0.6)) / 3)
    # Bins: {0.8, 0.8} with accuracy 1/2, {0.6} with accuracy 1.
    assert values["ece"] == pytest.approx(2 / 3 * 0.3 + 1 / 3 * 0.4, abs=1e-6)


@pytest.mark.long
def test_non_finite_loss_ends_run_before_saving(teacher, tmp_path) -> None:
    huge = ["optim.lr=1e30", "optim.schedule='constant'", "train.log_every=100"]
    with pytest.raises(Diverged, match="the loss or its gradient is not finite in step 2"):
        train(tmp_path / "s", f"teacher.runs=['{teacher}']", *huge)
    tensors, progress = checkpoint.load(tmp_path / "s" / "last")
    assert progress["step"] == 0, "the state before it is the saved one"
    assert all(value.isfinite().all() for value in tensors["student"].values())


SLOW = "this CPU does not compute bf16 natively: it is many times slower than fp32"
FASTER = (
    "this CPU has {} instructions for bf16: --set train.precision=bf16 trains networks of 128 "
    "channels or more {} times as fast"
)
AMX, AVX_512 = FASTER.format("AMX", "2 to 3"), FASTER.format("AVX-512", "1.5 to 2")


@pytest.mark.parametrize(
    ("unit", "precision", "widen", "expected"),
    [
        ("avx2", "bf16", 2, {SLOW}),
        ("avx2", "auto", 2, set()),
        ("amx_bf16", "bf16", 2, set()),
        ("amx_bf16", "auto", 2, {AMX}),
        ("amx_bf16", "auto", 1, set()),  # 64 channels at most
        ("amx_bf16", "fp32", 2, set()),
        ("avx512_bf16", "bf16", 2, set()),
        ("avx512_bf16", "auto", 2, {AVX_512}),
    ],
)
def test_cpu_reports_its_fast_precision(
    fresh_accelerate, monkeypatch, unit: str, precision: str, widen: int, expected: set[str]
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {unit: True})
    settings = [*ALONE, f"train.precision='{precision}'", f"teacher.widen={widen}"]
    run, recipe = prepared(*settings, role="teacher"), recipes.load("tiny", settings).recipe
    assert precision_name(run.accelerator) == ("bf16" if precision == "bf16" else "fp32")
    test = SplitIdentity("synthetic", "", (), n_images=100, n_in_train=0)
    notes = set(start_notes(run, recipe, split_images(recipe, drawn()), test, None))
    assert {note for note in notes if "this CPU" in note} == expected


@pytest.mark.parametrize(
    ("settings", "splits"),
    [
        ((), ["val"]),
        (("ema.decay=0.9",), ["val_ema"]),
        (("ema.decay=0.9", "train.validate_both=true"), ["val", "val_ema"]),
        (("train.validate_both=true",), ["val"]),
        (("ema.decay=0.9", "train.validate_both=true", "data.holdout=0"), []),
    ],
)
def test_validation_measures_only_the_average_by_default(settings, splits, monkeypatch) -> None:
    """Each network once, and no other."""
    run = prepared(*ALONE, *settings)
    measured = []
    really = loop.evaluate_network
    monkeypatch.setattr(loop, "evaluate_network", lambda *a: measured.append(a[0]) or really(*a))
    names = loop.validate(run).keys()
    assert names == {f"{measure}/{split}" for split in splits for measure in MEASURES}
    nets = {"val": run.model, "val_ema": run.ema and run.ema.module}
    assert measured == [nets[split] for split in splits]


@pytest.mark.long
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_validation_computes_in_the_training_precision(fresh_accelerate, precision) -> None:
    """The network and its average alike: both are measured without accelerate's wrapper."""
    settings = (f"train.precision='{precision}'", "ema.decay=0.9", "train.validate_both=true")
    run = prepared(*ALONE, *settings)
    for k in range(3):
        loop.step(run, k)
    found = loop.validate(run)
    for split, net in (("val", run.model), ("val_ema", run.ema.module)):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            expected = evaluate_network(net, run.held_out, run.accelerator)
        exact = evaluate_network(net, run.held_out, run.accelerator)
        assert {name: found[f"{name}/{split}"] for name in MEASURES} == expected
        assert (expected["nll"] == exact["nll"]) == (precision == "fp32")
