"""Build optimizers by timm's names; compute the learning rate from the step."""

import math
from collections.abc import Collection, Iterator
from functools import partial
from typing import Any, Literal

import torch
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

Schedule = Literal["cosine", "linear", "constant", "step", "one_cycle"]

# torch's OneCycleLR by its defaults: the share of the training that rises, and the first and last
# learning rates as shares of the peak.
RISE, FIRST, LAST = 0.3, 1 / 25, 1 / 25e4

LR_SCALE = "lr_scale"  # of a parameter group: a factor on the learning rate, saved with its state


def optimizer(
    net: nn.Module,
    *,
    name: str,
    lr: float,
    momentum: float,
    weight_decay: float,
    decay_norm: bool,
    betas: tuple[float, float] | None = None,
    eps: float | None = None,
    bias_lr: float = 1.0,
    biases: Collection[nn.Parameter] = (),
) -> torch.optim.Optimizer:
    """timm's optimizer `name`: its `sgd` is Nesterov's, its `momentum` is plain.

    `momentum` is read by sgd, momentum, rmsprop, lars and muon; `betas` by the Adam family, lion
    and lamb; `eps` by all but sgd, momentum and lion; timm's own hold where they are None, and what
    an optimizer has no use for is not read. The decay is decoupled in adamw, nadamw, lion, muon,
    adan and adafactor; elsewhere, in nadam too, it is added to the gradient (L2). muon (Jordan,
    2024) takes kernels, flattened to [outputs, inputs * k * k], and the linear layer, with plain
    momentum and steps of AdamW's size (arXiv 2502.16982); AdamW takes norms, biases and all that
    has fewer than 4 rows. `decay_norm=False` leaves norms and biases undecayed; for small nets with
    SGD, decaying them helps. `distill/recipe/constraints.py` refuses combinations of arguments that
    an optimizer does not take.

    `biases` are trained at `bias_lr` times the learning rate, in groups with this `lr_scale`. Their
    decay is divided by it, so that learning rate times decay is that of all others: D. Page
    (davidcpage/cifar10-fast) and K. Jordan (arXiv 2404.00498) with a factor of 64.
    """
    given: dict[str, Any] = {"betas": betas, "eps": eps}
    if bias_lr != 1:
        grouped = partial(_parameter_groups, lr=lr, bias_lr=bias_lr, biases=biases)
        given["param_group_fn"] = partial(grouped, weight_decay=weight_decay, decay_norm=decay_norm)
    return create_optimizer_v2(
        net,
        opt=name,
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        filter_bias_and_bn=not decay_norm,
        **{key: value for key, value in given.items() if value is not None},
    )


def batch_norm_biases(net: nn.Module) -> list[nn.Parameter]:
    """The biases of a network's batch norms, those that are trained."""
    norms = (module for module in net.modules() if isinstance(module, _BatchNorm))
    return [norm.bias for norm in norms if norm.affine and norm.bias.requires_grad]


def group_lr(group: dict[str, Any], lr: float) -> float:
    """The learning rate of a parameter group where that of the run is `lr`."""
    return lr * float(group.get(LR_SCALE, 1.0))


def _parameter_groups(
    net: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    decay_norm: bool,
    bias_lr: float,
    biases: Collection[nn.Parameter],
) -> list[dict[str, Any]]:
    """timm's groups, those with some of `biases` in two."""
    chosen = {id(bias) for bias in biases}

    def split(group: dict[str, Any]) -> Iterator[dict[str, Any]]:
        parts: tuple[list[nn.Parameter], list[nn.Parameter]] = [], []
        for parameter in group["params"]:
            parts[id(parameter) in chosen].append(parameter)
        rest, fast = parts
        scaled = {LR_SCALE: bias_lr, "lr": lr * bias_lr}
        if rest:
            yield group | {"params": rest}
        if fast:
            decay = group["weight_decay"] / bias_lr
            yield group | {"params": fast, "weight_decay": decay} | scaled

    plain = param_groups_weight_decay(net, weight_decay, weight_decay_exclude_1d=not decay_norm)
    return [part for group in plain for part in split(group)]


def lr_at(
    step: int,
    *,
    total: int,
    warmup: int,
    peak: float,
    schedule: Schedule,
    min_lr: float = 0.0,
    steps_per_epoch: int = 1,
    step_epochs: int = 10,
    gamma: float = 0.9,
) -> float:
    """The learning rate of optimizer step `step` in 0..total-1.

    Linear from peak / warmup to peak over the first `warmup` steps, then down to `min_lr` in
    [0, peak), which step `total` (never taken) would reach: half a cosine (Loshchilov & Hutter,
    ICLR 2017, arXiv 1608.03983, eq. 5, whose eta_min it is), a line, or not at all. `step`: times
    `gamma` every `step_epochs` epochs of the training, `min_lr` at least. `one_cycle` (Smith &
    Topin, arXiv 1708.07120, as torch has it): half a cosine from peak / 25 to the peak over the
    first 30 % and from there to peak / 250,000, or to `min_lr` if that is larger, at the last step;
    it warms up by itself. `min_lr` does not bound a warm-up.
    """
    if schedule == "one_cycle":
        return _one_cycle(step, total, peak, min_lr)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    if schedule == "step":
        return max(peak * gamma ** (step // (steps_per_epoch * step_epochs)), min_lr)
    left = {
        "cosine": (1 + math.cos(math.pi * progress)) / 2,
        "linear": 1 - progress,
        "constant": 1.0,
    }[schedule]
    return min_lr + (peak - min_lr) * left


def _one_cycle(step: int, total: int, peak: float, min_lr: float) -> float:
    top = RISE * total - 1  # as torch counts: the peak's step, which may lie between two
    if step <= top:
        return _cosine(peak * FIRST, peak, step / top)
    last = max(peak * LAST, min_lr)
    return _cosine(peak, last, (step - top) / max(1e-9, total - 1 - top))


def _cosine(first: float, last: float, progress: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * progress)) / 2
