"""Decoupled knowledge distillation: Zhao, Cui, Song, Qiu, Liang, CVPR 2022, arXiv 2203.08679,
eq. 7.

    L = alpha TCKD + beta NCKD,        p = softmax(z / T)
    TCKD = T^2 mean_b KL(b_t || b_s),  b = [p_y, 1 - p_y]
    NCKD = T^2 mean_b KL(q_t || q_s),  q = p without class y, divided by 1 - p_y

student: logits z_s [B, C]; teacher: logits z_t [B, C]; targets: y, the class of the largest entry
of each row [B, C] (for mixed labels there is no single right class). With two classes NCKD is 0,
since there is only one other class.
At T = 1 the KD loss of a sample is TCKD + (1 - p_t[y]) NCKD; the factor suppresses NCKD if the
teacher is confident. The authors' code computes q by adding -1000 to z_y, and takes the log of
summed probabilities, which is infinite for a confident student. Here log(1 - p_y) is computed as a
difference of two log-sum-exps.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from distill.losses.logit_std import prepared
from distill.losses.objective import LossInputs


@dataclass(frozen=True)
class DKD:
    """KL divergence to the teacher, split into target class and other classes.

    `alpha`: weight of the divergence of the target class's probability (TCKD); `beta`: weight of
    the divergence over the other classes (NCKD); `temperature`: T > 0. `standardise`: replace the
    logits of both networks by the z-scores of each row (arXiv 2403.01427), as in `logit_std`.
    """

    alpha: float = 1.0
    beta: float = 2.0
    temperature: float = 4.0
    standardise: bool = False

    def __call__(self, inputs: LossInputs) -> Tensor:
        if inputs.teacher is None:
            raise ValueError("the dkd term needs a teacher's logits, and there is no teacher")
        label = inputs.targets.argmax(dim=-1, keepdim=True)
        student, teacher = (
            _decoupled_log_probs(prepared(logits, self.standardise) / self.temperature, label)
            for logits in (inputs.student, inputs.teacher)
        )
        target, others = (
            kl_div(log_p, log_q, reduction="batchmean", log_target=True)
            for log_p, log_q in zip(student, teacher, strict=True)
        )
        return self.temperature**2 * (self.alpha * target + self.beta * others)


def _decoupled_log_probs(logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities b and q of the module, of logits [B, C] and labels [B, 1].

    log b [B, 2]: of the label's class and of all others; log q [B, C - 1]: of each other class.
    """
    classes = torch.arange(logits.shape[-1] - 1, device=logits.device).expand(len(logits), -1)
    others = logits.gather(-1, classes + (classes >= label))  # all logits except the label's
    total = logits.logsumexp(-1, keepdim=True)
    target, rest = logits.gather(-1, label) - total, others.logsumexp(-1, keepdim=True) - total
    return torch.cat([target, rest], dim=-1), log_softmax(others, dim=-1)
