"""Logit-standardised KD: Sun, Ren, Li, Wang, Cao, "Logit standardization in knowledge
distillation", CVPR 2024, arXiv 2403.01427, eqs. 8-9 and algorithm 1.

    L = T^2 mean_b KL( softmax(Z(z_t) / T) || softmax(Z(z_s) / T) )
    Z(z) = (z - mean_c z) / (std_c z + 1e-7),      std over C - 1

student: logits z_s [B, C]; teacher: logits z_t [B, C]; targets: not read.
Shift and scale of a student's row change nothing: the labels' term must keep a weight, or its
confidence means nothing. No z-score of C classes lies further than sqrt(C) above the next, so the
published T = 2 for 100 classes is 0.6 to 1.2 for 10. A constant row standardises to zeros.
The square root is taken of a variance bounded from below, whose gradient is finite at 0.
torchdistill's LogitStdKDLoss has no T^2 where its `alpha` is None or 0.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from distill.losses.exact import exact
from distill.losses.objective import Answers

EPS = 1e-7


@dataclass(frozen=True)
class LogitStd:
    """KL of standardised logits at `temperature` T > 0."""

    temperature: float = 1.0

    def __call__(self, answers: Answers) -> Tensor:
        if answers.teacher is None:
            raise ValueError("the logit_std term needs a teacher's logits, and nobody teaches")
        student, teacher = (
            log_softmax(standardised(exact(logits)) / self.temperature, dim=-1)
            for logits in (answers.student, answers.teacher)
        )
        divergence = kl_div(student, teacher, reduction="batchmean", log_target=True)
        return self.temperature**2 * divergence


def standardised(logits: Tensor) -> Tensor:
    """Rows [B, C] of mean 0 and standard deviation 1."""
    centred = logits - logits.mean(dim=-1, keepdim=True)
    variance = centred.square().sum(dim=-1, keepdim=True) / (logits.shape[-1] - 1)
    return centred / (variance.clamp_min(EPS**2).sqrt() + EPS)
