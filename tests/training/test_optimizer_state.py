"""Optimizer states of other processes: checked, then loaded with the run's own options."""

import copy
from typing import Any, get_args

import pytest
import torch
from torch import nn

from distill.recipe.schema import OptimizerName
from distill.training import optimizer_state
from distill.training.optim import batch_norm_biases, optimizer

NAMES = get_args(OptimizerName)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 4, 10)
    return nn.Sequential(*layers)


def build(net: nn.Module, name: str = "sgd", lr: float = 0.1) -> torch.optim.Optimizer:
    return optimizer(
        net, name=name, lr=lr, momentum=0.9, weight_decay=0.01, decay_norm=False, bias_lr=4.0,
        biases=batch_norm_biases(net),
    )  # fmt: skip


def train(net: nn.Module, optim: torch.optim.Optimizer, steps: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        images = torch.randn(4, 3, 4, 4, generator=generator)
        optim.zero_grad()
        net(images).logsumexp(1).sum().backward()
        optim.step()


@pytest.mark.parametrize("name", NAMES)
def test_a_loaded_state_continues_bit_for_bit(name: str) -> None:
    """Whatever options the saved groups have."""
    net = network()
    optim = build(net, name)
    train(net, optim, 3, seed=1)
    resumed = network()
    resumed.load_state_dict(net.state_dict())
    saved = copy.deepcopy(optim.state_dict())
    for group in saved["param_groups"]:
        group |= {"lr": 9.0, "weight_decay": 5.0, "maximize": True, "fused": True, "momentum": 0.1}
    other = build(resumed, name)
    optimizer_state.load(other, saved)
    train(net, optim, 2, seed=2)
    train(resumed, other, 2, seed=2)
    assert all(map(torch.equal, net.state_dict().values(), resumed.state_dict().values()))


@pytest.mark.parametrize("name", NAMES)
def test_a_state_of_no_step_is_loaded(name: str) -> None:
    optimizer_state.load(build(network(), name), build(network(), name).state_dict())


def test_loading_replaces_a_later_counter() -> None:
    """When a run returns to its last checkpoint."""
    net = network()
    optim = build(net, "lamb")
    train(net, optim, 2, seed=1)
    saved = copy.deepcopy(optim.state_dict())
    train(net, optim, 3, seed=2)
    optimizer_state.load(optim, saved)
    assert [int(group["step"]) for group in optim.param_groups] == [2] * len(optim.param_groups)


def one_element(state: dict[str, Any]) -> None:
    state["state"][0]["momentum_buffer"] = torch.zeros(1)


def double(state: dict[str, Any]) -> None:
    state["state"][0]["momentum_buffer"] = state["state"][0]["momentum_buffer"].double()


def number(state: dict[str, Any]) -> None:
    state["state"][0]["momentum_buffer"] = 0.5


def other_buffer(state: dict[str, Any]) -> None:
    state["state"][0]["exp_avg"] = state["state"][0].pop("momentum_buffer")


def other_parameter(state: dict[str, Any]) -> None:
    state["state"][99] = state["state"][0]


def fewer_groups(state: dict[str, Any]) -> None:
    del state["param_groups"][0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (one_element, r"state of parameter 0 has float32 \[1\] as momentum_buffer instead of"),
        (double, r"has float64 \[8\] as momentum_buffer instead of float32 \[8\]"),
        (number, r"has float as momentum_buffer instead of float32 \[8\]"),
        (other_buffer, "state of parameter 0 has other entries than this optimizer makes"),
        (other_parameter, "state of parameter 99 has other entries"),
        (fewer_groups, "parameter groups are not those of this network"),
    ],
)
def test_a_state_of_another_structure_is_refused(change: Any, message: str) -> None:
    net = network()
    optim = build(net)
    train(net, optim, 1, seed=1)
    saved = copy.deepcopy(optim.state_dict())
    change(saved)
    before = copy.deepcopy(optim.state_dict())
    with pytest.raises(ValueError, match=message):
        optimizer_state.load(optim, saved)
    assert torch.equal(
        optim.state_dict()["state"][0]["momentum_buffer"], before["state"][0]["momentum_buffer"]
    )


def test_a_wrong_counter_is_refused() -> None:
    net = network()
    optim = build(net, "lamb")
    train(net, optim, 1, seed=1)
    saved = copy.deepcopy(optim.state_dict())
    saved["param_groups"][0]["step"] = "2"
    with pytest.raises(ValueError, match=r"parameter group has str as step"):
        optimizer_state.load(optim, saved)
