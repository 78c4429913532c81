"""Cache arrays between runs in the user's cache folder.

The cache saves time and does not affect results: an array that cannot be read is computed again,
and an array that cannot be written is not cached.
"""

import os
import stat
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from distill.errors import UserError
from distill.files.untrusted_arrays import open_npz

DIGEST = "sha256"  # name of the digest in the file of a verified array


def cache_folder() -> Path:
    """Return the folder of all cached files.

    It is `$UNDERSTUDY_CACHE`, else `$XDG_CACHE_HOME/understudy`, else `~/.cache/understudy`. Raises
    UserError if this user has no home folder, or if `$UNDERSTUDY_CACHE` begins with `~NAME` and
    there is no user NAME.
    """
    chosen, base = os.environ.get("UNDERSTUDY_CACHE"), os.environ.get("XDG_CACHE_HOME")
    try:
        if chosen:
            return Path(chosen).expanduser()
        return (Path(base) if base else Path.home() / ".cache") / "understudy"
    except RuntimeError as fault:
        what = f"UNDERSTUDY_CACHE={chosen} is not a path" if chosen else "there is no cache folder"
        raise UserError(
            f"{what}: {fault}\nSet UNDERSTUDY_CACHE to a folder of your own."
        ) from fault


def load_cached(key: str, shape: tuple[int, ...] | None, dtype: DTypeLike) -> NDArray[Any] | None:
    """Return the array cached under `key` (`folder/name`); None if there is no usable array.

    An array is usable if it is undamaged and has this dtype and shape, and none of the folders in
    its key is a symbolic link. A `shape` of None allows any shape.
    """
    if is_linked(_path(key)):
        return None
    return _load(key, shape, dtype)


def load_verified(key: str, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any] | None:
    """Return the array cached under `key` if no other user can have changed it; otherwise None.

    Returns None if there is no undamaged array of this shape and dtype, if a part of its path is a
    symbolic link, if other users have write access to its file, its folder or the cache folder, or
    if the sha256 of its key and elements is not the one that `save_verified` wrote.
    """
    path = _path(key)
    places = [path, path.parent, cache_folder()]
    if is_linked(path) or os.path.islink(path) or any(map(writable_by_others, places)):
        return None
    array, digest = _load(key, shape, dtype), _load(key, (32,), np.uint8, DIGEST)
    if array is None or digest is None or digest.tobytes() != _digest(key, array):
        return None
    return array


def save_verified(key: str, array: NDArray[Any]) -> None:
    """Cache an array with its digest, for `load_verified`; do nothing if it cannot be written."""
    _save(key, array=array, **{DIGEST: np.frombuffer(_digest(key, array), np.uint8)})


def _digest(key: str, array: NDArray[Any]) -> bytes:
    return sha256(key.encode() + b"\0" + np.ascontiguousarray(array).tobytes()).digest()


def _load(
    key: str, shape: tuple[int, ...] | None, dtype: DTypeLike, name: str = "array"
) -> NDArray[Any] | None:
    try:
        with open_npz(_path(key)) as archive:
            array = archive[name]  # the zip's CRC-32 is checked here
    except Exception:  # absent, or damaged, which may fail in any way
        return None
    return array if array.dtype == dtype and shape in (None, array.shape) else None


def is_cached(key: str) -> bool:
    """Whether an array is cached under `key`; it may be damaged.

    False if this user may not look for it.
    """
    return os.path.exists(_path(key)) and not is_linked(_path(key))


def is_linked(path: Path) -> bool:
    """Whether a folder between the cache folder and a file in it is a symbolic link.

    Other users of a shared cache could point such a link anywhere, so links are not followed. True
    also for a folder that this user may not examine.
    """
    inner = path.parent.relative_to(cache_folder())
    try:
        return any((cache_folder() / part).is_symlink() for part in (inner, *inner.parents[:-1]))
    except OSError:
        return True


def is_unreadable(folder: Path) -> bool:
    """Whether `folder` exists but this user may not read its files: another user owns it."""
    return os.path.lexists(folder) and not os.access(folder, os.R_OK | os.X_OK)


def save_cached(key: str, array: NDArray[Any]) -> None:
    """Cache an array under `key`; do nothing if it cannot be written.

    The file is written under a temporary name and renamed, so a partial one is never read.
    """
    _save(key, array=array)


def _save(key: str, **arrays: NDArray[Any]) -> None:
    path = _path(key)
    if is_linked(path):
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            temporary = Path(folder) / path.name
            np.savez(temporary, **arrays)  # type: ignore[arg-type]
            temporary.replace(path)
    except OSError:
        return  # full disk or no permission: the next run computes it again


def writable_by_others(folder: Path) -> str:
    """Return why other users could change a file, or the files in a folder.

    Empty if they cannot, or if the file or folder is absent. The superuser, who always can, is
    ignored. In a folder with the sticky bit, such as /tmp, users cannot replace the files of
    others. A group whose only member is this user, which many systems create, is harmless.
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
    """Whether a group is private to this user.

    It must be the user's primary group, have the user's name, and have no other member.
    """
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
