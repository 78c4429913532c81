"""Decoded images, kept between runs in the user's cache folder.

The cache saves seconds and decides nothing: what cannot be read is decoded again, what cannot be
written is not kept.
"""

import os
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def cache_folder() -> Path:
    """`$UNDERSTUDY_CACHE`, else `$XDG_CACHE_HOME/understudy`, else `~/.cache/understudy`."""
    if chosen := os.environ.get("UNDERSTUDY_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "understudy"


def recall(key: str, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
    """The images kept under `key`, or None where there are none of this shape, whole."""
    try:
        with _path(key).open("rb") as file, np.load(file, allow_pickle=False) as kept:
            images: NDArray[np.uint8] = kept["images"]  # the zip's CRC-32 is checked here
    except Exception:  # absent, or damaged, which may fail in any way
        return None
    return images if images.dtype == np.uint8 and images.shape == shape else None


def keep(key: str, images: NDArray[np.uint8]) -> None:
    """Write the images whole or not at all: a temporary file beside the target, then a rename."""
    path = _path(key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            temporary = Path(folder) / path.name
            np.savez(temporary, images=images)
            temporary.replace(path)
    except OSError:
        return  # full disk or no right to write: the next run decodes again


def _path(key: str) -> Path:
    return cache_folder() / "decoded" / f"{key}.npz"
