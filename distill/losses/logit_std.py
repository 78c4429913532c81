"""Logit-standardised KD: Sun, Ren, Li, Wang, Cao, "Logit standardization in knowledge
distillation", CVPR 2024, arXiv 2403.01427, eqs. 8-9 and algorithm 1.

    L = T^2 mean_b KL( softmax(Z(z_t) / T) || softmax(Z(z_s) / T) )
    Z(z) = (z - mean_c z) / max(std_c z, 0.01),      std over C - 1

student: logits z_s [B, C]; teacher: logits z_t [B, C]; targets: not read.
Shifting or scaling a student's row changes nothing: without a weighted label term its confidence is
arbitrary. No z-score of C classes is more than sqrt(C) above the next, so the published T = 2 for
100 classes corresponds to 0.6 to 1.2 for 10.
A constant row standardises to zeros, and no row's gradient grows by more than 1 / 0.01. The authors
add 1e-7 to std. In float32 the rounding errors of a constant row are of that size too, so that they
become z-scores near 1, and the gradient of a student with constant outputs grows by millions.
torchdistill's LogitStdKDLoss has no T^2 if its `alpha` is None or 0.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from distill.losses.exact import at_least_float32
from distill.losses.objective import LossInputs

FLOOR = 0.01  # of a row's standard deviation; that of trained logits is above 1


@dataclass(frozen=True)
class LogitStd:
    """KL divergence of standardised logits at `temperature` T > 0."""

    temperature: float = 1.0

    def __call__(self, inputs: LossInputs) -> Tensor:
        if inputs.teacher is None:
            raise ValueError("the logit_std term needs a teacher's logits, and there is no teacher")
        student, teacher = (
            log_softmax(standardised(at_least_float32(logits)) / self.temperature, dim=-1)
            for logits in (inputs.student, inputs.teacher)
        )
        divergence = kl_div(student, teacher, reduction="batchmean", log_target=True)
        return self.temperature**2 * divergence


def standardised(logits: Tensor) -> Tensor:
    """Standardise rows [B, C] to mean 0 and standard deviation 1."""
    centred = logits - logits.mean(dim=-1, keepdim=True)
    variance = centred.square().sum(dim=-1, keepdim=True) / (logits.shape[-1] - 1)
    return centred / variance.clamp_min(FLOOR**2).sqrt()  # the root of 0 has no gradient
