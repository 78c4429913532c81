"""Arrays kept between runs in the user's cache folder: decoded images, a teacher's answers.

The cache saves time and decides nothing: what cannot be read is made again, what cannot be written
is not kept.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from distill.arrays import open_npz


def cache_folder() -> Path:
    """`$UNDERSTUDY_CACHE`, else `$XDG_CACHE_HOME/understudy`, else `~/.cache/understudy`."""
    if chosen := os.environ.get("UNDERSTUDY_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "understudy"


def recall(key: str, shape: tuple[int, ...] | None, dtype: DTypeLike) -> NDArray[Any] | None:
    """The array kept under `key`, `folder/name`; None where there is none of this kind, whole.

    Without a `shape`, of any.
    """
    try:
        with open_npz(_path(key)) as kept:
            array = kept["array"]  # the zip's CRC-32 is checked here
    except Exception:  # absent, or damaged, which may fail in any way
        return None
    return array if array.dtype == dtype and shape in (None, array.shape) else None


def is_kept(key: str) -> bool:
    """Whether there is an array under `key`, whole or damaged."""
    return _path(key).exists()


def keep(key: str, array: NDArray[Any]) -> None:
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


def _path(key: str) -> Path:
    return cache_folder() / f"{key}.npz"
