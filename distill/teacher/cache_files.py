"""Teacher logits on disk: one folder per cache key, one file per view.

targets/<key>/about.json     what the answers depend on, and the recipe that asked first
targets/<key>/view-00007.npz logits of view 7, float16 [N, C]; NaN where nobody asked

The key is a digest of what the answers depend on: what differs in any of it finds nothing, and
`missed` can say in what. Files are written beside their place and renamed: a kill leaves no half of
one, and two writers of a view write the same bytes.
"""

import hashlib
import json
import re
import shutil
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.data import array_cache
from distill.errors import UserError
from distill.runs.run_folder import write_json

FOLDER = "targets"  # below the cache folder
BYTES = 2  # of a float16
ABOUT = "about.json"
KEY, VIEW = re.compile("[0-9a-f]{32}"), re.compile(r"view-(\d{5,})[.]npz")


@dataclass(frozen=True)
class CacheEntry:
    """The answers in one folder."""

    path: Path
    depends_on: dict[str, Any] = field(default_factory=dict)  # empty where the folder does not say
    recipe: str = ""  # TOML of the recipe that asked first …
    teachers: tuple[str, ...] = ()  # … its teachers' run folders …
    source: str | None = None  # … and its data

    @property
    def key(self) -> str:
        return self.path.name

    @property
    def views(self) -> list[int]:
        """Which views are there, whole or in part; files of other names are none."""
        found = (VIEW.fullmatch(file.name) for file in self.path.glob("view-*.npz"))
        return sorted(int(match[1]) for match in found if match)

    @property
    def n_bytes(self) -> int:
        """Of all files, those of a killed writer too."""
        return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())

    def read(self, view: int) -> NDArray[np.float16] | None:
        """The answers to a view, float16 [N, C]; None where they are absent or damaged."""
        return array_cache.load_cached(f"{FOLDER}/{self.key}/{view_name(view)}", None, np.float16)


def logits_folder() -> Path:
    """Where all answers lie."""
    return array_cache.cache_folder() / FOLDER


def cache_key(depends: dict[str, Any]) -> str:
    """The folder of the answers that depend on exactly this, below the cache folder."""
    canonical = json.dumps(depends, sort_keys=True)
    return f"{FOLDER}/{hashlib.sha256(canonical.encode()).hexdigest()[:32]}"


def view_name(view: int) -> str:
    """The file of a view, as the cache's keys have it."""
    return f"view-{view:05}"


def write_description(depends: dict[str, Any], recipe: str) -> None:
    """Write beside the answers what they depend on; nothing where nothing can be written."""
    path = array_cache.cache_folder() / cache_key(depends) / ABOUT
    if _open_entry(path.parent).depends_on:
        return
    try:
        write_json(path, {"depends": depends, "recipe": recipe})
    except OSError:
        return  # then there will be no answers beside it either


def list_entries() -> list[CacheEntry]:
    """All that is stored, the oldest first."""
    found = [
        path for path in logits_folder().glob("*") if path.is_dir() and KEY.fullmatch(path.name)
    ]
    return [_open_entry(path) for path in sorted(found, key=lambda path: path.stat().st_mtime)]


def entry_rows() -> list[dict[str, Any]]:
    """A row for each stock: `key`, who answered, to what, how much, what it depends on."""
    return [
        {
            "key": stock.key,
            "teacher": list(stock.teachers),
            "data": stock.source,
            "seed": stock.depends_on.get("seed"),
            "pipeline": stock.depends_on.get("pipeline"),
            "views": len(stock.views),
            "bytes": stock.n_bytes,
            "size": format_size(stock.n_bytes),
            "depends": stock.depends_on,
            "path": str(stock.path),
        }
        for stock in list_entries()
    ]


def find_entries(keys: Sequence[str]) -> list[CacheEntry]:
    """The stocks whose keys begin so. Raises UserError for one that none or several have."""
    every = list_entries()
    found, faults = [], []
    for key in keys:
        hits = [stock for stock in every if stock.key.startswith(key)]
        found += hits[:1]
        if len(hits) != 1:
            faults.append(f"{key!r} is the beginning of {len(hits)} keys in {logits_folder()}")
    if faults:
        raise UserError("\n".join([*faults, "Type python cli.py cache info: it lists the keys."]))
    return found


def mismatched_keys(depends: dict[str, Any]) -> list[str]:
    """In what the nearest stock differs from what is wanted; empty where there is none at all."""
    others = (stock.depends_on for stock in list_entries() if stock.depends_on)
    differing = [
        [name for name in depends | other if other.get(name) != depends.get(name)]
        for other in others
    ]
    return min(differing, key=len, default=[])


def format_size(n_bytes: int) -> str:
    """`12.8 kB`, `40.5 MB`, `1.2 GB`."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if n_bytes >= unit:
            return f"{n_bytes / unit:.1f} {name}"
    return f"{n_bytes / 1e3:.1f} kB"


def delete_entry(stock: CacheEntry) -> None:
    """Delete a stock. A run that is writing to it begins it anew."""
    shutil.rmtree(stock.path)


def _open_entry(path: Path) -> CacheEntry:
    try:
        told = json.loads((path / ABOUT).read_text())
        recipe = tomllib.loads(told["recipe"])
        teachers = recipe.get("teacher", {}).get("runs", ())
        source = recipe.get("data", {}).get("source")
        return CacheEntry(path, dict(told["depends"]), told["recipe"], tuple(teachers), source)
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
    ):  # damaged in any way
        return CacheEntry(path)
