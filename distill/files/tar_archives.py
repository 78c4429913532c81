"""Read untrusted tar archives with limits on their size and their members.

Nothing is extracted to disk: a member is a name and its bytes. The archive is read once, from the
first byte to the last, so that a compressed archive is unpacked only once and its checksum is
compared. The headers of ustar, GNU tar (long names) and pax (`path` and `size`) are understood;
sparse members, links and devices are refused
(https://pubs.opengroup.org/onlinepubs/9699919799/utilities/pax.html).

Limits:

- `LARGEST` bytes and `MEMBERS` members in the unpacked archive
- `EXTENSIONS` extension headers of `LARGEST_HEADER` bytes each before a member
- `HELD` bytes of members in memory, or `RATIO` times the size of the file, whichever is larger
  (images hardly compress)

At most `CHUNK` bytes are read at once, so that a large declared size reserves no memory.
"""

import bz2
import gzip
import lzma
import os
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from distill.files import regular_file
from distill.files.regular_file import InvalidFile, open_regular
from distill.files.untrusted_arrays import CHUNK, LARGEST, InvalidArray

__all__ = ["LARGEST", "InvalidArray", "Member", "Tar", "content_of", "open_tar"]

BLOCK = tarfile.BLOCKSIZE
MEMBERS = 10_000
EXTENSIONS = 8  # pax headers and long names of one member
LARGEST_HEADER = 1 << 20  # bytes of one header; macOS writes file attributes there
HELD = 256 << 20  # bytes of members in memory; CIFAR-10 has 185,000,000
RATIO = 20  # bytes of members in memory per byte of the file
LONGEST_NAME = 80  # characters of a member's name in a message
DIGITS = 12  # most digits of a pax record's length or of a member's size
LONG_NAME, LONG_LINK = tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK
PAX, PAX_GLOBAL = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE), tarfile.XGLTYPE
FAULTS = (
    OSError, EOFError, MemoryError, zlib.error, lzma.LZMAError, tarfile.TarError, UnicodeError,
)  # fmt: skip


@dataclass(frozen=True)
class Member:
    """A file or a folder in an archive."""

    name: str
    size: int  # bytes; 0 for a folder
    is_file: bool

    @property
    def path(self) -> PurePosixPath:
        return PurePosixPath(self.name)


def content_of(path: Path, most: int = LARGEST) -> bytes:
    """Return the content of a regular file.

    Raises InvalidArray if it is a pipe or a device or has more than `most` bytes, OSError if it
    cannot be read.
    """
    try:
        return regular_file.content_of(path, most)
    except InvalidFile as error:
        raise InvalidArray(str(error)) from None


@contextmanager
def open_tar(path: Path) -> Iterator["Tar"]:
    """Open a tar archive: uncompressed, or compressed with gzip, bzip2 or xz.

    Raises InvalidArray, on opening or while members are read, if it is damaged or exceeds a limit.
    """
    try:
        with open_regular(path, LARGEST) as file, _decompressed(file) as stream:
            yield Tar(stream, os.fstat(file.fileno()).st_size)
    except (InvalidFile, *FAULTS) as error:
        raise InvalidArray(str(error) or type(error).__name__) from error


