"""Neuron selectivity transfer: Huang, Wang, "Like what you like: knowledge distill via neuron
selectivity transfer", 2017, arXiv 1707.01219, eqs. 5-7.

    f_i = channel i of F, flattened over pixels, of L2 norm 1;   k(x, y) = (x . y)^2
    L = mean_b  mean_ij k(f_i^s, f_j^s) + mean_ij k(f_i^t, f_j^t) - 2 mean_ij k(f_i^s, f_j^t)

student: one map F_s [B, C_s, H, W]; teacher: one map F_t [B, C_t, H, W]; targets: not read.
The squared maximum mean discrepancy between two sets of channels, whose numbers may differ; larger
maps are pooled to the smaller size. sum_ij (f_i . g_j)^2 is the inner product of the two matrices
of pixels F^T F, so that L = mean_b || F_s^T F_s / C_s - F_t^T F_t / C_t ||_F^2.
Memory: normalised maps, and matrices [B, HW, HW]: 40 MiB at batch 128, 161 MiB at 512 for 8x8 maps
of 640 and 256 channels; the matrices of 16x16 maps are 16 times as large.
"""

from dataclasses import dataclass

from einops import rearrange
from torch import Tensor
from torch.nn.functional import normalize

from distill.losses.exact import exact
from distill.losses.objective import Answers
from distill.losses.sizes import same_size


@dataclass(frozen=True)
class NST:
    """What makes the channels fire, as a distribution."""

    student_tap: str = "stages.2"
    teacher_tap: str = "stages.2"

    def __call__(self, answers: Answers) -> Tensor:
        student, teacher = same_size(
            exact(answers.student_taps[self.student_tap]),
            exact(answers.teacher_taps[self.teacher_tap]),
        )
        return (_selectivity(student) - _selectivity(teacher)).square().sum((1, 2)).mean()


def _selectivity(maps: Tensor) -> Tensor:
    """The mean over channels of f f^T: [B, C, H, W] -> [B, HW, HW]."""
    channels = normalize(rearrange(maps, "b c h w -> b c (h w)"), dim=-1)
    return channels.mT @ channels / channels.shape[1]
