"""Cache arrays between runs in the user's cache folder.

The cache saves time and decides nothing: what cannot be read is made again, what cannot be written
is not kept.
"""

import os
import stat
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from distill.files.arrays import open_npz


def cache_folder() -> Path:
    """`$UNDERSTUDY_CACHE`, else `$XDG_CACHE_HOME/understudy`, else `~/.cache/understudy`."""
    if chosen := os.environ.get("UNDERSTUDY_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "understudy"


def load_cached(key: str, shape: tuple[int, ...] | None, dtype: DTypeLike) -> NDArray[Any] | None:
    """The array kept under `key`, `folder/name`; None where there is none of this kind, whole.

    Without a `shape`, of any.
    """
    try:
        with open_npz(_path(key)) as kept:
            array = kept["array"]  # the zip's CRC-32 is checked here
    except Exception:  # absent, or damaged, which may fail in any way
        return None
    return array if array.dtype == dtype and shape in (None, array.shape) else None


def is_cached(key: str) -> bool:
    """Whether there is an array under `key`, whole or damaged."""
    return _path(key).exists()


def save_cached(key: str, array: NDArray[Any]) -> None:
    """Write the array whole or not at all: a temporary file beside the target, then a rename."""
    path = _path(key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            temporary = Path(folder) / path.name
            np.savez(temporary, array=array)
            temporary.replace(path)
    except OSError:
        return  # full disk or no right to write: the next run makes it again


def writable_by_others(folder: Path) -> str:
    """Why users other than this one may change what a folder holds; empty if none may, or if it is
    not there.

    The superuser always may. With the sticky bit, as /tmp has it, nobody replaces the files of
    others; a group that has this user alone, as many systems give to each, is no other user.
    """
    try:
        known = folder.stat()
    except OSError:
        return ""
    if not hasattr(os, "geteuid"):
        return ""
    if known.st_uid not in (0, os.geteuid()):
        return "it belongs to another user"
    if known.st_mode & stat.S_ISVTX:
        return ""
    if known.st_mode & stat.S_IWOTH:
        return "every user may write in it"
    if known.st_mode & stat.S_IWGRP and not _is_private(known.st_gid):
        return "its group may write in it"
    return ""


def _is_private(group: int) -> bool:
    """Whether a group is this user's own: the primary group, of the user's name, with no other
    member.
    """
    import grp
    import pwd

    try:
        user, known = pwd.getpwuid(os.geteuid()), grp.getgrgid(group)
    except KeyError:
        return False
    is_own = group == user.pw_gid and known.gr_name == user.pw_name
    return is_own and set(known.gr_mem) <= {user.pw_name}


def _path(key: str) -> Path:
    return cache_folder() / f"{key}.npz"
