"""Activation boundaries: Heo, Lee, Yun, Choi, "Knowledge transfer via distillation of activation
boundaries formed by hidden neurons", AAAI 2019, arXiv 1811.03233.

    S = BN(W F_s), a 1x1 convolution W
    l = (max(0, margin - S))^2  if F_t > 0,  (max(0, margin + S))^2  otherwise
    L = 3/1000  sum over maps i = 1..n  2^(i - n)  mean_b  sum over channels and pixels  l

student: n maps F_s [B, C_s, H, W]; teacher: as many maps F_t [B, C_t, H, W]; targets: not read.
Only the sign of the teacher's neurons is matched. The margin is 1. The factors 2^(i - n) and 3/1000
are those of HobbitLong/RepDistiller (distiller_zoo/AB.py), so that its weight of 1 is the weight
here.
RepDistiller and the paper compare the values before the ReLU at the end of each stage. Here maps
are those after it. For the teacher there is no difference: a ReLU's output is positive if its input
is. It must be a ReLU; the stages of a WRN or of a MobileNetV2 end in a sum that a later batch norm
and ReLU read (RepDistiller applies this batch norm for its WRNs), and there the sign of the sum is
matched. For the student, S is computed from the output of the ReLU instead of its input. S can be
negative because it is always computed with W and batch norm, as in the paper; RepDistiller leaves
both out if the maps have one shape.
If the maps differ in size, the student's map is averaged or repeated to the teacher's size: a mean
of the teacher's neurons would have another sign.
In the paper and in RepDistiller this loss is the only one of a first stage of training; the second
stage has only the labels (distill/losses/fsp.py describes how to train the two stages).
Memory: about three maps of the teacher's width per tap, 537 MiB at batch 128, 2.1 GiB at 512 for
three stages of WRN-28-10.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from distill.losses.at_least_float32 import at_least_float32
from distill.losses.objective import LossInputs, Shapes

STAGES = ("stages.0", "stages.1", "stages.2")
MARGIN = 1.0
SCALE = 3 / 1000


class AB(nn.Module):
    """The squared distance of the student's neurons to the teacher's side of the margin.

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
        self.connectors = nn.ModuleList(
            _connector(student_shapes[a][0], teacher_shapes[b][0])
            for a, b in zip(student_taps, teacher_taps, strict=True)
        )

    def forward(self, inputs: LossInputs) -> Tensor:
        taps = zip(self.student_taps, self.teacher_taps, self.connectors, strict=True)
        losses = [
            2.0 ** (i + 1 - len(self.connectors))
            * _margin_loss(inputs.student_taps[a], inputs.teacher_taps[b], connector)
            for i, (a, b, connector) in enumerate(taps)
        ]
        return SCALE * torch.stack(losses).sum()


def _margin_loss(student: Tensor, teacher: Tensor, connector: nn.Module) -> Tensor:
    """Return the mean over samples of the sum of l."""
    height, width = teacher.shape[-2:]
    student = adaptive_avg_pool2d(at_least_float32(student), (height, width))
    side = torch.where(teacher > 0, 1.0, -1.0)
    distance: Tensor = (MARGIN - side * connector(student)).relu()
    return distance.square().sum((1, 2, 3)).mean()


def _connector(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
