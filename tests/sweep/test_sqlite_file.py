"""A sweep's SQLite file, as others may have made it: nothing outside its folder is changed."""

import os
import re
import shutil
import sqlite3
import struct
from contextlib import closing
from pathlib import Path

import pytest
from optuna.exceptions import StorageInternalError

from distill.errors import Failure, UserError
from distill.sweep import sqlite_file, sqlite_pages
from distill.sweep.storage import Storage, url_of
from tests.sweep.test_assign_trials import opened

MAGIC = bytes.fromhex("d9d505f920a163d7")  # https://sqlite.org/fileformat.html#the_rollback_journal


def open_storage(folder: Path) -> None:
    Storage(url_of(None, folder), 1)


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """The folder of a sweep."""
    opened(tmp_path / "sweep")
    return tmp_path / "sweep"


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A file elsewhere, which must stay unchanged."""
    path = tmp_path / "mine.txt"
    path.write_text("mine")
    return path


def write_super_journal(database: Path, name: bytes) -> None:
    """A hot rollback journal without pages that belongs to the super-journal `name`."""
    content = database.read_bytes()
    page_size = int.from_bytes(content[16:18])
    header = MAGIC + struct.pack(">IIIII", 0, 0, len(content) // page_size, 512, page_size)
    lock_page = struct.pack(">I", (1 << 30) // page_size + 1)
    end = struct.pack(">II", len(name), sum(name)) + MAGIC
    journal = header.ljust(512, b"\0") + lock_page + name + end
    database.with_name("sweep.db-journal").write_bytes(journal)


@pytest.mark.long
def test_journal_that_names_another_file_is_refused(sweep: Path, mine: Path) -> None:
    """SQLite deletes the file that a journal names as its super-journal."""
    write_super_journal(sweep / "sweep.db", str(mine).encode())
    with pytest.raises(UserError, match=r"sweep\.db-journal names another file, which .*\nDelete "):
        open_storage(sweep)
    assert mine.read_text() == "mine"


@pytest.mark.long
def test_journal_of_a_killed_worker_is_rolled_back(sweep: Path, tmp_path: Path) -> None:
    """The copy is what a worker leaves that is killed in the middle of a transaction."""
    insert = "INSERT INTO study_user_attributes (study_id, key, value_json) VALUES (1, ?, ?)"
    with sqlite3.connect(sweep / "sweep.db") as rows:
        rows.execute("PRAGMA cache_size = 5")
        rows.executemany(insert, [(f"key {n}", f'"{"x" * 900}"') for n in range(500)])
        shutil.copytree(sweep, tmp_path / "copy")
        rows.rollback()
    journal = tmp_path / "copy" / "sweep.db-journal"
    assert journal.read_bytes().startswith(MAGIC)
    assert (tmp_path / "copy" / "sweep.db").stat().st_size > 2 * (sweep / "sweep.db").stat().st_size
    trials = opened(tmp_path / "copy")
    assert set(trials.study.user_attrs) == {"definition"} and trials.n_open() == 6
    assert not journal.exists()


@pytest.mark.long
@pytest.mark.parametrize("name", ["sweep.db-journal", "sweep.db-wal", "sweep.db-shm", "sweep.db"])
@pytest.mark.parametrize("kind", ["symbolic link", "hard link", "pipe"])
def test_file_that_is_elsewhere_is_refused(sweep: Path, mine: Path, name: str, kind: str) -> None:
    if name == "sweep.db":
        shutil.move(sweep / name, mine)
    else:
        mine.write_bytes(b"\0mine")  # SQLite writes over a journal that begins with zero
    before = mine.read_bytes()
    if kind == "pipe":
        os.mkfifo(sweep / name)
    elif kind == "hard link":
        (sweep / name).hardlink_to(mine)
    else:
        (sweep / name).symlink_to(mine)
    with pytest.raises(UserError, match=rf"{name} is a {kind}.*:.*\n.*--out"):
        open_storage(sweep)
    assert mine.read_bytes() == before


@pytest.mark.parametrize("suffix", ["wal", "shm"])
def test_write_ahead_log_is_refused(sweep: Path, suffix: str) -> None:
    (sweep / f"sweep.db-{suffix}").write_bytes(b"")
    with pytest.raises(UserError, match=rf"sweep\.db-{suffix} .*no sweep uses\.\n.*--out"):
        open_storage(sweep)


@pytest.mark.long
def test_database_with_a_write_ahead_log_is_refused(sweep: Path) -> None:
    rows = sqlite3.connect(sweep / "sweep.db")
    rows.execute("PRAGMA journal_mode = WAL")
    rows.close()
    with pytest.raises(UserError, match=r"sweep\.db uses a write-ahead log, which no sweep"):
        open_storage(sweep)


def test_linked_lock_is_named_and_its_target_unchanged(sweep: Path, mine: Path) -> None:
    lock = sweep / "sweep.db.lock"
    lock.unlink(missing_ok=True)
    lock.symlink_to(mine)
    with pytest.raises(UserError, match=rf"^{lock} is a symbolic link\.\nDelete it, or choose "):
        open_storage(sweep)
    assert mine.read_text() == "mine"


@pytest.mark.long
@pytest.mark.parametrize("kind", ["hard link", "pipe"])
def test_lock_that_is_no_file_of_its_own(sweep: Path, mine: Path, kind: str) -> None:
    lock = sweep / "sweep.db.lock"
    lock.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(lock)
    else:
        lock.hardlink_to(mine)
    found = {"pipe": "a pipe", "hard link": "not empty"}[kind]
    with pytest.raises(UserError, match=rf"^{lock} is {found}.*\nDelete it, or choose "):
        open_storage(sweep)
    assert mine.read_text() == "mine"


@pytest.mark.long
@pytest.mark.parametrize("name", ["what?x", "a#b", "a%41b", "{SCHEMA_VERSION}", "{x", "a b", "é"])
def test_database_is_in_the_folder_of_any_name(tmp_path: Path, name: str) -> None:
    trials = opened(tmp_path / name)
    assert (tmp_path / name / "sweep.db").is_file()
    assert list(tmp_path.iterdir()) == [tmp_path / name]
    assert trials.storage.shown == f"sqlite:///{tmp_path / name / 'sweep.db'}"
    opened(tmp_path / "plain", study={"trials": 1, "heartbeat_s": 1, "sampler": "random"})


def test_messages_show_any_folder_name_whole(tmp_path: Path) -> None:
    storage = Storage(url_of(None, tmp_path / "what?x=folder"), 1)
    path = tmp_path / "what?x=folder" / "sweep.db"
    message = re.escape(f"sqlite:///{path} failed: no access to {path}")
    with pytest.raises(Failure, match=message), storage.explain_errors():
        raise StorageInternalError(f"no access to {path}")


@pytest.mark.long
def test_lock_is_beside_database_that_url_names(tmp_path: Path) -> None:
    Storage(f"sqlite:///{tmp_path}/a.db?timeout=7", 1)
    assert {path.name for path in tmp_path.iterdir()} <= {"a.db", "a.db.lock"}
    assert (tmp_path / "a.db").is_file()


def test_storage_that_is_uri_file_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--storage .*uri=true cannot be opened: .*\nType it as "):
        Storage(f"sqlite:///file:{tmp_path}/a.db?uri=true", 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_number_of_rows_is_limited(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_file, "MOST_ROWS", 50_000)
    insert = "INSERT INTO study_user_attributes (study_id, key, value_json) VALUES (1, ?, '1')"
    with sqlite3.connect(sweep / "sweep.db") as rows:
        rows.executemany(insert, ((f"key {n}",) for n in range(50_001)))
    with pytest.raises(UserError, match=r"sweep\.db has more than 50,000 rows, and no sweep"):
        open_storage(sweep)


@pytest.mark.long
def test_text_of_all_rows_is_limited(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each value is small enough; optuna would hold all of them in memory."""
    monkeypatch.setattr(sqlite_file, "MOST_TEXT", 64 << 20)
    insert = "INSERT INTO study_user_attributes (study_id, key, value_json) VALUES (1, ?, ?)"
    with sqlite3.connect(sweep / "sweep.db") as rows:
        rows.executemany(insert, ((f"key {n}", f'"{"x" * (2 << 20)}"') for n in range(40)))
    clear_peak()
    before = peak_rss()
    with pytest.raises(UserError, match=r"sweep\.db has more than 67,108,864 bytes of text"):
        open_storage(sweep)
    assert peak_rss() - before < 100 << 20


