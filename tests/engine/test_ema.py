"""The average of a run's weights: min(d, (1 + t) / (10 + t)) of itself, the rest of the net's."""

import pytest
import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from distill.engine.train import step
from tests.runs import prepared

UPDATES = 6
DECAY = 0.35  # reached at t = 4: four updates warm up, two do not


def test_a_run_averages_by_the_formula() -> None:
    """Parameters and running statistics, by hand in float64; whole numbers are the net's own."""
    run = prepared("loss.kd=false", "loss.hard.weight=1", f"ema.decay={DECAY}")
    assert run.ema is not None
    assert not run.ema.module.training
    expected = exact(run.student)
    for t in range(UPDATES):
        step(run, t)
        d = min(DECAY, (1 + t) / (10 + t))
        for name, value in exact(run.student).items():
            expected[name] = d * expected[name] + (1 - d) * value
    found = run.ema.module.state_dict()
    whole = {name for name, value in found.items() if not value.is_floating_point()}
    assert len(whole) == sum(isinstance(m, nn.BatchNorm2d) for m in run.student.modules()) > 0
    for name, value in found.items():
        if name in whole:
            assert torch.equal(value, run.student.state_dict()[name]) and value == UPDATES
        else:
            assert torch.allclose(value.double(), expected[name], rtol=1e-5, atol=1e-7), name
    last = run.student.state_dict()
    for name in ("head.weight", "stem.1.running_mean"):  # the average is not simply the net
        assert not torch.allclose(found[name], last[name], rtol=1e-3)


def exact(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().double().clone() for name, value in net.state_dict().items()}


def test_bfloat16_is_averaged_too() -> None:
    """Some implementations list the types they average, and leave this one as it was."""
    net = nn.Linear(64, 64, bias=False, dtype=torch.bfloat16)
    nn.init.zeros_(net.weight)
    ema = ModelEmaV3(net, decay=0.5, use_warmup=True, warmup_gamma=9, warmup_power=1)
    nn.init.ones_(net.weight)
    kept = 1.0
    for t in range(4):
        ema.update(net, step=t + 2)
        kept *= min(0.5, (1 + t) / (10 + t))
    assert ema.module.weight.dtype == torch.bfloat16
    assert ema.module.weight.float().mean().item() == pytest.approx(1 - kept, abs=2**-8)
