"""The learning rate at the points that define it, and what timm's names mean."""

import copy
import math
from typing import get_args

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, MultiStepLR, OneCycleLR, StepLR

from distill.recipe import lr_schedule
from distill.recipe.schema import OptimizerName
from distill.training import optim

LR = {"total": 100, "warmup": 10, "peak": 0.4}


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.04),  # a tenth of the way up
        (9, 0.4),
        (10, 0.4),  # the top
        (55, 0.2),  # the middle of what is left
        (100, 0.0),  # never taken: the end
    ],
)
def test_cosine_at_its_corners(step: int, expected: float) -> None:
    assert lr_schedule.lr_at(step, schedule="cosine", **LR) == pytest.approx(expected)


def test_linear_and_constant() -> None:
    assert lr_schedule.lr_at(55, schedule="linear", **LR) == pytest.approx(0.2)
    assert lr_schedule.lr_at(32, schedule="linear", **LR) == pytest.approx(0.4 * 68 / 90)
    assert lr_schedule.lr_at(99, schedule="constant", **LR) == 0.4


def test_no_warm_up_begins_at_the_peak() -> None:
    assert lr_schedule.lr_at(0, total=10, warmup=0, peak=0.1, schedule="cosine") == 0.1


def torchs(scheduler, lr: float, steps: int) -> list[float]:  # type: ignore[no-untyped-def]
    """The learning rates that a scheduler of torch gives."""
    sgd = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    rates, plan = [], scheduler(sgd)
    for _ in range(steps):
        rates.append(sgd.param_groups[0]["lr"])
        sgd.step()
        plan.step()
    return rates


def ours(schedule: str, total: int, peak: float, **changes: float) -> list[float]:
    plan = {"total": total, "warmup": 0, "peak": peak, "schedule": schedule} | changes
    return [lr_schedule.lr_at(step, **plan) for step in range(total)]  # type: ignore[arg-type]


def test_cosine_is_torch_s() -> None:
    theirs = torchs(lambda sgd: CosineAnnealingLR(sgd, 40), 0.3, 40)
    assert ours("cosine", 40, 0.3) == pytest.approx(theirs)


def test_step_is_torch_s_in_epochs() -> None:
    """0.9 every 10 epochs, of 7 steps each."""
    theirs = torchs(lambda sgd: StepLR(sgd, 70, 0.9), 0.1, 300)
    assert ours("step", 300, 0.1, steps_per_epoch=7) == pytest.approx(theirs)
    slower = ours("step", 300, 0.1, steps_per_epoch=7, step_epochs=20, gamma=0.5)
    assert slower[139:141] == pytest.approx([0.1, 0.05])


def authors_rate(epoch: int, peak: float, milestones: tuple[int, ...], gamma: float) -> float:
    """RepDistiller's adjust_learning_rate: `epoch` counts from 1."""
    return float(peak * gamma ** sum(epoch > milestone for milestone in milestones))


def test_milestones_are_repdistillers_epoch_by_epoch() -> None:
    """240 epochs of 3 steps, at the published milestones."""
    published = {"milestones": (150, 180, 210), "gamma": 0.1, "steps_per_epoch": 3}
    rates = ours("milestones", 720, 0.05, **published)  # type: ignore[arg-type]
    theirs = [authors_rate(e, 0.05, (150, 180, 210), 0.1) for e in range(1, 241) for _ in range(3)]
    assert rates == pytest.approx(theirs, rel=1e-12)
    assert rates[449:451] == pytest.approx([0.05, 0.005]), "the first step of epoch 151"


def test_milestones_are_torchs_multi_step() -> None:
    """MultiStepLR counts from 0 and lowers the rate after so many of its steps, here epochs."""
    theirs = torchs(lambda sgd: MultiStepLR(sgd, [2, 5], 0.3), 0.4, 9)
    rates = ours("milestones", 9, 0.4, milestones=(2, 5), gamma=0.3)  # type: ignore[arg-type]
    assert rates == pytest.approx(theirs)


def test_milestones_count_from_the_training_s_begin() -> None:
    """A warmup does not move them, and ends at the rate of its epoch."""
    plan = {"milestones": (2, 4), "gamma": 0.1, "steps_per_epoch": 5, "warmup": 5}
    rates = ours("milestones", 30, 1.0, **plan)  # type: ignore[arg-type]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[5:] == pytest.approx([1.0] * 5 + [0.1] * 10 + [0.01] * 10)
    floored = ours("milestones", 30, 1.0, **plan, min_lr=0.05)  # type: ignore[arg-type]
    assert floored[5:] == pytest.approx([1.0] * 5 + [0.1] * 10 + [0.05] * 10)


