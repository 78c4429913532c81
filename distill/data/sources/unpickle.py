"""Read pickles of plain containers and numpy arrays without running code.

`distill/files/pickle_machine.py` implements pickle's stack machine. A pickle cannot import
anything: the four functions that numpy's pickles call to make an array are placeholders here, and
`distill/files/untrusted_arrays.py` makes the array from bytes and the name of a plain type.

Besides the machine's own bounds, containers have at most `DEEPEST` levels. A container may be
referenced only once; as an exception, several keys of the dictionary may have the same value. The
state of an array may be set only once.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from distill.files.pickle_machine import (
    InvalidPickle,
    Machine,
    RunsCode,
    Unfinished,
    name_text,
    text,
    type_name,
)
from distill.files.untrusted_arrays import InvalidArray, from_bytes, plain_dtype

MOST_STEPS = 5_000_000  # instructions; CIFAR-100's training batch has 400,000
DEEPEST = 8  # nested containers
MOST_TEXT = 1 << 28  # characters in all values together; repeated text counts each time
LONGEST_STATE = 9  # items in the state of a pickled dtype


@dataclass
class _Function:
    """Placeholder for a function that numpy's pickles refer to by name; it is never imported."""

    name: str


@dataclass
class _Dtype:
    """The dtype of an array of numbers or text: its name without byte order, and its byte order."""

    name: str
    order: str = "="


_FUNCTIONS = {
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
    ("_codecs", "encode"): "encode",
    ("numpy.core.multiarray", "_reconstruct"): "reconstruct",  # written by numpy 1
    ("numpy._core.multiarray", "_reconstruct"): "reconstruct",  # written by numpy 2
    ("numpy.core.numeric", "_frombuffer"): "frombuffer",
    ("numpy._core.numeric", "_frombuffer"): "frombuffer",
}


def loads(content: bytes) -> dict[str, object]:
    """Return the dictionary in a pickle, with its keys converted to text (Python 2 wrote bytes).

    Arrays are read-only views of the pickle's bytes. Raises ValueError if the pickle is damaged,
    is not a dictionary, would run code or exceeds a bound.
    """
    try:
        loaded = Machine(content, _Arrays(), most_steps=MOST_STEPS).run()
        if not isinstance(loaded, dict):
            raise InvalidArray(f"contains {type_name(loaded)}, not a dictionary")
        check = _Check()
        for value in {id(value): value for value in loaded.values()}.values():
            check.value(value, 1)
    except (InvalidArray, InvalidPickle, RunsCode):
        raise
    except Exception as error:  # a damaged program may fail in any way
        raise InvalidPickle("truncated or damaged") from error
    if len(set(map(_exact_text, loaded))) < len(loaded):
        raise ValueError("two of its keys are the same text")
    return {text(key): value for key, value in loaded.items()}


def _exact_text(name: object) -> str:
    """Convert bytes or text to text such that different bytes give different texts."""
    return name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else str(name)


class _Check:
    """Checks that values have allowed types and bounded depth and text, and no container twice."""

    def __init__(self) -> None:
        self.seen: set[int] = set()
        self.n_text = 0

    def value(self, value: object, depth: int) -> None:
        if isinstance(value, str | bytes):
            self.n_text += len(value)
            if self.n_text > MOST_TEXT:
                raise InvalidArray(f"has more than {MOST_TEXT:,} characters of text")
        elif isinstance(value, list | tuple | dict | np.ndarray):
            self._container(value, depth)
        elif not (value is None or isinstance(value, int | float)):
            raise InvalidArray(f"truncated or damaged ({type_name(value)} instead of a value)")

    def _container(self, value: Any, depth: int) -> None:
        if depth > DEEPEST:
            raise InvalidArray(f"is nested deeper than {DEEPEST} lists")
        if id(value) in self.seen and len(value):
            raise InvalidArray(f"has {type_name(value)} several times in a list")
        self.seen.add(id(value))
        if not isinstance(value, np.ndarray):
            for item in value.values() if isinstance(value, dict) else value:
                self.value(item, depth + 1)


class _Arrays:
    """Makes arrays for the functions that numpy's pickles call."""

    def look_up(self, module: str, name: str) -> _Function:
        if (module, name) not in _FUNCTIONS:
            raise RunsCode(f"{module}.{name}")
        return _Function(_FUNCTIONS[module, name])

    def call(self, machine: Machine, function: Any, arguments: Any) -> Any:
        name = function.name if isinstance(function, _Function) else "a value"
        if name == "dtype":
            return _dtype(*arguments)
        if name == "reconstruct":
            return Unfinished()
        if name == "frombuffer":
            return _from_buffer(*arguments)
        if name == "encode":
            return machine.encode(*arguments)
        raise RunsCode(f"a call of {name}")

    def with_state(self, target: Any, state: Any) -> Any:
        """Return an array or a dtype with its state."""
        if isinstance(target, _Dtype):
            if len(state) > LONGEST_STATE:
                raise InvalidArray("truncated or damaged (the state of a type is too long)")
            target.order = _byte_order(target, *state[1:])
            return target
        if not isinstance(target, Unfinished):
            raise RunsCode("the state of an object")
        if target.is_built:
            raise InvalidArray("truncated or damaged (has the state of an array twice)")
        target.is_built = True
        return _array(*state)

    def outside(self, identifier: Any) -> Any:
        raise RunsCode("instruction BINPERSID")


def _dtype(name: str | bytes, _align: object = False, _copy: object = False) -> _Dtype:
    """Make a dtype from the arguments that numpy pickles: `"u1", False, True`."""
    type_name = name_text(name)
    plain_dtype(type_name)
    return _Dtype(type_name.lstrip("<>|="), type_name[0] if type_name[0] in "<>|=" else "=")


def _byte_order(dtype: _Dtype, order: str | bytes, *rest: object) -> str:
    """Return the byte order from a dtype's state; raise InvalidArray if it is a compound type.

    `rest`: parent type, names, fields, bytes per element, alignment, flags.
    """
    parent, names, fields, size, *_ = rest
    is_plain = parent is None and names is None and fields is None
    if not is_plain or size not in (-1, plain_dtype(dtype.name).itemsize):
        raise InvalidArray("has arrays of a compound type; only plain numbers and text are read")
    if name_text(order) not in tuple("<>|="):
        raise InvalidArray("truncated or damaged (a type without byte order)")
    return name_text(order)


def _array(_version: int, shape: tuple[Any, ...], dtype: _Dtype, fortran: bool, raw: bytes) -> Any:
    """Make an array from its state, as pickle protocols up to 4 write it."""
    if not isinstance(raw, bytes):
        raise InvalidArray("has arrays of objects; only plain numbers and text are read")
    return from_bytes(raw, plain_dtype(dtype.order + dtype.name), shape, fortran=bool(fortran))


def _from_buffer(raw: bytes, dtype: _Dtype, shape: tuple[Any, ...], order: str) -> Any:
    """Make an array from its buffer, as pickle protocol 5 writes it."""
    return _array(1, shape, dtype, order == "F", raw)
