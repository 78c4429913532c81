"""Describe a network layer by layer: output shapes and parameters."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from distill.components.build_network import build_without_weights
from distill.data.image_set import SIDE
from distill.recipe.recipes import Recipe
from distill.runs.run_folder import Role

PASSIVE = (nn.Identity, nn.Sequential)  # return their input if they have no child modules


class LayerSummary(NamedTuple):
    """One row of the summary: a module without child modules, or with direct parameters."""

    name: str  # path in the network, "stages.0.0.conv1"
    kind: str  # the module's class, "Conv2d"
    output: tuple[int, ...]  # shape of its output for one image, without the batch dimension
    parameters: int  # number of direct parameters that no earlier layer has counted


def layers_of_recipe(recipe: Recipe, role: Role, n_classes: int) -> list[LayerSummary]:
    """List the layers of the network that a recipe describes, without allocating its weights."""
    return list_layers(build_without_weights(recipe, role, n_classes), recipe.data.image_size)


@torch.no_grad()
def list_layers(net: nn.Module, size: int = SIDE) -> list[LayerSummary]:
    """List the layers of a network in the order in which they are computed.

    Costs one forward pass of one black image of `size` x `size` pixels, in eval mode; the network's
    mode is restored. The sum of the layers' parameters is the network's number of parameters.
    Functions that are not modules are not listed.
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
        device = next(net.parameters()).device  # "meta" if only the shapes are wanted
        net.eval()(torch.zeros(1, 3, size, size, device=device))
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
    """Return a forward hook that appends its module's row to `found`.

    `counted`: the parameters that earlier layers have counted; the hook adds this layer's.
    """

    def hook(module: nn.Module, _: Any, output: Tensor) -> None:
        own = [p for p in module.parameters(recurse=False) if p not in counted]
        counted.update(own)
        size = sum(p.numel() for p in own)
        found.append(LayerSummary(name, type(module).__name__, tuple(output.shape[1:]), size))

    return hook
