"""Check an optimizer's state from a checkpoint, and load it.

torch loads any state: a buffer of another shape broadcasts, or is read beyond its end by a fused
step, and the groups' options (learning rate, decay, `fused`, …) replace those of the run. Here a
state must have the structure that a step of this optimizer creates, and the options are the run's.
"""

import copy
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

COUNTER = "step"  # of a parameter group of timm's lamb and adan


def load(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    """Load a `state_dict` of another process. Raises ValueError if it does not fit the optimizer.

    Of the parameter groups only a counter of steps is loaded: the options come from the recipe.
    """
    expected = _state_after_one_step(optimizer)
    own = optimizer.state_dict()["param_groups"]
    if [group["params"] for group in saved["param_groups"]] != [group["params"] for group in own]:
        raise ValueError("the optimizer's parameter groups are not those of this network")
    for parameter, values in saved["state"].items():
        _check(f"state of parameter {parameter}", values, expected["state"].get(parameter))
    groups = []
    for options, group, wanted in zip(
        own, saved["param_groups"], expected["param_groups"], strict=True
    ):
        options.pop(COUNTER, None)
        counter = {COUNTER: group[COUNTER]} if COUNTER in group else {}
        if counter:
            _check("parameter group", counter, {COUNTER: wanted.get(COUNTER)})
        groups.append(options | counter)
    optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})


def _state_after_one_step(optimizer: Optimizer) -> dict[str, Any]:
    """The `state_dict` of a copy, on the CPU, that took one step with a gradient of 0."""
    blank = copy.copy(optimizer)
    blank.state = defaultdict(dict)
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    zeros = [torch.zeros_like(each, device="cpu", requires_grad=True) for each in parameters]
    blank = copy.deepcopy(blank, {id(p): zero for p, zero in zip(parameters, zeros, strict=True)})
    for zero in zeros:
        zero.grad = torch.zeros_like(zero)
    blank.step()
    return blank.state_dict()


def _check(name: str, values: Any, expected: Any) -> None:
    """Raise ValueError unless the values have the keys, types, dtypes and shapes of `expected`."""
    if expected is None or not isinstance(values, dict) or values.keys() != expected.keys():
        raise ValueError(f"the optimizer's {name} has other entries than this optimizer makes")
    for key, value in values.items():
        if (found := _kind(value)) != (wanted := _kind(expected[key])):
            raise ValueError(f"the optimizer's {name} has {found} as {key} instead of {wanted}")


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return type(value).__name__
