"""Lock a run folder while a process trains in it, and record which process that is.

The lock is the operating system's, on the file `.lock`: it ends with its process, however that
ends. Who holds it stands in `running.json`; where that is there and the lock is free, the last run
was killed.
"""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import TypeAdapter

from distill.errors import UserError
from distill.files import json_files


@dataclass(frozen=True)
class LockHolder:
    """A process that trains in a folder."""

    host: str
    process: int
    since: str  # local time

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}, since {self.since}"


class InUse(UserError):
    """Another process holds the lock of a folder."""


HOLDER = TypeAdapter(LockHolder)


@contextmanager
def hold_lock(folder: Path) -> Iterator[LockHolder | None]:
    """Hold a run's folder. Yields who was killed in it, if somebody was.

    Raises InUse where somebody else holds it, by host and process.
    """
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / "running.json"
    lock = FileLock(folder / ".lock", blocking=False)
    _check_lock_file(folder)
    try:
        lock.acquire()
    except Timeout:
        raise _in_use(folder, _read(record)) from None
    try:
        killed = _read(record)
        now = LockHolder(socket.gethostname(), os.getpid(), time.strftime("%Y-%m-%d %H:%M:%S"))
        if not record.is_symlink():
            record.unlink(missing_ok=True)  # a new file: what it was linked to stays as it is
        with open(record, "w", opener=without_following) as file:
            file.write(json.dumps(asdict(now)) + "\n")
        yield killed
    finally:
        record.unlink(missing_ok=True)
        if made and [file.name for file in folder.iterdir()] == [".lock"]:  # nothing was begun
            (folder / ".lock").unlink()
            _remove_empty(made)
        lock.release()


def without_following(path: str, flags: int) -> int:
    """An opener that fails with OSError if the file is a symbolic link, instead of writing to its
    target.
    """
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def _check_lock_file(folder: Path) -> None:
    """To take the lock empties its file. Raises UserError if that would empty another file: if it
    is a symbolic link, or a hard link to something that is not empty.
    """
    path = folder / ".lock"
    if path.is_symlink():
        raise UserError(f"{path} is a symbolic link.\nDelete it, or choose another --out.")
    if path.exists() and (known := path.stat()).st_nlink > 1 and known.st_size:
        raise UserError(
            f"{path} is a hard link to a file that is not empty, and would be emptied.\n"
            "Delete it, or choose another --out."
        )


def check_free(folder: Path) -> None:
    """Raises UserError where somebody trains in a folder."""
    somebody, is_alive = read_holder(folder)
    if is_alive:
        raise _in_use(folder, somebody)


def _in_use(folder: Path, somebody: LockHolder | None) -> InUse:
    return InUse(
        f"{folder} is in use: {somebody or 'another process'} trains in it.\n"
        "Wait for it or stop it there, or choose another --out."
    )


def read_holder(folder: Path) -> tuple[LockHolder | None, bool]:
    """Who trains in a folder, or was killed in it, and whether they still train; leaves nothing.

    Where the lock cannot be asked (a folder of somebody else's), the record is believed.
    """
    recorded = _read(folder / "running.json")
    if recorded is None:
        return None, False
    lock = FileLock(folder / ".lock", blocking=False)
    try:
        _check_lock_file(folder)
        lock.acquire()
    except (UserError, Timeout, OSError):
        return recorded, True
    lock.release()
    return recorded, False


def _remove_empty(places: list[Path]) -> None:
    """Folders, the innermost first, as far as they are empty."""
    with suppress(OSError):
        for place in places:
            place.rmdir()


def _read(record: Path) -> LockHolder | None:
    """Who stands in a record; None where there is none, or none that can be read."""
    try:
        return HOLDER.validate_python(json_files.read(record))
    except (UserError, ValueError):
        return None
