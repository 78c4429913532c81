"""Generate hostile pickles and checkpoints; each must be refused with a message and run no code.

The pickles are written as instructions of pickle's stack machine, so that they can call any
function, declare any size, and nest any containers.
"""

import io
import json
import pickle
import random
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.soak.outcome import Outcome
from benchmarks.soak.watched import Neighbour
from distill.data.sources import cifar, images_to_predict, unpickle
from distill.data.sources.cifar import CIFAR10
from distill.errors import UserError
from distill.files.untrusted_arrays import InvalidArray
from distill.models import checkpoint
from distill.models.checkpoint import DamagedCheckpoint

MOST_BYTES = 64 << 20  # most memory that reading or refusing a pickle may take
# `mark` is the path of a file that is created if the code of a pickle runs.
STATEMENTS = ("open({mark!r}, 'w').close()", "__import__('pathlib').Path({mark!r}).touch()")
# Harmful functions: module, name, and their arguments for a given mark.
CALLS: list[tuple[str, str, Callable[[str], tuple[Any, ...]]]] = [
    ("posix", "system", lambda mark: (f"touch {mark}",)),
    ("os", "system", lambda mark: (f"touch {mark}",)),
    ("os", "popen", lambda mark: (f"touch {mark}",)),
    ("os", "mkdir", lambda mark: (mark,)),
    ("subprocess", "call", lambda mark: (["touch", mark],)),
    ("subprocess", "check_output", lambda mark: (["touch", mark],)),
    ("builtins", "eval", lambda mark: (STATEMENTS[0].format(mark=mark),)),
    ("builtins", "exec", lambda mark: (STATEMENTS[1].format(mark=mark),)),
    ("__builtin__", "eval", lambda mark: (STATEMENTS[1].format(mark=mark),)),
    ("builtins", "open", lambda mark: (mark, "w")),
    ("io", "open", lambda mark: (mark, "w")),
    ("pathlib", "Path.touch", lambda mark: (mark,)),
    ("runpy", "run_path", lambda mark: (mark,)),
    ("shutil", "rmtree", lambda mark: (str(Path(mark).parent),)),
    ("numpy", "load", lambda mark: (mark, None, True)),
    ("numpy", "save", lambda mark: (mark, [1])),
    ("numpy", "memmap", lambda mark: (mark, "u1", "w+", 0, (8,))),
    ("numpy", "fromfile", lambda mark: ("/etc/passwd",)),
    ("numpy", "ndarray.tofile", lambda mark: (mark,)),
    ("torch", "save", lambda mark: ([1], mark)),
    ("torch", "load", lambda mark: (mark,)),
    ("_codecs", "lookup", lambda mark: ("rot13",)),
]


def text(value: str) -> bytes:
    """Return the pickle instruction that pushes a text."""
    content = value.encode()
    return b"X" + len(content).to_bytes(4, "little") + content


def pushed(value: Any) -> bytes:
    """Return the pickle instructions that push a plain value."""
    return pickle.dumps(value, 2)[2:-1]


def looked_up(module: str, name: str, chance: random.Random) -> bytes:
    """Return the pickle instructions that push the function `name` of a module, in one of two
    ways.
    """
    if chance.random() < 0.5:
        return f"c{module}\n{name}\n".encode()
    return text(module) + text(name) + b"\x93"


def any_callable(chance: random.Random) -> tuple[str, str]:
    """Return the module and name of a random callable that this process has imported."""
    while True:
        module = chance.choice(sorted(sys.modules))
        names = [name for name in vars(sys.modules[module]) if name.isidentifier()]
        found = [n for n in names if callable(vars(sys.modules[module])[n])]
        if found and "\n" not in module:
            return module, chance.choice(found)


