"""The learning rate at the points that define it, and what timm's names mean."""

import pytest
import torch
from torch import nn

from distill.engine import optim

LR = {"total": 100, "warmup": 10, "peak": 0.4}


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.04),  # a tenth of the way up
        (9, 0.4),
        (10, 0.4),  # the top
        (55, 0.2),  # the middle of what is left
        (100, 0.0),  # never taken: the end
    ],
)
def test_cosine_at_its_corners(step: int, expected: float) -> None:
    assert optim.lr_at(step, schedule="cosine", **LR) == pytest.approx(expected)


def test_cosine_ends_at_its_floor() -> None:
    assert optim.lr_at(100, schedule="cosine", floor=0.01, **LR) == pytest.approx(0.01)


def test_linear_and_constant() -> None:
    assert optim.lr_at(55, schedule="linear", **LR) == pytest.approx(0.2)
    assert optim.lr_at(32, schedule="linear", **LR) == pytest.approx(0.4 * 68 / 90)
    assert optim.lr_at(99, schedule="constant", **LR) == 0.4


def test_no_warm_up_begins_at_the_peak() -> None:
    assert optim.lr_at(0, total=10, warmup=0, peak=0.1, schedule="cosine") == 0.1


def small() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def made(name: str, decay_norm: bool = True) -> torch.optim.Optimizer:
    return optim.optimizer(
        small(), name=name, lr=0.1, momentum=0.9, weight_decay=5e-4, decay_norm=decay_norm
    )


def test_sgd_is_nesterovs_and_momentum_is_plain() -> None:
    assert made("sgd").param_groups[0]["nesterov"] is True
    assert made("momentum").param_groups[0]["nesterov"] is False


def test_adamw_decays_by_what_it_was_told() -> None:
    adamw = made("adamw")
    assert isinstance(adamw, torch.optim.AdamW)
    assert adamw.param_groups[0]["weight_decay"] == 5e-4


def test_decay_norm_off_spares_norms_and_biases() -> None:
    groups = made("sgd", decay_norm=False).param_groups
    decays = {group["weight_decay"]: len(group["params"]) for group in groups}
    assert decays == {5e-4: 1, 0.0: 3}  # the kernel; its bias, gamma and beta
    assert {g["weight_decay"] for g in made("sgd").param_groups} == {5e-4}
