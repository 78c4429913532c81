"""What a batch may be pickled as, and what it may not."""

import os
import pickle
import re
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from distill.data.sources import unpickle

DATA = np.arange(2 * 3072, dtype=np.int64).astype(np.uint8).reshape(2, 3072)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("core", ["core", "_core"])
def test_arrays_of_every_protocol_and_of_both_numpys(protocol: int, core: str) -> None:
    content = pickle.dumps({b"data": DATA, "labels": [1, 2]}, protocol=protocol)
    if protocol < 4:  # the module's name ends at a line's end: another length does no harm
        content = content.replace(b"numpy._core.", f"numpy.{core}.".encode())
    loaded = unpickle.loads(content)
    assert loaded["labels"] == [1, 2]
    assert isinstance(loaded["data"], np.ndarray)
    assert loaded["data"].dtype == np.uint8
    assert (loaded["data"] == DATA).all()


def test_a_pickle_as_python_2_wrote_it() -> None:
    """The opcodes of the official files: byte strings for keys, type codes and pixels."""

    def string(value: bytes) -> bytes:  # BINSTRING
        return b"T" + len(value).to_bytes(4, "little") + value

    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85"
        + (string(b"b") + b"\x87R")
        + (b"(K\x01K\x02M\x00\x0c\x86cnumpy\ndtype\n" + string(b"u1") + b"K\x00K\x01\x87R")
        + (b"(K\x03" + string(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb")
        + (b"\x89" + string(DATA.tobytes()) + b"tb")
    )
    labels = b"]K\x05aK\x07a"
    content = b"\x80\x02}" + string(b"data") + array + b"s" + string(b"labels") + labels + b"s."
    loaded = unpickle.loads(content)
    assert loaded["labels"] == [5, 7]
    assert isinstance(loaded["data"], np.ndarray)
    assert (loaded["data"] == DATA).all()


class Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize(
    ("function", "name"),
    [(os.system, "system"), (subprocess.check_call, "check_call"), (eval, "eval")],
)
def test_code_is_refused_and_not_run(
    function: Callable[..., object], name: str, tmp_path: Path
) -> None:
    mark = tmp_path / "ran"
    content = pickle.dumps({"data": Calls(function, f"touch {mark}")})
    with pytest.raises(ValueError, match=rf"tries to run code \(.*{name}\)"):
        unpickle.loads(content)
    assert not mark.exists()


def test_dotted_name_does_not_lead_out_of_numpy() -> None:
    content = b"\x80\x04\x8c\x05numpy\x8c\x0dndarray.dumps\x93."
    with pytest.raises(ValueError, match=r"tries to run code \(numpy.ndarray.dumps\)"):
        unpickle.loads(content)


def test_bytes_are_written_in_latin1_only() -> None:
    content = b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R."
    with pytest.raises(ValueError, match="codec 'rot13', not in latin1"):
        unpickle.loads(content)


def test_a_truncated_pickle() -> None:
    content = pickle.dumps({"data": DATA}, protocol=2)
    with pytest.raises(ValueError, match="truncated or damaged"):
        unpickle.loads(content[: len(content) // 2])


def test_no_pickle_at_all() -> None:
    with pytest.raises(ValueError, match="truncated or damaged"):
        unpickle.loads(b"")


def test_not_a_dictionary() -> None:
    with pytest.raises(ValueError, match="contains a list, not a dictionary"):
        unpickle.loads(pickle.dumps([1, 2]))


# Hostile pickles. A child process reads them: some end the process that does.

HEAD = b"\x80\x04"
RECONSTRUCT = b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"


def dtype_of(name: bytes, memo: int) -> bytes:
    """Pushes `numpy.dtype(name)` and stores it in the memo."""
    return b"cnumpy\ndtype\n(U" + bytes([len(name)]) + name + b"\x89\x88tRq" + bytes([memo])


def array_of(dtype: bytes, length: int, raw: bytes) -> bytes:
    """Pushes a one-dimensional array of `raw`; `dtype` pushes its type."""
    state = b"(K\x01(K" + bytes([length]) + b"t" + dtype + b"\x89U" + bytes([len(raw)]) + raw + b"t"
    return RECONSTRUCT + state + b"b"


def dtype_state(fields: bytes, size: int) -> bytes:
    """BUILD on the dtype in the memo at 1, then takes it off the stack."""
    number = size.to_bytes(4, "little")
    return b"h\x01(K\x03U\x01|N" + fields + b"J" + number + b"K\x01K\x3ftb0"


POINTERS = (  # eight bytes become a pointer to a Python object
    array_of(dtype_of(b"V8", 1), 1, b"AAAAAAAA")
    + dtype_state(b"(U\x01ft}U\x01f(" + dtype_of(b"O8", 2) + b"K\x00ts", 8)
)
HEAP = array_of(dtype_of(b"S8", 1), 2, b"B" * 16) + dtype_state(b"NN", 1 << 20)
DEEP_KEY = b"}" + b")" + b"\x85" * 100_000 + b"K\x01s"
CRASHING = ["pointers", "heap", "deep key", "deep list"]
HOSTILE = {
    "pointers": (HEAD + b"}U\x04data" + POINTERS + b"s.", "has arrays of 'V8'"),
    "heap": (HEAD + b"}U\x04data" + HEAP + b"s.", "has arrays of a compound type"),
    "deep key": (HEAD + DEEP_KEY + b".", "a key is a tuple, not text"),
    "zero strides": (
        HEAD
        + (b"}U\x04datacnumpy\nndarray\n(M\xff\xffM\xff\xff\x86" + dtype_of(b"u1", 1))
        + b"U\x01xK\x00K\x00K\x00\x86tRs.",
        "tries to run code",
    ),
    "heap by ndarray": (
        HEAD + b"}U\x04datacnumpy\nndarray\n(M\xff\xff\x85" + dtype_of(b"u1", 1) + b"tRs.",
        "tries to run code",
    ),
    "deep list": (HEAD + b"}U\x04data" + b"]" * 100_000 + b"a" * 99_999 + b"s.", "nested deeper"),
    "cycle": (HEAD + b"}U\x04data]q\x01h\x01as.", "nested deeper|several times in a list"),
    "laughs": (
        HEAD + b"]q\x01(" + b"K\x01" * 99 + b"e0]q\x02(" + b"h\x01" * 99 + b"e0]q\x03("
        + b"h\x02" * 99 + b"e0}U\x04data](" + b"h\x03" * 99 + b"es.",
        "several times in a list",
    ),
    "long number": (HEAD + b"}U\x04data\x8b\x00\x10\x00\x00" + b"\x7f" * 4096 + b"s.", "64 bits"),
    "integer key": (HEAD + b"}K\x01K\x01s.", "a key is a number, not text"),
    "out of band": (b"\x80\x05}U\x04data\x97s.", "tries to run code"),
    "persistent": (b"}U\x04dataPx\ns.", "tries to run code"),
    "object": (HEAD + b"}U\x04datacnumpy\nndarray\n)\x81s.", "tries to run code"),
    "negative shape": (
        HEAD + b"}U\x04data" + RECONSTRUCT + b"(K\x01(J\xff\xff\xff\xffJ\xff\xff\xff\xfft"
        + dtype_of(b"u1", 1) + b"\x89U\x01xtbs.",
        "shape",
    ),
    "too large a shape": (
        HEAD + b"}U\x04data" + RECONSTRUCT + b"(K\x01(\x8a\x05" + b"\x00" * 4 + b"\x40t"
        + dtype_of(b"u1", 1) + b"\x89U\x01xtbs.",
        "1 byte",
    ),
    "unfinished": (HEAD + b"}U\x04data" + RECONSTRUCT + b"s.", "unfinished"),
}  # fmt: skip

CHILD = """
import sys
import numpy
from distill.data.sources import unpickle
try:
    loaded = unpickle.loads(sys.stdin.buffer.read())
except ValueError as fault:
    print("refused:", fault)
else:
    for value in loaded.values():
        print("read:", numpy.asarray(value).tolist() if not isinstance(value, list) else value)
"""


@pytest.mark.long
@pytest.mark.parametrize("name", CRASHING)
def test_a_pickle_ends_no_process(name: str) -> None:
    """Each ended or blocked the process that read it, so another process does."""
    content, fault = HOSTILE[name]
    done = subprocess.run(
        [sys.executable, "-c", CHILD], input=content, capture_output=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr[-500:]
    assert re.match(rf"refused: .*({fault})", done.stdout.decode())


@pytest.mark.parametrize("name", sorted(HOSTILE.keys() - set(CRASHING)))
def test_a_hostile_pickle_is_refused_in_words(name: str) -> None:
    content, fault = HOSTILE[name]
    with pytest.raises(ValueError, match=fault) as caught:
        unpickle.loads(content)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "content",
    [
        b"}U\x04data\x8e" + (1 << 29).to_bytes(8, "little") + b"abc",
        b"}U\x04data\x96" + (1 << 29).to_bytes(8, "little") + b"abc",
        b"}U\x04data\x8d" + (1 << 29).to_bytes(8, "little") + b"abc",
        b"}U\x04data\x8b" + (1 << 29).to_bytes(4, "little") + b"abc",
        b"}U\x04dataT" + (1 << 29).to_bytes(4, "little") + b"abc",
        b"}r" + (1 << 26).to_bytes(4, "little") + b"U\x04dataPx\n",
    ],
    ids=["bytes", "bytearray", "text", "integer", "string", "memo"],
)
def test_a_declared_size_reserves_no_memory(content: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"truncated|tries to run code|the memo has no"):
            unpickle.loads(content)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


def test_bytes_encoded_twice_are_refused() -> None:
    """Each use of one text would be bytes of its own."""
    text = b"X\x00\x10\x00\x00" + b"a" * 4096 + b"q\x01X\x06\x00\x00\x00latin1q\x020"
    again = b"c_codecs\nencode\n(h\x01h\x02tR"
    content = b"\x80\x02}U\x04data](" + text + b"0" + again * 50 + b"es."
    with pytest.raises(ValueError, match="more bytes than"):
        unpickle.loads(content)


def test_too_many_steps_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpickle, "MOST_STEPS", 1000)
    with pytest.raises(ValueError, match="more than 1,000 steps"):
        unpickle.loads(pickle.dumps({"data": list(range(2000))}))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_numbers_and_text_of_every_protocol(protocol: int) -> None:
    values = {
        "labels": [0, 255, 256, 65_536, -1, 2**40, -(2**40), True, False, None, 0.5],
        "names": ["é", "a\nb", "\\u12", "", "x" * 300, "y" * 70_000],
        "pair": (1, (2, 3), (4, 5, 6), (7, 8, 9, 10), ()),
        "inside": {"a": {"b": "c"}},
    }
    assert unpickle.loads(pickle.dumps(values, protocol)) == values


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("dtype", ["u1", "<i2", ">i4", "<i8", "<f4", "<U3", "S4"])
def test_arrays_of_numbers_and_text(protocol: int, dtype: str) -> None:
    array = np.array([[1, 2, 3], [4, 5, 6]]).astype(dtype)
    for each in (array, np.asfortranarray(array)):
        loaded = unpickle.loads(pickle.dumps({"ids": each, "again": each}, protocol))
        for name in ("ids", "again"):
            found = loaded[name]
            assert isinstance(found, np.ndarray)
            assert (found.dtype, found.shape) == (each.dtype, each.shape)
            assert (found == each).all()


def test_views_across_protocols_keep_their_rows() -> None:
    loaded = unpickle.loads(pickle.dumps({"data": DATA[:, ::-1]}, 5))
    assert isinstance(loaded["data"], np.ndarray)
    assert (loaded["data"] == DATA[:, ::-1]).all()


@pytest.mark.parametrize("values", [[1 + 2j], [True], [object], np.zeros(2, "i4,f4")])
def test_arrays_of_anything_else_are_refused(values: object) -> None:
    with pytest.raises(ValueError, match=r"has arrays of|tries to run code"):
        unpickle.loads(pickle.dumps({"data": np.array(values)}, 2))


U1 = b"cnumpy\ndtype\nU\x02u1\x85R"
STATE = b"(K\x01K\x01\x85" + U1 + b"\x89C\x01xt"  # of an array of one byte
UNFINISHED = b"cnumpy.core.multiarray\n_reconstruct\n)R"


def cpu_seconds(content: bytes, fault: str) -> float:
    start = time.process_time()
    with pytest.raises(ValueError, match=fault):
        unpickle.loads(content)
    return time.process_time() - start


def test_an_array_built_many_times_is_refused() -> None:
    n = 8000  # 64 million slots, 7 s
    content = b"\x80\x02}" + STATE + b"q\x000" + UNFINISHED
    content += b"q\x01" * n + b"h\x01" * n + b"h\x00b0" * n + b"0."
    assert cpu_seconds(content, "has the state of an array twice") < 1


@pytest.mark.parametrize("wrapped", [b"h\x00", b"](h\x00e"], ids=["itself", "in a list"])
def test_one_list_under_many_keys_costs_linear_time(wrapped: bytes) -> None:
    n = 2000  # keys of one list of 2,000 items: 4 million checks, 1 s
    keys = b"".join(b"U\x04" + i.to_bytes(4, "little") + wrapped for i in range(n))
    content = b"\x80\x02}](" + b"N" * n + b"eq\x000(" + keys + b"u."
    start = time.process_time()
    if wrapped == b"h\x00":
        assert unpickle.loads(content)["\1\0\0\0"] == [None] * n
    else:
        with pytest.raises(ValueError, match="has a list several times"):
            unpickle.loads(content)
    assert time.process_time() - start < 0.5


LONG = b"(" + b"N" * 10_000 + b"tq\x000"


@pytest.mark.parametrize(
    "content",
    [
        LONG + U1 + b"h\x00b" * 10_000,
        b"(U\x02u1" + b"N" * 10_000 + b"tq\x000" + b"cnumpy\ndtype\nh\x00R0" * 10_000,
        b"(K\x01U\x01<NNNK\x01" + b"N" * 10_000 + b"tq\x000" + U1 + b"h\x00b" * 10_000,
    ],
    ids=["state", "arguments", "plain state"],
)
def test_a_long_tuple_for_a_type_is_refused(content: bytes) -> None:
    assert cpu_seconds(b"\x80\x02" + content + b"0}.", "compound|damaged") < 0.5


def test_a_long_key_is_refused() -> None:
    text = b"X" + (100_000).to_bytes(4, "little") + b"x" * 100_000  # compared each time
    content = b"\x80\x02" + text + b"q\x000" + text + b"q\x010}h\x00Ns" + b"h\x01Ns" * 100_000
    assert cpu_seconds(content + b".", "a key has 100,000 characters") < 0.5


def test_text_of_all_keys_is_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpickle, "MOST_TEXT", 100)
    text = "x" * 60
    assert unpickle.loads(pickle.dumps({"a": text}))["a"] == text
    with pytest.raises(ValueError, match="has more than 100 characters of text"):
        unpickle.loads(pickle.dumps({"a": text, "b": "y" * 60}))


def test_an_array_memoized_twice_is_one_array() -> None:
    content = b"\x80\x02}U\x01a" + UNFINISHED + b"q\x01q\x02" + STATE + b"bs."
    assert unpickle.loads(content)["a"].tolist() == [120]  # type: ignore[attr-defined]
    both = content[:-1] + b"U\x01b](h\x01h\x02es."
    with pytest.raises(ValueError, match="has an array several times"):
        unpickle.loads(both)
