"""KD at several temperatures at once: the instance-level part of Jin, Wang, Lin, "Multi-level logit
distillation", CVPR 2023, DOI 10.1109/CVPR52729.2023.02325, section 3.2 ("prediction augmentation").

    L = mean_k KD(T_k),      KD(T) = T^2 mean_b KL( p(z_t; T) || p(z_s; T) )

student: logits z_s [B, C]; teacher: logits z_t [B, C]; targets: not read.
KD(T) is Hinton's loss (arXiv 1503.02531). A low temperature emphasises the likely classes, a high
one all classes. The authors' code sums over five temperatures (4, 3, 5, 2, 6); here the mean is
taken, so that the weight of the term does not depend on their number. The authors' code also sums
over strongly and weakly augmented views, and leaves out samples for which the teacher is not
confident; neither is done here.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from distill.losses.kd import KD
from distill.losses.objective import LossInputs


@dataclass(frozen=True)
class MultiTemperature:
    """The mean of KD at each of `temperatures`, all above 0.

    `standardise`: compute it from the z-scores of each row of logits (arXiv 2403.01427).
    """

    temperatures: tuple[float, ...] = (1.0, 2.0, 4.0)
    standardise: bool = False

    def __call__(self, inputs: LossInputs) -> Tensor:
        if inputs.teacher is None:
            raise ValueError(
                "the multi_temperature term needs a teacher's logits, and there is no teacher"
            )
        return torch.stack(
            [KD(each, self.standardise)(inputs) for each in self.temperatures]
        ).mean()
