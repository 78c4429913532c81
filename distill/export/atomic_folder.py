"""Write a folder under a temporary name, then rename it: complete or not at all.

Several processes may write the same folder at once. Each one writes to a temporary folder of its
own; the parent folder is locked only while folders are created, renamed or deleted.
"""

import os
import re
import shlex
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal
from uuid import uuid4

from distill.errors import Failure

try:
    import fcntl
except ImportError:  # not POSIX: folders cannot be locked
    fcntl = None  # type: ignore[assignment]


BUSY_S = 30.0  # how long to wait for another process; exports hold a lock for a moment
MARKER = ".understudy-temporary"  # a file in every temporary folder; others are never deleted


@contextmanager
def temporary_folder_beside(out: Path) -> Iterator[Path]:
    """Yield a new temporary folder beside `out`; delete it at the end unless it was renamed.

    No other process uses it. Temporary folders of killed exports to `out` are deleted first; an
    earlier `out` that a killed export had moved away is restored. Raises OSError if the folder
    cannot be created, Failure if another process holds the lock of the parent folder.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with locked(out.parent):
        _drop_abandoned(out)
        new = _create(out, "new")
        handle = _lock(new)
    try:
        yield new
    finally:
        shutil.rmtree(new, ignore_errors=True)
        _release(handle)


def rename(new: Path, out: Path, check: Callable[[], None]) -> None:
    """Rename the folder `new` to `out`. An earlier `out` is replaced, and restored on failure.

    `check` raises an error if `out` may not be replaced; it is called while no other process can
    rename. Raises OSError if the folder cannot be renamed, Failure if another process holds the
    lock of the parent folder.
    """
    with locked(out.parent):
        check()
        old = _create(out, "old") if out.exists() else None
        if old is not None:
            out.rename(old / out.name)
        try:
            (new / MARKER).unlink()
            new.rename(out)
        except OSError:
            if old is not None:
                (old / out.name).rename(out)
                shutil.rmtree(old, ignore_errors=True)
            raise
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)


def _create(out: Path, use: Literal["new", "old"]) -> Path:
    """Create a temporary folder beside `out`, with the marker and a unique name."""
    folder = out.with_name(f".{out.name}.{use}-{uuid4().hex[:12]}")
    folder.mkdir()
    (folder / MARKER).touch()
    return folder


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the operating system's lock on a folder; wait for it if another process holds it.

    The system releases the lock when the process ends, for whatever reason. Any user who may read
    the folder can hold it: raises Failure if it is not released within BUSY_S seconds.
    """
    give_up_at = time.monotonic() + BUSY_S
    while True:
        try:
            handle = _lock(folder)
            break
        except BlockingIOError:
            if time.monotonic() >= give_up_at:
                raise Failure(
                    f"{folder} is locked: another process has held its lock for {BUSY_S:g} "
                    f"seconds.\nEnd that process (fuser {shlex.quote(str(folder))} names it), or "
                    "choose another --out."
                ) from None
            time.sleep(0.05)
    try:
        yield
    finally:
        _release(handle)


def _drop_abandoned(out: Path) -> None:
    """Delete temporary folders of `out` that no process locks, since their process has ended.

    If there is no `out`, the earlier one in such a folder is restored. A folder must contain the
    marker: one that only has such a name may be the user's.
    """
    name = re.compile(rf"[.]{re.escape(out.name)}[.](new|old)-[0-9a-f]{{12}}")
    for path in out.parent.iterdir():
        match = name.fullmatch(path.name) if path.is_dir() and not path.is_symlink() else None
        if match and (path / MARKER).is_file():
            with suppress(BlockingIOError):
                handle = _lock(path)
                if handle is not None:
                    earlier = path / out.name
                    if match[1] == "old" and earlier.is_dir() and not os.path.lexists(out):
                        earlier.rename(out)
                    shutil.rmtree(path, ignore_errors=True)
                _release(handle)


def _lock(folder: Path) -> int | None:
    """Lock a folder; return the handle that holds the lock, None if folders cannot be locked here.

    Raises BlockingIOError if another process holds the lock.
    """
    if fcntl is None:
        return None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise
    except OSError:
        os.close(handle)
        return None
    return handle


def _release(handle: int | None) -> None:
    if handle is not None:
        os.close(handle)
