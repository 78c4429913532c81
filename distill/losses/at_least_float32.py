"""Convert tensors to at least float32, in which losses are computed."""

import torch
from torch import Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """Convert a tensor to float32; leave float64 unchanged.

    In bfloat16, 1 - p would be rounded to zero for a gap of 9 between two logits.
    """
    return values if values.dtype == torch.float64 else values.float()
