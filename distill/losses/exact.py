"""Compute losses in float32 at least, in float64 if the inputs are."""

import torch
from torch import Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """float32, or float64 kept: in bfloat16 a logit gap of 9 already rounds 1 - p to zero."""
    return values if values.dtype == torch.float64 else values.float()
