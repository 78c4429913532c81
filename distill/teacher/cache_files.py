"""Read and write cached teacher logits on disk: one folder per cache key, one file per view.

targets/<key>/about.json     what the logits depend on, and the recipe that first requested them
targets/<key>/view-00007.npz logits of view 7, float16 [N, C]; NaN if not computed yet

The key is a digest of everything that the logits depend on. A run in which any of it differs has
another key; `mismatched_keys` lists the differences. Files are written under a temporary name and
renamed, so that a killed process leaves no partial file. Two writers of a view write the same
bytes.

Other users may share the cache. Nothing is read, written or deleted through a folder that is a
symbolic link, except that the cache folder itself may be one.
"""

import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.data import array_cache
from distill.errors import UserError
from distill.files import run_json_schemas
from distill.format import counted, format_size
from distill.recipe.recipe_files import toml
from distill.runs.run_folder import write_json

FOLDER = "targets"  # below the cache folder
BYTES = 2  # per float16
ABOUT = "about.json"
LARGEST_ABOUT = 1 << 20  # bytes; the program writes 3 kB
# The most keys in `depends` (the program writes 10), and the most characters of a key.
MOST_DEPENDS, LONGEST_NAME = 64, 100
KEY, VIEW = re.compile("[0-9a-f]{32}"), re.compile("view-([0-9]{5,9})[.]npz")


@dataclass(frozen=True)
class CacheEntry:
    """A folder of cached logits, and the content of its about.json."""

    path: Path
    # Everything that the logits depend on, by name; empty if about.json is damaged.
    depends_on: dict[str, Any] = field(default_factory=dict)
    recipe: str = ""  # TOML of the recipe that first requested the logits
    teachers: tuple[str, ...] = ()  # run folders of that recipe's teachers
    source: str | None = None  # data source of that recipe

    @property
    def key(self) -> str:
        return self.path.name

    @property
    def views(self) -> list[int]:
        """The numbers of the views that have a file, whose logits may be incomplete."""
        names = (VIEW.fullmatch(file.name) for file in self.path.glob("view-*.npz"))
        return sorted(int(match[1]) for match in names if match)

    @property
    def n_bytes(self) -> int:
        """The size of all files in the folder and its subfolders, such as a killed writer's
        temporary folder.
        """
        files = [*self.path.glob("*"), *self.path.glob("*/*")]
        return sum(_size_of_file(file) for file in files)

    def read(self, view: int) -> NDArray[np.float16] | None:
        """Return the logits of a view, float16 [N, C]; None if they are absent or damaged."""
        return array_cache.load_cached(f"{FOLDER}/{self.key}/{view_name(view)}", None, np.float16)


def logits_folder() -> Path:
    """Return the folder that contains all cache entries."""
    return array_cache.cache_folder() / FOLDER


def check_not_linked() -> None:
    """Raise UserError if the folder that contains all cache entries is a symbolic link."""
    if os.path.islink(logits_folder()):
        raise UserError(
            f"{logits_folder()} is a symbolic link: nothing is read, written or deleted through "
            "it.\nRemove the link, or set UNDERSTUDY_CACHE to the folder that is to hold the cache."
        )


def cache_key(depends: dict[str, Any]) -> str:
    """Return the path of a cache entry, relative to the user's cache folder.

    `depends`: everything that its logits depend on, by name; the path has a digest of it.
    """
    canonical = json.dumps(depends, sort_keys=True)
    return f"{FOLDER}/{hashlib.sha256(canonical.encode()).hexdigest()[:32]}"


def view_name(view: int) -> str:
    """Return the name of a view's file without its suffix, such as `view-00007`."""
    return f"view-{view:05}"


def write_description(depends: dict[str, Any], recipe: str) -> None:
    """Write the about.json of a cache entry if it is missing or damaged.

    `depends`: everything that the logits depend on. `recipe`: TOML of a recipe that uses them.
    Errors in writing are ignored.
    """
    path = array_cache.cache_folder() / cache_key(depends) / ABOUT
    if array_cache.is_linked(path) or _open_entry(path.parent).depends_on:
        return
    try:
        write_json(path, {"depends": depends, "recipe": recipe})
    except OSError:
        return  # then the logits cannot be written either


def _size_of_file(path: Path) -> int:
    """Return the bytes of a file; 0 for anything else, or if it was deleted meanwhile."""
    with suppress(FileNotFoundError):
        status = path.lstat()
        return status.st_size if stat.S_ISREG(status.st_mode) else 0
    return 0


