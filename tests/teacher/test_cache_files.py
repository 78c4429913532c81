"""A shared cache is data of others: no hang, no traceback, nothing read or deleted elsewhere."""

import io
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from distill.data import array_cache
from distill.errors import UserError
from distill.teacher import cache_files
from distill.terminal.recipe_and_cache_tables import cache_table

KEY = "c" * 32
SOUND = {"depends": {"seed": 1, "pipeline": "P()"}, "recipe": '[teacher]\nruns = ["runs/a"]\n'}


@pytest.fixture
def entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of one cache entry, without about.json."""
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "cache/targets" / KEY
    path.mkdir(parents=True)
    return path


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    path = tmp_path / "elsewhere"
    (path / KEY).mkdir(parents=True)
    (path / KEY / "file").write_text("x")
    return path


def rows() -> list[dict[str, Any]]:
    listed = cache_files.entry_rows()
    Console(file=io.StringIO()).print(cache_table(listed))
    return listed


def test_sound_description_is_listed(entry: Path) -> None:
    (entry / "about.json").write_text(json.dumps(SOUND))
    (row,) = rows()
    assert (row["teacher"], row["seed"], row["pipeline"]) == (["runs/a"], 1, "P()")


@pytest.mark.parametrize(
    "make",
    [
        os.mkfifo,
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.symlink_to(path),
        Path.mkdir,
        lambda path: path.write_text("[" * 100_000),
        lambda path: path.write_text('{"depends": {}, "recipe": "' + "a." * 40_000 + 'a=1"}'),
    ],
    ids=["pipe", "device", "cycle", "folder", "deep", "long key"],
)
def test_description_that_is_no_file_is_ignored(entry: Path, make: Callable[[Path], None]) -> None:
    make(entry / "about.json")
    start = time.process_time()
    (row,) = rows()
    assert time.process_time() - start < 1
    assert (row["depends"], row["teacher"], row["data"]) == ({}, [], None)


@pytest.mark.parametrize(
    ("depends", "recipe"),
    [
        ({}, "[teacher]\nruns = [1, 2]"),
        ({}, "[teacher]\nruns = 'runs/a'"),
        ({}, "[data]\nsource = 5"),
        ({}, "[data]\nsource = ['a']"),
        ({}, "teacher = 1"),
        ({}, 5),
        ({"pipeline": 5}, ""),
        ({"pipeline": ["P"]}, ""),
        ({"seed": "\x1b[31m"}, ""),
        ({"x" * 101: 1}, ""),
        ({str(name): 1 for name in range(65)}, ""),
        ([["a"]], ""),
    ],
)
def test_description_of_other_types_is_ignored(
    entry: Path, depends: object, recipe: object
) -> None:
    (entry / "about.json").write_text(json.dumps({"depends": depends, "recipe": recipe}))
    (row,) = rows()
    assert (row["depends"], row["teacher"], row["data"]) == ({}, [], None)


def test_markup_and_escapes_are_shown_as_text(entry: Path) -> None:
    text = "[red]x[/nope]\x1b[31m"
    about = {"depends": {"pipeline": text}, "recipe": f"[data]\nsource = {json.dumps(text)}"}
    (entry / "about.json").write_text(json.dumps(about))
    console = Console(width=200, file=io.StringIO())
    with console.capture() as captured:
        console.print(cache_table(cache_files.entry_rows()))
    assert captured.get().count("[red]x[/nope]\\x1b[31m") == 2


def test_linked_entry_is_not_used_or_deleted(entry: Path, elsewhere: Path) -> None:
    entry.rmdir()
    entry.symlink_to(elsewhere / KEY)
    array_cache.save_cached(f"targets/{KEY}/view-00000", np.zeros(2))
    assert not array_cache.is_cached(f"targets/{KEY}/file")
    assert cache_files.list_entries() == []
    with pytest.raises(UserError, match="cannot be deleted"):
        cache_files.delete_entry(cache_files.CacheEntry(entry))
    assert os.listdir(elsewhere / KEY) == ["file"]


def test_linked_array_is_not_read(entry: Path, elsewhere: Path) -> None:
    np.savez(elsewhere / KEY / "view-00000.npz", array=np.zeros(2))
    entry.rmdir()
    entry.symlink_to(elsewhere / KEY)
    assert array_cache.load_cached(f"targets/{KEY}/view-00000", None, np.float64) is None


def test_linked_entry_gets_no_description(entry: Path, elsewhere: Path) -> None:
    key = cache_files.cache_key({"seed": 1})
    entry.with_name(Path(key).name).symlink_to(elsewhere / KEY)
    cache_files.write_description({"seed": 1}, "")
    assert os.listdir(elsewhere / KEY) == ["file"]


def test_linked_folder_of_all_logits_is_refused(entry: Path, elsewhere: Path) -> None:
    entry.rmdir()
    entry.parent.rmdir()
    entry.parent.symlink_to(elsewhere)
    for command in (
        cache_files.list_entries,
        cache_files.entry_rows,
        lambda: cache_files.find_entries([KEY]),
        cache_files.check_not_linked,
    ):
        with pytest.raises(UserError, match="targets is a symbolic link"):
            command()
    array_cache.save_cached("targets/a/view-00000", np.zeros(2))
    cache_files.write_description({"seed": 1}, "")
    assert os.listdir(elsewhere) == [KEY]


def test_linked_cache_folder_is_used(entry: Path, tmp_path: Path, elsewhere: Path) -> None:
    (tmp_path / "cache").rename(tmp_path / "disk")
    (tmp_path / "cache").symlink_to(tmp_path / "disk")
    array_cache.save_cached(f"targets/{KEY}/view-00000", np.zeros(2))
    assert array_cache.load_cached(f"targets/{KEY}/view-00000", None, np.float64) is not None
    assert [found.views for found in cache_files.list_entries()] == [[0]]


def test_view_that_is_a_pipe_is_damaged(entry: Path) -> None:
    os.mkfifo(entry / "view-00000.npz")
    (found,) = cache_files.list_entries()
    assert (found.views, found.read(0)) == ([0], None)


def test_private_folders_of_others_are_found(entry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, _: path != entry)
    assert cache_files.unreadable_folders() == [entry]
    monkeypatch.setattr(os, "access", lambda path, _: path.name != "targets")
    assert cache_files.unreadable_folders() == [entry.parent]


def test_files_that_another_process_deletes_are_absent(
    entry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = cache_files.CacheEntry(entry)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "glob", lambda folder, _: iter([folder / "temporary"]))
        patch.setattr(Path, "is_file", lambda _: True)  # it was there a moment ago
        assert found.n_bytes == 0
    entry.rmdir()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "glob", lambda *_: iter([entry]))
        patch.setattr(os.path, "isdir", lambda _: True)
        assert cache_files.list_entries() == []
    cache_files.delete_entry(found)
