"""Layer by layer, against the closed form of the design and the network itself."""

from typing import Any

import pytest
import torch
from torch import nn

from distill.components import layer_summary
from distill.components.build_network import build_network
from distill.recipe import recipes
from students.design import Design


@pytest.mark.parametrize(("spec", "role"), [("tiny", "student"), ("tiny", "teacher")])
def test_the_lines_sum_to_the_network(spec: str, role: str) -> None:
    recipe = recipes.load(spec).recipe
    found = layer_summary.layers_of_recipe(recipe, role, 10)  # type: ignore[arg-type]
    net = build_network(recipe, role, 10)  # type: ignore[arg-type]
    assert sum(line.parameters for line in found) == sum(p.numel() for p in net.parameters())
    assert found[0] == ("normalize", "Normalize", (3, 32, 32), 0)
    assert found[-1].kind == "Linear" and found[-1].output == (10,)


def test_layers_are_listed_without_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_summary, "list_layers", lambda net, _: net)
    net: Any = layer_summary.layers_of_recipe(recipes.load("tiny").recipe, "student", 10)
    assert {parameter.device.type for parameter in net.parameters()} == {"meta"}


def test_shapes_and_parameters_are_those_of_the_design() -> None:
    found = {
        line.name: line
        for line in layer_summary.layers_of_recipe(recipes.load("tiny").recipe, "student", 7)
    }
    design = Design.of(stages=2, blocks=1, width=4, classes=7)
    assert sum(line.parameters for line in found.values()) == design.parameters
    assert found["stem.0"].output == (4, 32, 32)
    assert found["stem.0"].parameters == 3 * 4 * 3 * 3
    assert found["head"] == ("head", "Linear", (7,), 8 * 7 + 7)


def test_layer_used_twice_is_counted_once() -> None:
    same = nn.Conv2d(3, 3, 1)
    net = nn.Sequential(same, nn.Identity(), same, nn.Dropout(0.5)).train()
    before = torch.get_rng_state()
    found = layer_summary.list_layers(net)
    assert [line.parameters for line in found] == [12, 0, 0]
    assert [line.kind for line in found] == ["Conv2d", "Conv2d", "Dropout"]
    assert net.training and net[3].training
    assert torch.equal(before, torch.get_rng_state())
    assert not same._forward_hooks