class Tar:
    """Iterates over the members of an archive.

    `read` returns the content of the member yielded last; that of earlier members is gone.
    """

    def __init__(self, stream: BinaryIO, n_bytes: int) -> None:
        self._stream, self._n_bytes = stream, n_bytes
        self._n_read = 0  # unpacked bytes
        self._n_held = 0  # bytes that `read` has returned
        self._left = 0  # unread bytes of the member yielded last
        self._padding = 0  # zeros after the member yielded last

    def __iter__(self) -> Iterator[Member]:
        """Yield every member; then read the rest of the file to compare its checksum."""
        for _ in range(MEMBERS):
            member = self._next_member()
            if member is None:
                self._read_to_end()
                return
            yield member
        raise InvalidArray(f"has more than {MEMBERS:,} members")

    def read(self) -> bytes:
        """Return the content of the member yielded last; may be called once per member.

        Raises InvalidArray if the members read so far would exceed the memory limit.
        """
        n, self._left = self._left, 0
        self._n_held += n
        if self._n_held > max(HELD, RATIO * self._n_bytes):
            raise InvalidArray(
                f"needs {self._n_held:,} bytes of memory, more than {RATIO} times its own "
                f"{self._n_bytes:,}"
            )
        return self._read_exactly(n)

    def _next_member(self) -> Member | None:
        """Read the extension headers and the header of the next member; return the member.

        Returns None at the end of the archive.
        """
        self._skip(self._left + self._padding)
        attributes: dict[str, str] = {}
        for _ in range(EXTENSIONS + 1):
            block = self._read(BLOCK)
            if not block.strip(b"\0"):
                return None  # the archive ends with two blocks of zeros, with one, or with none
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            if header.type not in (LONG_NAME, LONG_LINK, PAX_GLOBAL, *PAX):
                return self._checked_member(header, attributes)
            attributes |= self._extension(header)
        raise InvalidArray(f"has more than {EXTENSIONS} headers before a member")

    def _extension(self, header: tarfile.TarInfo) -> dict[str, str]:
        """Return the attributes, `path` or `size`, that an extension header sets for a member."""
        if not 0 <= header.size <= LARGEST_HEADER:
            raise InvalidArray(
                f"has a header of {header.size:,} bytes; at most {LARGEST_HEADER:,} are allowed"
            )
        content = self._read_exactly(header.size)
        self._skip(-header.size % BLOCK)
        if header.type == LONG_NAME:
            return {"path": content.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")}
        if header.type == LONG_LINK:
            return {}
        attributes = _path_and_size(content)
        if header.type == PAX_GLOBAL and attributes:
            raise InvalidArray(f"sets the same {' and '.join(attributes)} for all of its members")
        return attributes

    def _checked_member(self, header: tarfile.TarInfo, attributes: dict[str, str]) -> Member:
        """Return the file or folder that a header describes.

        `attributes` of extension headers replace those of the header. Raises InvalidArray for
        links, devices, sparse files and paths outside the archive.
        """
        name = attributes.get("path", header.name)
        shown = f"its member {name[:LONGEST_NAME]!r}"
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise InvalidArray(f"{shown} leaves the folder")
        if header.type == tarfile.GNUTYPE_SPARSE:
            raise InvalidArray(f"{shown} is sparse")
        if not (header.isfile() or header.isdir()):
            raise InvalidArray(f"{shown} is a link or a device")
        size = int(attributes.get("size", header.size)) if header.isfile() else 0
        if not 0 <= size <= LARGEST:
            raise InvalidArray(f"{shown} has {size:,} bytes")
        self._left, self._padding = size, -size % BLOCK
        return Member(name, size, header.isfile())

    def _skip(self, n: int) -> None:
        self._left = self._padding = 0
        for start in range(0, n, CHUNK):
            self._read_exactly(min(CHUNK, n - start))

    def _read_to_end(self) -> None:
        """Read the rest of the file, which ends with gzip's checksum; gzip then compares it."""
        while self._read(CHUNK):
            pass

    def _read_exactly(self, n: int) -> bytes:
        """Read exactly `n` bytes. Raises InvalidArray if there are fewer."""
        content = self._read(n)
        if len(content) != n:
            raise InvalidArray(f"is truncated: {n:,} bytes are declared, {len(content):,} are left")
        return content

    def _read(self, n: int) -> bytes:
        """Read `n` bytes, or fewer at the end of the file."""
        parts: list[bytes] = []
        while n and (part := self._stream.read(min(n, CHUNK))):
            parts.append(part)
            n -= len(part)
            self._n_read += len(part)
            if self._n_read > LARGEST:
                raise InvalidArray(f"unpacks to more than {LARGEST:,} bytes")
        return b"".join(parts)


def _decompressed(file: BinaryIO) -> Any:
    """Return a file object of the decompressed content.

    The compression is identified by the first bytes of the file.
    """
    begin = file.read(6)
    file.seek(0)
    if begin.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=file)
    if begin.startswith(b"BZh"):
        return bz2.BZ2File(file)
    return lzma.LZMAFile(file) if begin == b"\xfd7zXZ\0" else file


def _path_and_size(content: bytes) -> dict[str, str]:
    """Return `path` and `size`, if present, of a pax header.

    A record of the header is `LENGTH KEY=VALUE` and a line feed; its length counts all of its
    bytes.
    """
    attributes: dict[str, str] = {}
    at = 0
    while at < len(content):
        space = content.find(b" ", at, at + DIGITS)
        digits = content[at : max(space, at)]
        end = at + int(digits) if digits.isdigit() else 0
        key, equals, value = content[space + 1 : end - 1].partition(b"=")
        if not (space + 1 < end <= len(content) and equals and content[end - 1 : end] == b"\n"):
            raise InvalidArray("has a pax header whose records have wrong lengths")
        if key.startswith(b"GNU.sparse"):
            raise InvalidArray("has a sparse member")
        if key == b"size" and not (value.isdigit() and len(value) <= DIGITS):
            raise InvalidArray("has a pax header with a size that is not a number")
        if key in (b"path", b"size"):
            attributes[key.decode()] = value.decode("utf-8", "surrogateescape")
        at = end
    return attributes
