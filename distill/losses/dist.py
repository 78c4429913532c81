"""DIST: Huang, You, Wang, Qian, Xu, "Knowledge distillation from a stronger teacher", NeurIPS 2022,
arXiv 2205.10536, eqs. 7-10.

    L = beta inter + gamma intra,            Y = softmax(z / T),  rho = Pearson's correlation
    inter = mean_b 1 - rho(Y_s[b, :], Y_t[b, :])        the classes of a sample
    intra = mean_c 1 - rho(Y_s[:, c], Y_t[:, c])        the samples of a class

student: logits z_s [B, C]; teacher: logits z_t [B, C]; targets: not read.
Relations are matched, not values: scaling or shifting a row of Y_s does not change `inter`.
`intra` compares the samples of the whole global batch. There is no factor T^2. KD needs it because
KD's gradient shrinks as 1 / T^2, whereas rho does not depend on scale. The paper, its pseudocode
(appendix A.1) and the authors' segmentation code (hunto/DIST_KD, without a temperature) do not have
this factor. Since its release for CIFAR-100, the authors' classification code
(hunto/image_classification_sota, lib/models/losses/dist_kd.py) multiplies both parts by T^2, with
T = 4 and weight 2; so do mmrazor and torchdistill. This corresponds to a weight of 32 here.
Correlations are computed in float32, with norms of at least 1e-6. The minimum in the released code,
1e-8, rounds to 0 in half precision, so that a constant column would give 0 / 0.
"""

from dataclasses import dataclass

from torch import Tensor

from distill.losses.at_least_float32 import at_least_float32
from distill.losses.gather import whole_batch
from distill.losses.objective import LossInputs

EPS = 1e-6


@dataclass(frozen=True)
class DIST:
    """Match the correlations of class probabilities, 1 - rho, as the module defines them.

    `beta`: weight of the correlation over the classes of a sample; `gamma`: weight of the
    correlation over the samples of a class; `temperature`: T > 0.
    """

    beta: float = 1.0
    gamma: float = 1.0
    temperature: float = 4.0

    def __call__(self, inputs: LossInputs) -> Tensor:
        if inputs.teacher is None:
            raise ValueError("the dist term needs a teacher's logits, and there is no teacher")
        student, teacher = (
            (at_least_float32(whole_batch(logits)) / self.temperature).softmax(dim=-1)
            for logits in (inputs.student, inputs.teacher)
        )
        inter = (1 - correlation(student, teacher)).mean()
        intra = (1 - correlation(student.T, teacher.T)).mean()
        return self.beta * inter + self.gamma * intra


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Return Pearson's correlation, -1..1, of each row of `a` and `b`, [M, N], as [M].

    It is 0 if one of the two rows is constant.
    """
    a, b = (rows - rows.mean(dim=-1, keepdim=True) for rows in (a, b))
    lengths = [rows.square().sum(-1).clamp_min(EPS**2).sqrt() for rows in (a, b)]
    return (a * b).sum(-1) / (lengths[0] * lengths[1])
