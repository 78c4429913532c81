"""What a batch may be pickled as, and what it may not."""

import os
import pickle
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from distill.data import unpickle

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
    with pytest.raises(ValueError, match=rf"wants to run code \(.*{name}\)"):
        unpickle.loads(content)
    assert not mark.exists()


def test_a_dotted_name_does_not_lead_out_of_numpy() -> None:
    content = b"\x80\x04\x8c\x05numpy\x8c\x0dndarray.dumps\x93."
    with pytest.raises(ValueError, match=r"wants to run code \(numpy.ndarray.dumps\)"):
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
    with pytest.raises(ValueError, match="holds a list, not a dictionary"):
        unpickle.loads(pickle.dumps([1, 2]))
