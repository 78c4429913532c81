"""Resize feature maps of two networks to one size."""

from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d


def same_size(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """Maps [B, C, H, W] and [B, D, h, w], the larger one pooled by means to the smaller's side."""
    height, width = map(min, ours.shape[-2:], theirs.shape[-2:])
    return _pooled(ours, (height, width)), _pooled(theirs, (height, width))


def _pooled(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return maps if maps.shape[-2:] == size else adaptive_avg_pool2d(maps, size)
