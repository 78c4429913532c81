"""The defaults of the recipe's keys are those of the functions that take them."""

from collections.abc import Callable
from inspect import Parameter, signature
from typing import Any, get_args

import pytest

from distill.components.build_loss_terms import LOSSES
from distill.components.data_pipeline import OPERATIONS
from distill.data.augment import crop_flip, mixup_cutmix, ricap
from distill.losses.objective import LossSchedule
from distill.recipe import loss_schema, lr_schedule, schema
from distill.training import optim
from students.design import Design
from students.resnet import ResNet
from teachers.wrn import WideResNet


def _table(parent: type[loss_schema.Table], name: str) -> type[loss_schema.Table]:
    """The table of an optional key, `Kd | None`."""
    return get_args(parent.model_fields[name].annotation)[0]


PAIRS: list[tuple[type[loss_schema.Table], Callable[..., Any]]] = [
    *((_table(schema.Losses, name), loss) for name, loss in LOSSES.items()),
    *((_table(schema.Augment, name), operation) for name, operation in OPERATIONS.items()),
    (loss_schema.When, LossSchedule),
    (schema.Crop, crop_flip.Crop),
    (schema.Flip, crop_flip.Flip),
    (schema.Mixup, mixup_cutmix.Mixup),
    (schema.Cutmix, mixup_cutmix.Cutmix),
    (schema.Ricap, ricap.Ricap),
    (schema.Student, Design.of),
    (schema.ResNetKeys, ResNet),
    (schema.Teacher, WideResNet),
    (schema.Optim, optim.optimizer),
    (schema.Optim, lr_schedule.lr_at),
]


@pytest.mark.parametrize(("table", "function"), PAIRS)
def test_recipe_defaults_equal_runtime_defaults(table, function) -> None:
    parameters = signature(function).parameters.values()
    runtime = {p.name: p.default for p in parameters if p.default is not Parameter.empty}
    shared = runtime.keys() & table.model_fields.keys()
    assert shared
    recipe = {name: table.model_fields[name].default for name in shared}
    assert recipe == {name: runtime[name] for name in shared}
