"""Define the teacher-student pairs and the settings with which training loops are compared."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import nn

from students.design import Design
from students.resnet import ResNet
from teachers.wrn import WideResNet

if TYPE_CHECKING:  # the processes of other libraries' loops import only this project's networks
    from distill.recipe.recipes import Recipe
    from distill.runs.run_folder import Role

BATCH = 128
# Weights of the loss terms of the labels and of the teacher, and the teacher term's temperature.
HARD, SOFT, TEMPERATURE = 0.1, 0.9, 4.0
SGD = {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}


@dataclass(frozen=True)
class Pair:
    """A teacher, a student and the recipe with which this project trains that student."""

    title: str
    teacher: Callable[[], nn.Module]  # builds the network
    student: Callable[[], nn.Module]  # builds the network
    role: "Role"  # the recipe table that describes the student: a Wide ResNet is in [teacher]
    network: tuple[str, ...] = field(repr=False)  # the student, as arguments of --set

    def recipe(self, data: str, batch: int, *, stored: bool) -> "Recipe":
        """Return the recipe, with a constant learning rate.

        `data`: data source. `batch`: batch size. `stored`: whether to cache the teacher's logits.
        """
        from distill.recipe import recipe_variants, recipes

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
        return recipe_variants.with_teacher(recipes.load(spec, overrides).recipe, ())


def cifar_resnet(depth: int, width: int = 16) -> nn.Module:
    """Build the CIFAR ResNet of arXiv 1512.03385, section 4.2, with projection shortcuts.

    `depth` = 6n + 2 for n blocks per stage. `width`: channels in the first stage.
    """
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
