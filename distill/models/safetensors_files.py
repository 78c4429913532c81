"""Read safetensors files that others may have made.

The format is 8 bytes with the length of a header, the header in JSON and the tensors' bytes
(https://huggingface.co/docs/safetensors). The library checks that the tensors cover the file
without gaps; here the size of the header and the shapes are limited, and a name occurs once.
"""

import json
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from torch import Tensor

from distill.files.escape_text import visible
from distill.models import out_of_memory

LARGEST_HEADER = 4 << 20  # bytes; a network of 1,000 tensors has about 100 kB
DIMENSIONS = 8  # most dimensions of a tensor
LONGEST_NAME = 60  # characters of a name or type in a message
METADATA = "__metadata__"


class InvalidSafetensors(ValueError):
    """A file that is no safetensors file, or that exceeds a bound. The message has no subject."""


def loads(content: bytes) -> dict[str, Tensor]:
    """Return the tensors in a safetensors file by name.

    Raises InvalidSafetensors if the file is damaged or exceeds a bound, RuntimeError if its tensors
    do not fit into memory.
    """
    _check_header(content)
    try:
        return from_bytes(content)
    except SafetensorError as fault:
        reason = str(fault).removeprefix("Error while deserializing: ")[:100]
        raise InvalidSafetensors(f"is damaged: {visible(reason)}") from fault
    except KeyError as fault:  # a type that the library's reader for torch does not support
        raise InvalidSafetensors(
            f"has tensors of type {fault.args[0]}, which torch lacks"
        ) from fault
    except Exception as fault:  # sizes of more than 64 bits fail in torch
        if out_of_memory.is_out_of_memory(fault):
            raise
        raise InvalidSafetensors("has a tensor with an invalid shape") from fault


def _check_header(content: bytes) -> None:
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or length > len(content) - 8:
        raise InvalidSafetensors("is damaged: its header is longer than the file")
    if length > LARGEST_HEADER:
        raise InvalidSafetensors(f"has a header of more than {LARGEST_HEADER:,} bytes")
    try:
        header = json.loads(content[8 : 8 + length], object_pairs_hook=_once)
    except (ValueError, RecursionError) as fault:
        if isinstance(fault, InvalidSafetensors):
            raise
        raise InvalidSafetensors("is damaged: its header is not JSON") from None
    if not isinstance(header, dict):
        raise InvalidSafetensors("is damaged: its header is not a table")
    for name, tensor in header.items():
        if name != METADATA and len(_shape(tensor)) > DIMENSIONS:
            raise InvalidSafetensors("has a tensor with an invalid shape")


def _shape(tensor: Any) -> list[Any]:
    shape = tensor.get("shape") if isinstance(tensor, dict) else None
    if not isinstance(shape, list):
        raise InvalidSafetensors("is damaged: its header has no shapes")
    return shape


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a table of the header; raise InvalidSafetensors if it has a name twice."""
    table = dict(pairs)
    if len(table) < len(pairs):
        raise InvalidSafetensors("has a name twice in its header")
    return table
