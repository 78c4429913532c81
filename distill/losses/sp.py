"""Similarity-preserving distillation: Tung, Mori, ICCV 2019, arXiv 1907.09682, eqs. 1-4.

    F = maps flattened to [B, C H W],  G = F F^T with each row divided by its L2 norm
    L = || G_s - G_t ||_F^2 / B          reduction "scale_free"
    L = || G_s - G_t ||_F^2 / B^2        reduction "paper"

student: one map F_s [B, C_s, H, W]; teacher: one map F_t [B, C_t, H, W]; targets: not read.
Rows of G have norm 1, so that the paper's value falls as 1 / B; "scale_free" is B times that value,
the mean over samples. The batch is the whole global batch. torchdistill calls `normalize(G, 1)`,
which divides by L1 norms instead, since the second argument is p.
Memory: a copy of F_s and its gradient, B C H W floats each, and some B x B matrices: 24 MiB at
batch 128, 96 MiB at 512 for 256 channels of 8x8.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn.functional import normalize

from distill.losses.at_least_float32 import at_least_float32
from distill.losses.gather import whole_batch
from distill.losses.objective import LossInputs


@dataclass(frozen=True)
class SP:
    """Match the similarities between the samples of the batch."""

    student_tap: str = "stages.2"
    teacher_tap: str = "stages.2"
    reduction: Literal["scale_free", "paper"] = "scale_free"

    def __call__(self, inputs: LossInputs) -> Tensor:
        student = similarities(whole_batch(inputs.student_taps[self.student_tap]))
        teacher = similarities(whole_batch(inputs.teacher_taps[self.teacher_tap]))
        total = (student - teacher).square().sum() / len(student)
        return total if self.reduction == "scale_free" else total / len(student)


def similarities(maps: Tensor) -> Tensor:
    """Return the matrix G of the samples' inner products, rows of norm 1: [B, ...] -> [B, B]."""
    flat = at_least_float32(maps).flatten(1)
    return normalize(flat @ flat.T, p=2, dim=1)
