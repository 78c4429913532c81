"""Variational information distillation: Ahn, Hu, Damianou, Lawrence, Dai, CVPR 2019,
arXiv 1904.05835, eqs. 4-6.

    L = sum over maps of  mean 1/2 ( (F_t - mu(F_s))^2 / var_c + log var_c ),
    var_c = softplus(alpha_c) + 1e-5

student: maps F_s [B, C_s, H, W]; teacher: as many maps F_t [B, C_t, H, W]; targets: not read.
L is the negative log-likelihood, up to a constant, of the teacher's maps under a Gaussian; it may
be below 0. The mean mu is predicted from the student's maps by three 1x1 convolutions with ReLU
between them and none at the end, since a WRN's maps have negative values: the layers of the
authors' code, which RepDistiller and mdistiller use too. The variance is learnt, one per channel c
of the teacher; it begins at 5. alpha is a parameter; mdistiller has it in a plain list, so that it
is not trained. The larger map is pooled.
Memory: about four maps of the teacher's width per tap, 4 B C_t H W floats: 749 MiB at batch 128,
2.9 GiB at 512 for three stages of WRN-28-10.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from distill.losses.at_least_float32 import at_least_float32
from distill.losses.objective import LossInputs, Shapes
from distill.losses.resize_feature_maps import pool_to_same_size

STAGES = ("stages.0", "stages.1", "stages.2")
EPS = 1e-5
INITIAL_VARIANCE = 5.0


class VID(nn.Module):
    """The negative log-likelihood of the teacher's maps given the student's maps.

    `student_shapes`, `teacher_shapes`: the shape (C, H, W) of each map by name.
    """

    def __init__(
        self,
        student_taps: tuple[str, ...] = STAGES,
        teacher_taps: tuple[str, ...] = STAGES,
        *,
        student_shapes: Shapes,
        teacher_shapes: Shapes,
    ) -> None:
        super().__init__()
        self.student_taps, self.teacher_taps = student_taps, teacher_taps
        inputs = [student_shapes[tap][0] for tap in student_taps]
        outputs = [teacher_shapes[tap][0] for tap in teacher_taps]
        self.means = nn.ModuleList(_regressor(a, b) for a, b in zip(inputs, outputs, strict=True))
        alpha = math.log(math.expm1(INITIAL_VARIANCE))
        self.alphas = nn.ParameterList(torch.full((width,), alpha) for width in outputs)

    def forward(self, inputs: LossInputs) -> Tensor:
        taps = zip(self.student_taps, self.teacher_taps, self.means, self.alphas, strict=True)
        return torch.stack(
            [
                _gaussian_nll(inputs.student_taps[a], inputs.teacher_taps[b], mean, alpha)
                for a, b, mean, alpha in taps
            ]
        ).sum()


def _gaussian_nll(student: Tensor, teacher: Tensor, mean: nn.Module, alpha: Tensor) -> Tensor:
    student, teacher = pool_to_same_size(at_least_float32(student), at_least_float32(teacher))
    variance = (softplus(alpha) + EPS)[None, :, None, None]
    squared: Tensor = (teacher - mean(student)).square() / variance
    return (squared + variance.log()).mean() / 2


def _regressor(inputs: int, outputs: int) -> nn.Sequential:
    """Return three 1x1 convolutions with ReLU between them."""
    layers: list[nn.Module] = []
    for width, wider in pairwise((inputs, outputs, outputs, outputs)):
        layers += [nn.Conv2d(width, wider, 1, bias=False), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
