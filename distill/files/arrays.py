"""Read untrusted .npy and .npz files: plain numbers and text, sizes checked before allocation.

This is the only module that converts untrusted bytes to arrays. Only listed types are accepted; a
shape is compared with the number of bytes before memory is reserved. The formats are those of numpy
(https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html); a `.npz` is a zip archive
whose members are read one at a time, when they are accessed.
"""

import io
import os
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from distill.files.regular_file import InvalidFile, open_regular

# Integers, floats, byte strings and text. No booleans: a byte may be neither 0 nor 1.
PLAIN = re.compile(r"[<>|=]?([iu][1248]|f[248]|[SU][1-9]\d{0,3})")
DIMENSIONS = 8
LONGEST_SIDE = 1 << 40
LARGEST_FILE = 1 << 34  # bytes of a file
LARGEST = 1 << 30  # bytes that a compressed member may become
DEFLATE = 1032  # the largest ratio of unpacked to compressed bytes of deflate
CHUNK = 1 << 20  # bytes of one read, and the most of a zip archive's list of members
LONGEST_HEADER = 10_000  # bytes, as in numpy
LONGEST_REASON = 100  # characters of a library's message
MAGIC = b"\x93NUMPY"
# The dictionary that numpy writes; under Python 2 it wrote integers as 10L.
HEADER = re.compile(
    r"\{'descr': (?P<descr>'[^']*'|\[.*\]), 'fortran_order': (?P<fortran>True|False), "
    r"'shape': \((?P<shape>[\dL, ]*)\),? ?\}\s*"
)


class InvalidArray(ValueError):
    """A file that is damaged, of the wrong kind or too large."""


def plain_dtype(name: str) -> np.dtype[Any]:
    """Return the type named `u1`, `<f4` …. Raises InvalidArray unless it is numbers or text."""
    if not PLAIN.fullmatch(name):
        raise InvalidArray(f"has arrays of {name[:20]!r}; only plain numbers and text are read")
    return np.dtype(name)


def check_shape(shape: Sequence[object], dtype: np.dtype[Any], n_bytes: int) -> tuple[int, ...]:
    """Return `shape`. Raises InvalidArray unless an array of this shape has exactly `n_bytes`."""
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
    """Return `content` as an array, without a copy. Raises InvalidArray if it does not fit."""
    sides = check_shape(shape, dtype, len(content))
    flat = np.frombuffer(content, dtype) if content else np.empty(0, dtype)
    return flat.reshape(sides, order="F" if fortran else "C")


def read_npy(path: Path) -> NDArray[Any]:
    """Read the array in an .npy file.

    Raises InvalidArray if it is damaged or holds objects, OSError if it cannot be read.
    """
    try:
        with open_regular(path, LARGEST_FILE) as file:
            return _npy(file, os.fstat(file.fileno()).st_size)
    except InvalidFile as error:
        raise InvalidArray(str(error)) from None


class Npz(Mapping[str, NDArray[Any]]):
    """The arrays of an open .npz file by name; each access reads one.

    An access raises InvalidArray if the array is damaged, too large or holds objects.
    """

    def __init__(self, archive: zipfile.ZipFile, n_bytes: int) -> None:
        self._archive, self._n_bytes = archive, n_bytes
        self._read: dict[str, int] = {}  # bytes of each array that was read
        self._members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, name: object) -> bool:
        return name in self._members  # without reading the array

    def __getitem__(self, name: str) -> NDArray[Any]:
        member = self._members[name]
        self._check(member)
        with _faults_of_zip(), self._archive.open(member) as file:
            return _npy(file, member.file_size)

    def _check(self, member: zipfile.ZipInfo) -> None:
        """Raise InvalidArray unless a member's sizes are possible and within the bounds."""
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
    """Open an .npz file.

    Raises InvalidArray if it is damaged or not a regular file, OSError if it cannot be read.
    """
    try:
        with open_regular(path, LARGEST_FILE) as opened:
            file = _LimitedReads(opened.raw)
            with _faults_of_zip():
                archive = zipfile.ZipFile(file)
            with archive:
                yield Npz(archive, os.fstat(file.fileno()).st_size)
    except InvalidFile as error:
        raise InvalidArray(str(error)) from None


class _LimitedReads(io.BufferedReader):
    """A file that refuses to read more than CHUNK bytes at once.

    zipfile reads the list of an archive's members in one call, however long it is.
    """

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            size = os.fstat(self.fileno()).st_size - self.tell()
        if size > CHUNK:
            raise InvalidArray(f"the list of its members has more than {CHUNK:,} bytes")
        return super().read(size)


@contextmanager
def _faults_of_zip() -> Iterator[None]:
    """Turn the errors of a damaged zip archive (BadZipFile, zlib.error …) into InvalidArray."""
    try:
        yield
    except (InvalidArray, OSError):
        raise
    except Exception as error:
        # Some messages quote up to 64 kB of the file.
        raise InvalidArray(f"{type(error).__name__}: {str(error)[:LONGEST_REASON]}") from error


def _npy(file: Any, n_bytes: int) -> NDArray[Any]:
    """Read an .npy file of `n_bytes`; its size is checked before memory is reserved."""
    header, length = _header(file)
    fields = HEADER.fullmatch(header)
    if fields is None:
        raise InvalidArray("its header describes no plain array")
    descr = fields["descr"].strip("'")
    if "O" in descr:
        raise InvalidArray(f"holds Python objects ({descr[:20]!r}), which could run code")
    dtype = plain_dtype(descr)
    sides = [int(side.strip(" L")) for side in fields["shape"].split(",") if side.strip(" L")]
    shape = check_shape(sides, dtype, n_bytes - length)
    array = np.empty(shape, dtype, order="F" if fields["fortran"] == "True" else "C")
    _fill(file, array)
    return array


def _header(file: BinaryIO) -> tuple[str, int]:
    """Return an .npy file's header text and the number of bytes before its elements."""
    begin = file.read(8)
    if len(begin) != 8 or begin[:6] != MAGIC or begin[6] not in (1, 2):
        raise InvalidArray("is not an .npy of version 1 or 2, or is truncated")
    width = 2 if begin[6] == 1 else 4
    length = int.from_bytes(file.read(width), "little")
    if length > LONGEST_HEADER:
        raise InvalidArray(f"its header has {length:,} bytes")
    return file.read(length).decode("latin1"), 8 + width + length


def _fill(file: BinaryIO, array: NDArray[Any]) -> None:
    """Fill `array` with the elements in a file, in its memory order."""
    flat = array.reshape(-1, order="A").view(np.uint8)
    for start in range(0, len(flat), CHUNK):
        part = flat[start : start + CHUNK]
        content = file.read(len(part))
        if len(content) != len(part):
            raise InvalidArray("is truncated")
        part[:] = np.frombuffer(content, np.uint8)
    if file.read(1):  # a zip member's checksum is compared at its end
        raise InvalidArray("is longer than its array")
