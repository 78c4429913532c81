"""SimKD: Chen, Mei, Zhang, Wang, Feng, Chen, "Knowledge distillation with the reused teacher
classifier", CVPR 2022, arXiv 2203.14001, eq. 3.

    L = mean (P(F_s) - F_t)^2       over samples, channels and pixels

student: its projected last map P(F_s) [B, C_t, H, W]; teacher: the last map F_t [B, C_t, h, w],
before pooling; targets and logits: not read.
The deployed student includes the projector P (convolutions 1x1, 3x3, 1x1) and the teacher's
classifier, which reads the pooled output of P; their parameters count as the student's. The larger
map is pooled, as in the paper. The student's map is pooled after P, since P is part of the student
here; the authors' code pools it before P.
Memory: the gradient, B C_t H W floats: 20 MiB at batch 128, 80 MiB at 512 for 640 channels of 8x8.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import mse_loss

from distill.losses.at_least_float32 import at_least_float32
from distill.losses.objective import LossInputs
from distill.losses.resize_feature_maps import pool_to_same_size


@dataclass(frozen=True)
class SimKD:
    """Match the student's projected last map to the teacher's."""

    student_tap: str = "projector"
    teacher_tap: str = "maps"

    def __call__(self, inputs: LossInputs) -> Tensor:
        student = at_least_float32(inputs.student_taps[self.student_tap])
        teacher = at_least_float32(inputs.teacher_taps[self.teacher_tap])
        if student.shape[1] != teacher.shape[1]:
            raise ValueError(
                f"the simkd term compares maps of equal channels; the student's projector has "
                f"{student.shape[1]}, the teacher {teacher.shape[1]}"
            )
        return mse_loss(*pool_to_same_size(student, teacher))
