"""Read a pickle of plain containers and numpy arrays; refuse one that wants anything else.

A pickle is a program. Batches of images need to rebuild arrays and nothing more, so every other
name is refused before it is called
(https://docs.python.org/3/library/pickle.html#restricting-globals).
"""

import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np


def _latin1(text: str, encoding: str) -> bytes:
    """What protocol 2 calls to write bytes; `_codecs.encode` itself would take any codec."""
    if encoding != "latin1":
        raise ValueError(f"bytes are written in the codec {encoding!r}, not in latin1")
    return text.encode("latin1")


# The functions that numpy itself names when it pickles an array.
_reconstruct: Any = np.empty(0).__reduce_ex__(2)[0]
_frombuffer: Any = np.empty(0).__reduce_ex__(5)[0]

_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _latin1,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,  # written by numpy 1
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,  # written by numpy 2
    ("numpy.core.numeric", "_frombuffer"): _frombuffer,
    ("numpy._core.numeric", "_frombuffer"): _frombuffer,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Callable[..., object]:
        if (module, name) not in _ALLOWED:
            raise ValueError(f"wants to run code ({module}.{name}); images need none")
        allowed: Callable[..., object] = _ALLOWED[module, name]
        return allowed


def loads(content: bytes) -> dict[str, object]:
    """The dictionary in `content`, its keys as text (Python 2 wrote bytes).

    Raises ValueError where the pickle is damaged, holds no dictionary or wants to run code.
    """
    try:
        loaded = _Reader(io.BytesIO(content), encoding="bytes").load()
    except ValueError:
        raise
    except Exception as error:  # a damaged program may fail in any way
        raise ValueError(f"truncated or damaged ({type(error).__name__}: {error})") from error
    if not isinstance(loaded, dict):
        raise ValueError(f"holds a {type(loaded).__name__}, not a dictionary")
    return {text(key): value for key, value in loaded.items()}


def text(word: object) -> str:
    """A name as text, whether it was written as bytes or as text."""
    return word.decode("utf-8", "replace") if isinstance(word, bytes) else str(word)
