"""Describe a network layer by layer: output shapes and parameters."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from distill.components.network import build_network
from distill.recipe.recipes import Recipe
from distill.runs.run_folder import Role

SIDE = 32  # of the images, in pixels
SILENT = (nn.Identity, nn.Sequential)  # without modules in them they give what they are given


class Layer(NamedTuple):
    """One module without modules in it, or one that holds parameters of its own beside them."""

    name: str  # in the network, "stages.0.0.conv1"
    kind: str  # its class, "Conv2d"
    output: tuple[int, ...]  # shape for one image, the batch left out
    parameters: int  # its own; 0 where it is used again


def layers_of_recipe(recipe: Recipe, role: Role, n_classes: int) -> list[Layer]:
    """The layers of the network that a recipe describes, with fresh weights."""
    return list_layers(build_network(recipe, role, n_classes))


@torch.no_grad()
def list_layers(net: nn.Module) -> list[Layer]:
    """The layers in the order in which they answer, as `torchsummary` lists them.

    Costs one forward of one black image, in eval mode; the network's mode is restored. The
    parameters sum to the network's. Functions that are no module have no line.
    """
    found: list[Layer] = []
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
    return not isinstance(module, SILENT)


def _layer_hook(name: str, found: list[Layer], counted: set[nn.Parameter]) -> Any:
    """A forward hook that adds the module's line."""

    def hook(module: nn.Module, _: Any, output: Tensor) -> None:
        own = [p for p in module.parameters(recurse=False) if p not in counted]
        counted.update(own)
        size = sum(p.numel() for p in own)
        found.append(Layer(name, type(module).__name__, tuple(output.shape[1:]), size))

    return hook
