"""Read the files of torch.save as tensors in plain containers, without running code.

`torch.load(weights_only=True)` imports nothing either, but it believes a file: it allocates what a
storage declares, takes a record for as long as the pickle says, unpacks compressed records, copies
a list as often as the pickle asks, and allocates uninitialised tensors of any size. Here memory
and time are linear in the file's size: every storage is compared with the bytes of the file before
it is allocated, and the pickle is executed by `distill/files/pickle_machine.py`. A tensor may be an
expanded view: whoever uses it compares its shape first.

Both layouts are read: the zip archive that torch.save writes today, whose records are uncompressed,
and that of torch before 1.6, a sequence of pickles followed by the storages
(https://github.com/pytorch/pytorch/blob/main/torch/serialization.py).
"""

import io
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from distill.files.pickle_machine import InvalidPickle, Machine, RunsCode, name_text
from distill.models import out_of_memory

__all__ = ["InvalidTorchFile", "RunsCode", "loads"]

MOST_STEPS = 500_000  # instructions of a pickle; a tensor in a state dict takes about 25
LARGEST_PICKLE = 8 << 20  # bytes of the pickle in an archive
LARGEST_LIST = 4 << 20  # bytes of the list of an archive's records: about 50,000 records
DIMENSIONS = 8  # most dimensions of a tensor
LONGEST_SIDE = 1 << 48  # largest size, stride or offset
# How a file of torch before 1.6 begins: two pickles, a magic number and the number 1001.
LEGACY = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e") + bytes.fromhex("80024de9032e")
ZIP = b"PK"
LONGEST_DEVICE = 40  # characters of the name of a device
STORAGES = {
    "FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool, "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}  # fmt: skip
DTYPES = {str(dtype): dtype for dtype in STORAGES.values()}
NOT_WRITTEN = "is not what torch.save writes"


class InvalidTorchFile(ValueError):
    """A file that torch.save did not write, or that exceeds a bound. The message has no subject."""


@dataclass
class _Function:
    """Placeholder for a function that torch's pickles call by name; it is never imported."""

    call: Callable[..., Any]


@dataclass(frozen=True)
class _Pairs:
    """Keys and values of a dictionary, alternating."""

    flat: list[Any]


@dataclass(frozen=True)
class _StorageType:
    """Placeholder for a storage class of torch."""

    dtype: torch.dtype


_ENCODE = _Function(lambda content, codec: None)
_Storages = Callable[[torch.dtype, str, int], Tensor]  # (dtype, key, elements) -> [elements]


def loads(content: bytes) -> Any:
    """Return what torch.save wrote: tensors on the CPU in dictionaries, lists and tuples.

    An OrderedDict and a Counter are returned as dict, a set as list, a device as text. Tensors that
    share a storage still do; none shares the memory of `content`. Raises RunsCode if the pickle
    calls anything else than what makes tensors, InvalidTorchFile if the file is damaged or exceeds
    a bound, RuntimeError if its tensors do not fit into memory.
    """
    try:
        if content.startswith(ZIP):
            return _load_archive(content)
        if content.startswith(LEGACY):
            return _load_legacy(content)
    except (RunsCode, InvalidTorchFile):
        raise
    except InvalidPickle as fault:
        raise InvalidTorchFile(f"cannot be unpickled ({fault})") from fault
    except Exception as fault:  # damaged archives and pickles fail in many ways
        if out_of_memory.is_out_of_memory(fault):
            raise
        raise InvalidTorchFile(NOT_WRITTEN) from fault
    raise InvalidTorchFile(NOT_WRITTEN)


