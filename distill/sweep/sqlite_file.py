"""Check a SQLite database, which others may have made, before SQLite opens it.

SQLite trusts the files beside a database. It deletes the file that a rollback journal names as its
super-journal, and writes into the journal, the write-ahead log and its index through links
(https://sqlite.org/fileformat.html#the_rollback_journal, https://sqlite.org/howtocorrupt.html).
A sweep's database has a rollback journal, never a write-ahead log. A super-journal is written only
for several attached databases, which a sweep does not use.
"""

import os
import re
import sqlite3
import stat
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy.engine import URL, make_url

from distill.errors import UserError
from distill.sweep import sqlite_pages

MAGIC = bytes.fromhex("d9d505f920a163d7")  # at both ends of a journal that has a super-journal
FORMATS = slice(18, 20)  # bytes of a database's header: write and read format, 2 for WAL
WRITE_AHEAD_LOG = 2
# A definition may have names, types and constants only, and the one CHECK in optuna's tables.
LARGEST_VALUE = 1 << 22  # bytes of a text; a sweep writes some thousand
MOST_ROWS = 1_000_000  # of all tables; 1,000 trials of 100 epochs have about 150,000
MOST_TEXT = 256 << 20  # bytes of all texts together
TABLE = re.compile(r'CREATE TABLE [\w\s(),"]*')
INDEX = re.compile(r'CREATE (UNIQUE )?INDEX "?\w+"? ON "?\w+"? \([\w\s,"]*\)')
COMPUTED = re.compile(r"\b(AS|CHECK|USING|CONFLICT|DEFAULT\s*\()", re.IGNORECASE)
CHECK_OF_OPTUNA = re.compile(r"CHECK \(version_info_id ?= ?1\)")
# A table or index without a tree of its own has no root page; a damaged file may have any value.
ROOTS = "SELECT rootpage FROM sqlite_master WHERE typeof(rootpage) = 'integer' AND rootpage > 0"
ADVICE = "Restore the file that the sweep wrote, or choose another --out."


@dataclass(frozen=True)
class SQLiteFile:
    """The database file that a URL names."""

    url: URL
    path: Path

    def connect(self, **options: Any) -> Any:
        """Open a connection with the URL's driver.

        `options`: arguments of the driver's `connect` in addition to the URL's. Raises UserError if
        the schema contains definitions that run code or compute values.
        """
        kind = self.url.get_dialect()
        dialect = kind(dbapi=kind.import_dbapi())  # type: ignore[call-arg]
        arguments, of_url = dialect.create_connect_args(self.url)
        connection = dialect.connect(*arguments, **{**of_url, **options})
        self._limit_values(connection)
        self._check_schema(connection)
        return connection

    def _limit_values(self, connection: Any) -> None:
        """Limit the size of values: rows of a damaged file may share the same large value."""
        if hasattr(connection, "setlimit"):  # sqlite3's own driver
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LARGEST_VALUE)

    def check(self) -> None:
        """Raise UserError if opening the database could change a file elsewhere or never end.

        It could if the database or its journal is a link, a pipe or a device, if the journal names
        another file, if there is a write-ahead log, or if the schema is in pages that are shared.
        """
        check_regular(self.path)
        self._check_pages((sqlite_pages.SCHEMA_ROOT,))
        if WRITE_AHEAD_LOG in _content(self.path, 0)[FORMATS]:
            raise UserError(f"{self.path} uses a write-ahead log, which no sweep uses.\n{ADVICE}")
        for log in (self._beside("-wal"), self._beside("-shm")):
            check_regular(log)
            if log.exists():
                raise UserError(
                    f"{log} belongs to a write-ahead log, which no sweep uses.\n{ADVICE}"
                )
        journal = self._beside("-journal")
        check_regular(journal)
        if _content(journal, -len(MAGIC)) == MAGIC:
            raise UserError(
                f"{journal} names another file, which SQLite would delete: no sweep writes such "
                "a journal.\nDelete the journal, or choose another --out."
            )

    def check_size(self) -> None:
        """Raise UserError if the database has too many rows or too much text.

        optuna holds all of it in memory. Rows of a damaged file may share the same pages, so that
        the file's size limits neither.
        """
        if not self.path.exists():
            return
        connection = self.connect()
        connection.text_factory = bytes  # the texts need not be UTF-8
        try:
            connection.execute("BEGIN")  # until `close`, so that no worker writes meanwhile
            roots = connection.execute(ROOTS).fetchall()
            self._check_pages((sqlite_pages.SCHEMA_ROOT, *(root for (root,) in roots)))
            names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            n_rows = n_bytes = 0
            for (name,) in names.fetchall():
                quoted = name.decode(errors="surrogateescape").replace('"', '""')
                for row in connection.execute(f'SELECT * FROM "{quoted}"'):
                    n_rows += 1
                    n_bytes += sum(len(value) for value in row if isinstance(value, bytes))
                    if n_rows > MOST_ROWS:
                        raise self._too_large(f"more than {MOST_ROWS:,} rows")
                    if n_bytes > MOST_TEXT:
                        raise self._too_large(f"more than {MOST_TEXT:,} bytes of text")
        finally:
            connection.close()

    def _check_pages(self, roots: Iterable[int]) -> None:
        try:
            sqlite_pages.check_trees(self.path, roots)
        except FileNotFoundError:  # a new sweep
            return
        except sqlite_pages.SharedPage as fault:
            raise UserError(f"{self.path} is damaged: {fault}.\n{ADVICE}") from None

    def _too_large(self, found: str) -> UserError:
        return UserError(f"{self.path} has {found}, and no sweep writes that much.\n{ADVICE}")

    def _check_schema(self, connection: Any) -> None:
        """Raise UserError unless the schema has plain tables and indexes only.

        A view may have endless rows; a trigger or a computed column changes what a sweep writes.
        """
        rows = connection.execute("SELECT type, name, sql FROM sqlite_master").fetchall()
        for kind, name, sql in rows:
            if sql is not None and not _is_plain(kind, str(sql)):
                connection.close()
                raise UserError(
                    f"{self.path} is damaged: its {kind} {name!r} is none of a sweep's.\n{ADVICE}"
                )

    def _beside(self, suffix: str) -> Path:
        return self.path.with_name(self.path.name + suffix)


