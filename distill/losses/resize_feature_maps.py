"""Resize feature maps of two networks to one size."""

from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d


def pool_to_same_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Average-pool the larger of two maps [B, C, H, W] and [B, D, h, w] to the smaller size."""
    height, width = map(min, student.shape[-2:], teacher.shape[-2:])
    return _pool_to(student, (height, width)), _pool_to(teacher, (height, width))


def _pool_to(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return maps if maps.shape[-2:] == size else adaptive_avg_pool2d(maps, size)
