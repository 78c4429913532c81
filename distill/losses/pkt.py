"""Probabilistic knowledge transfer: Passalis, Tefas, "Learning deep representations with
probabilistic knowledge transfer", ECCV 2018, arXiv 1803.10837, eqs. 3-8.

    K_ij = (cos(f_i, f_j) + 1) / 2,   p_j|i = K_ij / sum_j K_ij
    L = mean_i sum_j p_t log(p_t / p_s)         reduction "scale_free"
    L = mean_ij     p_t log(p_t / p_s)          reduction "paper"

student: features f_s [B, D_s]; teacher: features f_t [B, D_t]; targets: not read. Feature maps are
flattened. Only the angles between features matter, so D_s and D_t and the features' lengths may
differ. The authors' code takes the mean over the matrix p (reduction "paper"), whose value falls as
1 / B; "scale_free" is B times that value, the mean over samples of a divergence. As in the authors'
code, the matrix includes the diagonal p_i|i. The batch is the whole global batch.
Memory: some B x B matrices: 0.7 MiB at batch 128, 8.5 MiB at 512.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn.functional import normalize

from distill.losses.at_least_float32 import at_least_float32
from distill.losses.gather import whole_batch
from distill.losses.objective import LossInputs

EPS = 1e-7


@dataclass(frozen=True)
class PKT:
    """Match the probabilities p_j|i that sample j of the batch is a neighbour of sample i."""

    student_tap: str = "features"
    teacher_tap: str = "features"
    reduction: Literal["scale_free", "paper"] = "scale_free"

    def __call__(self, inputs: LossInputs) -> Tensor:
        student = neighbours(whole_batch(inputs.student_taps[self.student_tap]))
        teacher = neighbours(whole_batch(inputs.teacher_taps[self.teacher_tap]))
        divergence = (teacher * ((teacher + EPS) / (student + EPS)).log()).sum(-1).mean()
        return divergence if self.reduction == "scale_free" else divergence / len(student)


def neighbours(features: Tensor) -> Tensor:
    """Return the matrix of probabilities p_j|i, whose rows i sum to 1: [B, ...] -> [B, B]."""
    unit = normalize(at_least_float32(features).flatten(1), dim=-1, eps=EPS)
    kernel = (unit @ unit.T + 1) / 2
    return kernel / kernel.sum(-1, keepdim=True)
