"""Compute losses in float32 at least, in float64 if the inputs are."""

import torch
from torch import Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """Convert to float32 unless float64: in bfloat16 a logit gap of 9 rounds 1 - p to zero."""
    return values if values.dtype == torch.float64 else values.float()
