"""Build optimizers by timm's names.

Weight decay is decoupled in adamw, nadamw, lion, muon, adan and adafactor; in the others, including
nadam, it is added to the gradient (L2).

muon (Jordan, 2024) updates convolution kernels, flattened to [outputs, inputs * k * k], and the
linear layer, with plain momentum and steps of AdamW's size (arXiv 2502.16982). Norms, biases and
parameters with fewer than 4 rows are updated by AdamW.
"""

from collections.abc import Collection, Iterator
from functools import partial
from typing import Any

import torch
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

LR_SCALE = "lr_scale"  # key of a parameter group: a factor on the learning rate


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
    """Build the optimizer that timm calls `name`.

    `sgd` uses Nesterov's momentum, `momentum` is SGD with plain momentum. The argument `momentum`
    applies to sgd, momentum, rmsprop, lars and muon; `betas` to the Adam family, lion and lamb;
    `eps` to all but sgd, momentum and lion. None means timm's default. Arguments that an optimizer
    does not have are ignored; `distill/recipe/constraints.py` refuses invalid combinations.

    `decay_norm=False` excludes norms and biases from weight decay; for small networks with SGD,
    decaying them helps. `biases` are trained at `bias_lr` times the learning rate.
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
    """Return the learning rate of a parameter group: `lr` times the group's factor, by default
    1.
    """
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
    """Return timm's parameter groups, with `biases` in groups of their own.

    These have `bias_lr` times the learning rate. Their weight decay is divided by `bias_lr`, so
    that learning rate times decay is the same for all parameters. D. Page (davidcpage/cifar10-fast)
    and K. Jordan (arXiv 2404.00498) use a factor of 64.
    """
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
