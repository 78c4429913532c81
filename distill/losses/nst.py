"""Neuron selectivity transfer: Huang, Wang, "Like what you like: knowledge distill via neuron
selectivity transfer", 2017, arXiv 1707.01219, eqs. 5-7.

    f_i = channel i of F, flattened over pixels, of L2 norm 1;   k(x, y) = (x . y)^2
    L = mean_b  mean_ij k(f_i^s, f_j^s) + mean_ij k(f_i^t, f_j^t) - 2 mean_ij k(f_i^s, f_j^t)

student: one map F_s [B, C_s, H, W]; teacher: one map F_t [B, C_t, H, W]; targets: not read.
With several maps (`student_taps`, `teacher_taps`), L is the sum over the pairs. The paper matches
one map, the last one; HobbitLong/RepDistiller sums over the three stages.
L is the squared maximum mean discrepancy between the channels of the student and those of the
teacher, whose numbers C_s and C_t may differ. The larger map is pooled to the smaller size. With
the f_i as rows of a matrix F [C, HW], the sum over i and j of (f_i^s . f_j^t)^2 is the inner
product of the matrices F_s^T F_s and F_t^T F_t, so that also
L = mean_b || F_s^T F_s / C_s - F_t^T F_t / C_t ||_F^2. This form is computed if there are at most
C_s + C_t pixels, otherwise the sum over pairs of channels.
Memory: the normalised maps, and matrices [B, HW, HW] or [B, C_s + C_t, C_s + C_t], none larger than
the two maps: 40 MiB at batch 128, 161 MiB at 512 for 8x8 maps of 640 and 256 channels; 0.4 GiB and
1.4 GiB for 32x32 maps of 160 and 64 channels.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import normalize

from distill.losses.at_least_float32 import at_least_float32
from distill.losses.objective import LossInputs
from distill.losses.resize_feature_maps import pool_to_same_size


@dataclass(frozen=True)
class NST:
    """Match the distributions of the channels' spatial activation patterns.

    `student_taps`, `teacher_taps`: as many maps of both networks, matched in pairs; if None, the
    one pair of `student_tap` and `teacher_tap`.
    """

    student_tap: str = "stages.2"
    teacher_tap: str = "stages.2"
    student_taps: tuple[str, ...] | None = None
    teacher_taps: tuple[str, ...] | None = None

    def __call__(self, inputs: LossInputs) -> Tensor:
        pairs = zip(
            self.student_taps or (self.student_tap,),
            self.teacher_taps or (self.teacher_tap,),
            strict=True,
        )
        return torch.stack(
            [_distance(inputs.student_taps[a], inputs.teacher_taps[b]) for a, b in pairs]
        ).sum()


def _distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Return L of one pair of maps, [B, C_s, H, W] and [B, C_t, h, w]."""
    student, teacher = map(
        _normalised_channels,
        pool_to_same_size(at_least_float32(student), at_least_float32(teacher)),
    )
    few_pixels = student.shape[2] <= student.shape[1] + teacher.shape[1]
    by_sample = (_distance_by_pixels if few_pixels else _distance_by_channel_pairs)(
        student, teacher
    )
    return by_sample.mean()


def _normalised_channels(maps: Tensor) -> Tensor:
    """Flatten each channel and scale it to L2 norm 1: [B, C, H, W] -> [B, C, HW]."""
    return normalize(rearrange(maps, "b c h w -> b c (h w)"), dim=-1)


def _distance_by_pixels(student: Tensor, teacher: Tensor) -> Tensor:
    """Return L per sample, [B], from the matrices F^T F / C of pixels.

    `student`: normalised channels [B, C_s, HW]; `teacher`: [B, C_t, HW].
    """
    return (_pixel_matrix(student) - _pixel_matrix(teacher)).square().sum((1, 2))


def _pixel_matrix(channels: Tensor) -> Tensor:
    """Return F^T F / C of normalised channels F: [B, C, HW] -> [B, HW, HW]."""
    return channels.mT @ channels / channels.shape[1]


def _distance_by_channel_pairs(student: Tensor, teacher: Tensor) -> Tensor:
    """Return L per sample, [B], from the kernels k of all pairs of channels.

    `student`: normalised channels [B, C_s, HW]; `teacher`: [B, C_t, HW]. Channels of the student
    have the weight 1 / C_s, those of the teacher -1 / C_t.
    """
    both, n, m = torch.cat([student, teacher], dim=1), student.shape[1], teacher.shape[1]
    weights = torch.cat([both.new_full((n,), 1 / n), both.new_full((m,), -1 / m)])
    return weights @ (both @ both.mT).square() @ weights
