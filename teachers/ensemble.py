"""Several teachers as one."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from distill.errors import UserError


class Ensemble(nn.Module):
    """Images [B, 3, H, W] to the log of the members' mean probabilities [B, classes], in float32.

    Log-probabilities are logits as good as any: their softmax is the mean itself. Probabilities
    are averaged, not logits, because logits have no common scale (a confident member would outvote
    the others) and because the KL to the mean has the gradient of the mean of the members' KLs (at
    temperature 1).

    The mean p = mean_m softmax(z_m) is taken at temperature 1, whatever the temperature T of the
    loss: a loss that divides by T sees p^(1/T) / sum p^(1/T). Hinton et al. (2015, arXiv
    1503.02531, section 1) take the arithmetic or the geometric mean of the members' distributions;
    softened, these are mean_m softmax(z_m / T), and softmax(mean_m z_m / T), which averages logits.
    At T = 1 the arithmetic mean is this one; the geometric mean differs at any T. At T = 4 the
    arithmetic mean was not clearly better (results/README.md). Raises UserError for an ensemble of
    nobody.
    """

    def __init__(self, members: Iterable[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        if not self.members:
            raise UserError("an ensemble of 0 networks cannot answer; give it one or more")

    def forward(self, images: Tensor) -> Tensor:
        # Not the log of a mean: that is -inf where all members say less than 1e-45.
        log_probs = torch.stack([member(images).float().log_softmax(-1) for member in self.members])
        return log_probs.logsumexp(0) - math.log(len(self.members))
