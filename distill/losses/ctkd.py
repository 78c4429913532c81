"""Curriculum temperature: Li, Li, Yang, Zhao, Song, Luo, Li, Yang, "Curriculum temperature for
knowledge distillation", AAAI 2023, arXiv 2211.16231, with one temperature for all samples.

    T = lowest + spread sigmoid(a)
    L = T^2 mean_b KL( softmax(z_t / T) || softmax(z_s / T) )
    s = (1 - cos(pi min(1, p / curriculum))) / 2,      p = share of the training that is done

student: logits z_s [B, C]; teacher: logits z_t [B, C]; targets: not read.
a is a parameter. Its gradient is multiplied by -s (a gradient reversal layer): a changes to raise
the loss that the student lowers. s increases from 0 to 1, so that the task becomes harder. As in
the authors' code (zhengli97/CTKD) a begins at 1, and T at 15.6 with the default lowest = 1 and
spread = 20; s reaches 1 after 10 of 240 epochs. There s changes once per epoch and is
0.02 in the first one; here it changes at every step. The paper's other form, a temperature for each
sample that a small network predicts, is not implemented.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from distill.losses.kd import divergence
from distill.losses.objective import LossInputs


class CTKD(nn.Module):
    """KL divergence at a learnt temperature that the gradient moves to raise it.

    The temperature is between `lowest` and `lowest` + `spread`. `curriculum`: the share of the
    training, 0..1, after which the reversed gradient has its full size.
    """

    def __init__(
        self, lowest: float = 1.0, spread: float = 20.0, curriculum: float = 0.0417
    ) -> None:
        super().__init__()
        self.lowest, self.spread, self.curriculum = lowest, spread, curriculum
        self.raw = nn.Parameter(torch.ones(()))

    def forward(self, inputs: LossInputs) -> Tensor:
        if inputs.teacher is None:
            raise ValueError("the ctkd term needs a teacher's logits, and there is no teacher")
        raw: Tensor = _ReverseGradient.apply(self.raw, self.strength(inputs.progress))
        temperature = self.lowest + self.spread * raw.sigmoid()
        return divergence(inputs.student, inputs.teacher, temperature)

    def strength(self, progress: float) -> float:
        """Return the factor s, 0..1, at `progress` in [0, 1)."""
        if progress >= self.curriculum:
            return 1.0
        return (1 - math.cos(math.pi * progress / self.curriculum)) / 2


class _ReverseGradient(torch.autograd.Function):
    """Return the values unchanged; multiply their gradient by -strength."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return values.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * gradient, None
