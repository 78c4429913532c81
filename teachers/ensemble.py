"""Average the probabilities of several teachers, and optionally of mirrored images."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from distill.errors import UserError


class Ensemble(nn.Module):
    """Map images [B, 3, H, W] to the log of the members' mean probabilities [B, classes], float32.

    `weights`: one per member, above 0, of any sum: the mean is sum_m w_m softmax(z_m) / sum_m w_m.
    By default all weights are equal. `mirror`: a member's probabilities are the mean over the image
    and its horizontal mirror image, at twice the forward cost.

    Log-probabilities are valid logits: their softmax is the mean itself. Probabilities
    are averaged, not logits, because logits have no common scale (a confident member would outvote
    the others) and because the KL to the mean has the gradient of the mean of the members' KLs (at
    temperature 1).

    The mean p = mean_m softmax(z_m) is taken at temperature 1 for any temperature T of the
    loss: a loss that divides by T sees p^(1/T) / sum p^(1/T). Hinton et al. (2015, arXiv
    1503.02531, section 1) take the arithmetic or the geometric mean of the members' distributions;
    softened, these are mean_m softmax(z_m / T), and softmax(mean_m z_m / T), which averages logits.
    At T = 1 the arithmetic mean is this one; the geometric mean differs at any T. At T = 4 the
    arithmetic mean was not clearly better (results/README.md). Raises UserError if there is no
    member.
    """

    def __init__(
        self,
        members: Iterable[nn.Module],
        weights: Sequence[float] | None = None,
        *,
        mirror: bool = False,
    ) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.mirror = mirror
        if not self.members:
            raise UserError("an ensemble needs at least one network; it has none")
        if len(set(weights or ())) > 1:
            self.log_weights = _log_shares(weights or ())
            self.log_total = 0.0
        else:
            self.log_weights = [0.0] * len(self.members)
            self.log_total = math.log(len(self.members))

    def forward(self, images: Tensor) -> Tensor:
        # Not the log of a mean: that is -inf if all members' probabilities are below 1e-45.
        log_probs = [
            self._log_probs(member, images) + log_weight
            for member, log_weight in zip(self.members, self.log_weights, strict=True)
        ]
        return torch.stack(log_probs).logsumexp(0) - self.log_total

    def single_teachers(self) -> list[nn.Module]:
        """Return each member as a teacher of its own, with the same use of mirrored images."""
        return [Ensemble([net], mirror=True) if self.mirror else net for net in self.members]

    def _log_probs(self, member: nn.Module, images: Tensor) -> Tensor:
        """Return the log-probabilities of one member, float32 [B, classes]."""
        if not self.mirror:
            log_probs: Tensor = member(images).float().log_softmax(-1)
            return log_probs
        # One call: a batch norm that is called twice is not folded (`fold_batch_norm.py`).
        both = member(torch.cat([images, images.flip(-1)])).float().log_softmax(-1).chunk(2)
        return torch.logaddexp(both[0], both[1]) - math.log(2)  # torch.fx cannot trace `*both`


def _log_shares(weights: Sequence[float]) -> list[float]:
    """Return log(w / sum w) of each weight, without overflow for weights of any size."""
    largest = max(weights)
    log_sum = math.log(largest) + math.log(math.fsum(weight / largest for weight in weights))
    return [math.log(weight) - log_sum for weight in weights]
