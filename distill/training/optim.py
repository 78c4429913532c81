"""Build optimizers by timm's names; compute the learning rate of a step."""

import math
from collections.abc import Collection, Iterator
from functools import partial
from typing import Any, Literal

import torch
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

Schedule = Literal["cosine", "linear", "constant", "step", "one_cycle"]

# The defaults of torch's OneCycleLR: the share of the training in which the rate rises, and the
# first and last learning rates relative to the peak.
RISE, FIRST, LAST = 0.3, 1 / 25, 1 / 25e4

LR_SCALE = "lr_scale"  # a parameter group's factor on the learning rate, saved with its state


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
    """Build timm's optimizer `name`: its `sgd` is Nesterov's, its `momentum` is plain.

    `momentum` applies to sgd, momentum, rmsprop, lars and muon; `betas` to the Adam family, lion
    and lamb; `eps` to all but sgd, momentum and lion. None means timm's default; an argument that
    an optimizer does not have is ignored. The decay is decoupled in adamw, nadamw, lion, muon, adan
    and adafactor; in the others, nadam included, it is added to the gradient (L2). muon (Jordan,
    2024) updates kernels, flattened to [outputs, inputs * k * k], and the linear layer, with plain
    momentum and steps of AdamW's size (arXiv 2502.16982); AdamW updates norms, biases and all that
    has fewer than 4 rows. `decay_norm=False` leaves norms and biases undecayed; for small networks
    with SGD, decaying them helps. `distill/recipe/constraints.py` refuses combinations of arguments
    that an optimizer does not accept.

    `biases` are trained at `bias_lr` times the learning rate, in groups with this `lr_scale`. Their
    decay is divided by it, so that learning rate times decay is the same for all parameters:
    D. Page (davidcpage/cifar10-fast) and K. Jordan (arXiv 2404.00498) with a factor of 64.
    """
    options: dict[str, Any] = {"betas": betas, "eps": eps}
    if bias_lr != 1:
        groups = partial(_parameter_groups, lr=lr, bias_lr=bias_lr, biases=biases)
        options["param_group_fn"] = partial(
            groups, weight_decay=weight_decay, decay_norm=decay_norm
        )
    return create_optimizer_v2(
        net,
        opt=name,
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        filter_bias_and_bn=not decay_norm,
        **{key: value for key, value in options.items() if value is not None},
    )


def batch_norm_biases(net: nn.Module) -> list[nn.Parameter]:
    """Return the trainable biases of a network's batch norms."""
    norms = (module for module in net.modules() if isinstance(module, _BatchNorm))
    return [norm.bias for norm in norms if norm.affine and norm.bias.requires_grad]


def group_lr(group: dict[str, Any], lr: float) -> float:
    """Return the learning rate of a parameter group if that of the run is `lr`."""
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
    """Return timm's parameter groups; a group that contains some of `biases` is split in two."""
    scaled_ids = {id(bias) for bias in biases}

    def split(group: dict[str, Any]) -> Iterator[dict[str, Any]]:
        parts: tuple[list[nn.Parameter], list[nn.Parameter]] = [], []
        for parameter in group["params"]:
            parts[id(parameter) in scaled_ids].append(parameter)
        others, scaled = parts
        scale = {LR_SCALE: bias_lr, "lr": lr * bias_lr}
        if others:
            yield group | {"params": others}
        if scaled:
            decay = group["weight_decay"] / bias_lr
            yield group | {"params": scaled, "weight_decay": decay} | scale

    groups = param_groups_weight_decay(net, weight_decay, weight_decay_exclude_1d=not decay_norm)
    return [part for group in groups for part in split(group)]


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
    """Return the learning rate of optimizer step `step` in 0..total-1.

    Over the first `warmup` steps it rises linearly from peak / warmup to peak, then it falls to
    `min_lr` in [0, peak), which step `total` (never taken) would reach. `cosine`: half a cosine
    (Loshchilov & Hutter, ICLR 2017, arXiv 1608.03983, eq. 5 with eta_min = min_lr); `linear`: a
    line; `constant`: it does not fall; `step`: times `gamma` every `step_epochs` epochs of the
    training, at least `min_lr`. `one_cycle` (Smith & Topin, arXiv 1708.07120, in torch's version):
    half a cosine from peak / 25 to the peak over the first 30 % and from there to peak / 250,000,
    or to `min_lr` if that is larger, at the last step; it includes its warm-up. `min_lr` does not
    bound a warm-up.
    """
    if schedule == "one_cycle":
        return _one_cycle(step, total, peak, min_lr)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    if schedule == "step":
        return max(peak * gamma ** (step // (steps_per_epoch * step_epochs)), min_lr)
    cosine = (1 + math.cos(math.pi * progress)) / 2
    factor = {"cosine": cosine, "linear": 1 - progress, "constant": 1.0}[schedule]
    return min_lr + (peak - min_lr) * factor


def _one_cycle(step: int, total: int, peak: float, min_lr: float) -> float:
    top = RISE * total - 1  # the step of the peak as torch counts; may be fractional
    if step <= top:
        return _cosine(peak * FIRST, peak, step / top)
    last = max(peak * LAST, min_lr)
    return _cosine(peak, last, (step - top) / max(1e-9, total - 1 - top))


def _cosine(first: float, last: float, progress: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * progress)) / 2
