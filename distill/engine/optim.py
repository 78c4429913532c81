"""The optimizer by timm's names, and the learning rate as a function of the step."""

import math
from typing import Literal

import torch
from timm.optim import create_optimizer_v2
from torch import nn

Schedule = Literal["cosine", "linear", "constant"]


def optimizer(
    net: nn.Module,
    *,
    name: str,
    lr: float,
    momentum: float,
    weight_decay: float,
    decay_norm: bool,
) -> torch.optim.Optimizer:
    """timm's optimizer `name`: its `sgd` is Nesterov's, its `momentum` is plain.

    `decay_norm=False` leaves norms and biases undecayed; for small nets with SGD, decaying them
    helps.
    """
    return create_optimizer_v2(
        net,
        opt=name,
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        filter_bias_and_bn=not decay_norm,
    )


def lr_at(
    step: int, *, total: int, warmup: int, peak: float, schedule: Schedule, floor: float = 0.0
) -> float:
    """The learning rate of optimizer step `step` in 0..total-1.

    Linear from peak / warmup to peak over the first `warmup` steps, then down to `floor`, which
    step `total` (never taken) would reach: half a cosine (Loshchilov & Hutter, ICLR 2017, arXiv
    1608.03983, eq. 5), a line, or not at all.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    left = {
        "cosine": (1 + math.cos(math.pi * progress)) / 2,
        "linear": 1 - progress,
        "constant": 1.0,
    }[schedule]
    return floor + (peak - floor) * left