class _Tensors:
    """Makes tensors for the functions that torch's pickles call."""

    def __init__(self, storages: _Storages) -> None:
        self.storages = storages
        self.n_copied = 0  # items that `copied` has returned
        self.functions = {
            "torch._utils._rebuild_tensor_v2": _Function(_tensor),
            "torch._utils._rebuild_tensor": _Function(_tensor),
            "torch._utils._rebuild_parameter": _Function(lambda tensor, *_: tensor),
            "collections.OrderedDict": _Function(self.pairs),
            "collections.Counter": _Function(self.pairs),
            "builtins.set": _Function(self.copied),
            "__builtin__.set": _Function(self.copied),
            "torch.Size": _Function(lambda sides: tuple(self.copied(sides))),
            "torch.device": _Function(_device),
        }

    def look_up(self, module: str, name: str) -> Any:
        full_name = f"{module}.{name}"
        if module in ("torch", "torch.cuda") and name in STORAGES:
            return _StorageType(STORAGES[name])
        if full_name in DTYPES:
            return DTYPES[full_name]
        if full_name == "_codecs.encode":
            return _ENCODE
        if full_name not in self.functions:
            raise RunsCode(full_name)
        return self.functions[full_name]

    def call(self, machine: Machine, function: Any, arguments: Any) -> Any:
        if not isinstance(function, _Function):
            raise RunsCode("a call of a value")
        made = (machine.encode if function is _ENCODE else function.call)(*arguments)
        return machine.pairs(made.flat) if isinstance(made, _Pairs) else made

    def with_state(self, target: Any, state: Any) -> Any:
        """Ignore the state of a dictionary: the versions of the modules in a state dict."""
        if not isinstance(target, dict):
            raise RunsCode("the state of an object")
        return target

    def outside(self, identifier: Any) -> Tensor:
        kind, storage_type, key, _location, numel, *view = identifier
        if name_text(kind) != "storage" or not isinstance(storage_type, _StorageType):
            raise RunsCode("instruction BINPERSID")
        if type(numel) is not int or numel < 0 or view not in ([], [None]):
            raise InvalidTorchFile(NOT_WRITTEN)
        return self.storages(storage_type.dtype, name_text(key), numel)

    def copied(self, items: Any = ()) -> list[Any]:
        """Return a copy of a list; the copies of a pickle have at most MOST_STEPS items in all."""
        self.n_copied += len(items)
        if self.n_copied > MOST_STEPS:
            raise InvalidTorchFile(f"copies more items than {MOST_STEPS:,}")
        return list(items)

    def pairs(self, items: Any = ()) -> "_Pairs":
        """Return the content of a dictionary: another one, or pairs as Python 2 writes them."""
        pairs = self.copied(items.items() if isinstance(items, dict) else items)
        return _Pairs([part for key, value in pairs for part in (key, value)])


def _machine(content: bytes, storages: _Storages, at: int = 0) -> Machine:
    """Return the machine that executes a pickle of torch."""
    key_types = (str, bytes, int)  # an optimizer numbers its parameters
    return Machine(content, _Tensors(storages), at=at, most_steps=MOST_STEPS, key_types=key_types)


def _device(*parts: Any) -> str:
    """Return a device as text: `cpu`, `cuda:0`.

    Types are checked first: the text of lists that share others may be exponentially longer than
    the file.
    """
    for part in parts:
        is_short = isinstance(part, str) and len(part) <= LONGEST_DEVICE
        if len(parts) > 2 or not (is_short or isinstance(part, int)):
            raise InvalidTorchFile("has a device that is no text or number")
    return ":".join(map(str, parts))


def _tensor(storage: Tensor, offset: int, shape: Any, strides: Any, *_: Any) -> Tensor:
    """Return a view of a storage, [elements].

    Its shape may be larger than the storage, since a stride of 0 repeats elements without memory.
    Raises InvalidTorchFile unless all of its elements are in the storage.
    """
    numbers = (offset, *shape, *strides)
    is_valid = all(type(number) is int and 0 <= number <= LONGEST_SIDE for number in numbers)
    if not is_valid or len(shape) != len(strides) or len(shape) > DIMENSIONS:
        raise InvalidTorchFile("has a tensor with an invalid shape")
    n = prod(shape)
    last = offset + sum((side - 1) * stride for side, stride in zip(shape, strides, strict=True))
    if n and last >= storage.numel():
        raise InvalidTorchFile("has a tensor that extends outside its storage")
    if not n:
        return torch.empty(0, dtype=storage.dtype).as_strided(shape, strides)
    return storage.as_strided(shape, strides, offset)


