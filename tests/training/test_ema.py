"""The average of a run's weights: min(d, (1 + t) / (10 + t)) of itself, the rest of the net's."""

import pytest
import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from distill.models.reestimate_batch_norm import recompute_statistics
from distill.training.loop import re_estimate_batch_norm, step
from tests.make_runs import prepared

UPDATES = 6
DECAY = 0.35  # reached at t = 4: four updates warm up, two do not


def test_a_run_averages_by_the_formula() -> None:
    """Parameters and running statistics, by hand in float64; whole numbers are the net's own."""
    run = prepared("loss.kd=false", "loss.hard.weight=1", f"ema.decay={DECAY}")
    assert run.ema is not None
    assert not run.ema.module.training
    expected = exact(run.model)
    for t in range(UPDATES):
        step(run, t)
        d = min(DECAY, (1 + t) / (10 + t))
        for name, value in exact(run.model).items():
            expected[name] = d * expected[name] + (1 - d) * value
    found = run.ema.module.state_dict()
    whole = {name for name, value in found.items() if not value.is_floating_point()}
    assert len(whole) == sum(isinstance(m, nn.BatchNorm2d) for m in run.model.modules()) > 0
    for name, value in found.items():
        if name in whole:
            assert torch.equal(value, run.model.state_dict()[name]) and value == UPDATES
        else:
            assert torch.allclose(value.double(), expected[name], rtol=1e-5, atol=1e-7), name
    last = run.model.state_dict()
    for name in ("head.weight", "stem.1.running_mean"):  # the average is not simply the net
        assert not torch.allclose(found[name], last[name], rtol=1e-3)


def test_after_a_half_life_half_is_left() -> None:
    """1.5 epochs of 10 steps."""
    run = prepared("loss.kd=false", "loss.hard.weight=1", "ema.half_life=1.5")
    assert run.ema is not None and run.loader.steps_per_epoch == 10
    assert run.ema.decay**15 == pytest.approx(0.5)


RE_ESTIMATED = ("loss.kd=false", "loss.hard.weight=1", "ema.norm_statistics=re-estimated")


def test_re_estimated_statistics_are_those_of_averaged_weights() -> None:
    """On 320 images: one batch of the first 250 of the training part, neither cropped nor mixed."""
    run = prepared(*RE_ESTIMATED, "student.block_dropout=0.5")
    assert run.ema is not None and run.norm_images is not None
    for k in range(3):
        step(run, k)
    averaged = exact(run.ema.module)
    re_estimate_batch_norm(run)
    net = run.ema.module
    images = run.norm_images[:250].float() / 255
    maps = net.stem[0](net.normalize(images)).detach()
    found = net.state_dict()
    torch.testing.assert_close(found["stem.1.running_mean"], maps.mean((0, 2, 3)))
    torch.testing.assert_close(found["stem.1.running_var"], maps.var((0, 2, 3)), rtol=1e-3, atol=0)
    assert not torch.allclose(found["stem.1.running_var"].double(), averaged["stem.1.running_var"])
    weights = {name for name, _ in net.named_parameters()}
    assert all(torch.equal(found[name].double(), averaged[name]) for name in weights)
    assert not any(module.training for module in net.modules())
    assert {m.momentum for m in net.modules() if isinstance(m, nn.BatchNorm2d)} == {0.1}


def test_re_estimating_again_changes_no_bit() -> None:
    run = prepared(*RE_ESTIMATED)
    assert run.ema is not None
    step(run, 0)
    re_estimate_batch_norm(run)
    once = exact(run.ema.module)
    re_estimate_batch_norm(run)
    assert all(torch.equal(value, once[name]) for name, value in exact(run.ema.module).items())


def test_statistics_are_the_plain_mean_over_batches() -> None:
    """What is left over after whole batches of 250 is not read."""
    net = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Dropout(0.5)).train()
    images = torch.randint(0, 256, (520, 3, 4, 4), dtype=torch.uint8)
    recompute_statistics(net, images, torch.device("cpu"))
    batches = [part.float() / 255 for part in images[:500].split(250)]
    for name, of in (("running_mean", torch.mean), ("running_var", torch.var)):
        mean = sum(of(batch, (0, 2, 3)) for batch in batches) / 2
        torch.testing.assert_close(getattr(net[0], name), mean)


def test_averaged_statistics_are_not_touched() -> None:
    run = prepared("loss.kd=false", "loss.hard.weight=1", "ema.decay=0.9")
    assert run.ema is not None and run.norm_images is None
    before = exact(run.ema.module)
    re_estimate_batch_norm(run)
    assert all(torch.equal(value, before[name]) for name, value in exact(run.ema.module).items())


def exact(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().double().clone() for name, value in net.state_dict().items()}


def test_bfloat16_is_averaged_too() -> None:
    """Some implementations list the types they average, and leave this one as it was."""
    net = nn.Linear(64, 64, bias=False, dtype=torch.bfloat16)
    nn.init.zeros_(net.weight)
    ema = ModelEmaV3(net, decay=0.5, use_warmup=True, warmup_gamma=9, warmup_power=1)
    nn.init.ones_(net.weight)
    share = 1.0
    for t in range(4):
        ema.update(net, step=t + 2)
        share *= min(0.5, (1 + t) / (10 + t))
    assert ema.module.weight.dtype == torch.bfloat16
    assert ema.module.weight.float().mean().item() == pytest.approx(1 - share, abs=2**-8)
