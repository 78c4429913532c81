"""Mix pairs of images by mixup and cutmix, with one weight map per sample.

mixup: Zhang et al., ICLR 2018, arXiv 1710.09412. cutmix: Yun et al., ICCV 2019, arXiv 1905.04899.
With a weight map m in [0, 1] of shape [B, 1, H, W]: x' = m x + (1 - m) x[partner], y' = lam y +
(1 - lam) y[partner], lam = mean(m). For mixup m is the constant lam. For cutmix m is 0 inside a box
and 1 outside, and lam is the fraction of the area outside the box, after the box was clipped at the
border (the paper's box may leave the image). The partners of a view are a permutation of the whole
set, so that a mixed image does not depend on the batch.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill.data import rng
from distill.data.rng import Stream

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Mixup:
    """Blend each sample with its partner with probability `prob`; lam ~ Beta(alpha, alpha)."""

    prob: float = 1.0
    alpha: float = 1.0


@dataclass(frozen=True)
class Cutmix:
    """Paste a box of the partner's image into each sample with probability `prob`.

    The box has the fraction 1 - lam of the image's area before it is clipped at the border, with
    lam ~ Beta(alpha, alpha).
    """

    prob: float = 1.0
    alpha: float = 1.0


@dataclass(frozen=True)
class MixParams:
    """How each sample of a view is mixed.

    `partner`: int64 [N], a permutation. `lam`: float32 [N], the weight of the sample's own label in
    its targets. `blend`: float32 [N], the weight of the sample's own pixels outside the box. `box`:
    int64 [N, 4], (top, bottom, left, right), the ends exclusive; inside it all pixels are the
    partner's. Without cutmix the box is empty.
    """

    partner: Tensor
    lam: Tensor
    blend: Tensor
    box: Tensor

    def to(self, device: torch.device) -> "MixParams":
        return MixParams(*(t.to(device) for t in (self.partner, self.lam, self.blend, self.box)))


def draw_mix(
    seed: int, view: int, n: int, size: int, mixup: Mixup | None, cutmix: Cutmix | None
) -> MixParams:
    """Draw how samples 0..n-1 of a view are mixed: by mixup, by cutmix, or not at all."""
    which, strength, *centre = rng.words(seed, view, Stream.MIX, n).T
    choice, u = rng.uniform(which), rng.uniform(strength)
    mixup_prob = mixup.prob if mixup else 0.0
    blended = choice < mixup_prob
    boxed = ~blended & (choice < mixup_prob + (cutmix.prob if cutmix else 0.0))

    blend = np.where(blended, beta_quantile(mixup.alpha, u), 1.0) if mixup else np.ones(n)
    box = np.zeros((n, 4), dtype=np.int64)
    if cutmix:
        middle = np.stack([rng.integers(column, size) for column in centre], axis=1)
        box[boxed] = clipped_box(beta_quantile(cutmix.alpha, u[boxed]), middle[boxed], size)
    area = (box[:, 1] - box[:, 0]) * (box[:, 3] - box[:, 2])
    lam = np.where(boxed, 1 - area / size**2, blend)
    partner = rng.permutation(seed, view, Stream.PARTNER, n)
    return MixParams(
        torch.from_numpy(partner),
        torch.from_numpy(lam.astype(np.float32)),
        torch.from_numpy(blend.astype(np.float32)),
        torch.from_numpy(box),
    )


def clipped_box(lam: Floats, centre: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Return boxes (top, bottom, left, right), int64 [n, 4], clipped at the image border.

    They are squares of floor(size * sqrt(1 - lam)) pixels about `centre` [n, 2].
    """
    side = np.floor(size * np.sqrt(1 - lam)).astype(np.int64)[:, None]
    low = np.clip(centre - side // 2, 0, size)
    high = np.clip(centre - side // 2 + side, 0, size)
    return np.stack([low[:, 0], high[:, 0], low[:, 1], high[:, 1]], axis=1)


def beta_quantile(alpha: float, u: Floats) -> Floats:
    """Return the quantiles of Beta(alpha, alpha) at u [n] in [0, 1)."""
    if alpha == 1:
        return u
    quantile, share = _beta_table(alpha)
    root = min(alpha, 1.0)
    tail = np.minimum(u, 1 - u)  # Beta(alpha, alpha) is symmetric about 1/2
    x = np.interp(tail, share, quantile**root) ** (1 / root)
    return np.where(u <= 0.5, x, 1 - x)


@cache
def _beta_table(alpha: float) -> tuple[Floats, Floats]:
    """Return values x in 0..1/2 and the probability below each x under Beta(alpha, alpha).

    The density is integrated over t = x^root with root = min(alpha, 1). For alpha < 1 the density
    of x is infinite at 0, that of t is finite.
    """
    root = min(alpha, 1.0)
    t = np.linspace(0, 0.5**root, 1 << 14)
    x = t ** (1 / root)
    density = t ** (alpha / root - 1) * (1 - x) ** (alpha - 1)
    below = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return x, below / below[-1] / 2


def weight_map(blend: Tensor, box: Tensor, size: int) -> Tensor:
    """Return the weights of the samples' own pixels, float32 [B, 1, size, size].

    A sample's weight is 0 inside its box [B, 4] and `blend` [B] outside.
    """
    axis = torch.arange(size, device=box.device)
    top, bottom, left, right = (edge[:, None] for edge in box.unbind(1))
    rows, columns = (axis >= top) & (axis < bottom), (axis >= left) & (axis < right)
    inside = rows[:, None, :, None] & columns[:, None, None, :]
    return torch.where(inside, 0.0, blend[:, None, None, None])


def mix(first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
    """Return weight * first + (1 - weight) * second, exact for weights of 0 and 1."""
    return weight * first + (1 - weight) * second