def call(mark: str, chance: random.Random) -> bytes:
    """Return pickle instructions that call a function, in one of the ways that pickle has.

    `mark`: the path of a file that the function creates if it is called.
    """
    module, name, arguments = chance.choice(CALLS)
    values = arguments(mark)
    if chance.random() < 0.4:
        module, name = any_callable(chance)
    function, pushes = looked_up(module, name, chance), b"".join(map(pushed, values))
    return chance.choice([
        function + b"(" + pushes + b"tR",
        b"(" + pushes + f"i{module}\n{name}\n".encode(),  # INST
        b"(" + function + pushes + b"o",  # OBJ
        function + b"(" + pushes + b"t\x81",  # NEWOBJ
        function + b"(" + pushes + b"t}\x92",  # NEWOBJ_EX
        function + b"(" + pushes + b"tR" + b"}" + pushed("x") + pushed(1) + b"sb",  # BUILD
        f"P{mark}\n".encode(),  # PERSID
        pushed(mark) + b"Q",  # BINPERSID
        b"\x82" + bytes([chance.randrange(1, 256)]),  # EXT1
        b"cnumpy\ndtype\n(" + function + b"tR",
        b"cnumpy._core.multiarray\n_reconstruct\n(" + function + b"(K\x00tU\x01btR",
        function + b"q\x01h\x01(" + pushes + b"tR",
    ])  # fmt: skip


def dtype(name: str, memo: int) -> bytes:
    """Return the pickle instructions that push numpy's dtype `name` and store it in the memo at
    index `memo`.
    """
    return b"cnumpy\ndtype\n(" + text(name) + b"\x89\x88tRq" + bytes([memo])


def array(chance: random.Random) -> bytes:
    """Return pickle instructions for an array with an invalid or harmful type, state, shape or
    content.
    """
    name = chance.choice(["V8", "O8", "O", "S8", "u1", "<f4", "U9999", "M8", "b1", "", "x" * 99])
    raw = bytes(chance.randrange(40))
    shape = chance.choice([
        (1,), (len(raw),), (-1, -1), (2**40,), (2**31, 2**31), (0, 2**62), (1,) * 40, ("x",),
        ([1],), (1.5,), (2**63,), (True,),
    ])  # fmt: skip
    size = chance.choice([-1, 0, 8, 1 << 20, (1 << 31) - 1])
    fields = chance.choice([
        b"NN", pushed(("f",)) + b"}" + pushed("f") + b"(" + dtype("O8", 2) + b"K\x00ts",
    ])  # fmt: skip
    state = b"(K\x03" + text("|") + b"N" + fields + pushed(size) + b"K\x01K\x3ftb"
    built = state if chance.random() < 0.6 else b""
    strides = b"cnumpy\nndarray\n(" + pushed(shape) + dtype(name, 1)
    rebuilt = b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
    content = chance.choice([pushed(raw), b"]" + pushed(1) + b"a", pushed("x")])
    return chance.choice([
        strides + pushed("x") + b"K\x00" + pushed((0,) * len(shape)) + b"tR",
        strides + b"tR",
        rebuilt + b"(K\x01" + pushed(shape) + dtype(name, 1) + built + b"\x89" + content + b"tb",
        b"cnumpy._core.numeric\n_frombuffer\n(" + content + dtype(name, 1) + built
        + pushed(shape) + text("C") + b"tR",
        rebuilt,
    ])  # fmt: skip


def declared(chance: random.Random) -> bytes:
    """Return a pickle instruction that declares more bytes than follow."""
    code, width = chance.choice([
        (b"\x8e", 8), (b"\x96", 8), (b"\x8d", 8), (b"\x8b", 4), (b"T", 4), (b"B", 4), (b"X", 4),
        (b"r", 4), (b"\x95", 8), (b"U", 1), (b"\x8a", 1),
    ])  # fmt: skip
    return code + chance.randrange(16, 1 << (8 * width - 1)).to_bytes(width, "little") + b"abc"


