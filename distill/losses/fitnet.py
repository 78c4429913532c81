"""FitNets: Romero, Ballas, Ebrahimi Kahou, Chassang, Gatta, Bengio, "FitNets: hints for thin deep
nets", ICLR 2015, arXiv 1412.6550, eq. 3.

    L = mean (r(F_s) - F_t)^2       over samples, channels and pixels

student: one map F_s [B, C_s, H, W]; teacher: one map F_t [B, C_t, h, w]; targets: not read.
The regressor r is trained with the student and then discarded. It has one of two layouts:

- "pointwise": a 1x1 convolution and batch norm. If the maps differ in size, the larger one is
  average-pooled to the smaller size before. There is no ReLU at the end, since the stages of a WRN
  are sums with negative values, which a ReLU cannot match.
- "released": that of RepDistiller (ConvReg in models/util.py) and mdistiller: one convolution with
  bias, batch norm, ReLU. It gives the student's map the teacher's size: with a 3x3 kernel and
  stride 2 if H = 2 h, a transposed 4x4 kernel and stride 2 if h = 2 H, and otherwise, if H >= h, a
  kernel of (H - h + 1) x (W - w + 1) without padding, like the paper's, which is 1x1 for equal
  sizes. Other sizes are refused.

The paper halves the square and sums over the map; here the mean is taken, as in both programs,
which does not grow with the network. The paper trains in two stages, first on the hint and then
with KD; schedules of the loss terms can do the same. RepDistiller trains on the labels and on 100
times this term, without KD.
Memory: three maps of the teacher's width, 3 B C_t H W floats: 120 MiB at batch 128, 480 MiB at 512
for 320 channels of 16x16; a fourth one with "released".
"""

from typing import Literal

from torch import Tensor, nn
from torch.nn.functional import mse_loss

from distill.losses.at_least_float32 import at_least_float32
from distill.losses.objective import LossInputs, Shapes
from distill.losses.resize_feature_maps import pool_to_same_size


class FitNet(nn.Module):
    """Mean squared error of predicting a teacher map from a student map with one convolution.

    `layout`: that of the regressor, as the module defines it. `student_shapes`, `teacher_shapes`:
    the shape (C, H, W) of each map by name. Raises ValueError if the layout "released" does not
    map the student's size to the teacher's.
    """

    def __init__(
        self,
        student_tap: str = "stages.1",
        teacher_tap: str = "stages.1",
        layout: Literal["pointwise", "released"] = "pointwise",
        *,
        student_shapes: Shapes,
        teacher_shapes: Shapes,
    ) -> None:
        super().__init__()
        self.student_tap, self.teacher_tap, self.layout = student_tap, teacher_tap, layout
        student, teacher = student_shapes[student_tap], teacher_shapes[teacher_tap]
        build = _pointwise if layout == "pointwise" else _released
        self.regressor = build(student, teacher)

    def forward(self, inputs: LossInputs) -> Tensor:
        student = at_least_float32(inputs.student_taps[self.student_tap])
        teacher = at_least_float32(inputs.teacher_taps[self.teacher_tap])
        if self.layout == "pointwise":
            student, teacher = pool_to_same_size(student, teacher)
        return mse_loss(self.regressor(student), teacher)


def _pointwise(student: tuple[int, ...], teacher: tuple[int, ...]) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(student[0], teacher[0], 1, bias=False), nn.BatchNorm2d(teacher[0])
    )


def _released(student: tuple[int, ...], teacher: tuple[int, ...]) -> nn.Sequential:
    """Return RepDistiller's regressor of maps (C, H, W) to maps (C, h, w)."""
    (inputs, height, width), (outputs, h, w) = student, teacher
    convolution: nn.Module
    if (height, width) == (2 * h, 2 * w):
        convolution = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
    elif (2 * height, 2 * width) == (h, w):
        convolution = nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1)
    elif height >= h and width >= w:
        convolution = nn.Conv2d(inputs, outputs, (height - h + 1, width - w + 1))
    else:
        raise ValueError(
            f"layout = released cannot map the student's {height}x{width} pixels to the teacher's "
            f"{h}x{w}; layout = pointwise can"
        )
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())
