"""Files of torch.save: read as torch.load reads them, or refused before they take memory."""

import io
import pickle
import struct
import time
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distill.models import torch_files
from distill.models.torch_files import InvalidTorchFile, RunsCode
from tests.models.test_checkpoint import archive, call_of

MOST_BYTES = 400 << 20  # of memory, for reading or refusing a file
MOST_SECONDS = 10
STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
HUGE = b"\x8a\x06" + (10**12).to_bytes(6, "little")  # the number 10**12


def saved(content: object, *, legacy: bool = False) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def network_and_optimizer() -> dict[str, Any]:
    """The state dicts of a network and an optimizer, after a step."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.rand(2, 3, 4, 4)).sum().backward()
    optimizer.step()
    return {"model": network.state_dict(), "optimizer": optimizer.state_dict()}


BASE = torch.arange(24.0)
CONTENTS: dict[str, Callable[[], Any]] = {
    "network and optimizer": network_and_optimizer,
    "channels last": lambda: {"a": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last)},
    "views of one storage": lambda: {"a": BASE[2:8].view(2, 3), "b": BASE[::2], "c": BASE},
    "types": lambda: {
        name: torch.ones(3).to(getattr(torch, name))
        for name in ("float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8",
                     "bool", "complex64")
    },
    "no elements": lambda: {"a": torch.empty(0), "b": torch.empty(3, 0, 2)},
    "a number": lambda: {"a": torch.tensor(3.5), "b": 7, "c": True, "d": None, "e": 1e-9},
    "parameters": lambda: {"a": nn.Parameter(torch.rand(2, 2)), "n": torch.Size([1, 2])},
    "a scheduler's state": lambda: {"milestones": Counter({30: 1, 60: 1}), "ids": {3}},
    "an ordered dictionary": lambda: OrderedDict(a=torch.zeros(2), b=[1, (2, "x")]),
    "types by name": lambda: {"dtype": torch.float16, "device": torch.device("cpu")},
}  # fmt: skip


def assert_equal(found: Any, expected: Any) -> None:
    if isinstance(expected, Tensor):
        assert isinstance(found, Tensor) and found.dtype == expected.dtype
        assert found.shape == expected.shape and found.stride() == expected.stride()
        assert torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert [*found] == [*expected]
        for key in expected:
            assert_equal(found[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for pair in zip(found, expected, strict=True):
            assert_equal(*pair)
    elif isinstance(expected, set):
        assert set(found) == expected
    elif isinstance(expected, torch.device):
        assert found == str(expected)
    else:
        assert found == expected


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", CONTENTS)
def test_content_is_that_of_torch_load(name: str, legacy: bool) -> None:
    content = saved(CONTENTS[name](), legacy=legacy)
    expected = torch.load(io.BytesIO(content), weights_only=True)
    assert_equal(torch_files.loads(content), expected)


def test_loaded_tensors_do_not_share_the_files_memory() -> None:
    content = saved({"a": torch.zeros(1000)})
    torch_files.loads(content)["a"].fill_(1)
    assert not torch_files.loads(content)["a"].any()


def tensor(size: bytes, stride: bytes, numel: bytes = b"K\x04", offset: bytes = b"K\x00") -> bytes:
    """A pickle of one tensor of a storage; the arguments are pickle instructions."""
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n("
    ordered = b"ccollections\nOrderedDict\n)R"
    storage = STORAGE + numel + b"tQ"
    return b"\x80\x02}X\x01\x00\x00\x00a" + rebuild + storage + offset + size + stride + (
        b"\x89" + ordered + b"tRs."
    )  # fmt: skip


def with_storage(pickled: bytes, n: int = 4) -> bytes:
    return archive(pickled, **{"0": bytes(4 * n)})


# Numbers that begin at the same place of a dictionary of up to 2**40 places.
COLLIDING = [number << 40 for number in range(1, 100_000)]


def colliding(start: bytes, pair: bytes, end: bytes) -> bytes:
    pairs = (pair % struct.pack("<q", number) for number in COLLIDING)
    return b"\x80\x02" + start + b"".join(pairs) + end


def many_keys() -> bytes:
    names = b"".join(b"X\x07\x00\x00\x00%07dK\x00" % n for n in range(1_000_000))
    return b"\x80\x02}(" + names + b"u."


def legacy(pickled: bytes, keys: object = ("0",), storages: bytes = b"") -> bytes:
    head = saved({}, legacy=True)
    head = head[: head.rindex(b"\x80\x02}")]
    return head + pickled + pickle.dumps([*keys], 2) + storages


def overlapping(n: int) -> bytes:
    """An archive whose list of members names the same bytes `n` times."""
    content = archive(b"\x80\x02}.", **{"0": bytes(1 << 20)})
    start = struct.unpack_from("<I", content, len(content) - 6)[0]
    last = content.rindex(b"PK\x01\x02")
    entry, end = content[last:-22], content[-22:]
    entries = b"".join(entry.replace(b"data/0", b"dat%03d" % k) for k in range(n))
    listed = content[start:last] + entries
    sizes = struct.pack("<HHII", 3 + n, 3 + n, len(listed), start)
    return content[:start] + listed + end[:8] + sizes + b"\0\0"


def deflated(n_bytes: int) -> bytes:
    """An archive whose pickle is compressed and unpacks to `n_bytes`."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as members:
        members.writestr("archive/data.pkl", bytes(n_bytes))
    return file.getvalue()


