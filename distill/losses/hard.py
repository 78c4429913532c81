"""Cross-entropy with one-hot or mixed labels and with label smoothing.

Label smoothing: Szegedy et al., "Rethinking the Inception architecture for computer vision",
CVPR 2016, arXiv 1512.00567, section 7.

    L = mean_b  - sum_c  y'_c log p(z_s)_c,      y' = (1 - eps) y + eps / C

student: logits z_s [B, C]; targets: y [B, C], rows summing to 1; teacher: not read.
Smoothing is linear in y, so smoothing mixed labels is the same as mixing smoothed labels. Labels
are smoothed only here; a teacher's outputs are never smoothed.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import cross_entropy

from distill.losses.at_least_float32 import at_least_float32
from distill.losses.objective import LossInputs


@dataclass(frozen=True)
class Hard:
    """Cross-entropy with the labels; `label_smoothing` is eps in [0, 1)."""

    label_smoothing: float = 0.0

    def __call__(self, inputs: LossInputs) -> Tensor:
        return cross_entropy(
            at_least_float32(inputs.student), inputs.targets, label_smoothing=self.label_smoothing
        )
