"""Cache arrays between runs in the user's cache folder.

The cache saves time and does not affect results: what cannot be read is computed again, what cannot
be written is not cached.
"""

import os
import stat
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from distill.errors import UserError
from distill.files.arrays import open_npz


def cache_folder() -> Path:
    """Return `$UNDERSTUDY_CACHE`, else `$XDG_CACHE_HOME/understudy`, else `~/.cache/understudy`.

    Raises UserError if it names the home folder of a user that does not exist.
    """
    if chosen := os.environ.get("UNDERSTUDY_CACHE"):
        try:
            return Path(chosen).expanduser()
        except RuntimeError as fault:
            raise UserError(
                f"UNDERSTUDY_CACHE={chosen} is no path: {fault}\nSet it to a folder of your own."
            ) from fault
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "understudy"


def load_cached(key: str, shape: tuple[int, ...] | None, dtype: DTypeLike) -> NDArray[Any] | None:
    """Load the array cached under `key`, `folder/name`.

    Returns None if it is absent, damaged, behind a linked folder, of another dtype or of another
    shape; without a `shape`, any shape will do.
    """
    if is_linked(_path(key)):
        return None
    try:
        with open_npz(_path(key)) as archive:
            array = archive["array"]  # the zip's CRC-32 is checked here
    except Exception:  # absent, or damaged, which may fail in any way
        return None
    return array if array.dtype == dtype and shape in (None, array.shape) else None


def is_cached(key: str) -> bool:
    """Whether there is an array under `key`, whole or damaged."""
    return _path(key).exists() and not is_linked(_path(key))


def is_linked(path: Path) -> bool:
    """Whether a folder between the cache folder and a file in it is a symbolic link.

    Other users of a shared cache could let it lead anywhere, so it is not followed.
    """
    inner = path.parent.relative_to(cache_folder())
    return any((cache_folder() / part).is_symlink() for part in (inner, *inner.parents[:-1]))


def save_cached(key: str, array: NDArray[Any]) -> None:
    """Write an array whole or not at all: a temporary file beside the target, then a rename."""
    path = _path(key)
    if is_linked(path):
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            temporary = Path(folder) / path.name
            np.savez(temporary, array=array)
            temporary.replace(path)
    except OSError:
        return  # full disk or no permission: the next run computes it again


def writable_by_others(folder: Path) -> str:
    """Return why other users may change the files in a folder; empty if none may or it is absent.

    The superuser always may. With the sticky bit, as on /tmp, users cannot replace the files of
    others; a group whose only member is this user, common on many systems, does not count.
    """
    try:
        status = folder.stat()
    except OSError:
        return ""
    if not hasattr(os, "geteuid"):
        return ""
    if status.st_uid not in (0, os.geteuid()):
        return "it belongs to another user"
    if status.st_mode & stat.S_ISVTX:
        return ""
    if status.st_mode & stat.S_IWOTH:
        return "every user may write in it"
    if status.st_mode & stat.S_IWGRP and not _is_private(status.st_gid):
        return "its group may write in it"
    return ""


def _is_private(group: int) -> bool:
    """Whether a group is this user's alone: primary, of the user's name, without other members."""
    import grp
    import pwd

    try:
        user, entry = pwd.getpwuid(os.geteuid()), grp.getgrgid(group)
    except KeyError:
        return False
    is_own = group == user.pw_gid and entry.gr_name == user.pw_name
    return is_own and set(entry.gr_mem) <= {user.pw_name}


def _path(key: str) -> Path:
    return cache_folder() / f"{key}.npz"
