"""Turn an out-of-memory error into a readable message."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from distill.format import counted
from distill.recipe.recipes import Recipe

# Texts in the RuntimeErrors that torch raises on a CPU if memory is full.
OF_CPU = ("can't allocate memory", "not enough memory")
REQUESTED = re.compile(r"tried to allocate (\d+) bytes")


class OutOfMemory(Exception):
    """The memory is too small for the recipe, or other programs use too much of it."""


@contextmanager
def explain_out_of_memory(recipe: Recipe) -> Iterator[None]:
    """Raise OutOfMemory instead of an out-of-memory error of torch or Python.

    The original error is not chained, since its traceback refers to the tensors that fill memory.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        advice = smaller_step_advice(recipe, 2 * recipe.train.accumulate)
        raise OutOfMemory(f"{_full_memory_note(error)}\n{advice}") from None


def smaller_step_advice(recipe: Recipe, accumulate: int) -> str:
    """Return what to type for a step that needs less memory, with so many accumulated parts."""
    return (
        f"A step has {counted(recipe.train.batch_size, 'image')} (train.batch_size). "
        f"Start again with --set train.accumulate={accumulate}, the same batch "
        "in smaller parts, or with a smaller train.batch_size."
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch or Python means that device or host memory is full."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in OF_CPU)


def _full_memory_note(error: BaseException) -> str:
    """Return a sentence that says which memory is full, that of the device or of the host."""
    first_line = (str(error).splitlines() or [""])[0]
    if isinstance(error, torch.OutOfMemoryError):
        return f"the device's memory is full: {first_line}"
    size = REQUESTED.search(first_line)
    reason = f"{int(size[1]) / 1e9:.1f} GB more could not be allocated" if size else first_line
    return f"the host's memory is full: {reason}" if reason else "the host's memory is full"