@pytest.mark.parametrize("total", [20, 47, 1000])
def test_one_cycle_is_torch_s(total: int) -> None:
    theirs = torchs(lambda sgd: OneCycleLR(sgd, 0.4, total_steps=total), 0.4, total - 1)
    assert ours("one_cycle", total, 0.4)[:-1] == pytest.approx(theirs)
    assert ours("one_cycle", total, 0.4)[-1] == pytest.approx(0.4 / 250_000)


FLOOR = 0.07


def test_floored_cosine_is_torch_s_eta_min() -> None:
    theirs = torchs(lambda sgd: CosineAnnealingLR(sgd, 40, eta_min=FLOOR), 0.3, 41)
    assert ours("cosine", 40, 0.3, min_lr=FLOOR) == pytest.approx(theirs[:40])
    end = lr_schedule.lr_at(40, total=40, warmup=0, peak=0.3, schedule="cosine", min_lr=FLOOR)
    assert end == pytest.approx(theirs[40]) == pytest.approx(FLOOR)


def test_floored_linear_is_torch_s_end_factor() -> None:
    theirs = torchs(lambda sgd: LinearLR(sgd, 1.0, FLOOR / 0.3, total_iters=40), 0.3, 40)
    assert ours("linear", 40, 0.3, min_lr=FLOOR) == pytest.approx(theirs)


def test_floored_step_never_falls_below() -> None:
    """As torch's ReduceLROnPlateau has it: max(lr * factor, min_lr)."""
    theirs = torchs(lambda sgd: StepLR(sgd, 70, 0.5), 0.3, 300)
    rates = ours("step", 300, 0.3, steps_per_epoch=7, gamma=0.5, min_lr=FLOOR)
    assert rates == pytest.approx([max(rate, FLOOR) for rate in theirs])
    assert rates[139:141] == pytest.approx([0.15, 0.075]) and rates[210:] == [FLOOR] * 90


@pytest.mark.parametrize("total", [20, 47, 1000])
def test_floored_one_cycle_equals_torchs_final_div_factor(total: int) -> None:
    """torch's last rate is peak / 25 / final_div_factor."""
    factor = 0.4 / 25 / FLOOR
    theirs = torchs(
        lambda sgd: OneCycleLR(sgd, 0.4, total_steps=total, final_div_factor=factor), 0.4, total - 1
    )
    rates = ours("one_cycle", total, 0.4, min_lr=FLOOR)
    assert rates[:-1] == pytest.approx(theirs)
    assert rates[-1] == pytest.approx(FLOOR)
    assert rates[0] == pytest.approx(0.4 / 25), "the rise is not bounded"


def test_one_cycle_ends_no_lower_for_tiny_floor() -> None:
    assert ours("one_cycle", 20, 0.4, min_lr=1e-9) == ours("one_cycle", 20, 0.4)


def test_a_floor_leaves_the_warm_up_alone() -> None:
    rates = [lr_schedule.lr_at(k, schedule="cosine", min_lr=0.1, **LR) for k in range(11)]
    assert rates == pytest.approx([0.04 * (k + 1) for k in range(10)] + [0.4])


@pytest.mark.parametrize("schedule", get_args(lr_schedule.Schedule))
def test_a_floor_of_zero_changes_no_bit(schedule: str) -> None:
    assert ours(schedule, 97, 0.3, min_lr=0.0) == [before_floors(schedule, k) for k in range(97)]


