"""Transformed teacher matching: Zheng, Yang, "Knowledge distillation based on transformed teacher
matching", ICLR 2024, arXiv 2402.11148.

    q_c = p_c^g / U,      p = softmax(z_t),  U = sum_c p_c^g,  0 < g <= 1
    TTM:  L = mean_b KL(q || softmax(z_s))
    WTTM: L = mean_b U KL(q || softmax(z_s))          `weighted`

student: logits z_s [B, C]; teacher: logits z_t [B, C]; targets: not read.
q is softmax(g z_t): the teacher's logits are divided by a temperature 1 / g, the student's are not.
There is no factor T^2. U is between 1 and C^(1 - g); it is larger for samples on which the teacher
is uncertain, so that WTTM weights these samples. This is the loss of the authors' code
(zkxufo/TTM, distiller_zoo/ttm.py and wttm.py); U and q are computed from log-probabilities here.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from distill.losses.at_least_float32 import at_least_float32
from distill.losses.objective import LossInputs


@dataclass(frozen=True)
class TTM:
    """KL divergence to the teacher's probabilities raised to the power `exponent` g, normalised.

    `weighted`: multiply each sample's divergence by U (WTTM).
    """

    exponent: float = 0.1
    weighted: bool = False

    def __call__(self, inputs: LossInputs) -> Tensor:
        if inputs.teacher is None:
            raise ValueError("the ttm term needs a teacher's logits, and there is no teacher")
        student = log_softmax(at_least_float32(inputs.student), dim=-1)
        power = self.exponent * log_softmax(at_least_float32(inputs.teacher), dim=-1)
        log_sum = power.logsumexp(dim=-1, keepdim=True)  # log U
        divergence = kl_div(student, power - log_sum, reduction="none", log_target=True).sum(-1)
        return (log_sum[:, 0].exp() * divergence if self.weighted else divergence).mean()
