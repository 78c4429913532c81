"""Read untrusted .npy and .npz files: plain numbers and text, sizes checked before allocation.

This is the only module that converts untrusted bytes to arrays. Only the types in `PLAIN` are
accepted, and a shape must match the number of bytes before memory is reserved. The formats are
numpy's (https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html). A `.npz` is a zip
archive whose arrays are read one at a time, when they are accessed.
"""

import io
import os
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from distill.files.regular_file import InvalidFile, open_regular

# Integers, floats, byte strings and text. No booleans: their bytes may have values besides 0 and 1.
PLAIN = re.compile(r"[<>|=]?([iu][1248]|f[248]|[SU][1-9]\d{0,3})")
DIMENSIONS = 8  # most dimensions of an array
LONGEST_SIDE = 1 << 40  # largest size of a dimension
LARGEST_FILE = 1 << 34  # bytes of a file
LARGEST = 1 << 30  # bytes of a compressed array after unpacking
DEFLATE = 1032  # the largest ratio of unpacked to compressed bytes that deflate can reach
CHUNK = 1 << 20  # bytes of one read, and of a zip archive's list of members
LONGEST_HEADER = 10_000  # bytes, as in numpy
LONGEST_REASON = 100  # characters of a library's message that an error quotes
MAGIC = b"\x93NUMPY"
# The header that numpy writes; under Python 2 it wrote the integer 10 as 10L.
HEADER = re.compile(
    r"\{'descr': (?P<descr>'[^']*'|\[.*\]), 'fortran_order': (?P<fortran>True|False), "
    r"'shape': \((?P<shape>[\dL, ]*)\),? ?\}\s*"
)


class InvalidArray(ValueError):
    """A file that is damaged, of the wrong kind or too large."""


def plain_dtype(name: str) -> np.dtype[Any]:
    """Return the dtype with a name such as `u1` or `<f4`.

    Raises InvalidArray unless it is a type of numbers or text.
    """
    if not PLAIN.fullmatch(name):
        raise InvalidArray(f"has arrays of {name[:20]!r}; only plain numbers and text are read")
    return np.dtype(name)


def check_shape(shape: Sequence[object], dtype: np.dtype[Any], n_bytes: int) -> tuple[int, ...]:
    """Return `shape` as a tuple.

    Raises InvalidArray unless an array of this shape and dtype has exactly `n_bytes` bytes.
    """
    sides = tuple(side for side in shape if type(side) is int and 0 <= side <= LONGEST_SIDE)
    if len(sides) != len(shape) or len(sides) > DIMENSIONS:
        raise InvalidArray(
            f"an array has an invalid shape: {len(shape)} dimensions, or an invalid one"
        )
    if prod(sides) * dtype.itemsize != n_bytes:
        found = "1 byte" if n_bytes == 1 else f"{n_bytes:,} bytes"
        raise InvalidArray(f"an array of {list(sides)} {dtype} has {found}")
    return sides


def from_bytes(
    content: bytes, dtype: np.dtype[Any], shape: Sequence[object], *, fortran: bool
) -> NDArray[Any]:
    """Return the bytes `content` as an array, without a copy; `fortran`: in column-major order.

    Raises InvalidArray unless an array of this shape and dtype has exactly as many bytes, and if it
    has text with characters beyond Unicode.
    """
    sides = check_shape(shape, dtype, len(content))
    flat = np.frombuffer(content, dtype) if content else np.empty(0, dtype)
    _check_text(flat)
    return flat.reshape(sides, order="F" if fortran else "C")


def read_npy(path: Path) -> NDArray[Any]:
    """Read the array in an .npy file.

    Raises InvalidArray if it is damaged or contains Python objects, OSError if it cannot be read.
    """
    try:
        with open_regular(path, LARGEST_FILE) as file:
            return _read_array(file, os.fstat(file.fileno()).st_size)
    except InvalidFile as error:
        raise InvalidArray(str(error)) from None


