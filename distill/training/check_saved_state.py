"""Check that the state in a checkpoint fits the run that is about to load it.

A checkpoint may be from another run or from another user. Some kernels of torch's optimizers do not
check the shape, type and memory layout of their buffers, and crash the process if these are wrong.
An optimizer that loads a state dict also takes over its options, such as the weight decay; here
they come from the recipe.
"""

import copy
import math
from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from distill import format
from distill.events import TOTAL
from distill.training.train_state import TrainState

MOST_EPOCHS = 1_000_000  # limit for a run with a budget in minutes
LONGEST_NAME = 60  # characters of a name or value in a message
NAMES = {  # of types in messages
    bool: "a truth value", int: "a whole number", float: "a number with a fraction", str: "text",
    bytes: "text", list: "a list", tuple: "a list", dict: "a table", Tensor: "a tensor",
}  # fmt: skip


class UnfitState(Exception):
    """Raised if a checkpoint does not fit the run; the message names the part and what is wrong."""


def checked_state(
    state: TrainState, tensors: Mapping[str, Any], progress: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the checked state dicts to load, by the names in `state.stateful`.

    `tensors`: the checkpoint's state dicts by name. `progress`: its numbers of steps and epochs.
    The options of the optimizer and of the loss scaler are replaced by those of this run. Raises
    UnfitState if a tensor is not finite or differs in shape or type from this run's, if a number is
    out of its range, or if the numbers of steps and epochs contradict each other.
    """
    _check_progress(state, progress)
    steps = progress["step"]
    fitting: dict[str, Any] = {}
    for name, part in state.stateful.items():
        if name not in tensors:  # only a scaler may be absent
            continue
        saved = _table(tensors[name], f"its {name}")
        if name == "optimizer":
            fitting[name] = _checked_optimizer(part, saved, steps)
        elif name == "scaler":
            fitting[name] = _checked_scaler(part, saved)
        else:
            _check_module(name, part, saved)
            fitting[name] = saved
    losses = _table(tensors["losses"], "its losses")
    for name in ("epoch", "log"):
        _check_means(name, _table(losses.get(name), f"its {name} losses"), state.loss.terms, steps)
    return fitting


def _check_progress(state: TrainState, progress: Mapping[str, Any]) -> None:
    """Raise UnfitState unless the numbers of steps, epochs and retries are possible together."""
    per_epoch = state.loader.steps_per_epoch
    least, most = state.total_steps, state.total_steps
    if state.settings.minutes is not None:  # the total was measured, and may differ from this one
        least, most = 1, MOST_EPOCHS * per_epoch
    total = progress.get("total_steps", state.total_steps)
    _check_number("its total_steps", total, int, least, most)
    epoch, step = progress["epoch"], progress["step"]
    _check_number("its epoch", epoch, int, 0, -(-total // per_epoch))
    first, last = (min(number * per_epoch, total) for number in (epoch, epoch + 1))
    _check_number(f"its step after {format.counted(epoch, 'epoch')}", step, int, first, last)
    best = progress["best"]["epoch"]
    _check_number("its best epoch", best, int, 0, epoch)
    if (progress["best"]["weights"] or progress["best"]["metrics"]) and not best:
        raise UnfitState("its best epoch is 0, which has neither measures nor weights")
    if not progress["retries"] and progress["lr_factor"] != 1:
        raise UnfitState(f"its lr_factor is {progress['lr_factor']:g}, not 1, without a retry")


def _check_module(name: str, module: nn.Module, saved: Mapping[str, Any]) -> None:
    """Raise UnfitState unless the saved tensors have the names, shapes and types of the module's
    state dict.
    """
    expected = module.state_dict()
    missing, unknown = expected.keys() - saved.keys(), saved.keys() - expected.keys()
    if missing:
        raise UnfitState(f"its {name} has no {_shortened(min(missing))}")
    if unknown:
        raise UnfitState(f"its {name} has {_shortened(min(map(str, unknown)))}, which is unknown")
    for key, tensor in expected.items():
        _check_tensor(f"its {name}'s {key}", saved[key], tensor)


def _checked_optimizer(optimizer: Any, saved: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """Return the optimizer's state dict to load: the checkpoint's buffers with this run's options.

    `steps`: the number of steps that the checkpoint has taken. A parameter may have no buffers,
    since an optimizer creates them at its first gradient.
    """
    own = optimizer.state_dict()["param_groups"]
    stepped = _state_after_a_step(getattr(optimizer, "optimizer", optimizer))
    groups = _groups(saved)
    if [group.get("params") for group in groups] != [group["params"] for group in own]:
        raise UnfitState("its optimizer has other groups of parameters")
    state = _table(saved.get("state"), "its optimizer's state")
    unknown = state.keys() - stepped["state"].keys()
    if unknown:
        raise UnfitState(f"its optimizer has a state of {_shortened(min(map(str, unknown)))}")
    return {
        "state": {
            index: _checked_buffers(f"parameter {index}", values, stepped["state"][index], steps)
            for index, values in state.items()
        },
        "param_groups": [
            _checked_group(f"group {index}", *pair, steps)
            for index, pair in enumerate(zip(own, groups, stepped["param_groups"], strict=True))
        ],
    }


def _groups(saved: Mapping[str, Any]) -> list[dict[str, Any]]:
    groups = saved.get("param_groups")
    if not isinstance(groups, list):
        raise UnfitState(f"its optimizer's param_groups is {_type_name(groups)}, not a list")
    return [dict(_table(group, "its optimizer's group")) for group in groups]


def _state_after_a_step(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the state dict that the optimizer would have after a step, on the meta device.

    It shows which buffers this optimizer creates for each parameter, and their shapes and types.
    Nothing is computed, and the optimizer is not changed.
    """
    groups = [
        copy.deepcopy(options) | {"params": [_without_data(each) for each in parameters]}
        for parameters, options in map(_parameters_and_options, optimizer.param_groups)
    ]
    example: Any = object.__new__(type(optimizer))
    example.__setstate__(
        {"defaults": optimizer.defaults, "state": defaultdict(dict), "param_groups": groups}
    )
    example.step()
    stepped: dict[str, Any] = example.state_dict()
    return stepped


def _parameters_and_options(group: dict[str, Any]) -> tuple[list[Tensor], dict[str, Any]]:
    return group["params"], {key: value for key, value in group.items() if key != "params"}


def _without_data(parameter: Tensor) -> nn.Parameter:
    """Return a parameter of the same shape and type, with a gradient, on the meta device."""
    alone = nn.Parameter(torch.empty_like(parameter, device="meta"))
    alone.grad = torch.empty_like(alone)
    return alone


def _checked_group(
    name: str,
    current: dict[str, Any],
    saved: dict[str, Any],
    stepped: dict[str, Any],
    steps: int,
) -> dict[str, Any]:
    """Return a parameter group with this run's options and the checkpoint's step counter.

    `stepped`: the group after a step. Its options that differ from `current` are counters: timm's
    lamb and adan count steps in the group. Other optimizers have no counter there.
    """
    counted = {key for key in stepped if key != "params" and stepped[key] != current.get(key)}
    group = {key: value for key, value in current.items() if key not in counted}
    for key in counted & saved.keys():
        _check_buffer(f"its optimizer's {key} of {name}", key, saved[key], stepped[key], steps)
        group[key] = _copied(saved[key])
    return group


def _checked_buffers(name: str, saved: Any, expected: dict[str, Any], steps: int) -> dict[str, Any]:
    """Return checked copies of the optimizer's buffers for one parameter.

    They are copied because tensors of a checkpoint may share memory, or be expanded views.
    """
    saved = _table(saved, f"its optimizer's state of {name}")
    if saved.keys() != expected.keys():
        found, wanted = (
            ", ".join(sorted(map(str, keys))) or "nothing" for keys in (saved, expected)
        )
        raise UnfitState(f"its optimizer's {name} has {_shortened(found)}, not {wanted}")
    for key, example in expected.items():
        _check_buffer(f"its optimizer's {key} of {name}", key, saved[key], example, steps)
    return {key: _copied(value) for key, value in saved.items()}


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _check_buffer(name: str, key: str, value: Any, example: Any, steps: int) -> None:
    """Raise UnfitState unless a value of an optimizer's state fits `example`, its value after one
    step.

    A tensor must have the same shape and type, a step counter must be in 0..steps, and any other
    value must be equal.
    """
    if isinstance(example, Tensor):
        _check_tensor(name, value, example)
        if key == "step":
            _check_number(name, value.item(), float, 0, steps)
            if not value.item().is_integer():
                raise UnfitState(f"{name} is {value.item():g}, not a whole number")
        elif key == "mu_product":  # nadam divides by 1 minus this product of factors below 1
            _check_number(name, value.item(), float, 0, 1)
    elif key == "step":
        _check_number(name, value, int, 0, steps)
    elif type(value) is not type(example) or value != example:
        # The text of lists that share others may be exponentially longer than the file.
        found = str(value) if isinstance(value, int | float | str) else _type_name(value)
        raise UnfitState(f"{name} is {_shortened(found)}, not {example}")


def _checked_scaler(scaler: Any, saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return the loss scaler's state dict to load: this run's options, and the checkpoint's scale
    and its number of steps since the scale changed.
    """
    own: dict[str, Any] = scaler.state_dict()
    scale, tracker = saved.get("scale"), saved.get("_growth_tracker")
    _check_type("its scaler's scale", scale, float)
    if not 0 < cast("float", scale) < math.inf:
        raise UnfitState(f"its scaler's scale is {scale}, not a finite number above 0")
    _check_number("its scaler's _growth_tracker", tracker, int, 0, own["growth_interval"] - 1)
    return own | {"scale": scale, "_growth_tracker": tracker}


def _check_means(name: str, saved: Mapping[str, Any], terms: Collection[str], steps: int) -> None:
    """Raise UnfitState unless `saved` is a state of RunningMeans for the run's loss terms."""
    name = f"its {name} losses'"
    _check_number(f"{name} count", saved.get("count"), int, 0, steps)
    counts, sums = _table(saved.get("counts"), f"{name} counts"), saved.get("sums")
    for term, count in counts.items():
        if term not in {*terms, TOTAL}:
            raise UnfitState(f"{name} counts name {_shortened(repr(term))}, which is no loss term")
        _check_number(f"{name} count of {term}", count, int, 1, saved["count"])
    if not counts and sums is None:
        return
    if not isinstance(sums, Tensor):
        raise UnfitState(f"{name} sums is {_type_name(sums)}, not a tensor")
    # An expanded tensor with billions of rows takes no memory, but its mean takes hours.
    if not sums.is_contiguous():
        raise UnfitState(f"{name} sums is an expanded tensor")
    if sums.dim() != 2 or not len(sums) or sums.shape[1] != len(counts):
        raise UnfitState(f"{name} sums have shape {[*sums.shape]}, not [processes, {len(counts)}]")
    if not sums.is_floating_point():
        raise UnfitState(f"{name} sums are {_dtype_name(sums)}, not floating-point numbers")


def _check_tensor(name: str, value: Any, expected: Tensor) -> None:
    """Raise UnfitState unless the value is a finite tensor of the expected shape and type."""
    if not isinstance(value, Tensor):
        raise UnfitState(f"{name} is {_type_name(value)}, not a tensor")
    if value.shape != expected.shape:
        raise UnfitState(f"{name} has shape {[*value.shape]}, not {[*expected.shape]}")
    if value.dtype != expected.dtype:
        raise UnfitState(f"{name} is {_dtype_name(value)}, not {_dtype_name(expected)}")
    if not value.isfinite().all():
        raise UnfitState(f"{name} is not finite")


def _check_number(name: str, value: Any, kind: type, least: int, most: int) -> None:
    """Raise UnfitState unless the value is of this type and in [least, most]."""
    _check_type(name, value, kind)
    if not least <= value <= most:
        shown = f"{value:g}" if isinstance(value, float) else str(value)
        wanted = f"one of {least} to {most}" if least < most else str(least)
        raise UnfitState(f"{name} is {_shortened(shown)}, not {wanted}")


def _check_type(name: str, value: Any, kind: type) -> None:
    if type(value) is not kind:
        raise UnfitState(f"{name} is {_type_name(value)}, not {NAMES[kind]}")


def _table(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise UnfitState(f"{name} is {_type_name(value)}, not a table")
    return value


def _type_name(value: object) -> str:
    return "missing" if value is None else NAMES.get(type(value), "something else")


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_NAME else f"{text[:LONGEST_NAME]}…"
