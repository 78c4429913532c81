"""KL divergence to the mixture of the teacher's predictions for the two images of a mixed image.

This is mixup (Zhang et al., ICLR 2018, arXiv 1710.09412) with teacher predictions as labels.

    L = T^2 mean_b KL( lam p(z_i; T) + (1 - lam) p(z_j; T) || p(z_s; T) )

student: logits z_s [B, C] for the mixed image; teacher: logits z_i, z_j [B, C] for the two images
before they were mixed; lam [B, 1]: the weight of image i; targets: not read.
This is not function matching: the teacher does not see the mixed image, and the student learns to
interpolate linearly between two predictions (like the "recall" of TinyViT, arXiv 2207.10666). The
teacher's logits are for unmixed images, so they can be cached whatever the mixing.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from distill.losses.at_least_float32 import at_least_float32
from distill.losses.objective import LossInputs


@dataclass(frozen=True)
class SoftMix:
    """KL divergence to the mixture of two teacher predictions at `temperature` T > 0."""

    temperature: float = 4.0

    def __call__(self, inputs: LossInputs) -> Tensor:
        pair = inputs.unmixed
        if pair is None:
            raise ValueError("the soft_mix term needs the teacher's logits before mixing")
        own, partner, student = (
            log_softmax(at_least_float32(logits) / self.temperature, dim=-1)
            for logits in (pair.own, pair.partner, inputs.student)
        )
        lam = at_least_float32(pair.lam)
        # For an unmixed sample log(1 - lam) is -inf, so `mixed` is exactly its own prediction.
        mixed = torch.logaddexp(own + lam.log(), partner + (1 - lam).log())
        divergence = kl_div(student, mixed, reduction="batchmean", log_target=True)
        return self.temperature**2 * divergence