# A list of 40 levels that has the list below it twice: its text has 2**40 parts.
SHARED_LISTS = b"]" + b"".join(b"q%c0(h%ch%cl" % (n, n, n) for n in range(40))
ONE, NO_STEP = b"(K\x04t", b"(K\x00t"
MANY = b"(" + HUGE + b"t"
BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "compressed": (lambda: deflated(1 << 26), "has compressed records"),
    "overlapping": (lambda: overlapping(500), "not what torch.save writes|larger than the file"),
    "many members": (
        lambda: archive(b"\x80\x02}.", **{str(n): b"" for n in range(100_000)}),
        "list of its records",
    ),
    "encrypted": (
        lambda: with_storage(b"\x80\x02}.").replace(b"PK\x01\x02\x14\x03\x14\x00\x00\x00",
                                                   b"PK\x01\x02\x14\x03\x14\x00\x01\x00"),
        "not what torch.save writes|compressed",
    ),
    "storage larger than its record": (
        lambda: with_storage(tensor(ONE, b"(K\x01t", HUGE)), "declares 4,000,000,000,000 bytes",
    ),
    "storage without record": (lambda: archive(tensor(ONE, b"(K\x01t")), "has no record"),
    "zero stride": (lambda: with_storage(tensor(MANY, NO_STEP)), ""),
    "enormous shape": (lambda: with_storage(tensor(MANY, b"(K\x01t")), "outside its storage"),
    "large stride": (lambda: with_storage(tensor(ONE, MANY)), "outside its storage"),
    "large offset": (
        lambda: with_storage(tensor(ONE, b"(K\x01t", offset=HUGE)), "outside its storage",
    ),
    "negative offset": (
        lambda: with_storage(tensor(ONE, b"(K\x01t", offset=b"J\xff\xff\xff\xff")), "shape",
    ),
    "negative stride": (lambda: with_storage(tensor(ONE, b"(J\xff\xff\xff\xfft")), "shape"),
    "many dimensions": (
        lambda: with_storage(tensor(b"(" + b"K\x01" * 60 + b"t", b"(" + b"K\x01" * 60 + b"t")),
        "shape",
    ),
    "shape of text": (lambda: with_storage(tensor(b"(X\x01\x00\x00\x00at", b"(K\x01t")), "shape"),
    "million keys": (lambda: archive(many_keys()), "describes its tensors in more than"),
    "million empty lists": (lambda: archive(b"\x80\x02](" + b"]" * 600_000 + b"e."), "steps"),
    "long copy": (
        lambda: archive(b"\x80\x02]q\x00(" + b"K\x01" * 100_000 + b"e0]("
                        + b"cbuiltins\nset\nh\x00\x85R" * 10_000 + b"e."),
        "more items than",
    ),
    "huge integer": (lambda: archive(b"\x80\x02\x8b\xff\xff\x00\x00" + b"\x7f" * 65535 + b"."),
                     "64 bits"),
    "announced text": (lambda: archive(b"\x80\x02X\xff\xff\xff\x7fabc."), "bytes are declared"),
    "key of the memo": (
        lambda: archive(b"\x80\x02]r\xff\xff\xff\x7f0N."), "the memo has no place 2,147,483,647",
    ),
    "numbers of equal hash": (lambda: archive(colliding(b"}(", b"\x8a\x08%sN", b"u.")),
                              "a key is the number"),
    "negative key": (lambda: archive(b"\x80\x02}J\xff\xff\xff\xffNs."), "a key is the number -1;"),
    "memo of equal hash": (lambda: archive(b"\x80\x02N" + b"".join(
        b"p%d\n" % number for number in COLLIDING) + b"."), "the memo has no place"),
    "not a dictionary's key": (lambda: archive(b"\x80\x02})K\x01s."), "a key is a tuple"),
    "cut": (lambda: saved({"a": torch.ones(100)})[:300], "not what torch.save writes"),
    "legacy storage": (lambda: legacy(legacy_tensor(HUGE), ["0"], bytes(24)), "more than it can"),
    "legacy storage of another size": (
        lambda: legacy(legacy_tensor(b"K\x04"), ["0"], (9).to_bytes(8, "little") + bytes(36)),
        "has 9 elements instead of 4",
    ),
    "legacy storage never read": (lambda: legacy(legacy_tensor(b"K\x04"), []), "has no content"),
    "legacy key of a list": (lambda: legacy(legacy_tensor(b"K\x04"), [[1]]), "damaged"),
    "legacy long key": (lambda: legacy(repeated_storage(b"A" * 1_000_000, 100_000)), "a name has"),
    "legacy cut": (lambda: saved({"a": torch.ones(99)}, legacy=True)[:-50], "are left"),
    "shared lists in a device": (
        lambda: archive(b"\x80\x02" + SHARED_LISTS + b"q\x00ctorch\ndevice\n(h\x00tR."),
        "has a device that is no text or number",
    ),
    "long text in devices": (
        lambda: archive(b"\x80\x02]q\x00(X\x00\x00\x01\x00" + b"a" * (1 << 16) + b"q\x01"
                        + b"ctorch\ndevice\nq\x02" + b"h\x02h\x01\x85R" * 50_000 + b"e."),
        "has a device that is no text or number",
    ),
    "shared lists as the kind of storage": (
        lambda: archive(b"\x80\x02" + SHARED_LISTS + b"q\x00(h\x00ctorch\nFloatStorage\n"
                        + b"U\x010U\x03cpuK\x01tQ."),
        "something else instead of a name",
    ),
    "legacy of nothing": (lambda: b"\x80\x02}.", "not what torch.save writes"),
    "empty": (lambda: b"", "not what torch.save writes"),
}  # fmt: skip