def from_url(url: str | URL) -> SQLiteFile | None:
    """Return the file of a SQLAlchemy URL; None for a database in memory or on a server.

    Raises ValueError if the URL contains a SQLite URI, ArgumentError if it cannot be parsed, and
    ImportError if its driver is missing.
    """
    if isinstance(url, str) and not url.startswith("sqlite"):
        return None
    parsed = make_url(url)
    if parsed.database in (None, "", ":memory:"):
        return None
    if "uri" in parsed.query:
        raise ValueError("it is a URI of SQLite instead of a file")
    parsed.get_dialect().import_dbapi()
    return SQLiteFile(parsed, Path(parsed.database))


def check_regular(path: Path) -> None:
    """Raise UserError if a path exists and is not a regular file, or if it has other hard links."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.\n{ADVICE}") from None
    if kind := _other_kind(status):
        raise UserError(
            f"{path} is a {kind}: a sweep writes inside its own folder only.\n"
            "Put the file itself there, or choose another --out."
        )


def _is_plain(kind: str, sql: str) -> bool:
    """Whether a definition in the schema is a table or an index that computes no values.

    `kind`: "table", "index", "view" or "trigger"; `sql`: the definition.
    """
    sql = CHECK_OF_OPTUNA.sub("", sql)
    pattern = {"table": TABLE, "index": INDEX}.get(kind)
    return pattern is not None and bool(pattern.fullmatch(sql)) and not COMPUTED.search(sql)


def _other_kind(status: os.stat_result) -> str:
    """Return the kind of a file that a sweep must not write, such as "symbolic link".

    Empty for a regular file without other hard links. `status`: from lstat.
    """
    if stat.S_ISLNK(status.st_mode):
        return "symbolic link"
    if stat.S_ISDIR(status.st_mode):
        return "folder"
    if not stat.S_ISREG(status.st_mode):
        return "pipe or a device"
    # SQLite writes in place, which would change the file under its other names.
    return "hard link" if status.st_nlink > 1 else ""


def _content(path: Path, start: int) -> bytes:
    """Return up to 20 bytes of a file from the position `start`; if negative, from its end.

    Empty if the file does not exist: another worker may have deleted it.
    """
    with suppress(FileNotFoundError), path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(start if start >= 0 else max(0, size + start))
        return file.read(FORMATS.stop)
    return b""
