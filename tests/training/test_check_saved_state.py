"""A checkpoint's state is checked against the run before it is loaded."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from distill.errors import UserError
from distill.models import checkpoint
from distill.recipe.schema import OptimizerName
from distill.runs.run_folder import RunFolder
from distill.training import loop, resume
from distill.training.train_state import TrainState
from tests.make_runs import prepared

Tensors = dict[str, Any]
ALONE = ("loss.kd=false", "loss.hard.weight=1.0")
SHARED_LISTS: list[Any] = []  # its text has 2**15 parts
for _ in range(15):
    SHARED_LISTS = [SHARED_LISTS, SHARED_LISTS]


def begun(folder: Path, *overrides: str, steps: int = 2) -> TrainState:
    """A training after some steps, not saved."""
    state = prepared(*ALONE, *overrides)
    state.folder = RunFolder(folder)
    state.model_ddp.train()
    advance(state, steps)
    return state


def advance(state: TrainState, steps: int) -> None:
    for k in range(state.step, state.step + steps):
        losses = loop.step(state, k)
        state.epoch_losses.add(losses)
        state.log_losses.add(losses)
        state.step = k + 1


def changed(folder: Path, change: Callable[[Tensors], object]) -> None:
    """Write the checkpoint again with other tensors; its digest fits them."""
    tensors, progress = checkpoint.load(folder / "last")
    change(tensors)
    checkpoint.save(folder / "last", tensors, progress)


def resumed(folder: Path, *overrides: str) -> TrainState:
    """The same training in a new process, as far as its state is concerned."""
    state = begun(folder, *overrides, steps=0)
    resume.resume(state)
    return state


def weights(state: TrainState) -> list[Tensor]:
    return [tensor.clone() for tensor in state.model.state_dict().values()]


@pytest.fixture(scope="module")
def adam(tmp_path_factory: pytest.TempPathFactory) -> TrainState:
    """A training with Adam and averaged weights, saved after two steps."""
    state = begun(tmp_path_factory.mktemp("adam"), "optim.name=adamw", "ema.decay=0.9")
    resume.save(state)
    return state


def refusal(saved: TrainState, target: Path, change: Callable[[Tensors], object]) -> str:
    """The one message on a changed copy of the checkpoint; nothing of it is loaded."""
    tensors, progress = checkpoint.load(saved.folder.last)
    change(tensors)
    checkpoint.save(target / "last", tensors, progress)
    before = weights(saved)
    with pytest.raises(UserError) as refused:
        resume.resume(replace(saved, folder=RunFolder(target)))
    assert all(map(torch.equal, before, weights(saved)))
    message = str(refused.value)
    assert message.startswith(f"{target / 'last'} does not hold the state of this run: ")
    assert message.endswith(f".\n{resume.BRING_BACK}")
    return message


# A fused optimizer with a foreign step size would read beyond small buffers.
FOREIGN = {
    "lr": 9.0, "lr_scale": 50.0, "weight_decay": 5.0, "momentum": 0.0, "betas": (0.1, 0.1),
    "maximize": True, "fused": True, "foreach": False, "capturable": True, "ns_steps": 0,
}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("name", get_args(OptimizerName))
def test_every_optimizer_resumes_bit_for_bit(name: str, tmp_path: Path) -> None:
    """Whatever options the checkpoint has: they come from the recipe."""
    options = (f"optim.name={name}", "optim.lr=0.01", "optim.decay_norm=false", "optim.bias_lr=2.0")
    whole = begun(tmp_path, *options)
    resume.save(whole)
    changed(
        tmp_path,
        lambda tensors: [group.update(FOREIGN) for group in tensors["optimizer"]["param_groups"]],
    )
    advance(whole, 2)
    again = resumed(tmp_path, *options)
    assert again.step == 2
    assert not {"lr_scale", "capturable"} & again.optimizer.param_groups[0].keys() - (
        whole.optimizer.param_groups[0].keys()
    )
    advance(again, 2)
    uninterrupted = weights(whole)
    assert all(map(torch.equal, uninterrupted, weights(again)))
    resume.resume(whole)  # as after a divergence: the optimizer has a state already
    advance(whole, 2)
    assert all(map(torch.equal, uninterrupted, weights(whole)))


@pytest.mark.long
@pytest.mark.parametrize("name", get_args(OptimizerName))
def test_state_of_no_step_is_loaded(name: str, tmp_path: Path) -> None:
    resume.save(begun(tmp_path, f"optim.name={name}", steps=0))
    assert resumed(tmp_path, f"optim.name={name}").step == 0


def first(tensors: Tensors) -> dict[str, Any]:
    """The state of the first parameter that has more than one element."""
    state: dict[str, Any] = tensors["optimizer"]["state"][0]
    return state


def put(name: str, value: object) -> Callable[[Tensors], object]:
    return lambda tensors: first(tensors).update({name: value})


def mapped(name: str, change: Callable[[Tensor], object]) -> Callable[[Tensors], object]:
    return lambda tensors: first(tensors).update({name: change(first(tensors)[name])})


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (put("exp_avg", torch.zeros(1)), "exp_avg of parameter 0 has shape [1], not ["),
        (mapped("exp_avg_sq", Tensor.double), "is float64, not float32"),
        (mapped("exp_avg", Tensor.tolist), "exp_avg of parameter 0 is a list, not a tensor"),
        (mapped("exp_avg", lambda tensor: tensor * torch.nan), "exp_avg of parameter 0 is not fin"),
        (put("step", torch.tensor(3.0)), "step of parameter 0 is 3, not one of 0 to 2"),
        (put("step", torch.tensor(-1.0)), "step of parameter 0 is -1, not one of 0 to 2"),
        (put("step", torch.tensor(0.5)), "step of parameter 0 is 0.5, not a whole number"),
        (put("step", 2), "step of parameter 0 is a whole number, not a tensor"),
        (put("momentum_buffer", torch.zeros(1)), "parameter 0 has exp_avg, exp_avg_sq, momentum_b"),
        (lambda tensors: first(tensors).pop("step"), "parameter 0 has exp_avg, exp_avg_sq, not "),
        (
            lambda tensors: tensors["optimizer"]["state"].update({999: {}}),
            "its optimizer has a state of 999",
        ),
        (
            lambda tensors: tensors["optimizer"]["state"].update({0: 7}),
            "of parameter 0 is a whole number",
        ),
        (lambda tensors: tensors["optimizer"].update(state=[]), "its optimizer's state is a list"),
        (
            lambda tensors: tensors["optimizer"].pop("param_groups"),
            "param_groups is missing, not a list",
        ),
        (lambda tensors: tensors["optimizer"]["param_groups"].append({}), "other groups of para"),
        (
            lambda tensors: tensors["optimizer"]["param_groups"][0]["params"].reverse(),
            "its optimizer has other groups of parameters",
        ),
        (lambda tensors: tensors.update(optimizer=[1]), "its optimizer is a list, not a table"),
    ],
)
def test_unfit_optimizer_state_is_refused(
    adam: TrainState, tmp_path: Path, change: Callable[[Tensors], object], fault: str
) -> None:
    assert fault in refusal(adam, tmp_path, change)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "change", "fault"),
    [
        (
            "adan",
            lambda tensors: tensors["optimizer"]["param_groups"][0].update(step=10**18),
            "step of group 0 is 1000",
        ),
        (
            "lamb",
            lambda tensors: tensors["optimizer"]["param_groups"][0].update(step="2"),
            "step of group 0 is text, not a tensor",
        ),
        (
            "adafactor",
            put("step", 2.0),
            "step of parameter 0 is a number with a fraction, not a whole number",
        ),
        ("nadam", put("mu_product", torch.tensor(1.3)), "mu_product of parameter 0 is 1.3"),
        ("muon", mapped("use_muon", lambda use: not use), "use_muon of parameter 0 is"),
        ("muon", put("use_muon", SHARED_LISTS), "use_muon of parameter 0 is a list, not "),
    ],
)
def test_unfit_numbers_of_an_optimizer_are_refused(
    tmp_path: Path, name: str, change: Callable[[Tensors], object], fault: str
) -> None:
    options = (f"optim.name={name}", "optim.lr=0.01")
    resume.save(begun(tmp_path, *options))
    changed(tmp_path, change)
    with pytest.raises(UserError) as refused:
        resumed(tmp_path, *options)
    assert fault in str(refused.value) and len(str(refused.value)) < 600


BEST = {"epoch": 0, "metrics": {}, "weights": ""}


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"total_steps": 11}, "its total_steps is 11, not 10"),
        ({"step": 11}, "its step after 0 epochs is 11, not one of 0 to 10"),
        ({"epoch": 1}, "its step after 1 epoch is 2, not 10"),
        ({"epoch": 2, "step": 10}, "its epoch is 2, not one of 0 to 1"),
        ({"best": BEST | {"epoch": 1}}, "its best epoch is 1, not 0"),
        ({"best": BEST | {"metrics": {"top1/val": 0.9}}}, "its best epoch is 0, which has neither"),
        ({"lr_factor": 0.5}, "its lr_factor is 0.5, not 1, without a retry"),
    ],
)
def test_progress_of_no_single_run_is_refused(
    adam: TrainState, tmp_path: Path, change: dict[str, object], fault: str
) -> None:
    tensors, progress = checkpoint.load(adam.folder.last)
    checkpoint.save(tmp_path / "last", tensors, progress | change)
    with pytest.raises(UserError, match=f"does not hold the state of this run: {fault}"):
        resume.resume(replace(adam, folder=RunFolder(tmp_path)))


def test_timed_run_has_its_own_number_of_steps(adam: TrainState, tmp_path: Path) -> None:
    tensors, progress = checkpoint.load(adam.folder.last)
    settings = adam.settings.model_copy(update={"minutes": 1.0})
    state = replace(adam, folder=RunFolder(tmp_path), settings=settings)
    checkpoint.save(tmp_path / "last", tensors, progress | {"total_steps": 7})
    assert resume.resume(state).progress["total_steps"] == 7
    checkpoint.save(tmp_path / "last", tensors, progress | {"total_steps": 2**53})
    with pytest.raises(UserError, match="its total_steps is 9007199254740992, not one of 1 to"):
        resume.resume(state)


def test_buffers_that_share_memory_are_copied(adam: TrainState, tmp_path: Path) -> None:
    """A step would fail on an expanded buffer, and mix the state of two parameters in one."""
    tensors, progress = checkpoint.load(adam.folder.last)
    state, zero = tensors["optimizer"]["state"], torch.zeros(())
    for values in state.values():
        values["exp_avg"] = zero.expand(values["exp_avg"].shape)
    checkpoint.save(tmp_path / "last", tensors, progress)
    again = resumed(tmp_path, "optim.name=adamw", "ema.decay=0.9")
    advance(again, 1)
    pointers = [values["exp_avg"].data_ptr() for values in again.optimizer.state.values()]
    assert len(set(pointers)) == len(pointers)


def replaced(part: str, change: Callable[[Tensor], object]) -> Callable[[Tensors], object]:
    """Change the first tensor of a network that has more than one element."""

    def apply(tensors: Tensors) -> None:
        name = next(
            name for name, tensor in tensors[part].items() if tensor.dim() == 4 and len(tensor) > 1
        )
        tensors[part][name] = change(tensors[part][name])

    return apply


@pytest.mark.parametrize("part", ["student", "ema"])
@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda tensor: tensor[:1], "has shape [1, "),
        (Tensor.double, "is float64, not float32"),
        (lambda tensor: tensor * torch.inf, "is not finite"),
        (lambda tensor: "x", "is text, not a tensor"),
    ],
)
def test_unfit_network_state_is_refused(
    adam: TrainState, tmp_path: Path, part: str, change: Callable[[Tensor], object], fault: str
) -> None:
    message = refusal(adam, tmp_path, replaced(part, change))
    assert fault in message and f"its {part}'s " in message


@pytest.mark.parametrize("part", ["student", "ema"])
def test_other_tensors_of_a_network_are_refused(
    adam: TrainState, tmp_path: Path, part: str
) -> None:
    message = refusal(adam, tmp_path, lambda tensors: tensors[part].update(other=torch.ones(1)))
    assert f"its {part} has other" in message
    message = refusal(adam, tmp_path, lambda tensors: tensors[part].popitem())
    assert f"its {part} has no " in message


def test_unfit_state_of_loss_terms_is_refused(tmp_path: Path) -> None:
    state = begun(tmp_path, steps=0)
    state.loss.losses["vid"] = nn.BatchNorm1d(3)
    resume.save(state)
    changed(tmp_path, replace_mean)
    with pytest.raises(UserError, match=r"its objective's losses.vid.running_mean has shape \[1\]"):
        resume.resume(state)


def replace_mean(tensors: Tensors) -> None:
    tensors["objective"]["losses.vid.running_mean"] = torch.zeros(1)


@pytest.mark.long
@pytest.mark.parametrize("part", ["epoch", "log"])
@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"counts": {"hard": 2}}, "sums have shape [1, 2], not [processes, 1]"),
        ({"counts": {"hard": 2, "\x1b[31m": 2}}, "counts name '\\x1b[31m'"),
        ({"counts": {"hard": 2, "total": 0}}, "count of total is 0, not one of 1 to 2"),
        ({"counts": {"hard": 2, "total": "2"}}, "count of total is text, not a whole number"),
        (
            {"counts": {"hard": 2, "total": True}},
            "count of total is a truth value, not a whole number",
        ),
        ({"counts": [1, 2]}, "counts is a list, not a table"),
        ({"count": 3}, "count is 3, not one of 0 to 2"),
        ({"count": 2.0}, "count is a number with a fraction, not a whole number"),
        ({"sums": None}, "sums is missing, not a tensor"),
        ({"sums": [[1.0, 1.0]]}, "sums is a list, not a tensor"),
        ({"sums": torch.ones(2)}, "sums have shape [2]"),
        ({"sums": torch.ones(0, 2)}, "sums have shape [0, 2]"),
        ({"sums": torch.ones(1, 2).expand(10**12, 2)}, "sums is an expanded tensor"),
        ({"sums": torch.ones(1, 2, dtype=torch.long)}, "sums are int64"),
    ],
)
def test_unfit_mean_losses_are_refused(
    adam: TrainState, tmp_path: Path, part: str, values: dict[str, object], fault: str
) -> None:
    message = refusal(adam, tmp_path, lambda tensors: tensors["losses"][part].update(values))
    assert f"its {part} losses' {fault}" in message


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"scale": "x"}, "its scaler's scale is text, not a number with a fraction"),
        ({"scale": 0.0}, "its scaler's scale is 0.0"),
        ({"scale": float("nan")}, "its scaler's scale is nan"),
        ({"_growth_tracker": -1}, "its scaler's _growth_tracker is -1, not one of 0 to 1999"),
        (
            {"_growth_tracker": torch.ones(2)},
            "its scaler's _growth_tracker is a tensor, not a whole number",
        ),
    ],
)
def test_unfit_scaler_state_is_refused(
    tmp_path: Path, values: dict[str, object], fault: str
) -> None:
    state = begun(tmp_path, steps=0)
    state.accelerator.scaler = torch.amp.GradScaler("cpu")
    resume.save(state)
    changed(tmp_path, lambda tensors: tensors["scaler"].update(values))
    with pytest.raises(UserError) as refused:
        resume.resume(state)
    assert fault in str(refused.value)


def test_scaler_options_come_from_this_run(tmp_path: Path) -> None:
    state = begun(tmp_path, steps=0)
    state.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    resume.save(state)
    foreign = {"scale": 4.0, "growth_factor": 1e9, "backoff_factor": "x", "growth_interval": 0}
    changed(tmp_path, lambda tensors: tensors["scaler"].update(foreign))
    resume.resume(state)
    options = state.accelerator.scaler.state_dict()
    assert options["scale"] == 4.0 and options["growth_factor"] == 2.0
    assert options["backoff_factor"] == 0.5 and options["growth_interval"] == 2000
