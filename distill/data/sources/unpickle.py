"""Read pickles of plain containers and numpy arrays without running code.

A pickle is a program for a small stack machine
(https://docs.python.org/3/library/pickletools.html). This module implements that machine, with only
the instructions for numbers, text, lists, tuples, dictionaries and arrays. A pickle cannot import
anything: the four functions that numpy's pickles call to make an array are placeholders here, and
`distill.files.untrusted_arrays` makes the array from bytes and the name of a plain type.

Bounds keep memory and time linear in the file's size. A pickle has at most `MOST_STEPS`
instructions and `DEEPEST` levels of nested containers. Integers have at most 64 bits, and keys are
text. Every declared size is compared with the number of bytes that are left before it is used. A
container may be referenced only once; as an exception, several keys of the dictionary may have the
same value. The state of an array may be set only once.
"""

import codecs
import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from distill.files.untrusted_arrays import InvalidArray, from_bytes, plain_dtype

MOST_STEPS = 5_000_000  # instructions; CIFAR-100's training batch has 400,000
DEEPEST = 8  # nested containers
MOST_TEXT = 1 << 28  # characters in all values together; repeated text counts each time
INT64 = range(-(1 << 63), 1 << 64)  # allowed integers: signed or unsigned 64 bits
LONGEST_NUMBER = 25  # characters of a number written as text
LONGEST_KEY = 1000  # characters; comparing equal keys takes time in proportion to their length
LONGEST_STATE = 9  # items in the state of a pickled dtype
LONGEST_NAME = 80  # characters of a name from the pickle that a message shows


@dataclass
class _Function:
    """Placeholder for a function that numpy's pickles refer to by name; it is never imported."""

    name: str


@dataclass
class _Dtype:
    """The dtype of an array of numbers or text: its name without byte order, and its byte order."""

    name: str
    order: str = "="


@dataclass
class _Unfinished:
    """Placeholder for an array whose content has not been read yet.

    `slots`: the entries of the memo that refer to it and must be replaced by the array.
    """

    slots: list[int] = field(default_factory=list)
    is_built: bool = False


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
        loaded = _Machine(content).run()
        if not isinstance(loaded, dict):
            kind = type(loaded).__name__.strip("_").lower()
            raise InvalidArray(f"holds a {kind}, not a dictionary")
        check = _Check()
        for value in {id(value): value for value in loaded.values()}.values():
            check.value(value, 1)
    except InvalidArray:
        raise
    except Exception as error:  # a damaged program may fail in any way
        kind, reason = type(error).__name__, str(error)[:LONGEST_NAME]
        raise ValueError(f"truncated or damaged ({kind}: {reason})") from error
    if len(set(map(_exact_text, loaded))) < len(loaded):
        raise ValueError("two of its keys are the same text")
    return {text(key): value for key, value in loaded.items()}


def _exact_text(name: object) -> str:
    """Convert bytes or text to text such that different bytes give different texts."""
    return name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else str(name)


def text(name: object) -> str:
    """Convert bytes or text to text."""
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)


def _name_text(value: object) -> str:
    """Convert a function's or codec's name to text; raise InvalidArray for other types.

    Converting values of other types to text could take unbounded time.
    """
    if not isinstance(value, str | bytes):
        raise InvalidArray("truncated or damaged (something else instead of a name)")
    return text(value)


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
            kind = type(value).__name__.strip("_").lower()
            raise InvalidArray(f"truncated or damaged (a {kind} instead of a value)")

    def _container(self, value: Any, depth: int) -> None:
        if depth > DEEPEST:
            raise InvalidArray(f"is nested deeper than {DEEPEST} lists")
        if id(value) in self.seen and len(value):
            raise InvalidArray(f"has the same {type(value).__name__} several times in a list")
        self.seen.add(id(value))
        if not isinstance(value, np.ndarray):
            for item in value.values() if isinstance(value, dict) else value:
                self.value(item, depth + 1)


