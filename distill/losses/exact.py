"""The precision of a loss: float32 at least, float64 where it comes so."""

import torch
from torch import Tensor


def exact(values: Tensor) -> Tensor:
    """float32, or float64 kept: in bfloat16 a logit gap of 9 already rounds 1 - p to zero."""
    return values if values.dtype == torch.float64 else values.float()
