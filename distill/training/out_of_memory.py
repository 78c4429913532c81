"""Turn an out-of-memory error into a readable message."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from distill.format import counted
from distill.recipe.recipes import Recipe

# How torch's allocators on a CPU begin a bare RuntimeError.
OF_CPU = ("can't allocate memory", "not enough memory")
ASKED = re.compile(r"tried to allocate (\d+) bytes")


class OutOfMemory(Exception):
    """The memory is too small for the recipe, or other programs use it."""


@contextmanager
def explain_out_of_memory(recipe: Recipe) -> Iterator[None]:
    """Raises Full in the place of torch's or Python's error, which holds what fills the memory."""
    try:
        yield
    except (RuntimeError, MemoryError) as fault:
        if not is_out_of_memory(fault):
            raise
        train = recipe.train
        raise OutOfMemory(
            f"{_which_memory(fault)}\n"
            f"A step has {counted(train.batch_size, 'image')} (train.batch_size). "
            f"Begin anew with --set train.accumulate={2 * train.accumulate}, the same batch "
            "in smaller parts, or with a smaller train.batch_size."
        ) from None


def is_out_of_memory(fault: BaseException) -> bool:
    """Whether an error is of a memory that is full: a GPU's, the host's by torch, or by Python."""
    if isinstance(fault, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(fault, RuntimeError) and any(text in str(fault) for text in OF_CPU)


def _which_memory(fault: BaseException) -> str:
    """Which memory is full, on one line."""
    first = (str(fault).splitlines() or [""])[0]
    if isinstance(fault, torch.OutOfMemoryError):
        return f"the device's memory is full: {first}"
    asked = ASKED.search(first)
    more = f"{int(asked[1]) / 1e9:.1f} GB more could not be allocated" if asked else first
    return f"the host's memory is full: {more}" if more else "the host's memory is full"
