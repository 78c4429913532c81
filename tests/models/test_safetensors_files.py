"""Safetensors files: read, or refused before they take memory."""

import json
from typing import Any

import pytest
import torch
from safetensors.torch import save

from distill.models import safetensors_files
from distill.models.safetensors_files import InvalidSafetensors


def file_of(header: Any, tensors: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + tensors


def one(shape: list[int], dtype: str = "F32", end: int = 4) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}


TENSOR = b"\0\0\x80?"
HOSTILE = {
    "empty": (b"", "header is longer than the file"),
    "header of 4 GiB": ((1 << 32).to_bytes(8, "little") + b"{}", "header is longer than the file"),
    "long header": (file_of(b" " * (5 << 20)), "has a header of more than 4,194,304 bytes"),
    "list": (file_of([]), "header is not a table"),
    "no JSON": (file_of(b"{"), "header is not JSON"),
    "nested": (file_of(b"[" * 100_000), "header is not JSON"),
    "huge number": (file_of(b'{"a": %s}' % (b"9" * 10_000)), "header is not JSON"),
    "no shape": (file_of({"a": 1}), "header has no shapes"),
    "cut": (file_of({"a": one([1])}), "is damaged"),
    "tail": (file_of({"a": one([1])}, TENSOR * 2), "is damaged"),
    "overlapping": (file_of({"a": one([1]), "b": one([1])}, TENSOR), "is damaged: invalid offset"),
    "twice": (
        file_of(b'{"a": %s, "a": %s}' % ((json.dumps(one([1])).encode(),) * 2), TENSOR),
        "has a name twice",
    ),
    "overflow": (file_of({"a": one([2**62, 2**62])}, TENSOR), "is damaged: overflow"),
    "empty overflow": (file_of({"a": one([0, 2**62, 2**62], end=0)}), "invalid shape"),
    "long side": (file_of({"a": one([0, 2**63], end=0)}), "invalid shape"),
    "many sides": (file_of({"a": one([0] * 20_000, end=0)}), "invalid shape"),
    "type": (file_of({"a": one([1], "X\x1b")}, TENSOR), "is damaged"),
    "small type": (file_of({"a": one([4], "F8_E8M0")}, TENSOR), "tensors of type F8_E8M0"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file_is_refused(name: str) -> None:
    content, fault = HOSTILE[name]
    with pytest.raises(InvalidSafetensors, match=fault) as caught:
        safetensors_files.loads(content)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 150


def test_tensors_are_read() -> None:
    tensors = {"a": torch.rand(2, 3), "b": torch.tensor(4), "c": torch.empty(0, 2)}
    found = safetensors_files.loads(save(tensors, {"format": "pt"}))
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
