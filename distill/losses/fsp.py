"""The flow of the solution procedure: Yim, Joo, Bae, Kim, "A gift from knowledge distillation: fast
optimization, network minimization and transfer learning", CVPR 2017, DOI 10.1109/CVPR.2017.754,
eqs. 1-2.

    G(A, B)_ij = 1 / (H W)  sum_hw A_i,hw B_j,hw         [C_a, C_b]
    L = sum over pairs of consecutive maps  mean (G(A_s, B_s) - G(A_t, B_t))^2

student: at least two maps, [B, C, H, W] each; teacher: as many maps, each with the same number of
channels as the student's; targets: not read.
G is computed for each sample; the mean is over samples and entries, as in HobbitLong/RepDistiller;
the paper sums over the entries. If A and B differ in size, the larger one is average-pooled, as in
RepDistiller; the paper takes the maximum. G is a mean over pixels, so that the maps of the two
networks may differ in size. A matrix of the student is compared with one of the teacher, hence
channels must be equal; other networks are refused. As in RepDistiller, the maps are those of the
stem and of each stage.
In the paper and in RepDistiller this loss is the only one of a first stage of training; the second
stage has only the labels. RepDistiller trains 30 epochs and then 240, both from a learning rate of
0.05; its weight of 50 is multiplied by 0 in the second stage and is not applied in the first, so
that the published weight is 1. `when.end` = 30/270 of this term and `when.begin` = 30/270 of `hard`
give the same two stages within one training of 270 epochs. Two differences remain: momentum
is not reset between the stages, and in the first stage the student's classifier is decayed.
Memory: for each pair, A or B after pooling, and the gradient of A and of B. 128 MiB at batch 128,
512 MiB at 512 for the maps 16x32x32, 64x32x32, 128x16x16 and 256x8x8.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from distill.losses.at_least_float32 import at_least_float32
from distill.losses.objective import LossInputs, Shapes
from distill.losses.resize_feature_maps import pool_to_same_size

MAPS = ("stem", "stages.0", "stages.1", "stages.2")


class FSP:
    """Match the products of the channels of consecutive maps.

    `student_shapes`, `teacher_shapes`: the shape (C, H, W) of each map by name. Raises ValueError
    if a map's channels differ between the networks, or if there are fewer than two maps.
    """

    def __init__(
        self,
        student_taps: tuple[str, ...] = MAPS,
        teacher_taps: tuple[str, ...] = MAPS,
        *,
        student_shapes: Shapes,
        teacher_shapes: Shapes,
    ) -> None:
        self.student_taps, self.teacher_taps = student_taps, teacher_taps
        if len(student_taps) < 2:
            raise ValueError("the fsp term compares consecutive maps, and there is only one")
        pairs = zip(student_taps, teacher_taps, strict=True)
        channels = [(a, student_shapes[a][0], b, teacher_shapes[b][0]) for a, b in pairs]
        unequal = [
            f"{a} has {ours} channels in the student and {b} {theirs} in the teacher"
            for a, ours, b, theirs in channels
            if ours != theirs
        ]
        if unequal:
            raise ValueError(
                f"the fsp term needs maps of equal channels in both networks: {'; '.join(unequal)}"
            )

    def __call__(self, inputs: LossInputs) -> Tensor:
        student = _flows([inputs.student_taps[tap] for tap in self.student_taps])
        teacher = _flows([inputs.teacher_taps[tap] for tap in self.teacher_taps])
        return torch.stack(
            [(ours - theirs).square().mean() for ours, theirs in zip(student, teacher, strict=True)]
        ).sum()


def _flows(maps: Sequence[Tensor]) -> list[Tensor]:
    """Return G of each pair of consecutive maps [B, C, H, W]: matrices [B, C_a, C_b]."""
    return [_flow(a, b) for a, b in pairwise(map(at_least_float32, maps))]


def _flow(a: Tensor, b: Tensor) -> Tensor:
    a, b = (maps.flatten(2) for maps in pool_to_same_size(a, b))
    return a @ b.mT / a.shape[2]