class Npz(Mapping[str, NDArray[Any]]):
    """A mapping from names to the arrays of an open .npz file; each access reads one array.

    An access raises InvalidArray if the array is damaged, too large or contains Python objects.
    """

    def __init__(self, archive: zipfile.ZipFile, n_bytes: int) -> None:
        self._archive, self._n_bytes = archive, n_bytes
        self._read: dict[str, int] = {}  # unpacked bytes of each array that was read
        members = archive.infolist()
        self._members = {info.filename.removesuffix(".npy"): info for info in members}
        if len(self._members) < len(members):
            raise InvalidArray("two of its arrays have the same name")

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, name: object) -> bool:
        return name in self._members  # without reading the array

    def __getitem__(self, name: str) -> NDArray[Any]:
        member = self._members[name]
        self._check(member)
        with _convert_zip_errors(), self._archive.open(member) as file:
            return _read_array(file, member.file_size)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of an array from its header, without reading its elements.

        Raises InvalidArray as an access does.
        """
        member = self._members[name]
        self._check(member)
        with _convert_zip_errors(), self._archive.open(member) as file:
            return _read_layout(file, member.file_size).shape

    def _check(self, member: zipfile.ZipInfo) -> None:
        """Raise InvalidArray unless the declared sizes of an array are possible and not too large.

        All arrays that were read may have together `LARGEST` bytes, or as many as the file.
        """
        name = f"its member {member.filename[:80]!r}"
        if member.flag_bits & 1 or member.compress_type not in (
            zipfile.ZIP_STORED,
            zipfile.ZIP_DEFLATED,
        ):
            raise InvalidArray(
                f"{name} is encrypted, or compressed by a method that numpy does not use"
            )
        if member.compress_size > self._n_bytes:
            raise InvalidArray(f"{name} is larger than the file")
        if member.file_size > DEFLATE * member.compress_size:
            raise InvalidArray(f"{name} declares {member.file_size:,} bytes, more than it can hold")
        if member.file_size > max(LARGEST, member.compress_size):
            raise InvalidArray(
                f"{name} unpacks to {member.file_size:,} bytes; at most {LARGEST:,} are allowed"
            )
        self._read[member.filename] = member.file_size
        most = max(LARGEST, self._n_bytes)
        if sum(self._read.values()) > most:
            raise InvalidArray(f"its members unpack to more than {most:,} bytes")


@contextmanager
def open_npz(path: Path) -> Iterator[Npz]:
    """Open an .npz file as a mapping of names to arrays.

    Raises InvalidArray if it is damaged or not a regular file, OSError if it cannot be read.
    """
    try:
        with open_regular(path, LARGEST_FILE) as opened:
            file = _LimitedReads(opened.raw)
            with _convert_zip_errors():
                archive = zipfile.ZipFile(file)
            with archive:
                yield Npz(archive, os.fstat(file.fileno()).st_size)
    except InvalidFile as error:
        raise InvalidArray(str(error)) from None


class _LimitedReads(io.BufferedReader):
    """A file that raises InvalidArray if more than CHUNK bytes are read at once.

    This limits the list of an archive's members: zipfile reads all of it in one call.
    """

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            size = os.fstat(self.fileno()).st_size - self.tell()
        if size > CHUNK:
            raise InvalidArray(f"the list of its members has more than {CHUNK:,} bytes")
        return super().read(size)


@contextmanager
def _convert_zip_errors() -> Iterator[None]:
    """Raise InvalidArray instead of zipfile's errors for a damaged archive (BadZipFile, …)."""
    try:
        yield
    except (InvalidArray, OSError):
        raise
    except Exception as error:
        # Shortened: some of zipfile's messages quote up to 64 kB of the file.
        reason = str(error)[:LONGEST_REASON]
        raise InvalidArray(f"is not a valid zip archive ({reason})") from error


class _Layout(NamedTuple):
    """What the header of an .npy file says of its array."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    is_fortran: bool  # in column-major order


def _read_array(file: Any, n_bytes: int) -> NDArray[Any]:
    """Read the array in an open .npy file of `n_bytes` bytes."""
    layout = _read_layout(file, n_bytes)
    array = np.empty(layout.shape, layout.dtype, order="F" if layout.is_fortran else "C")
    _read_elements(file, array)
    _check_text(array)
    return array


def _check_text(array: NDArray[Any]) -> None:
    """Raise InvalidArray if a contiguous array of text has characters beyond Unicode.

    numpy would convert them to invalid strings, which later fail wherever they are used.
    """
    if array.dtype.kind == "U" and array.size:
        codes = array.ravel(order="K").view(f"{array.dtype.byteorder}u4")
        if codes.max() > sys.maxunicode:
            raise InvalidArray("has text with characters beyond Unicode")


def _read_layout(file: Any, n_bytes: int) -> _Layout:
    """Read the header of an open .npy file of `n_bytes` bytes, with which it is compared."""
    header, length = _read_header(file)
    fields = HEADER.fullmatch(header)
    if fields is None:
        raise InvalidArray("its header does not describe a plain array")
    descr = fields["descr"].strip("'")
    if "O" in descr:
        raise InvalidArray(f"contains Python objects ({descr[:20]!r}), which could run code")
    dtype = plain_dtype(descr)
    sides = [int(side.strip(" L")) for side in fields["shape"].split(",") if side.strip(" L")]
    shape = check_shape(sides, dtype, n_bytes - length)
    return _Layout(dtype, shape, fields["fortran"] == "True")


def _read_header(file: BinaryIO) -> tuple[str, int]:
    """Return (text of an .npy file's header, number of bytes before the array's elements)."""
    begin = file.read(8)
    if len(begin) != 8 or begin[:6] != MAGIC or begin[6] not in (1, 2):
        raise InvalidArray("is not an .npy of version 1 or 2, or is truncated")
    width = 2 if begin[6] == 1 else 4
    length = int.from_bytes(file.read(width), "little")
    if length > LONGEST_HEADER:
        raise InvalidArray(f"its header has {length:,} bytes")
    return file.read(length).decode("latin1"), 8 + width + length


def _read_elements(file: BinaryIO, array: NDArray[Any]) -> None:
    """Read the elements of `array` from a file that has them in the array's memory order.

    Raises InvalidArray if the file has fewer or more bytes.
    """
    flat = array.reshape(-1, order="A").view(np.uint8)
    for start in range(0, len(flat), CHUNK):
        part = flat[start : start + CHUNK]
        content = file.read(len(part))
        if len(content) != len(part):
            raise InvalidArray("is truncated")
        part[:] = np.frombuffer(content, np.uint8)
    if file.read(1):  # reading to the end also checks a zip member's checksum
        raise InvalidArray("is longer than its array")