def before_floors(schedule: str, step: int) -> float:
    """The rate of 97 steps from 0.3, as it was computed before schedules had a floor."""
    if schedule == "one_cycle":
        top = 0.3 * 97 - 1
        first, last, done = (
            (0.3 * (1 / 25), 0.3, step / top)
            if step <= top
            else (0.3, 0.3 * (1 / 25e4), (step - top) / (96 - top))
        )
        return last + (first - last) * (1 + math.cos(math.pi * done)) / 2
    left = {
        "cosine": (1 + math.cos(math.pi * (step / 97))) / 2,
        "linear": 1 - step / 97,
        "constant": 1.0,
        "step": 0.9 ** (step // 10),
        "milestones": 1.0,  # without any
    }
    return 0.3 * left[schedule]


@pytest.mark.parametrize("total", [1, 2, 3, 4])
@pytest.mark.parametrize("schedule", get_args(lr_schedule.Schedule))
def test_any_schedule_has_a_rate_for_any_length(schedule: str, total: int) -> None:
    rates = ours(schedule, total, 0.4)
    assert all(0 < rate <= 0.4 for rate in rates)


@pytest.mark.parametrize("name", get_args(OptimizerName))
def test_every_optimizer_makes_a_step(name: str) -> None:
    """Of convolutions, norms and biases, with and without decay of the latter."""
    torch.manual_seed(0)
    for decay_norm, groups in ((True, 1), (False, 2)):
        net = nn.Sequential(
            nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5)
        )
        made = optim.optimizer(
            net, name=name, lr=0.01, momentum=0.9, weight_decay=0.01, decay_norm=decay_norm
        )
        decayed = {
            id(p) for group in made.param_groups if group["weight_decay"] for p in group["params"]
        }
        free = {id(p) for p in net.parameters() if p.dim() == 1}
        assert bool(decayed & free) == decay_norm and len(made.param_groups) >= groups
        before = [p.detach().clone() for p in net.parameters()]
        for _ in range(3):
            made.zero_grad()
            net(torch.rand(6, 3, 4, 4)).square().mean().backward()
            made.step()
        assert all(not torch.equal(p, old) for p, old in zip(net.parameters(), before, strict=True))
        assert all(p.isfinite().all() for p in net.parameters())


