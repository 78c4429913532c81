"""Execute the stack machine of pickle without importing or calling anything.

A pickle is a program for a small stack machine
(https://docs.python.org/3/library/pickletools.html). `Machine` implements it with only the
instructions for numbers, text, lists, tuples and dictionaries. `Objects` defines what the names in
a pickle mean: arrays (`distill/data/sources/unpickle.py`) or tensors
(`distill/models/torch_files.py`).

Bounds keep memory and time linear in the file's size. A pickle has at most `most_steps`
instructions. Integers have at most 64 bits. Keys are short text or,
if the kind of pickle has them, small numbers. Every declared size is
compared with the number of bytes that are left before it is used.
"""

import codecs
import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

INT64 = range(-(1 << 63), 1 << 64)  # allowed integers: signed or unsigned 64 bits
LONGEST_NUMBER = 25  # characters of a number written as text
# Keys above this could all have the same place in a dictionary, since a number is its own hash:
# filling it would then take a time quadratic in their number. Optimizers count their parameters.
LARGEST_KEY = 1 << 20
LONGEST_KEY = 1000  # characters; comparing equal keys takes time in proportion to their length
NAMES_OF_TYPES = {
    dict: "dictionary", str: "string", bytes: "string", int: "number", float: "number",
    bool: "number", type(None): "null",
}  # fmt: skip
LONGEST_NAME = 80  # characters of a name from the pickle that a message shows


class InvalidPickle(ValueError):
    """A pickle that is damaged, of the wrong kind or too large."""


class RunsCode(ValueError):
    """A pickle that would run code; `name` is what it would run, escaped and shortened."""

    def __init__(self, name: str) -> None:
        self.name = ascii(name[:LONGEST_NAME])[1:-1]  # it may contain line ends or terminal codes
        super().__init__(f"tries to run code ({self.name})")


@dataclass
class Unfinished:
    """Placeholder for an object whose state has not been read yet.

    `slots`: the entries of the memo that refer to it and must be replaced by the object.
    """

    slots: list[int] = field(default_factory=list)
    is_built: bool = False


class Objects(Protocol):
    """What the names in a kind of pickle mean. Each method raises RunsCode for anything else."""

    def look_up(self, module: str, name: str) -> Any:
        """Return the placeholder of a function or type; nothing is imported."""

    def call(self, machine: "Machine", function: Any, arguments: Any) -> Any:
        """Return the result of a function that `look_up` returned."""

    def with_state(self, target: Any, state: Any) -> Any:
        """Return an object with its state; `target` is what `call` returned."""

    def outside(self, identifier: Any) -> Any:
        """Return an object that is not in the pickle itself."""


