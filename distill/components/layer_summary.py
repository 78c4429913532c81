"""Describe a network layer by layer: output shapes and parameters."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from distill.components.network import build_network
from distill.recipe.recipes import Recipe
from distill.runs.run_folder import Role

SIDE = 32  # height and width of the images in pixels
PASSIVE = (nn.Identity, nn.Sequential)  # without child modules they return their input


class LayerSummary(NamedTuple):
    """A module that has no child modules, or has parameters of its own."""

    name: str  # path in the network, "stages.0.0.conv1"
    kind: str  # its class, "Conv2d"
    output: tuple[int, ...]  # shape for one image, without the batch dimension
    parameters: int  # its own; those that an earlier layer shares are not counted


def layers_of_recipe(recipe: Recipe, role: Role, n_classes: int) -> list[LayerSummary]:
    """List the layers of the network that a recipe describes, built with initial weights."""
    return list_layers(build_network(recipe, role, n_classes))


@torch.no_grad()
def list_layers(net: nn.Module) -> list[LayerSummary]:
    """List the layers in the order of their outputs, like `torchsummary`.

    Costs one forward pass of one black image, in eval mode; the network's mode is restored. The
    layers' parameters add up to the network's. Functions that are not modules are not listed.
    """
    found: list[LayerSummary] = []
    counted: set[nn.Parameter] = set()
    handles = [
        module.register_forward_hook(_layer_hook(name, found, counted))
        for name, module in net.named_modules()
        if _is_listed(module)
    ]
    was_training = net.training
    try:
        net.eval()(torch.zeros(1, 3, SIDE, SIDE))
    finally:
        net.train(was_training)
        for handle in handles:
            handle.remove()
    return found


def _is_listed(module: nn.Module) -> bool:
    if any(True for _ in module.children()):
        return bool(list(module.parameters(recurse=False)))
    return not isinstance(module, PASSIVE)


def _layer_hook(name: str, found: list[LayerSummary], counted: set[nn.Parameter]) -> Any:
    """Return a forward hook that adds the module to `found`."""

    def hook(module: nn.Module, _: Any, output: Tensor) -> None:
        own = [p for p in module.parameters(recurse=False) if p not in counted]
        counted.update(own)
        size = sum(p.numel() for p in own)
        found.append(LayerSummary(name, type(module).__name__, tuple(output.shape[1:]), size))

    return hook
