"""Read regular files only, up to a maximum size.

Opening a pipe without a writer would wait for ever, and a device such as /dev/zero has no end. Type
and size are checked on the open file, so that the file cannot be swapped between check and read.
"""

import hashlib
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class InvalidFile(ValueError):
    """The file is not regular, larger than allowed, or does not fit into memory."""


@contextmanager
def open_regular(path: Path, largest: int) -> Iterator[io.BufferedReader]:
    """Open a file for reading.

    Raises InvalidFile if it is a pipe or a device, or has more than `largest` bytes; OSError if it
    cannot be opened.
    """
    with open(path, "rb", opener=_open_without_waiting) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise InvalidFile("it is not a regular file")
        if status.st_size > largest:
            raise _too_large(largest)
        yield file


def content_of(path: Path, largest: int) -> bytes:
    """Return the content of a regular file.

    Raises InvalidFile if it is a pipe or a device, has more than `largest` bytes or does not fit
    into memory; OSError if it cannot be read.
    """
    with open_regular(path, largest) as file:
        n_bytes = os.fstat(file.fileno()).st_size
        try:
            content = file.read(n_bytes + 1)
        except MemoryError:
            raise InvalidFile(f"its {n_bytes:,} bytes do not fit into memory") from None
    if len(content) > largest:
        raise _too_large(largest)
    return content


def sha256_of(path: Path, largest: int) -> str:
    """Return the hex sha256 of a regular file, which is not held in memory.

    Raises InvalidFile if it is a pipe or a device, or has more than `largest` bytes; OSError if it
    cannot be read.
    """
    with open_regular(path, largest) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _too_large(largest: int) -> InvalidFile:
    return InvalidFile(f"it has more than {largest:,} bytes")


def _open_without_waiting(path: str, flags: int) -> int:
    """Open a file with O_NONBLOCK, since opening a pipe without a writer would block."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
