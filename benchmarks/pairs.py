"""The pairs of networks and the settings with which training loops are compared."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import nn

from students.design import Design
from students.resnet import ResNet
from teachers.wrn import WideResNet

if TYPE_CHECKING:  # the peers' processes load nothing of this project but the networks
    from distill.recipe.recipes import Recipe
    from distill.runs.run_folder import Role

BATCH = 128
HARD, SOFT, TEMPERATURE = 0.1, 0.9, 4.0  # weights of the labels' and the teacher's term
SGD = {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}


@dataclass(frozen=True)
class Pair:
    """A teacher, a student and the recipe with which this project trains that student.

    `role` is the recipe table that describes the student: a Wide ResNet is in `[teacher]`.
    """

    title: str
    teacher: Callable[[], nn.Module]
    student: Callable[[], nn.Module]
    role: "Role"
    network: tuple[str, ...] = field(repr=False)  # the student, as arguments of --set

    def recipe(self, data: str, batch: int, *, stored: bool) -> "Recipe":
        """Return the recipe, at a constant learning rate; `stored` caches the teacher's logits."""
        from distill.recipe import recipes

        settings = {
            "data.source": data,
            "train.batch_size": batch,
            "train.precision": "auto",
            "optim.lr": SGD["lr"],
            "optim.momentum": SGD["momentum"],
            "optim.weight_decay": SGD["weight_decay"],
            "optim.schedule": "constant",
            "optim.warmup_epochs": 0,
            "loss.hard.weight": HARD,
            "loss.kd.weight": SOFT,
            "loss.kd.temperature": TEMPERATURE,
        }
        spec = "kd+cached_targets" if stored else "kd"
        overrides = [*(f"{key}={value}" for key, value in settings.items()), *self.network]
        if stored:
            overrides.append("cache.views=1")
        return recipes.with_teacher(recipes.load(spec, overrides).recipe, ())


def cifar_resnet(depth: int, width: int = 16) -> nn.Module:
    """Build ResNet-`depth` (depth = 6n + 2) of arXiv 1512.03385, 4.2, with convolutional skips."""
    return ResNet(Design.of(stages=3, blocks=(depth - 2) // 6, width=width))


PAIRS = {
    "wrn": Pair(
        "WRN-40-2 -> WRN-16-2",
        lambda: WideResNet(40, 2),
        lambda: WideResNet(16, 2),
        "teacher",
        ("teacher.network=wrn", "teacher.depth=16", "teacher.widen=2"),
    ),
    "resnet": Pair(
        "ResNet-56 -> ResNet-20",
        lambda: cifar_resnet(56),
        lambda: cifar_resnet(20),
        "student",
        ("student.stages=3", "student.blocks=3", "student.width=16"),
    ),
    "tiny": Pair(
        "ResNet-14 of 8 channels -> ResNet-8 of 4",
        lambda: cifar_resnet(14, 8),
        lambda: cifar_resnet(8, 4),
        "student",
        ("student.stages=3", "student.blocks=1", "student.width=4"),
    ),
}
