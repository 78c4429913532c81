"""Correlation congruence: Peng, Jin, Liu, Zhou, Wu, Liu, Li, Zhang, ICCV 2019, arXiv 1904.01802, in
the form of HobbitLong/RepDistiller (distiller_zoo/CC.py), which that file attributes to the paper's
authors, and with which the table of the CRD paper (arXiv 1910.10699) was made.

    d_b = | W_s f_b^s + c_s - W_t f_b^t - c_t |          entry by entry
    L = 1 / (B - 1)  sum_{b < B}  d_b . d_{b+1}

student: features f_s [B, D_s]; teacher: features f_t [B, D_t]; targets: not read.
Both networks' features are embedded linearly into `dims` numbers, by layers that are trained with
the student. This is not the loss of the paper, which compares the B x B matrices of a Gaussian
kernel between the samples, of each network's features. RepDistiller's loss compares the difference
of a sample's embeddings with that of the next sample in the batch. It has two weaknesses that the
paper's does not have. Its value depends on the order of the samples. Its minimum 0 is reached not
only if the embeddings agree, but also if both map all samples to the same point.
The batch is the whole global batch. A batch of one sample has the loss 0.
Memory: a few arrays of `dims` floats per sample, 0.6 MiB at batch 128 and 1.2 MiB at 512.
"""

import math

from torch import Tensor, nn

from distill.losses.at_least_float32 import at_least_float32
from distill.losses.gather import whole_batch
from distill.losses.objective import LossInputs, Shapes


class CC(nn.Module):
    """Make the embedding differences of consecutive samples of the batch small, or disjoint.

    `dims`: size of the embedded features. `student_shapes`, `teacher_shapes`: the shape of each map
    by name, without the batch.
    """

    def __init__(
        self,
        student_tap: str = "features",
        teacher_tap: str = "features",
        dims: int = 128,
        *,
        student_shapes: Shapes,
        teacher_shapes: Shapes,
    ) -> None:
        super().__init__()
        self.student_tap, self.teacher_tap = student_tap, teacher_tap
        self.student_embed = nn.Linear(math.prod(student_shapes[student_tap]), dims)
        self.teacher_embed = nn.Linear(math.prod(teacher_shapes[teacher_tap]), dims)

    def forward(self, inputs: LossInputs) -> Tensor:
        student, teacher = (
            embed(at_least_float32(features).flatten(1))
            for embed, features in (
                (self.student_embed, inputs.student_taps[self.student_tap]),
                (self.teacher_embed, inputs.teacher_taps[self.teacher_tap]),
            )
        )
        delta = whole_batch((student - teacher).abs())
        return (delta[:-1] * delta[1:]).sum() / max(1, len(delta) - 1)
