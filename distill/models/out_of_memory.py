"""Turn an out-of-memory error into a readable message."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from distill.format import counted
from distill.recipe.recipes import Recipe

# The texts in the RuntimeErrors of torch's allocators on a CPU.
OF_CPU = ("can't allocate memory", "not enough memory")
REQUESTED = re.compile(r"tried to allocate (\d+) bytes")


class OutOfMemory(Exception):
    """The memory is too small for the recipe, or other programs use it."""


@contextmanager
def explain_out_of_memory(recipe: Recipe) -> Iterator[None]:
    """Raise OutOfMemory instead of torch's or Python's error for a full memory.

    The original error is dropped: its traceback refers to the tensors that fill the memory.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        train = recipe.train
        raise OutOfMemory(
            f"{_which_memory(error)}\n"
            f"A step has {counted(train.batch_size, 'image')} (train.batch_size). "
            f"Start again with --set train.accumulate={2 * train.accumulate}, the same batch "
            "in smaller parts, or with a smaller train.batch_size."
        ) from None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch or Python means that the device's or the host's memory is full."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in OF_CPU)


def _which_memory(error: BaseException) -> str:
    """Return a line on which memory is full: the device's or the host's."""
    first_line = (str(error).splitlines() or [""])[0]
    if isinstance(error, torch.OutOfMemoryError):
        return f"the device's memory is full: {first_line}"
    size = REQUESTED.search(first_line)
    reason = f"{int(size[1]) / 1e9:.1f} GB more could not be allocated" if size else first_line
    return f"the host's memory is full: {reason}" if reason else "the host's memory is full"
