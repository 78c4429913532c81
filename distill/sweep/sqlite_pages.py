"""Check that the B-trees of a SQLite file share no pages.

SQLite reads a tree whose pages have several parents as if it had each of its rows many times: a
file of some pages can have more rows than can ever be read. Only the pointers between pages are
read here (https://sqlite.org/fileformat.html#b_tree_pages).
"""

from collections.abc import Iterable
from pathlib import Path
from typing import IO

SCHEMA_ROOT = 1  # the page of the table sqlite_master, which begins after the file's header
HEADER = 100  # bytes
INTERIOR = (2, 5)  # first byte of a page that points to others: of an index, of a table
MOST_PAGES = 1 << 32
CELLS = 12  # offset of the array of cells' positions in an interior page


class SharedPage(ValueError):
    """A page belongs to two trees, or to a tree twice."""


def check_trees(path: Path, roots: Iterable[int] = (SCHEMA_ROOT,)) -> None:
    """Raise SharedPage unless each page has one parent in the trees that begin at `roots`.

    `roots`: numbers of pages, from 1. The file must not be written meanwhile. A page that does not
    exist or is no page of a tree is left to SQLite, which finds it malformed.
    """
    seen: set[int] = set()
    waiting = [*roots]
    with path.open("rb") as file:
        size = _page_size(file)
        while waiting:
            number = waiting.pop()
            if number in seen:
                raise SharedPage(f"page {number} is used twice")
            seen.add(number)
            waiting += _children(file, number, size)


def _page_size(file: IO[bytes]) -> int:
    size = int.from_bytes(file.read(18)[16:18], "big")
    return 65_536 if size == 1 else size


def _children(file: IO[bytes], number: int, size: int) -> list[int]:
    """Return the numbers of the pages that a page points to; none for leaves."""
    if number not in range(1, MOST_PAGES):
        return []
    file.seek((number - 1) * size)
    page = file.read(size)
    start = HEADER if number == SCHEMA_ROOT else 0
    if len(page) < start + CELLS or page[start] not in INTERIOR:
        return []
    n_cells = int.from_bytes(page[start + 3 : start + 5], "big")
    array = page[start + CELLS : start + CELLS + 2 * n_cells]
    cells = [int.from_bytes(array[k : k + 2], "big") for k in range(0, len(array), 2)]
    pointers = [start + 8, *cells]
    return [int.from_bytes(page[at : at + 4], "big") for at in pointers]