@pytest.mark.long
def test_value_too_large_is_one_message(sweep: Path) -> None:
    insert = "INSERT INTO study_user_attributes (study_id, key, value_json) VALUES (1, 'a', ?)"
    with sqlite3.connect(sweep / "sweep.db") as rows:
        rows.execute(insert, ("x" * (100 << 20),))
    clear_peak()
    before = peak_rss()
    with pytest.raises((UserError, Failure)) as caught:
        open_storage(sweep)
    assert "sweep.db" in str(caught.value) and "Traceback" not in str(caught.value)
    assert peak_rss() - before < 50 << 20


def share_page(database: Path, root: int) -> None:
    """Let two pointers of an interior page lead to the same page."""
    content = bytearray(database.read_bytes())
    size = int.from_bytes(content[16:18], "big")
    start = (root - 1) * size + (100 if root == 1 else 0)
    assert content[start] in (2, 5), "an interior page"
    cell = (root - 1) * size + int.from_bytes(content[start + 12 : start + 14], "big")
    content[start + 8 : start + 12] = content[cell : cell + 4]
    database.write_bytes(content)


@pytest.mark.parametrize("tree", ["schema", "table", "index"])
def test_pages_used_twice_are_refused(sweep: Path, tree: str) -> None:
    """Repeated over some levels, the rows would be too many to be ever read."""
    database = sweep / "sweep.db"
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("CREATE TABLE numbers (number INTEGER)")
        connection.execute("CREATE INDEX by_number ON numbers (number)")
        connection.executemany("INSERT INTO numbers VALUES (?)", ((k,) for k in range(2000)))
        connection.commit()
        name = {"table": "numbers", "index": "by_number"}.get(tree)
        found = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (name,))
        (root,) = found.fetchone() or (1,)
    open_storage(sweep)
    share_page(database, root)
    with pytest.raises(UserError, match=r"sweep.db is damaged: page \d+ is used twice"):
        open_storage(sweep)


def test_numbers_of_no_page_are_left_to_sqlite(tmp_path: Path) -> None:
    file = tmp_path / "sweep.db"
    for content in (b"", b"SQLite format 3\0"):
        file.write_bytes(content)
        sqlite_pages.check_trees(file, (1, 0, -1, 7, 1 << 62))


def clear_peak() -> None:
    """Reset the peak of this process's resident memory."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_rss() -> int:
    """Peak of this process's resident memory since the last reset, in bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])
