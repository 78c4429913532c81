"""The gradients of every distinct convolution that training runs, against float64.

    python -m tests.models.convolution_gradients

A program of its own, because a faulty kernel may end its process: it prints the wrong ones, one a
line, then how many were compared, and exits with 1 if any is wrong.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from distill.components.build_network import build_network, to_device
from distill.models.check_convolutions import BATCH, TOLERANCE, gradient_error
from distill.recipe import recipes
from distill.runs.run_folder import Role
from distill.teacher.teacher import FrozenTeacher
from distill.training.loop import step
from networks import by_name
from students.design import Design
from students.resnet import ResNet
from tests.make_runs import prepared
from tests.training.test_shipped_recipes import WHOLE, in_small

WIDE = 64  # channels, from which one image does: float64 is slow, and small blocks are full
CPU = torch.device("cpu")
RECIPES = [
    *(path.stem for path in WHOLE),
    *(
        f"{recipe}+{size}"
        for recipe in ("kd", "teacher_wrn")
        for size in ("two_cores", "quickstart")
    ),
]
Convolutions = dict[tuple[Any, ...], tuple[nn.Conv2d, Tensor]]


@contextmanager
def recorded(found: Convolutions) -> Iterator[None]:
    """Add each distinct convolution that is called inside, with one of its inputs."""

    def record(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if isinstance(module, nn.Conv2d):
            maps: Tensor = inputs[0]
            last = maps.is_contiguous(memory_format=torch.channels_last)
            hooks = module._forward_pre_hooks.values()  # of the same channels, one may subsample
            key = (repr(module), str([*hooks]), maps.shape[1:], last)
            found.setdefault(key, (module, maps.detach()))

    handle = register_module_forward_pre_hook(record)
    try:
        yield
    finally:
        handle.remove()


def of_networks(found: Convolutions) -> None:
    """Those of the networks of all shipped recipes, at full size, and of narrow designs."""
    nets: dict[str, nn.Module] = {
        "timm/resnet18": by_name.build("timm/resnet18"),
        "strided stem": ResNet(
            Design.of(stages=2, blocks=1, width=8, stem_kernel=1, stem_stride=2)
        ),
        "stride 3": ResNet(Design.of(stages=2, blocks=1, width=4, stage_strides=[1, 3])),
    }
    for width in range(1, 17):
        nets[f"width {width}"] = ResNet(Design.of(stages=3, blocks=1, width=width))
    for name in RECIPES:
        recipe = recipes.load(name).recipe
        role: Role = "student" if recipe.student else "teacher"
        keys = getattr(recipe, role).model_dump_json()
        if keys not in nets:  # several recipes train the same network
            nets[keys] = build_network(recipe, role, 10)
    images = torch.rand(1, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    for net in nets.values():
        with recorded(found), torch.no_grad():
            to_device(net, CPU).eval()(images)


def of_losses(found: Convolutions) -> None:
    """Those of the terms, and of narrow students beside them, in a step of every shipped recipe."""
    for name in RECIPES:
        recipe = recipes.load(name).recipe
        if recipe.student is None or not recipes.has_teacher(recipe):
            continue
        given = [each for each in in_small(name, Path()) if not each.startswith("teacher.runs")]
        teacher = FrozenTeacher(by_name.build("wrn", depth=10, widen=1))
        run = prepared(*given, "cache=false", recipe=name, teacher=teacher)
        with recorded(found):
            step(run, 0)


def error(convolution: nn.Conv2d, maps: Tensor) -> float:
    """The largest difference to float64 for random maps, as a share of the largest gradient."""
    layout = torch.channels_last
    if not maps.is_contiguous(memory_format=layout):
        layout = torch.contiguous_format
    batch = 1 if min(convolution.in_channels, convolution.out_channels) >= WIDE else BATCH
    inputs = torch.randn(batch, *maps.shape[1:]).contiguous(memory_format=layout)
    return gradient_error(convolution, inputs)


def main() -> int:
    torch.manual_seed(0)
    found: Convolutions = {}
    of_networks(found)
    of_losses(found)
    wrong = 0
    for (name, _, shape, last), (convolution, maps) in found.items():
        worst = error(convolution, maps)
        if not worst <= TOLERANCE:
            wrong += 1
            layout = "channels_last" if last else "contiguous"
            print(f"{name} on {list(shape)}, {layout}: off by {worst:.2g} of the largest gradient")
    print(f"{len(found)} convolutions compared, {wrong} wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
