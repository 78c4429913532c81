"""Decoupled knowledge distillation: Zhao, Cui, Song, Qiu, Liang, CVPR 2022, arXiv 2203.08679,
eq. 7.

    L = alpha TCKD + beta NCKD
    TCKD = T^2 mean_b KL(b_t || b_s),  b = [p_y, 1 - p_y]
    NCKD = T^2 mean_b KL(q_t || q_s),  q = softmax over the classes that are not y of z / T

student: logits z_s [B, C]; teacher: logits z_t [B, C]; targets: y, one class per row [B, C] (the
largest entry of a row; mixed labels have no single class). With two classes NCKD is 0: only one
other class is left to compare.
KD is TCKD + (1 - p_t[y]) NCKD, sample by sample at T = 1: the factor suppresses NCKD if the
teacher is confident. The authors' code computes q by adding -1000 to z_y and takes the log of
summed probabilities, which is infinite once a student is confident; here log(1 - p_y) is a
difference of log-sum-exps.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from distill.losses.exact import at_least_float32
from distill.losses.objective import LossInputs


@dataclass(frozen=True)
class DKD:
    """Weigh the target class's divergence by `alpha`, the other classes' by `beta`."""

    alpha: float = 1.0
    beta: float = 2.0
    temperature: float = 4.0

    def __call__(self, inputs: LossInputs) -> Tensor:
        if inputs.teacher is None:
            raise ValueError("the dkd term needs a teacher's logits, and there is no teacher")
        label = inputs.targets.argmax(dim=-1, keepdim=True)
        student, teacher = (
            _decoupled(at_least_float32(logits) / self.temperature, label)
            for logits in (inputs.student, inputs.teacher)
        )
        target, others = (
            kl_div(log_p, log_q, reduction="batchmean", log_target=True)
            for log_p, log_q in zip(student, teacher, strict=True)
        )
        return self.temperature**2 * (self.alpha * target + self.beta * others)


def _decoupled(logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Return log b [B, 2] and log q [B, C - 1] (see the module) of logits [B, C], labels [B, 1]."""
    classes = torch.arange(logits.shape[-1] - 1, device=logits.device).expand(len(logits), -1)
    others = logits.gather(-1, classes + (classes >= label))  # all but the label's
    total = logits.logsumexp(-1, keepdim=True)
    target, rest = logits.gather(-1, label) - total, others.logsumexp(-1, keepdim=True) - total
    return torch.cat([target, rest], dim=-1), log_softmax(others, dim=-1)
