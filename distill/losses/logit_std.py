"""Logit-standardised KD: Sun, Ren, Li, Wang, Cao, "Logit standardization in knowledge
distillation", CVPR 2024, arXiv 2403.01427, eqs. 8-9 and algorithm 1.

    L = T^2 mean_b KL( softmax(Z(z_t) / T) || softmax(Z(z_s) / T) )
    Z(z) = (z - mean_c z) / max(std_c z, 0.01),      std over C - 1

student: logits z_s [B, C]; teacher: logits z_t [B, C]; targets: not read.
L does not change if a student's row is shifted or scaled, so only a term with labels, such as
`hard`, can determine its confidence. The gap between the two largest of C z-scores is at most
sqrt(C): 10 for 100 classes, 3.2 for 10. At the published T = 2 for 100 classes the gap divided by T
is thus at most 5, and the largest probability 0.60. For 10 classes the same gap is reached at
T = 0.6, the same probability at T = 1.2.
A constant row is standardised to zeros, and the minimum 0.01 limits the growth of gradients to a
factor of 100. The authors add 1e-7 to std instead. In float32 the rounding errors of a constant row
have that size too; they would become z-scores near 1, and the gradient of a student with constant
outputs would grow by a factor of millions. torchdistill's LogitStdKDLoss has no T^2 if its `alpha`
is None or 0.
The terms `kd`, `dkd` and `multi_temperature` have the option `standardise`, for the combinations of
the paper; `kd` with it is this term.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from distill.losses.at_least_float32 import at_least_float32
from distill.losses.objective import LossInputs

FLOOR = 0.01  # minimum of a row's standard deviation; that of trained logits is above 1


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


def prepared(logits: Tensor, standardise: bool) -> Tensor:
    """Return logits [B, C] in at least float32, as z-scores of each row if `standardise`."""
    exact = at_least_float32(logits)
    return standardised(exact) if standardise else exact


def standardised(logits: Tensor) -> Tensor:
    """Standardise each row of logits [B, C] to mean 0 and standard deviation 1."""
    centred = logits - logits.mean(dim=-1, keepdim=True)
    variance = centred.square().sum(dim=-1, keepdim=True) / (logits.shape[-1] - 1)
    return centred / variance.clamp_min(FLOOR**2).sqrt()  # sqrt(0) would have an infinite gradient
