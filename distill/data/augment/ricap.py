"""RICAP: combine four images into one.

Takahashi, Matsubara, Uehara, ACML 2018, arXiv 1811.09030.

A point (h, w), each coordinate drawn as round(size Beta(beta, beta)), divides the image into four
patches. Each patch is filled by a random crop of another image, and the targets are mixed with the
patches' areas as weights. The top left image is the sample itself. The other three are given by
three permutations of the whole set, so that a combined image does not depend on the batch.
"""

from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from distill.data import rng
from distill.data.augment.mixup_cutmix import beta_quantile
from distill.data.rng import Stream

PARTNERS = (Stream.RICAP_PARTNER_1, Stream.RICAP_PARTNER_2, Stream.RICAP_PARTNER_3)


@dataclass(frozen=True)
class Ricap:
    """Combine each sample with three others into one image, with probability `prob`.

    The coordinates of the point between the four patches have the distribution Beta(beta, beta).
    """

    prob: float = 1.0
    beta: float = 0.3


@dataclass(frozen=True)
class RicapParams:
    """How four images are combined for each sample of a view.

    `used`: bool [N], whether the sample is combined with others. `partner`: int64 [N, 3], the
    samples in the patches top right, bottom left, bottom right; the sample itself is top left.
    `boundary`: int64 [N, 2], height and width of the top left patch. `corner`: int64 [N, 4, 2], row
    and column of the top left corner of each patch's crop. `share`: float32 [N, 4], the weight of
    each image's label in the targets.
    """

    used: Tensor
    partner: Tensor
    boundary: Tensor
    corner: Tensor
    share: Tensor

    def to(self, device: torch.device) -> "RicapParams":
        return RicapParams(*(t.to(device) for t in vars(self).values()))


def draw_ricap(seed: int, view: int, n: int, size: int, ricap: Ricap, low: float) -> RicapParams:
    """Draw how samples 0..n-1 of a view are combined with others.

    RICAP is applied to a sample if its uniform random number is in [low, low + prob). Below `low`
    the same number chooses mixup or cutmix, so that no sample is mixed twice.
    """
    which = rng.uniform(rng.words(seed, view, Stream.MIX, n)[:, 0])
    position = rng.words(seed, view, Stream.RICAP, n)[:, :2]
    boundary = np.rint(size * beta_quantile(ricap.beta, rng.uniform(position))).astype(np.int64)
    extent = _patch_sizes(boundary, size)
    words = rng.words(seed, view, Stream.RICAP_CORNER, n)  # one per patch
    corner = np.stack(rng.halves(words), axis=-1) % (size - extent + 1).astype(np.uint64)
    partner = np.stack([rng.permutation(seed, view, stream, n) for stream in PARTNERS], axis=1)
    return RicapParams(
        torch.from_numpy((which >= low) & (which < low + ricap.prob)),
        torch.from_numpy(partner),
        torch.from_numpy(boundary),
        torch.from_numpy(corner.astype(np.int64)),
        torch.from_numpy((extent.prod(-1) / size**2).astype(np.float32)),
    )


def _patch_sizes(boundary: np.ndarray, size: int) -> np.ndarray:
    """Return the heights and widths of the four patches, [N, 4, 2].

    `boundary` [N, 2]: height and width of the top left patch.
    """
    (h, w), (rest_h, rest_w) = boundary.T, (size - boundary).T
    pairs = [(h, w), (h, rest_w), (rest_h, w), (rest_h, rest_w)]
    return np.stack([np.stack(pair, axis=-1) for pair in pairs], axis=1)


def combine_four(images: Tensor, boundary: Tensor, corner: Tensor) -> Tensor:
    """Combine four images per sample into one: [4, B, 3, H, W] to [B, 3, H, W].

    `boundary` [B, 2]: height and width of the top left patch. `corner` [B, 4, 2]: row and column of
    the top left corner of each patch's crop.
    """
    axis = torch.arange(images.shape[-1], device=images.device)
    below, right = (axis >= edge[:, None] for edge in boundary.unbind(1))  # [B, size] each
    quarter = 2 * below.long()[:, :, None] + right.long()[:, None, :]  # [B, H, W]
    sample = torch.arange(len(boundary), device=images.device)[:, None, None]
    begin = corner[sample, quarter]  # [B, H, W, 2]
    row = begin[..., 0] + (axis - boundary[:, :1] * below)[:, :, None]
    column = begin[..., 1] + (axis - boundary[:, 1:] * right)[:, None, :]
    picked = rearrange(images, "k b c h w -> k b h w c")[quarter, sample, row, column]
    return rearrange(picked, "b h w c -> b c h w")
