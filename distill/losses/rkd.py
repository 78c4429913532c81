"""Relational knowledge distillation: Park, Kim, Lu, Cho, CVPR 2019, arXiv 1904.05068, eqs. 4-8.

    L = distance L_D + angle L_A
    L_D = mean_ij  huber( d_ij^s - d_ij^t ),   d_ij = ||f_i - f_j|| / mean distance in the batch
    L_A = mean_ijk huber( a_ijk^s - a_ijk^t ), a_ijk = cos of the angle at i between j and k

student: features f_s [B, D_s]; teacher: features f_t [B, D_t]; targets: not read. Feature maps are
flattened. L does not change if all features of a network are shifted, rotated or scaled.
The defaults of the weights `distance` and `angle` have the paper's ratio 1 : 2; the paper's weights
25 and 50 correspond to a weight of 25 of the whole term. The batch is the whole global batch.
Angles are computed only for its first `rows` samples, which are random since batches are shuffled.
Memory: B x B floats for distances; for angles between R samples two arrays [R, R, D] of directions
and two [R, R, R] of cosines: 121 MiB at batch 128 and 126 MiB at 512 for R = 128 and D = 640.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize, smooth_l1_loss

from distill.losses.at_least_float32 import at_least_float32
from distill.losses.gather import whole_batch
from distill.losses.objective import LossInputs

EPS = 1e-12


@dataclass(frozen=True)
class RKD:
    """Match the distances and angles between the features of the samples of the batch.

    `distance`, `angle`: the weights of both parts; `rows`: number of samples used for angles.
    """

    distance: float = 1.0
    angle: float = 2.0
    rows: int = 128
    student_tap: str = "features"
    teacher_tap: str = "features"

    def __call__(self, inputs: LossInputs) -> Tensor:
        student = at_least_float32(whole_batch(inputs.student_taps[self.student_tap])).flatten(1)
        teacher = at_least_float32(whole_batch(inputs.teacher_taps[self.teacher_tap])).flatten(1)
        distances = smooth_l1_loss(_distances(student), _distances(teacher))
        angles = smooth_l1_loss(_angles(student[: self.rows]), _angles(teacher[: self.rows]))
        return self.distance * distances + self.angle * angles


def _distances(features: Tensor) -> Tensor:
    """Return the distances of all pairs, divided by their mean: [B, D] -> [B, B]."""
    squares = features.square().sum(-1)
    squared = squares[:, None] + squares[None] - 2 * features @ features.T
    # The minimum avoids the infinite gradient of sqrt at 0; the mask sets the diagonal to 0 again.
    off_diagonal = ~torch.eye(len(features), dtype=torch.bool, device=features.device)
    distances = squared.clamp_min(EPS).sqrt() * off_diagonal
    return distances / (distances.sum() / off_diagonal.sum().clamp_min(1)).clamp_min(EPS)


def _angles(features: Tensor) -> Tensor:
    """Return the cosines of the angles at i between j and k, for all i, j, k: [R, R, R].

    `features`: [R, D].
    """
    directions = normalize(features[None] - features[:, None], dim=-1, eps=EPS)
    return directions @ directions.mT