def nested(chance: random.Random) -> bytes:
    """Return pickle instructions for containers that are nested very deeply or repeated many times,
    or for huge keys or numbers.
    """
    n = chance.choice([9, 100, 5000, 100_000])
    times = chance.randrange(2, 100)
    laughs = b"]q\x01(" + b"K\x01" * times + b"e0]q\x02(" + b"h\x01" * times + b"e0"
    return chance.choice([
        b"]" * n + b"a" * (n - 1),
        b")" + b"\x85" * n,
        b"}" + b")" + b"\x85" * n + b"K\x01s",
        b"}" + b"".join(pushed(k * ((1 << 61) - 1)) + b"N" for k in range(20)).join([b"(", b"u"]),
        b"]q\x01h\x01a",
        laughs + b"](" + b"h\x02" * times + b"e",
        b"\x8b" + n.to_bytes(4, "little") + b"\x7f" * n,
        f"L{'9' * n}L\n".encode(),
        f"V{'x' * n}\n".encode() * times,
    ])  # fmt: skip


def harmed(sound: bytes, chance: random.Random) -> bytes:
    """Return the valid pickle `sound` with some bytes changed, inserted or removed."""
    content = bytearray(sound)
    for _ in range(chance.randrange(1, 6)):
        at = chance.randrange(min(len(content), 200)) if chance.random() < 0.8 else -1
        kind = chance.random()
        if kind < 0.5:
            content[at] = chance.randrange(256)
        elif kind < 0.8:
            content[at:at] = bytes(chance.choices(range(256), k=chance.randrange(1, 5)))
        else:
            del content[at : at + chance.randrange(1, 5)]
    return bytes(content)


def _images(call_: bytes, chance: random.Random) -> bytes:
    """Return a pickle of a CIFAR-10 dictionary with the instructions `call_` as one of its
    values.
    """
    head = bytes([0x80, chance.choice([2, 3, 4, 5])])
    key = chance.choice(["data", "labels", "ids", "label_names", "filenames"])
    inside = chance.choice([call_, b"]" + call_ + b"a", b"(" + call_ + b"t"])
    return head + b"}" + text(key) + inside + b"s."


# For each kind of pickle: what the user sees, and whether some of them may be read, since they
# contain only plain values.
SEEN = {
    "that calls a function": ("“… tries to run code (os.system)”, or what is damaged", False),
    "with an array of a hostile type, state, stride or shape": (
        "“… has arrays of 'V8'; only plain numbers and text are read”, or what is wrong", True,
    ),
    "that announces more bytes than it has": (
        "“… 4,096 bytes are announced, 3 are left”, or what is damaged", False,
    ),
    "of nested containers, keys or numbers": (
        "“… is nested deeper than 8 lists”, “… a key is a tuple, not text”, or what is wrong", True,
    ),
    "of images with some bytes changed": ("what is damaged; or images, if it is still sound", True),
}  # fmt: skip


def pickles(folder: Path, tries: int, seed: int) -> list[Outcome]:
    """Read `tries` hostile pickles of each kind as a CIFAR-10 batch or as images to predict, and as
    many checkpoints.
    """
    chance = random.Random(seed)
    neighbour, batches = Neighbour(folder / "neighbour"), folder / CIFAR10.folder
    write_batches(batches)
    sound = (batches / CIFAR10.files["train"][0]).read_bytes()
    mark = str(neighbour.mark)
    kinds: dict[str, Callable[[], bytes]] = {
        "that calls a function": lambda: _images(call(mark, chance), chance),
        "with an array of a hostile type, state, stride or shape": lambda: _images(
            array(chance), chance
        ),
        "that announces more bytes than it has": lambda: _images(declared(chance), chance),
        "of nested containers, keys or numbers": lambda: _images(nested(chance), chance),
        "of images with some bytes changed": lambda: harmed(sound, chance),
    }
    outcomes = []
    for what, make in kinds.items():
        seen, may_succeed = SEEN[what]
        outcome = Outcome(f"a pickle {what}", seen)
        for n in range(tries):
            content = make()
            fault = _read(content, batches, n, may_succeed) or neighbour.change()
            outcome.count(not fault, f"{seed}/{what}/{n}: {fault}: {content[:200]!r}")
        outcomes.append(outcome)
    return [*outcomes, _checkpoints(folder, tries, chance, neighbour)]


