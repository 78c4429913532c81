"""Average the probabilities of several teachers, optionally over mirror images too."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from distill.errors import UserError


class Ensemble(nn.Module):
    """Images [B, 3, H, W] to the log of the members' mean probabilities [B, classes], in float32.

    `weights`: as many as members, above 0, of any sum: the mean is sum_m w_m softmax(z_m) / sum_m
    w_m. Without them all are equal. `mirror`: a member's probabilities are the mean of those of the
    image and of its horizontal mirror image, for twice the forward.

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
            raise UserError("an ensemble of 0 networks cannot answer; give it one or more")
        if len(set(weights or ())) > 1:
            self.log_weights = _log_shares(weights or ())
            self.log_total = 0.0
        else:
            self.log_weights = [0.0] * len(self.members)
            self.log_total = math.log(len(self.members))

    def forward(self, images: Tensor) -> Tensor:
        # Not the log of a mean: that is -inf where all members say less than 1e-45.
        log_probs = [
            self._log_probs(member, images) + log_weight
            for member, log_weight in zip(self.members, self.log_weights, strict=True)
        ]
        return torch.stack(log_probs).logsumexp(0) - self.log_total

    def single_teachers(self) -> list[nn.Module]:
        """Each member as a teacher of its own, with mirror images if the ensemble has them."""
        return [Ensemble([each], mirror=True) if self.mirror else each for each in self.members]

    def _log_probs(self, member: nn.Module, images: Tensor) -> Tensor:
        """Of one member, float32 [B, classes]."""
        if not self.mirror:
            log_probs: Tensor = member(images).float().log_softmax(-1)
            return log_probs
        # One call: a module that a trace sees twice keeps its batch norms (`inference.py`).
        both = member(torch.cat([images, images.flip(-1)])).float().log_softmax(-1).chunk(2)
        return torch.logaddexp(both[0], both[1]) - math.log(2)  # what is traced has no `*both`


def _log_shares(weights: Sequence[float]) -> list[float]:
    """The logs of w / sum w, for weights of any size: their plain sum may overflow."""
    largest = max(weights)
    log_sum = math.log(largest) + math.log(math.fsum(weight / largest for weight in weights))
    return [math.log(weight) - log_sum for weight in weights]