def small_with_biases(name: str, **how: object) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A network whose norm's bias is trained 64 times as fast."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5))
    biases = optim.batch_norm_biases(net)
    assert [id(bias) for bias in biases] == [id(net[1].bias)]
    given = {"lr": 0.01, "momentum": 0.0, "weight_decay": 0.05, "decay_norm": True} | how
    return net, optim.optimizer(net, name=name, bias_lr=64.0, biases=biases, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("decay_norm", [True, False])
def test_a_step_of_scaled_biases_by_hand(decay_norm: bool) -> None:
    """p - lr s (g + d/s p): s times as far, and the decay lr d as everywhere."""
    net, made = small_with_biases("momentum", decay_norm=decay_norm)
    net[1].bias.data.fill_(2.0)
    net(torch.rand(6, 3, 4, 4)).square().mean().backward()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    made.step()
    for name, p in net.named_parameters():
        scale = 64 if name == "1.bias" else 1
        decay = 0.05 if p.dim() > 1 or decay_norm else 0.0
        gradient = p.grad + decay / scale * before[name]
        torch.testing.assert_close(p.detach(), before[name] - 0.01 * scale * gradient)


@pytest.mark.parametrize("name", get_args(OptimizerName))
def test_every_optimizer_makes_a_step_with_scaled_biases(name: str) -> None:
    net, made = small_with_biases(name, momentum=0.9)
    before = [p.detach().clone() for p in net.parameters()]
    scales = {id(p): optim.group_lr(g, 1.0) for g in made.param_groups for p in g["params"]}
    for _ in range(3):
        made.zero_grad()
        net(torch.rand(6, 3, 4, 4)).square().mean().backward()
        made.step()
    assert {name for name, p in net.named_parameters() if scales[id(p)] == 64} == {"1.bias"}
    moved = [not torch.equal(p, old) for p, old in zip(net.parameters(), before, strict=True)]
    assert all(moved) and all(p.isfinite().all() for p in net.parameters())


def test_scale_is_part_of_optimizer_s_state() -> None:
    _, made = small_with_biases("sgd", momentum=0.9)
    _, other = small_with_biases("sgd", momentum=0.9)
    for group in other.param_groups:
        group.pop("lr_scale", None)
    other.load_state_dict(made.state_dict())
    assert sorted(optim.group_lr(group, 0.5) for group in other.param_groups) == [0.5, 32.0]


def test_without_a_factor_the_groups_are_timm_s() -> None:
    net = small()
    known = {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "decay_norm": True}
    plain = optim.optimizer(net, **known)  # type: ignore[arg-type]
    named = optim.optimizer(net, **known, biases=optim.batch_norm_biases(net))  # type: ignore[arg-type]
    assert plain.state_dict() == named.state_dict()
    assert "lr_scale" not in plain.param_groups[0]


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_is_torchs_plain_sgd(nesterov: bool) -> None:
    """`momentum` is torch's SGD without Nesterov, `sgd` with it, from the first step on."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)
    ).double()
    other = copy.deepcopy(net)
    published = {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}
    name = "sgd" if nesterov else "momentum"
    made = optim.optimizer(net, name=name, decay_norm=True, **published)  # type: ignore[arg-type]
    theirs = torch.optim.SGD(other.parameters(), nesterov=nesterov, **published)  # type: ignore[arg-type]
    images, first = torch.rand(6, 3, 8, 8, dtype=torch.float64), copy.deepcopy(net)
    for _ in range(3):
        for each, optimizer in ((net, made), (other, theirs)):
            optimizer.zero_grad()
            each(images).square().mean().backward()
            optimizer.step()
        for a, b in zip(net.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)
    assert all(
        not torch.equal(a, b) for a, b in zip(net.parameters(), first.parameters(), strict=True)
    )


def test_betas_and_eps_reach_those_that_have_them() -> None:
    adam = optim.optimizer(
        small(), name="adam", lr=0.1, momentum=0.9, weight_decay=0, decay_norm=True,
        betas=(0.8, 0.95), eps=1e-6,
    )  # fmt: skip
    assert adam.param_groups[0]["betas"] == (0.8, 0.95) and adam.param_groups[0]["eps"] == 1e-6
    assert made("adam").param_groups[0]["betas"] == (0.9, 0.999)


def small() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def made(name: str, decay_norm: bool = True) -> torch.optim.Optimizer:
    return optim.optimizer(
        small(), name=name, lr=0.1, momentum=0.9, weight_decay=5e-4, decay_norm=decay_norm
    )


def test_which_decay_is_decoupled() -> None:
    """Without a gradient, (1 - lr * decay) a step: nothing of it passes through the optimizer."""
    lr, decay, steps = 0.02, 0.05, 20
    decoupled = set()
    for name in get_args(OptimizerName):
        layer = nn.Linear(4, 4, bias=False)
        nn.init.ones_(layer.weight)
        made = optim.optimizer(
            layer, name=name, lr=lr, momentum=0.9, weight_decay=decay, decay_norm=True
        )
        layer.weight.grad = torch.zeros(4, 4)
        for _ in range(steps):
            made.step()
        if layer.weight[0, 0].item() == pytest.approx((1 - lr * decay) ** steps, rel=1e-4):
            decoupled.add(name)
    assert decoupled == {"adamw", "nadamw", "lion", "muon", "adan", "adafactor"}


def test_muon_updates_kernels_and_adamw_the_rest() -> None:
    """A step of a kernel [8, 4, 3, 3] is lr * 0.2 * sqrt(36) times a near-orthogonal [8, 36]."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(32, 5))
    muon = optim.optimizer(
        net, name="muon", lr=0.01, momentum=0.9, weight_decay=0.0, decay_norm=True
    )
    before = net[0].weight.detach().clone()
    net(torch.rand(6, 4, 4, 4)).square().mean().backward()
    muon.step()
    moved = (before - net[0].weight.detach()).flatten(1) / (0.01 * 0.2 * 6)
    assert torch.linalg.svdvals(moved).tolist() == pytest.approx([1.0] * 8, abs=0.35)
    by_adamw = {id(p) for p, state in muon.state.items() if "exp_avg_sq" in state}
    assert by_adamw == {id(p) for p in net.parameters() if p.dim() == 1}


def test_without_momentum_it_is_plain_descent() -> None:
    plain = optim.optimizer(
        small(), name="momentum", lr=1, momentum=0, weight_decay=0, decay_norm=True
    )
    assert plain.param_groups[0]["momentum"] == 0


def test_sgd_is_nesterovs_and_momentum_is_plain() -> None:
    assert made("sgd").param_groups[0]["nesterov"] is True
    assert made("momentum").param_groups[0]["nesterov"] is False


def test_adamw_decays_by_its_setting() -> None:
    adamw = made("adamw")
    assert isinstance(adamw, torch.optim.AdamW)
    assert adamw.param_groups[0]["weight_decay"] == 5e-4


def test_decay_norm_off_spares_norms_and_biases() -> None:
    groups = made("sgd", decay_norm=False).param_groups
    decays = {group["weight_decay"]: len(group["params"]) for group in groups}
    assert decays == {5e-4: 1, 0.0: 3}  # the kernel; its bias, gamma and beta
    assert {g["weight_decay"] for g in made("sgd").param_groups} == {5e-4}