def _read(content: bytes, folder: Path, n: int, may_succeed: bool) -> str:
    """Read the pickle `content`; return what is wrong with the result, or "".

    It must be refused with a message; if `may_succeed`, it may also be read as plain values. Both
    must take less than MOST_BYTES of memory. `n`: number of the try, which selects the reader.
    """
    path = folder / CIFAR10.files["train"][0]
    other = folder.with_name("images.pkl")
    readers: list[Callable[[], object]] = [
        lambda: unpickle.loads(content),
        lambda: cifar.load(cifar.Batches(folder, CIFAR10), "train"),
        lambda: images_to_predict.load(other),
    ]
    (path if n % 3 == 1 else other).write_bytes(content)
    tracemalloc.start()
    try:
        value = readers[n % 3]()
        is_well = may_succeed and (n % 3 > 0 or _is_plain(value))
        fault = "" if is_well else f"read as {type(value).__name__}"
    except (UserError, InvalidArray) as refusal:
        fault = "" if str(refusal).strip() and len(str(refusal)) < 2000 else "no message, or long"
    except ValueError as refusal:
        fault = "" if n % 3 == 0 and str(refusal).strip() else f"ValueError: {refusal}"
    except Exception as error:
        fault = f"{type(error).__name__}: {error}"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return fault or (f"took {peak:,} bytes" if peak > MOST_BYTES else "")


def _is_plain(value: object) -> bool:
    """Whether a value consists of numbers, texts, arrays of them, and containers of these."""
    if isinstance(value, dict):
        return all(map(_is_plain, [*value, *value.values()]))
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "iufSU"
    return value is None or isinstance(value, int | float | str | bytes)


def _checkpoints(folder: Path, tries: int, chance: random.Random, neighbour: Neighbour) -> Outcome:
    """Load `tries` checkpoints whose state.pt contains a hostile pickle; their digest is valid."""
    outcome = Outcome(
        "a checkpoint that calls a function", "“… tries to run code, and is not loaded”, or damaged"
    )
    last = folder / "last"
    buffer = io.BytesIO()
    torch.save({"student": {"weight": torch.ones(2)}}, buffer)
    for n in range(tries):
        checkpoint.save(last, {"student": {}}, {"step": 1})
        state = _repacked(buffer.getvalue(), _images(call(str(neighbour.mark), chance), chance))
        forge(last, state)
        try:
            checkpoint.load(last)
            fault = "was loaded"
        except DamagedCheckpoint:
            fault = ""
        except Exception as error:
            fault = f"{type(error).__name__}: {error}"
        fault = fault or neighbour.change()
        outcome.count(not fault, f"checkpoint {n}: {fault}")
    return outcome


def _repacked(state: bytes, program: bytes) -> bytes:
    """Return the torch file `state` with its pickle replaced by `program`."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(state)) as original, zipfile.ZipFile(buffer, "w") as archive:
        for name in original.namelist():
            content = program if name.endswith("data.pkl") else original.read(name)
            archive.writestr(name, content)
    return buffer.getvalue()


def forge(last: Path, state: bytes) -> None:
    """Replace state.pt in the checkpoint folder `last`, and update the digest in progress.json."""
    progress = json.loads((last / "progress.json").read_text())
    del progress["sha256"]
    (last / "state.pt").write_bytes(state)
    digest = checkpoint.digest_of(state, progress)
    (last / "progress.json").write_text(json.dumps(progress | {"sha256": digest}))


def write_batches(folder: Path) -> None:
    """Write files in the official layout of CIFAR-10, with four images each."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CIFAR10.meta).write_bytes(pickle.dumps({"label_names": list("abcd")}))
    for name in (*CIFAR10.files["train"], *CIFAR10.files["test"]):
        batch = {"data": np.zeros((4, 3072), np.uint8), "labels": [0, 1, 2, 3]}
        (folder / name).write_bytes(pickle.dumps(batch))