class Machine:
    """Runs a pickle's program on a stack; `run` returns its result.

    `at`: the position of the first byte. `most_steps`: most instructions. `key_types`: types of the
    keys of dictionaries.
    """

    def __init__(
        self,
        content: bytes,
        objects: Objects,
        *,
        at: int = 0,
        most_steps: int,
        key_types: tuple[type, ...] = (str, bytes),
    ) -> None:
        self.objects, self.most_steps, self.key_types = objects, most_steps, key_types
        self.content = content
        self.at = at  # position of the next byte
        self.stack: list[Any] = []
        self.marks: list[int] = []  # the stack's length at each open mark
        self.memo: dict[int, Any] = {}
        self.n_encoded = 0  # bytes that `encode` has returned

    def run(self) -> Any:
        for _ in range(self.most_steps):
            code = self.content[self.at]
            self.at += 1
            if code == _STOP:
                return self.stack.pop()
            action = _ACTIONS.get(code)
            if action is None:
                name = _NAMES.get(code)
                raise (
                    RunsCode(f"instruction {name}")
                    if name
                    else InvalidPickle(f"truncated or damaged (byte {code} is not an instruction)")
                )
            action(self)
        raise InvalidPickle(f"has more than {self.most_steps:,} steps")

    # Reading

    def fits(self, n: int) -> None:
        """Raise InvalidPickle if fewer than `n` bytes are left."""
        left = len(self.content) - self.at
        if n > left:
            raise InvalidPickle(
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

    # Objects

    def look_up(self, module: str | bytes, name: str | bytes) -> None:
        self.stack.append(self.objects.look_up(name_text(module), name_text(name)))

    def reduce(self) -> None:
        """Call a known function with the arguments from the stack."""
        arguments, function = self.stack.pop(), self.stack.pop()
        self.stack.append(self.objects.call(self, function, arguments))

    def build(self) -> None:
        """Pop a state and set it on the top of the stack."""
        state, target = self.stack.pop(), self.stack[-1]
        made = self.objects.with_state(target, state)
        self.stack[-1] = made
        if isinstance(target, Unfinished):
            self.memo.update(dict.fromkeys(target.slots, made))

    def persistent(self) -> None:
        """Replace the top of the stack, an identifier, by the object outside the pickle."""
        self.stack.append(self.objects.outside(self.stack.pop()))

    def encode(self, content: str, codec: str | bytes) -> bytes:
        """Convert latin1 text to bytes: protocol 2 writes bytes as such text."""
        if name_text(codec) != "latin1":
            raise InvalidPickle(
                f"bytes are written in the codec {name_text(codec)[:20]!r}, not in latin1"
            )
        self.n_encoded += len(content)
        if self.n_encoded > len(self.content):
            raise InvalidPickle(f"produces more bytes than its own {len(self.content):,}")
        return content.encode("latin1")

    # The memo

    def put(self, slot: int) -> None:
        if not 0 <= slot <= self.most_steps:  # they are counted; as keys, see LARGEST_KEY
            raise InvalidPickle(f"the memo has no place {slot:,}")
        value = self.stack[-1]
        self.memo[slot] = value
        if isinstance(value, Unfinished):
            value.slots.append(slot)

    def get(self, slot: int) -> None:
        self.stack.append(self.memo[slot])

    # Containers

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise InvalidPickle("truncated or damaged (appends to something other than a list)")
        target.extend(items)

    def update(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise InvalidPickle(
                "truncated or damaged (sets a key of something other than a dictionary)"
            )
        target.update(self.pairs(items))

    def tuple_of(self, n: int) -> None:
        items = [self.stack.pop() for _ in range(n)]
        self.stack.append(tuple(items[::-1]))

    def pairs(self, items: list[Any]) -> dict[Any, Any]:
        """Make a dictionary from alternating keys and values.

        Raises InvalidPickle unless keys are short text or small: hashing others may take unbounded
        time.
        """
        keys = items[::2]
        for key in keys:
            if not isinstance(key, self.key_types):
                raise InvalidPickle(f"a key is {type_name(key)}, not text")
            if isinstance(key, int) and not 0 <= key <= LARGEST_KEY:
                raise InvalidPickle(
                    f"a key is the number {key}; only 0 to {LARGEST_KEY:,} are read"
                )
            if isinstance(key, str | bytes) and len(key) > LONGEST_KEY:
                raise InvalidPickle(
                    f"a key has {len(key):,} characters; at most {LONGEST_KEY:,} are read"
                )
        return dict(zip(keys, items[1::2], strict=True))


def text(name: object) -> str:
    """Convert bytes or text to text."""
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)


def name_text(value: object) -> str:
    """Convert the name of a function, codec or storage to text.

    Raises InvalidPickle for other types and for more than LONGEST_KEY characters: converting values
    of other types could take unbounded time, and a long name is decoded at each reference to it.
    """
    if not isinstance(value, str | bytes):
        raise InvalidPickle("truncated or damaged (something else instead of a name)")
    if len(value) > LONGEST_KEY:
        raise InvalidPickle(
            f"a name has {len(value):,} characters; at most {LONGEST_KEY:,} are read"
        )
    return text(value)


def type_name(value: object) -> str:
    """Return the type of a value, or of the placeholder of one, for messages: `a list`."""
    noun = NAMES_OF_TYPES.get(type(value)) or type(value).__name__.strip("_").lower()
    noun = noun.removeprefix("nd")  # numpy's arrays
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _checked_integer(number: int) -> int:
    if number not in INT64:
        raise InvalidPickle("has a whole number of more than 64 bits")
    return number


def _from_text(line: bytes) -> int:
    """Parse an integer written in digits, with or without the suffix `L` of Python 2."""
    if len(line) > LONGEST_NUMBER:
        raise InvalidPickle("has a whole number of more than 64 bits")
    return _checked_integer(int(line.removesuffix(b"L")))


def _signed(content: bytes) -> int:
    return _checked_integer(int.from_bytes(content, "little", signed=True))


def _int_or_bool(line: bytes) -> int:
    """Parse an integer, or a boolean, which protocols 0 and 1 write as 00 or 01."""
    return {b"00": False, b"01": True}.get(line, _from_text(line))


def _quoted(line: bytes) -> bytes:
    """Parse a quoted, escaped string as Python 2 writes it in pickles."""
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
        raise InvalidPickle("truncated or damaged (text without quotes)")
    return codecs.escape_decode(line[1:-1])[0]


def _utf8(content: bytes) -> str:
    return content.decode("utf-8", "surrogatepass")


def _float(content: bytes) -> float:
    value: float = struct.unpack(">d", content)[0]
    return value


_Action = Callable[[Machine], object]
_STOP = pickle.STOP[0]
_NAMES = {
    code[0]: name
    for name, code in vars(pickle).items()
    if name.isupper() and isinstance(code, bytes) and len(code) == 1
}


def _push(make: Callable[[Machine], Any]) -> _Action:
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
        pickle.DICT: _push(lambda m: m.pairs(m.items())),
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
        # functions
        pickle.GLOBAL: lambda m: m.look_up(m.line(), m.line()),
        pickle.STACK_GLOBAL: lambda m: m.look_up(*[m.stack.pop(), m.stack.pop()][::-1]),
        pickle.REDUCE: lambda m: m.reduce(),
        pickle.BUILD: lambda m: m.build(),
        pickle.BINPERSID: lambda m: m.persistent(),
        pickle.READONLY_BUFFER: lambda m: None,  # arrays are not writeable anyway
    }.items()
}
