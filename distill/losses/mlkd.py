"""Multi-level logit distillation: Jin, Wang, Lin, CVPR 2023, DOI 10.1109/CVPR52729.2023.02325,
section 3.

    L = mean_k  KD(T_k) + batch R_b(T_k) + classes R_c(T_k),      P = softmax(z / T), [B, C]
    KD(T)  = T^2 mean_b KL( P_t[b] || P_s[b] )                    each sample
    R_b(T) = || P_s P_s^T - P_t P_t^T ||_F^2 / B^2                the pairs of samples
    R_c(T) = || P_s^T P_s - P_t^T P_t ||_F^2 / (C B^2)            the pairs of classes

student: logits z_s [B, C]; teacher: logits z_t [B, C]; targets: not read.
The batch is the whole global batch. The paper divides the second loss by B and the third by C, so
that they grow as B and B^2. Here none depends on B; the defaults batch = 64 and classes = 64^2 give
the paper's loss for its batch of 64. The authors' code sums over the temperatures 2, 3, 4, 5 and 6
with weight 0.9; here the mean is taken, so that this corresponds to a weight of 4.5.
Three parts of the authors' code (Jin-Ying/Multi-Level-Logit-Distillation, KD_ours.py) are left out.
It adds the first loss of a second, strongly augmented view of the images; here there is one view.
It uses the weak view at T = 2 and 6 in that loss as well. It multiplies the losses of the weak view
by a mask of samples or classes with low confidence, but after the mean over samples, so that this
mask is only a factor of about 1/2.
Memory: some B x B matrices, 0.6 MiB at batch 128 and 8.3 MiB at 512.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from distill.losses.at_least_float32 import at_least_float32
from distill.losses.gather import whole_batch
from distill.losses.kd import KD
from distill.losses.objective import LossInputs


@dataclass(frozen=True)
class MLKD:
    """The mean over `temperatures`, all above 0, of KD and of the two relations R_b and R_c.

    `batch`: weight of the relations between samples (R_b); `classes`: of those between classes
    (R_c).
    """

    temperatures: tuple[float, ...] = (2.0, 3.0, 4.0, 5.0, 6.0)
    batch: float = 64.0
    classes: float = 4096.0

    def __call__(self, inputs: LossInputs) -> Tensor:
        if inputs.teacher is None:
            raise ValueError("the mlkd term needs a teacher's logits, and there is no teacher")
        student, teacher = (
            at_least_float32(whole_batch(logits)) for logits in (inputs.student, inputs.teacher)
        )
        levels = [
            KD(t)(inputs) + self._relations((student / t).softmax(-1), (teacher / t).softmax(-1))
            for t in self.temperatures
        ]
        return torch.stack(levels).mean()

    def _relations(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the weighted sum of R_b and R_c, of probabilities [B, C]."""
        n_samples, n_classes = student.shape
        of_samples = (student @ student.T - teacher @ teacher.T).square().sum()
        of_classes = (student.T @ student - teacher.T @ teacher).square().sum() / n_classes
        return (self.batch * of_samples + self.classes * of_classes) / n_samples**2
