"""FitNets: Romero, Ballas, Ebrahimi Kahou, Chassang, Gatta, Bengio, "FitNets: hints for thin deep
nets", ICLR 2015, arXiv 1412.6550, eq. 3.

    L = mean (r(F_s) - F_t)^2       over samples, channels and pixels

student: one map F_s [B, C_s, H, W]; teacher: one map F_t [B, C_t, H, W]; targets: not read.
The regressor r is a 1x1 convolution and batch norm, trained with the student and then discarded. If
the maps differ in size, the paper's regressor is a larger convolution without padding; here the
larger map is pooled. r does not end in a ReLU, since the stages of a WRN are sums with negative
values, which a ReLU cannot match (in mdistiller and RepDistiller it ends in one). The paper halves
the square and sums over the map; here the mean is taken, which does not grow with the network. The
paper trains in two stages, first on the hint and then with KD; schedules of the loss terms can do
the same.
Memory: three maps of the teacher's width, 3 B C_t H W floats: 120 MiB at batch 128, 480 MiB at 512
for 320 channels of 16x16.
"""

from torch import Tensor, nn
from torch.nn.functional import mse_loss

from distill.losses.exact import at_least_float32
from distill.losses.objective import LossInputs, Shapes
from distill.losses.sizes import pool_to_same_size


class FitNet(nn.Module):
    """Mean squared error of predicting a teacher map from a student map with a 1x1 convolution.

    `student_shapes`, `teacher_shapes`: the shape (C, H, W) of each map by name.
    """

    def __init__(
        self,
        student_tap: str = "stages.1",
        teacher_tap: str = "stages.1",
        *,
        student_shapes: Shapes,
        teacher_shapes: Shapes,
    ) -> None:
        super().__init__()
        self.student_tap, self.teacher_tap = student_tap, teacher_tap
        inputs, outputs = student_shapes[student_tap][0], teacher_shapes[teacher_tap][0]
        self.regressor = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        )

    def forward(self, inputs: LossInputs) -> Tensor:
        student, teacher = pool_to_same_size(
            at_least_float32(inputs.student_taps[self.student_tap]),
            at_least_float32(inputs.teacher_taps[self.teacher_tap]),
        )
        return mse_loss(self.regressor(student), teacher)
