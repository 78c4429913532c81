"""Read regular files only, within a bound of bytes.

Opening a pipe without a writer waits for ever, and a device such as /dev/zero has no end. The type
and the size are those of the opened file, so that it cannot be exchanged after the check.
"""

import hashlib
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class InvalidFile(ValueError):
    """A file that is not regular, or has more bytes than are allowed or fit into memory."""


@contextmanager
def open_regular(path: Path, largest: int) -> Iterator[io.BufferedReader]:
    """Open a file for reading. Raises InvalidFile if it is a pipe or a device or has more than
    `largest` bytes; OSError.
    """
    with open(path, "rb", opener=_without_waiting) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise InvalidFile("it is not a regular file")
        if status.st_size > largest:
            raise _too_large(largest)
        yield file


def content_of(path: Path, largest: int) -> bytes:
    """Read a file. Raises InvalidFile also if it does not fit into memory; OSError."""
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
    """Return the hex sha256 of a file without holding it in memory. Raises as `open_regular`."""
    with open_regular(path, largest) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _too_large(largest: int) -> InvalidFile:
    return InvalidFile(f"it has more than {largest:,} bytes")


def _without_waiting(path: str, flags: int) -> int:
    """Open with O_NONBLOCK: opening a pipe that has no writer would block."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