def list_entries() -> list[CacheEntry]:
    """Return all cache entries, the oldest first; other files and links are ignored.

    Raises UserError if the folder that contains all cache entries is a symbolic link.
    """
    check_not_linked()
    folders = [
        path
        for path in logits_folder().glob("*")
        if KEY.fullmatch(path.name) and os.path.isdir(path) and not path.is_symlink()
    ]
    entries = []
    for path in folders:
        with suppress(FileNotFoundError):  # another process has deleted it meanwhile
            entries.append((path.stat().st_mtime, path))
    return [_open_entry(path) for _, path in sorted(entries)]


def unreadable_folders() -> list[Path]:
    """Return the folders of the cache that this user may not read: their logits are not listed."""
    entries = (path for path in logits_folder().glob("*") if KEY.fullmatch(path.name))
    folders = (array_cache.cache_folder(), logits_folder(), *sorted(entries))
    return [folder for folder in folders if array_cache.is_unreadable(folder)]


def entry_rows() -> list[dict[str, Any]]:
    """Return a dictionary for each cache entry, the oldest first, for a table or JSON."""
    return [
        {
            "key": entry.key,
            "teacher": list(entry.teachers),
            "data": entry.source,
            "seed": entry.depends_on.get("seed"),
            "pipeline": entry.depends_on.get("pipeline"),
            "views": len(entry.views),
            "bytes": entry.n_bytes,
            "size": format_size(entry.n_bytes),
            "depends": entry.depends_on,
            "path": str(entry.path),
        }
        for entry in list_entries()
    ]


def find_entries(keys: Sequence[str]) -> list[CacheEntry]:
    """Return for each of `keys`, the beginnings of cache keys, the entry whose key begins with it.

    Raises UserError if no entry, or more than one, matches one of them.
    """
    entries = list_entries()
    found, faults = [], []
    for key in keys:
        matches = [entry for entry in entries if entry.key.startswith(key)]
        found += matches[:1]
        if len(matches) != 1:
            number = counted(len(matches), "key") if matches else "no key"
            verb = "begins" if len(matches) < 2 else "begin"
            faults.append(f"{number} in {logits_folder()} {verb} with {key!r}")
    if faults:
        raise UserError("\n".join([*faults, "Type python cli.py cache info: it lists the keys."]))
    return found


def mismatched_keys(depends: dict[str, Any]) -> list[str]:
    """Return the keys of `depends` whose values differ in the most similar cache entry.

    Empty if the cache has no entry.
    """
    others = (entry.depends_on for entry in list_entries() if entry.depends_on)
    differing = [
        [name for name in depends | other if other.get(name) != depends.get(name)]
        for other in others
    ]
    return min(differing, key=len, default=[])


def delete_entry(entry: CacheEntry) -> None:
    """Delete a cache entry; a run that is still writing to it creates it again.

    Links in its folder are deleted, but not their targets. What another process deletes at the same
    time counts as deleted. Raises UserError if the folder cannot be deleted.
    """
    try:
        shutil.rmtree(entry.path)
    except FileNotFoundError:
        if entry.path.exists():
            delete_entry(entry)
    except (OSError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{entry.path} cannot be deleted: {reason}.\nDelete it by hand.") from error


def _open_entry(path: Path) -> CacheEntry:
    """Open the cache entry at `path`; its `depends_on` is empty if its about.json is missing or
    damaged.
    """
    try:
        return _described(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # damaged in any way
        return CacheEntry(path)


def _described(path: Path) -> CacheEntry:
    """Open the cache entry at `path`; raise errors of many types if its about.json is damaged."""
    description = run_json_schemas.parsed(run_json_schemas.content_of(path / ABOUT, LARGEST_ABOUT))
    depends, text = dict(description["depends"]), description["recipe"]
    faults: list[str] = []
    recipe = toml(text, ABOUT, faults)
    teachers = recipe.get("teacher", {}).get("runs", [])
    source = recipe.get("data", {}).get("source")
    texts = [*teachers, source or "", depends.get("pipeline") or ""]
    is_plain = isinstance(teachers, list) and all(isinstance(text, str) for text in texts)
    if faults or not is_plain or not _are_plain_names(depends):
        raise ValueError("about.json is damaged")
    return CacheEntry(path, depends, text, tuple(teachers), source)


def _are_plain_names(depends: dict[str, Any]) -> bool:
    """Whether `depends`, read from an untrusted file, can be displayed.

    It can if it has at most MOST_DEPENDS keys of at most LONGEST_NAME characters, and its seed, if
    there is one, is an integer.
    """
    names_fit = len(depends) <= MOST_DEPENDS and max(map(len, depends), default=0) <= LONGEST_NAME
    return names_fit and isinstance(depends.get("seed", 0), int)