class _Machine:
    """Runs a pickle's program on a stack; `run` returns its result."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.at = 0  # position of the next byte
        self.stack: list[Any] = []
        self.marks: list[int] = []  # the stack's length at each open mark
        self.memo: dict[int, Any] = {}
        self.n_encoded = 0  # bytes that `encode` has returned

    def run(self) -> Any:
        for _ in range(MOST_STEPS):
            code = self.content[self.at]
            self.at += 1
            if code == _STOP:
                return self.stack.pop()
            action = _ACTIONS.get(code)
            if action is None:
                name = _NAMES.get(code)
                raise (
                    _would_run_code_error(f"instruction {name}")
                    if name
                    else InvalidArray(f"truncated or damaged (byte {code} is not an instruction)")
                )
            action(self)
        raise InvalidArray(f"has more than {MOST_STEPS:,} steps; images are pickled as one array")

    # Reading

    def fits(self, n: int) -> None:
        """Raise InvalidArray if fewer than `n` bytes are left."""
        left = len(self.content) - self.at
        if n > left:
            raise InvalidArray(
                f"truncated or damaged ({n:,} bytes are declared, {left:,} are left)"
            )

    def take(self, n: int) -> bytes:
        """Read the next `n` bytes."""
        self.fits(n)
        self.at += n
        return self.content[self.at - n : self.at]

    def number(self, width: int) -> int:
        """Read an unsigned number of `width` bytes."""
        return int.from_bytes(self.take(width), "little")

    def sized(self, width: int) -> bytes:
        """Read a length, a number of `width` bytes, and then that many bytes."""
        return self.take(self.number(width))

    def line(self) -> bytes:
        """Read the bytes up to the end of the line."""
        return self.take(self.content.index(b"\n", self.at) - self.at + 1)[:-1]

    def items(self) -> list[Any]:
        """Pop the last mark; pop and return the items pushed on the stack since then."""
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    # Functions

    def look_up(self, module: str | bytes, name: str | bytes) -> None:
        module, name = _name_text(module), _name_text(name)
        if (module, name) not in _FUNCTIONS:
            raise _would_run_code_error(f"{module}.{name}")
        self.stack.append(_Function(_FUNCTIONS[module, name]))

    def reduce(self) -> None:
        """Call a known function with the arguments from the stack."""
        arguments, function = self.stack.pop(), self.stack.pop()
        name = function.name if isinstance(function, _Function) else "a value"
        if name == "dtype":
            made: Any = _dtype(*arguments)
        elif name == "reconstruct":
            made = _Unfinished()
        elif name == "frombuffer":
            made = _from_buffer(*arguments)
        elif name == "encode":
            made = self.encode(*arguments)
        else:
            raise _would_run_code_error(f"a call of {name}")
        self.stack.append(made)

    def encode(self, content: str, codec: str | bytes) -> bytes:
        """Convert latin1 text to bytes: protocol 2 writes bytes as such text."""
        if _name_text(codec) != "latin1":
            raise InvalidArray(
                f"bytes are written in the codec {_name_text(codec)[:20]!r}, not in latin1"
            )
        self.n_encoded += len(content)
        if self.n_encoded > len(self.content):
            raise InvalidArray(f"produces more bytes than its own {len(self.content):,}")
        return content.encode("latin1")

    def build(self) -> None:
        """Pop a state and apply it to the top of the stack, an array or a dtype."""
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, _Dtype):
            if len(state) > LONGEST_STATE:
                raise InvalidArray("truncated or damaged (the state of a type is too long)")
            target.order = _byte_order(target, *state[1:])
        elif isinstance(target, _Unfinished):
            if target.is_built:
                raise InvalidArray("truncated or damaged (has the state of an array twice)")
            array = _array(*state)
            target.is_built = True
            self.stack[-1] = array
            self.memo.update(dict.fromkeys(target.slots, array))
        else:
            raise _would_run_code_error("the state of an object")

    # The memo

    def put(self, slot: int) -> None:
        value = self.stack[-1]
        self.memo[slot] = value
        if isinstance(value, _Unfinished):
            value.slots.append(slot)

    def get(self, slot: int) -> None:
        self.stack.append(self.memo[slot])

    # Containers

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise InvalidArray("truncated or damaged (appends to something other than a list)")
        target.extend(items)

    def update(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise InvalidArray(
                "truncated or damaged (sets a key of something other than a dictionary)"
            )
        target.update(_pairs(items))

    def tuple_of(self, n: int) -> None:
        items = [self.stack.pop() for _ in range(n)]
        self.stack.append(tuple(items[::-1]))


def _would_run_code_error(name: str) -> InvalidArray:
    """Return the error for a pickle that would run code.

    `name`: what it would run; it is escaped, since it may contain line ends or terminal codes.
    """
    return InvalidArray(f"tries to run code ({ascii(name[:LONGEST_NAME])[1:-1]}); images need none")


def _pairs(items: list[Any]) -> dict[Any, Any]:
    """Make a dictionary from alternating keys and values.

    Raises InvalidArray unless keys are short text: hashing others may take unbounded time.
    """
    keys = items[::2]
    for key in keys:
        if not isinstance(key, str | bytes):
            raise InvalidArray(f"a key is a {type(key).__name__.strip('_').lower()}, not text")
        if len(key) > LONGEST_KEY:
            raise InvalidArray(
                f"a key has {len(key):,} characters; at most {LONGEST_KEY:,} are read"
            )
    return dict(zip(keys, items[1::2], strict=True))


def _dtype(name: str | bytes, _align: object = False, _copy: object = False) -> _Dtype:
    """Make a dtype from the arguments that numpy pickles: `"u1", False, True`."""
    type_name = _name_text(name)
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
    if _name_text(order) not in tuple("<>|="):
        raise InvalidArray("truncated or damaged (a type without byte order)")
    return _name_text(order)


def _array(_version: int, shape: tuple[Any, ...], dtype: _Dtype, fortran: bool, raw: bytes) -> Any:
    """Make an array from its state, as pickle protocols up to 4 write it."""
    if not isinstance(raw, bytes):
        raise InvalidArray("has arrays of objects; only plain numbers and text are read")
    return from_bytes(raw, plain_dtype(dtype.order + dtype.name), shape, fortran=bool(fortran))


def _from_buffer(raw: bytes, dtype: _Dtype, shape: tuple[Any, ...], order: str) -> Any:
    """Make an array from its buffer, as pickle protocol 5 writes it."""
    return _array(1, shape, dtype, order == "F", raw)


def _checked_integer(number: int) -> int:
    if number not in INT64:
        raise InvalidArray("has a whole number of more than 64 bits")
    return number


def _from_text(line: bytes) -> int:
    """Parse an integer written in digits, with or without the suffix `L` of Python 2."""
    if len(line) > LONGEST_NUMBER:
        raise InvalidArray("has a whole number of more than 64 bits")
    return _checked_integer(int(line.removesuffix(b"L")))


def _signed(content: bytes) -> int:
    return _checked_integer(int.from_bytes(content, "little", signed=True))


def _int_or_bool(line: bytes) -> int:
    """Parse an integer, or a boolean, which protocols 0 and 1 write as 00 or 01."""
    return {b"00": False, b"01": True}.get(line, _from_text(line))


def _quoted(line: bytes) -> bytes:
    """Parse a quoted, escaped string as Python 2 writes it in pickles."""
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
        raise InvalidArray("truncated or damaged (text without quotes)")
    return codecs.escape_decode(line[1:-1])[0]


def _utf8(content: bytes) -> str:
    return content.decode("utf-8", "surrogatepass")


def _float(content: bytes) -> float:
    value: float = struct.unpack(">d", content)[0]
    return value


_Action = Callable[[_Machine], object]
_STOP = pickle.STOP[0]
_NAMES = {
    code[0]: name
    for name, code in vars(pickle).items()
    if name.isupper() and isinstance(code, bytes) and len(code) == 1
}


def _push(make: Callable[[_Machine], Any]) -> _Action:
    return lambda machine: machine.stack.append(make(machine))


_ACTIONS: dict[int, _Action] = {
    code[0]: action
    for code, action in {
        pickle.PROTO: lambda m: m.number(1),
        pickle.FRAME: lambda m: m.fits(m.number(8)),  # the frame's instructions follow
        # values
        pickle.NONE: _push(lambda m: None),
        pickle.NEWTRUE: _push(lambda m: True),
        pickle.NEWFALSE: _push(lambda m: False),
        pickle.INT: _push(lambda m: _int_or_bool(m.line())),
        pickle.LONG: _push(lambda m: _from_text(m.line())),
        pickle.BININT: _push(lambda m: _signed(m.take(4))),
        pickle.BININT1: _push(lambda m: m.number(1)),
        pickle.BININT2: _push(lambda m: m.number(2)),
        pickle.LONG1: _push(lambda m: _signed(m.sized(1))),
        pickle.LONG4: _push(lambda m: _signed(m.sized(4))),
        pickle.FLOAT: _push(lambda m: float(m.line()[:100])),
        pickle.BINFLOAT: _push(lambda m: _float(m.take(8))),
        pickle.STRING: _push(lambda m: _quoted(m.line())),
        pickle.BINSTRING: _push(lambda m: m.sized(4)),
        pickle.SHORT_BINSTRING: _push(lambda m: m.sized(1)),
        pickle.BINBYTES: _push(lambda m: m.sized(4)),
        pickle.SHORT_BINBYTES: _push(lambda m: m.sized(1)),
        pickle.BINBYTES8: _push(lambda m: m.sized(8)),
        pickle.BYTEARRAY8: _push(lambda m: m.sized(8)),
        pickle.UNICODE: _push(lambda m: m.line().decode("raw-unicode-escape")),
        pickle.BINUNICODE: _push(lambda m: _utf8(m.sized(4))),
        pickle.SHORT_BINUNICODE: _push(lambda m: _utf8(m.sized(1))),
        pickle.BINUNICODE8: _push(lambda m: _utf8(m.sized(8))),
        # containers
        pickle.EMPTY_LIST: _push(lambda m: []),
        pickle.EMPTY_DICT: _push(lambda m: {}),
        pickle.EMPTY_TUPLE: _push(lambda m: ()),
        pickle.LIST: _push(lambda m: m.items()),
        pickle.DICT: _push(lambda m: _pairs(m.items())),
        pickle.TUPLE: _push(lambda m: tuple(m.items())),
        pickle.TUPLE1: lambda m: m.tuple_of(1),
        pickle.TUPLE2: lambda m: m.tuple_of(2),
        pickle.TUPLE3: lambda m: m.tuple_of(3),
        pickle.APPEND: lambda m: m.extend([m.stack.pop()]),
        pickle.APPENDS: lambda m: m.extend(m.items()),
        pickle.SETITEM: lambda m: m.update([m.stack.pop(), m.stack.pop()][::-1]),
        pickle.SETITEMS: lambda m: m.update(m.items()),
        # the stack and the memo
        pickle.MARK: lambda m: m.marks.append(len(m.stack)),
        pickle.POP: lambda m: m.stack.pop(),
        pickle.POP_MARK: lambda m: m.items(),
        pickle.PUT: lambda m: m.put(_from_text(m.line())),
        pickle.BINPUT: lambda m: m.put(m.number(1)),
        pickle.LONG_BINPUT: lambda m: m.put(m.number(4)),
        pickle.MEMOIZE: lambda m: m.put(len(m.memo)),
        pickle.GET: lambda m: m.get(_from_text(m.line())),
        pickle.BINGET: lambda m: m.get(m.number(1)),
        pickle.LONG_BINGET: lambda m: m.get(m.number(4)),
        # arrays
        pickle.GLOBAL: lambda m: m.look_up(m.line(), m.line()),
        pickle.STACK_GLOBAL: lambda m: m.look_up(*[m.stack.pop(), m.stack.pop()][::-1]),
        pickle.REDUCE: _Machine.reduce,
        pickle.BUILD: _Machine.build,
        pickle.READONLY_BUFFER: lambda m: None,  # arrays are not writeable anyway
    }.items()
}
