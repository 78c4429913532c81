"""A device whose memory is full, in words."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from distill.recipe import Recipe


class Full(Exception):
    """The device's memory is too small for the recipe, or somebody else has it."""


@contextmanager
def named(recipe: Recipe) -> Iterator[None]:
    """Raises Full in the place of torch's error, which holds what fills the memory."""
    try:
        yield
    except torch.OutOfMemoryError as fault:
        raise Full(
            f"the device's memory is full: {str(fault).splitlines()[0]}\n"
            f"Begin anew with --set train.accumulate={2 * recipe.train.accumulate}, the same batch "
            "in smaller parts, or with a smaller train.batch_size."
        ) from None
