"""Knowledge distillation: Hinton, Vinyals, Dean, "Distilling the knowledge in a neural network",
2015, arXiv 1503.02531, section 2.

    L = T^2 mean_b KL( p(z_t; T) || p(z_s; T) ),      p(z; T) = softmax(z / T)

student: logits z_s [B, C]; teacher: logits z_t [B, C] on the same pixels; targets: not read.
The KL divergence is summed over classes and averaged over the batch. The factor T^2 is always
applied; it keeps the gradient's size constant as T grows. L is computed in float32: in bfloat16,
1 - p would be rounded to zero for a gap of 9 between two logits. As T grows, L tends to the squared
distance of the centred logits, divided by 2C. With `standardise` the logits of both networks are
replaced by their z-scores, as in `logit_std` (arXiv 2403.01427). torchdistill's KDLoss has no T^2
if its `alpha` is None or 0.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from distill.losses.at_least_float32 import at_least_float32
from distill.losses.logit_std import prepared
from distill.losses.objective import LossInputs


@dataclass(frozen=True)
class KD:
    """KL divergence to the teacher's predictions, softened by `temperature` T > 0.

    `standardise`: compute it from the z-scores of each row of logits.
    """

    temperature: float = 4.0
    standardise: bool = False

    def __call__(self, inputs: LossInputs) -> Tensor:
        if inputs.teacher is None:
            raise ValueError("the kd term needs a teacher's logits, and there is no teacher")
        student, teacher = (
            prepared(logits, self.standardise) for logits in (inputs.student, inputs.teacher)
        )
        return divergence(student, teacher, self.temperature)


def divergence(student: Tensor, teacher: Tensor, temperature: float | Tensor) -> Tensor:
    """Return T^2 times the mean KL divergence of logits [B, C], softened by `temperature` T > 0.

    A temperature that is a tensor gets a gradient.
    """
    log_s, log_t = (
        log_softmax(at_least_float32(logits) / temperature, dim=-1) for logits in (student, teacher)
    )
    return temperature**2 * kl_div(log_s, log_t, reduction="batchmean", log_target=True)
