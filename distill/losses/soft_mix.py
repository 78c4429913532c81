"""KL divergence to the teacher's predictions, mixed like the images: mixup with a teacher's labels
in place of the data's (mixup: Zhang et al., ICLR 2018, arXiv 1710.09412).

    L = T^2 mean_b KL( lam p(z_i; T) + (1 - lam) p(z_j; T) || p(z_s; T) )

student: logits z_s [B, C] of the mixed image; teacher: logits z_i, z_j [B, C] of the two images
before they were mixed, and lam [B, 1]; targets: not read.
This is not function matching: the teacher does not see the mixed image, and the student learns to
be linear between two predictions (like the "recall" of TinyViT, arXiv 2207.10666). The teacher's
logits are those of single images and can be cached whatever the mixing.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from distill.losses.exact import at_least_float32
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
        # log of 0 is -inf, which adds nothing: an unmixed sample has exactly its own prediction.
        mixed = torch.logaddexp(own + lam.log(), partner + (1 - lam).log())
        divergence = kl_div(student, mixed, reduction="batchmean", log_target=True)
        return self.temperature**2 * divergence