def _elements(raw: memoryview, dtype: torch.dtype) -> Tensor:
    """Return a copy of bytes as elements, [n]."""
    if not len(raw):
        return torch.empty(0, dtype=dtype)
    elements = torch.empty(len(raw) // dtype.itemsize, dtype=dtype)
    elements.view(torch.uint8).numpy()[:] = raw
    return elements


class _LimitedList(io.BytesIO):
    """A file in memory that raises InvalidTorchFile if more than LARGEST_LIST bytes are read.

    This limits the list of an archive's records: zipfile reads all of it in one call.
    """

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            size = len(self.getbuffer()) - self.tell()
        if size > LARGEST_LIST:
            raise InvalidTorchFile(f"has a list of its records of more than {LARGEST_LIST:,} bytes")
        return super().read(size)


def _load_archive(content: bytes) -> Any:
    with zipfile.ZipFile(_LimitedList(content)) as archive:
        records = {each.filename: each for each in archive.infolist()}
        if len(records) < len(archive.infolist()):
            raise InvalidTorchFile("has two records of one name")
    _check_records(records, len(content))
    prefix = next((name[:-8] for name in records if name.endswith("/data.pkl")), None)
    if prefix is None:
        raise InvalidTorchFile(NOT_WRITTEN)
    order = records.get(f"{prefix}byteorder")
    if order is not None and bytes(_record(content, order)) != b"little":
        raise InvalidTorchFile("has numbers in big-endian byte order")
    pickled = records[f"{prefix}data.pkl"]
    if pickled.file_size > LARGEST_PICKLE:
        raise InvalidTorchFile(f"describes its tensors in more than {LARGEST_PICKLE:,} bytes")
    storages = _StoragesOfArchive(content, records, f"{prefix}data/")
    return _machine(bytes(_record(content, pickled)), storages).run()


def _check_records(records: Mapping[str, zipfile.ZipInfo], n_bytes: int) -> None:
    """Raise InvalidTorchFile unless records are uncompressed and together fit into the file."""
    for record in records.values():
        if record.compress_type != zipfile.ZIP_STORED or record.flag_bits & 1:
            raise InvalidTorchFile("has compressed records")
        if record.file_size != record.compress_size:
            raise InvalidTorchFile(NOT_WRITTEN)
    if sum(record.file_size for record in records.values()) > n_bytes:
        raise InvalidTorchFile("has records that are larger than the file")


def _record(content: bytes, record: zipfile.ZipInfo) -> memoryview:
    """Return the bytes of an uncompressed record of an archive, without a copy."""
    header = record.header_offset
    names = sum(struct.unpack_from("<HH", content, header + 26))  # bytes of its name and extra
    start = header + 30 + names
    if header < 0 or start + record.file_size > len(content):
        raise InvalidTorchFile(NOT_WRITTEN)
    return memoryview(content)[start : start + record.file_size]


class _StoragesOfArchive:
    """Reads each storage of an archive once, when a tensor first refers to it."""

    def __init__(self, content: bytes, records: Mapping[str, zipfile.ZipInfo], folder: str) -> None:
        self.content, self.records, self.folder = content, records, folder
        self.read: dict[tuple[str, torch.dtype], Tensor] = {}

    def __call__(self, dtype: torch.dtype, key: str, numel: int) -> Tensor:
        record = self.records.get(self.folder + key)
        if record is None:
            raise InvalidTorchFile("has no record for one of its storages")
        if record.file_size != numel * dtype.itemsize:
            raise InvalidTorchFile(
                f"declares {numel * dtype.itemsize:,} bytes for a storage that has "
                f"{record.file_size:,}"
            )
        if (key, dtype) not in self.read:
            self.read[key, dtype] = _elements(_record(self.content, record), dtype)
        return self.read[key, dtype]


def _load_legacy(content: bytes) -> Any:
    """Read a file of torch before 1.6.

    After its head and the system's properties come the pickle of the content, the list of the
    storages' keys, and for each key the number of its elements, 8 bytes, and the elements.
    """
    system = _machine(content, _no_storages, len(LEGACY))
    system.run()
    storages = _StoragesOfLegacyFile(len(content))
    machine = _machine(content, storages, system.at)
    loaded = machine.run()
    listed = _machine(content, _no_storages, machine.at)
    keys = [name_text(key) for key in listed.run()]
    for key in keys:
        n = listed.number(8)
        storage = storages.allocated[key]
        if n != storage.numel():
            raise InvalidTorchFile(f"has {n:,} elements instead of {storage.numel():,}")
        listed.fits(storage.nbytes)
        raw = memoryview(content)[listed.at : listed.at + storage.nbytes]
        storage.copy_(_elements(raw, storage.dtype))
        listed.at += storage.nbytes
    if storages.allocated.keys() - set(keys):
        raise InvalidTorchFile("has no content for one of its storages")
    return loaded


def _no_storages(dtype: torch.dtype, key: str, numel: int) -> Tensor:
    raise InvalidTorchFile(NOT_WRITTEN)


class _StoragesOfLegacyFile:
    """Allocates each storage when a tensor first refers to it; it is filled later.

    All of them together have at most as many bytes as the file.
    """

    def __init__(self, n_bytes: int) -> None:
        self.n_left = n_bytes
        self.allocated: dict[str, Tensor] = {}

    def __call__(self, dtype: torch.dtype, key: str, numel: int) -> Tensor:
        storage = self.allocated.get(key)
        if storage is None:
            n_bytes = numel * dtype.itemsize
            if n_bytes > self.n_left:
                raise InvalidTorchFile(f"declares {numel:,} elements, more than it can hold")
            self.n_left -= n_bytes
            storage = self.allocated[key] = torch.zeros(numel, dtype=dtype)
        if storage.dtype != dtype or storage.numel() != numel:
            raise InvalidTorchFile("has one storage with two sizes or types")
        return storage
