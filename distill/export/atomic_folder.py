"""Write a folder under a temporary name, then rename it: complete or not at all.

Several processes may write the same folder at once. Each one writes to a temporary folder of its
own; the parent folder is locked only while folders are created, renamed or deleted.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal
from uuid import uuid4

try:
    import fcntl
except ImportError:  # not POSIX: folders cannot be locked
    fcntl = None  # type: ignore[assignment]


MARKER = ".understudy-temporary"  # a file in every temporary folder; others are never deleted


@contextmanager
def new_folder_beside(out: Path) -> Iterator[Path]:
    """Yield a new temporary folder beside `out`; delete it at the end unless it was renamed.

    No other process uses it. Temporary folders of killed exports to `out` are deleted first. Raises
    OSError if the folder cannot be created.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with locked(out.parent):
        _drop_abandoned(out)
        new = _create(out, "new")
        handle = _lock(new, wait=True)
    try:
        yield new
    finally:
        shutil.rmtree(new, ignore_errors=True)
        _release(handle)


def rename(new: Path, out: Path, check: Callable[[], None]) -> None:
    """Rename the folder `new` to `out`. An earlier `out` is replaced, and restored on failure.

    `check` raises an error if `out` may not be replaced; it is called while no other process can
    rename. Raises OSError if the folder cannot be renamed.
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

    The system releases the lock when the process ends, for whatever reason.
    """
    handle = _lock(folder, wait=True)
    try:
        yield
    finally:
        _release(handle)


def _drop_abandoned(out: Path) -> None:
    """Delete temporary folders of `out` that no process locks, since their process has ended.

    A folder must contain the marker: one that only has such a name may be the user's.
    """
    name = re.compile(rf"[.]{re.escape(out.name)}[.](new|old)-[0-9a-f]{{12}}")
    for path in out.parent.iterdir():
        is_named = name.fullmatch(path.name) and path.is_dir() and not path.is_symlink()
        if is_named and (path / MARKER).is_file():
            with suppress(BlockingIOError):
                handle = _lock(path, wait=False)
                if handle is not None:
                    shutil.rmtree(path, ignore_errors=True)
                _release(handle)


def _lock(folder: Path, wait: bool) -> int | None:
    """Lock a folder; return the handle that holds the lock, None if folders cannot be locked here.

    Raises BlockingIOError if another process holds the lock and `wait` is False.
    """
    if fcntl is None:
        return None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
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
