"""Squared distance of logits: Ba, Caruana, "Do deep nets really need to be deep?", NIPS 2014,
arXiv 1312.6184, eq. 1; Kim et al., IJCAI 2021, arXiv 2105.08919.

    L = mean_b 1/C sum_c (z_s - z_t)^2

student: logits z_s [B, C]; teacher: logits z_t [B, C]; targets: not read.
A constant added to a row of logits does not change its probabilities. `centred` therefore subtracts
the mean of each row first; half of this L is the limit of KD as T grows. L is about as large as the
variance of the logits, some tens, so the weight of the term should be small.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import mse_loss

from distill.losses.at_least_float32 import at_least_float32
from distill.losses.objective import LossInputs


@dataclass(frozen=True)
class MSE:
    """Mean squared error over samples and classes; `centred` subtracts the mean of each row."""

    centred: bool = True

    def __call__(self, inputs: LossInputs) -> Tensor:
        if inputs.teacher is None:
            raise ValueError("the mse term needs a teacher's logits, and there is no teacher")
        student, teacher = at_least_float32(inputs.student), at_least_float32(inputs.teacher)
        if self.centred:
            student, teacher = (z - z.mean(dim=-1, keepdim=True) for z in (student, teacher))
        return mse_loss(student, teacher)
