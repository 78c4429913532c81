"""Attention transfer: Zagoruyko, Komodakis, "Paying more attention to attention", ICLR 2017,
arXiv 1612.03928, eq. 2.

    Q = flatten( mean_c F^2 ),  q = Q / ||Q||_2  for each sample
    L = sum over maps of  mean_{b, pixels} (q_s - q_t)^2          reduction "mean"
    L = sum over maps of  mean_b || q_s - q_t ||_2                reduction "paper"

student: maps F_s [B, C_s, H, W]; teacher: as many maps F_t [B, C_t, H, W]; targets: not read.
The reduction "mean" is that of the authors' released code (with weight 1000), "paper" that of
equation 2. A mean over pixels makes a 32x32 map weigh 16 times less than an 8x8 map. If sizes
differ, the mean squares are pooled to the smaller size. A map of zeros has an attention of zeros.
Memory: the squares of all maps, B C H W floats per map: 152 MiB at batch 128, 608 MiB at 512 for
three stages of WRN-28-10 and of a student with 64 to 256 channels.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from distill.losses.at_least_float32 import at_least_float32
from distill.losses.objective import LossInputs
from distill.losses.resize_feature_maps import pool_to_same_size

STAGES = ("stages.0", "stages.1", "stages.2")
EPS = 1e-14


@dataclass(frozen=True)
class AT:
    """Match the normalised spatial attention of pairs of maps."""

    student_taps: tuple[str, ...] = STAGES
    teacher_taps: tuple[str, ...] = STAGES
    reduction: Literal["mean", "paper"] = "mean"

    def __call__(self, inputs: LossInputs) -> Tensor:
        distances = [
            self._distance(inputs.student_taps[a], inputs.teacher_taps[b])
            for a, b in zip(self.student_taps, self.teacher_taps, strict=True)
        ]
        return torch.stack(distances).sum()

    def _distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        student, teacher = pool_to_same_size(
            _attention(at_least_float32(student)), _attention(at_least_float32(teacher))
        )
        gap: Tensor = normalize(student.flatten(1), eps=EPS) - normalize(
            teacher.flatten(1), eps=EPS
        )
        if self.reduction == "mean":
            return gap.square().mean()
        # Without the minimum, the root would have an infinite gradient if the maps were equal.
        lengths: Tensor = gap.square().sum(-1).clamp_min(EPS).sqrt()
        return lengths.mean()


def _attention(maps: Tensor) -> Tensor:
    """Return the mean square over channels: [B, C, H, W] -> [B, 1, H, W]."""
    return maps.square().mean(dim=1, keepdim=True)
