"""Lock a run folder while a process trains in it, and record which process that is.

The process holds the operating system's lock on the file `.lock`, which the system releases when
the process ends, for whatever reason. `running.json` names the process and is deleted at the end of
the training: if the file exists and the lock is free, the process was killed.
"""

import json
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import TypeAdapter

from distill.errors import UserError
from distill.files import run_json_schemas

# A program that lists runs tries their locks, and holds each for microseconds. So a lock that is
# held is tried again for a while: by a process that will train, and by one that only reads.
ACQUIRE_S, READ_S, POLL_S = 0.3, 0.05, 0.005


@dataclass(frozen=True)
class LockHolder:
    """The process that trains in a folder: its host, process id and start."""

    host: str
    process: int
    since: str  # local time

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}, since {self.since}"


class InUse(UserError):
    """Another process holds the lock of a folder."""


HOLDER = TypeAdapter(LockHolder)
BEGINNING = b'{"host": "'  # of every running.json
LARGEST_RECORD = 4096  # bytes of running.json; the program writes about 80


@contextmanager
def lock_run_folder(folder: Path) -> Iterator[LockHolder | None]:
    """Hold the lock of a run folder, which is created if it does not exist.

    Yields the previous holder if it was killed while it held the lock, else None. Raises InUse,
    naming host and process, if another process holds the lock; UserError if the folder has a
    running.json or a .lock that this program did not write.
    """
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / "running.json"
    lock = FileLock(folder / ".lock", timeout=ACQUIRE_S)
    check_lock_file(folder / ".lock")
    if not is_own_record(record):
        raise UserError(
            f"{record} is a symbolic link or was not written by this program, which would replace "
            "it.\nMove it elsewhere, or choose another --out."
        )
    try:
        lock.acquire(poll_interval=POLL_S)
    except Timeout:
        raise _in_use(folder, _read(record)) from None
    try:
        killed = _read(record)
        now = LockHolder(socket.gethostname(), os.getpid(), time.strftime("%Y-%m-%d %H:%M:%S"))
        record.unlink(missing_ok=True)  # a new file, so that no other hard link changes
        with open(record, "w", opener=open_without_following_links) as file:
            file.write(json.dumps(asdict(now)) + "\n")
        yield killed
    finally:
        if is_own_record(record):
            record.unlink(missing_ok=True)
        if created and [file.name for file in folder.iterdir()] == [".lock"]:  # no run began
            (folder / ".lock").unlink()
            _remove_empty(created)
        lock.release()


def is_own_record(record: Path) -> bool:
    """Whether a running.json is absent or was written by this program.

    One of a process that was killed while writing is empty or incomplete; after a power failure it
    may consist of zeros.
    """
    if record.is_symlink():
        return False
    try:
        content = run_json_schemas.content_of(record, LARGEST_RECORD)
    except FileNotFoundError:
        return True
    except (OSError, run_json_schemas.Invalid):
        return False
    if not content.strip(b"\0"):
        return True
    try:
        HOLDER.validate_python(run_json_schemas.parsed(content))
    except run_json_schemas.Invalid:  # no JSON
        return content.startswith(BEGINNING) or BEGINNING.startswith(content)
    except ValueError:  # another JSON
        return False
    return True


def open_without_following_links(path: str, flags: int) -> int:
    """Open a file; an `opener` for `open`. Raises OSError if it is a symbolic link.

    Without it, `open` would write to the link's target.
    """
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def without_links(path: str, flags: int) -> int:
    """Open a file to which it is safe to write; an `opener` for `open`.

    Raises OSError if it is a symbolic link, and UserError if it is a pipe, a device or a file with
    several hard links: writing would change something else than this file.
    """
    descriptor = open_without_following_links(path, flags | getattr(os, "O_NONBLOCK", 0))
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(descriptor)
        raise UserError(f"{path} is not a regular file or has several hard links.\nDelete it.")
    return descriptor


def check_single_file(path: Path, option: str) -> None:
    """Raise UserError if `path` is a symbolic or hard link, a pipe, a device or a folder.

    Writing to it would change another file, block or fail. `option`: the command's option that the
    message advises to change. A path that does not exist is accepted.
    """
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    kinds = {stat.S_IFLNK: "a symbolic link", stat.S_IFDIR: "a folder"}
    if not stat.S_ISREG(status.st_mode):
        found = kinds.get(stat.S_IFMT(status.st_mode), "a pipe or a device")
    elif status.st_nlink > 1:
        found = "a hard link to another file, which would be changed"
    else:
        return
    raise UserError(f"{path} is {found}.\nDelete it, or choose another {option}.")


def check_lock_file(path: Path, option: str = "--out") -> None:
    """Raise UserError if acquiring the lock could change another file.

    It could if the lock file is a symbolic link, a pipe or a device, or is not empty: this
    program's lock files are empty, and acquiring a lock empties the file. `option`: the command's
    option that the message advises to change.
    """
    advice = f"Delete it, or choose another {option}."
    if path.is_symlink():
        raise UserError(f"{path} is a symbolic link.\n{advice}")
    if not path.exists():
        return
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path} is a pipe or a device.\n{advice}")
    if status.st_size:
        raise UserError(
            f"{path} is not empty, so this program did not write it; locking would empty it.\n"
            f"{advice}"
        )


def check_free(folder: Path) -> None:
    """Raise InUse if a process trains in a folder."""
    holder, is_alive = read_holder(folder)
    if is_alive:
        raise _in_use(folder, holder)


def _in_use(folder: Path, holder: LockHolder | None) -> InUse:
    return InUse(
        f"{folder} is in use: {holder or 'another process'} trains in it.\n"
        "Wait for it or stop it there, or choose another --out."
    )


def read_holder(folder: Path) -> tuple[LockHolder | None, bool]:
    """Return the process recorded in a folder's running.json, and whether it still trains there.

    The process is None if no file or no valid file exists; one that does not train any more was
    killed. No file is changed. If the lock cannot be tried, as in a folder of another user, the
    process counts as training.
    """
    recorded = _read(folder / "running.json")
    if recorded is None:
        return None, False
    lock_file = folder / ".lock"
    try:
        if lock_file.is_file() and not lock_file.is_symlink() and lock_file.stat().st_size:
            return recorded, False  # this program's lock files are empty
        check_lock_file(lock_file)
        lock = FileLock(lock_file, timeout=READ_S)
        lock.acquire(poll_interval=POLL_S)
    except (UserError, Timeout, OSError):
        return recorded, True
    lock.release()
    return recorded, False


def _remove_empty(folders: list[Path]) -> None:
    """Remove empty folders in the given order, until one is not empty."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _read(record: Path) -> LockHolder | None:
    """Return the process in a running.json; None if the file is absent or unreadable."""
    try:
        return HOLDER.validate_python(run_json_schemas.read(record))
    except (UserError, ValueError):
        return None