def repeated_storage(key: bytes, n: int) -> bytes:
    """A pickle that refers n times to one identifier of a storage."""
    written = b"T" + len(key).to_bytes(4, "little") + key
    names = b"X\x07\0\0\0storagectorch\nFloatStorage\n", b"X\x03\0\0\0cpuK\0N"
    return b"\x80\x02(" + names[0] + written + names[1] + b"tq\x01Q0" + b"h\x01Q0" * n + b"}."


def legacy_tensor(numel: bytes) -> bytes:
    return tensor(ONE, b"(K\x01t", numel + b"N")


def peak_rss() -> int:
    """Peak of this process's resident memory since the last reset, in bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux measures peaks")
@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.long
def test_file_that_takes_memory_is_refused(name: str) -> None:
    make, fault = BOMBS[name]
    content = make()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before, start = peak_rss(), time.process_time()
    if fault:
        with pytest.raises(InvalidTorchFile, match=fault) as caught:
            torch_files.loads(content)
        assert len(str(caught.value)) < 200
    else:
        torch_files.loads(content)
    assert time.process_time() - start < MOST_SECONDS
    assert peak_rss() - before < MOST_BYTES


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"), ("builtins", "eval"), ("builtins", "bytearray"), ("torch", "FloatTensor"),
        ("torch", "load"), ("torch.hub", "load"), ("__builtin__", "bytearray"),
        ("torch._utils", "_rebuild_wrapper_subclass"), ("torch._utils", "_rebuild_sparse_tensor"),
        ("torch._utils", "_rebuild_meta_tensor_no_storage"), ("torch._utils", "_rebuild_qtensor"),
        ("collections", "OrderedDict.fromkeys"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("pack", [archive, legacy], ids=["zip", "legacy"])
def test_function_is_named_and_not_called(
    module: str, name: str, pack: Callable[[bytes], bytes]
) -> None:
    with pytest.raises(RunsCode) as caught:
        torch_files.loads(pack(call_of(module, name)))
    assert caught.value.name == f"{module}.{name}"


def test_name_of_function_is_escaped() -> None:
    with pytest.raises(RunsCode) as caught:
        torch_files.loads(archive(b"\x80\x02ca\x1b[31m\nb\n)R."))
    assert caught.value.name == r"a\x1b[31m.b"
