"""Average the probabilities of several teachers, and optionally of mirrored images."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from distill.errors import UserError


class Ensemble(nn.Module):
    """Map images [B, 3, H, W] to the log of the members' mean probabilities [B, classes], float32.

    `weights`: one positive number w_m per member, with any sum; the mean of the members' logits z_m
    is p = sum_m w_m softmax(z_m) / sum_m w_m. By default all weights are equal. `mirror`: average a
    member's probabilities over the image and its horizontal mirror image, at twice the forward
    cost. Raises UserError if there is no member.

    Log-probabilities are valid logits: their softmax is the mean p. Probabilities are averaged, not
    logits, for two reasons. Logits have no common scale, so that a confident member would outvote
    the others. And at temperature 1 the KL divergence to p has the same gradient as the mean of the
    KL divergences to the members.

    The mean is always taken at temperature 1, whatever the temperature T of the loss; a loss at T
    therefore sees p^(1/T) / sum p^(1/T). Hinton et al. (2015, arXiv 1503.02531, section 1) average
    the distributions softened by T instead: arithmetic, mean_m softmax(z_m / T), or geometric,
    softmax(mean_m z_m / T). The arithmetic mean equals p at T = 1, and was not clearly better at
    T = 4 (results/README.md). The geometric mean averages logits and differs at any T.
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
            self.log_weights = _log_normalised(weights or ())
            self.log_total = 0.0
        else:
            self.log_weights = [0.0] * len(self.members)
            self.log_total = math.log(len(self.members))

    def forward(self, images: Tensor) -> Tensor:
        # logsumexp is finite; the log of the mean would be -inf for probabilities below 1e-45.
        log_probs = [
            self._log_probs(member, images) + log_weight
            for member, log_weight in zip(self.members, self.log_weights, strict=True)
        ]
        return torch.stack(log_probs).logsumexp(0) - self.log_total

    def single_teachers(self) -> list[nn.Module]:
        """Return one teacher per member; each uses mirrored images if the ensemble does."""
        return [Ensemble([net], mirror=True) if self.mirror else net for net in self.members]

    def _log_probs(self, member: nn.Module, images: Tensor) -> Tensor:
        """Return the log-probabilities of one member, float32 [B, classes]."""
        if not self.mirror:
            log_probs: Tensor = member(images).float().log_softmax(-1)
            return log_probs
        # Both in one call: `fold_batch_norm.py` folds only batch norms that are called once.
        both = member(torch.cat([images, images.flip(-1)])).float().log_softmax(-1).chunk(2)
        return torch.logaddexp(both[0], both[1]) - math.log(2)  # torch.fx cannot trace `*both`


def _log_normalised(weights: Sequence[float]) -> list[float]:
    """Return log(w / sum w) for each weight w, without overflow even for huge weights."""
    largest = max(weights)
    log_sum = math.log(largest) + math.log(math.fsum(weight / largest for weight in weights))
    return [math.log(weight) - log_sum for weight in weights]
