"""Build an HTML page of sections, and write its figures and tables to files beside it too.

Text from outside (names, paths, claims, classes) is escaped by the template. Only figures are
inserted as raw markup; matplotlib has escaped their text.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from distill.errors import Failure, UserError
from distill.files.escape_text import visible_lines
from distill.files.regular_file import InvalidFile, open_regular
from distill.report import figure_style
from distill.report.matplotlib_defaults import Figure
from distill.report.table_html_csv_latex import ValueTable
from distill.runs.run_folder import check_subfolder, write_bytes, write_text

TEMPLATE = "report.html.j2"
# Each page has one of these in its head; the second is of earlier versions.
OWN = (b'<meta name="generator" content="Understudy">', b"content=\"default-src 'none'; style-src")
HEAD = 4096  # bytes at the beginning of a page in which it is searched for


@dataclass(frozen=True)
class Paragraph:
    """A block of running text."""

    kind: ClassVar[str] = "note"
    text: str


@dataclass(frozen=True)
class Preformatted:
    """A block of text, such as a recipe, whose line breaks are preserved."""

    kind: ClassVar[str] = "listing"
    text: str


@dataclass(frozen=True)
class FigureBlock:
    """A block with a figure and its caption; `name` is the stem of the figure's files.

    `titles`: what a browser shows while the pointer is on a cell, if the figure is a matrix.
    """

    kind: ClassVar[str] = "drawing"
    name: str
    caption: str
    figure: Figure
    titles: Sequence[figure_style.CellTitle] = ()

    @property
    def svg(self) -> str:
        """The figure as inline SVG."""
        return figure_style.svg(self.figure, self.name, self.titles)


@dataclass(frozen=True)
class Table:
    """A block with a table.

    If `is_long`, the table is collapsed until the reader opens it. `marked`: the index of the row
    that is highlighted, if any. `on_page`: the rows that the page shows, if it does not show all;
    the table's files have all.
    """

    kind: ClassVar[str] = "table"
    grid: ValueTable
    is_long: bool = False
    marked: int | None = None
    on_page: Sequence[int] | None = None

    @property
    def cells(self) -> list[list[str]]:
        """The displayed text of the rows on the page."""
        cells = self.grid.cells
        return cells if self.on_page is None else [cells[row] for row in self.on_page]


@dataclass(frozen=True)
class TopClasses:
    """The most probable classes of one image according to one network."""

    whose: str  # name of the network
    shares: Sequence[tuple[str, float]]  # (class, probability 0..1), the most probable first


@dataclass(frozen=True)
class Mistake:
    """A misclassified image, with its label and the predictions of the networks."""

    picture: str  # a data: URL of a PNG
    title: str
    label: str  # class name
    opinions: Sequence[TopClasses]  # one per network


@dataclass(frozen=True)
class Gallery:
    """A block that shows misclassified images side by side."""

    kind: ClassVar[str] = "gallery"
    mistakes: Sequence[Mistake]


Block = Paragraph | Preformatted | FigureBlock | Table | Gallery


@dataclass(frozen=True)
class Section:
    """A part of a page: a title and the blocks under it."""

    title: str
    blocks: Sequence[Block]

    @property
    def parts(self) -> list[list[Block]]:
        """The blocks in order, grouped for the layout: consecutive figures form a group, and are
        shown side by side; every other block is a group of its own.
        """
        parts: list[list[Block]] = []
        for block in self.blocks:
            if parts and block.kind == "drawing" == parts[-1][-1].kind:
                parts[-1].append(block)
            else:
                parts.append([block])
        return parts


@dataclass(frozen=True)
class HeadFigure:
    """One number at the top of a page: its name, its value, and a remark below it."""

    name: str
    value: str
    remark: str = ""


@dataclass(frozen=True)
class Page:
    """The content of an HTML report."""

    title: str
    lead: str  # the sentence under the title
    facts: Sequence[HeadFigure]
    sections: Sequence[Section]
    notes: Sequence[str] = ()  # shown before the sections


def check_replaceable(path: Path) -> None:
    """Raise UserError if `path` is a file that no report wrote; a report is replaced."""
    if not path.exists():
        return
    try:
        with open_regular(path, sys.maxsize) as file:
            head = file.read(HEAD)
    except (OSError, InvalidFile):
        head = b""
    if not any(text in head for text in OWN):
        raise UserError(
            f"{path} exists and is not a report written by this program: it would be replaced.\n"
            "Move it elsewhere, or choose another --out."
        )


def write(page: Page, path: Path) -> Path:
    """Write a page to `path`, and its figures and tables to a folder beside it; return the folder.

    For `report.html` the folder is `report_files/`, with subfolders `figures/` and `tables/`. Files
    of an earlier report with the same names are overwritten. Raises Failure if a file cannot be
    written, UserError if one of the folders is a symbolic link.
    """
    files_folder = path.with_name(f"{path.stem}_files")
    for folder in (files_folder, files_folder / "figures", files_folder / "tables"):
        check_subfolder(folder)
    try:
        for section in page.sections:
            for block in section.blocks:
                _write_files(block, files_folder)
        write_text(path, html(page))
    except OSError as fault:
        raise Failure(
            f"The report cannot be written: {fault.filename or path}: {fault.strerror or fault}.\n"
            "Choose another folder: --out DIR."
        ) from fault
    return files_folder


def _write_files(block: Block, files_folder: Path) -> None:
    """Write the block's figure (PDF, PNG) or table (CSV, LaTeX) to files for use in a paper."""
    if isinstance(block, FigureBlock):
        write_bytes(files_folder / "figures" / f"{block.name}.pdf", figure_style.pdf(block.figure))
        write_bytes(files_folder / "figures" / f"{block.name}.png", figure_style.png(block.figure))
    elif isinstance(block, Table):
        write_text(files_folder / "tables" / f"{block.grid.name}.csv", block.grid.csv())
        write_text(files_folder / "tables" / f"{block.grid.name}.tex", block.grid.latex())


def _escape_text(value: Any) -> Any:
    """Escape control characters in plain text; leave other values, such as markup, unchanged."""
    return visible_lines(value) if type(value) is str else value


def html(page: Page) -> str:
    """Return the page as HTML that needs no other file and no network."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=_escape_text,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # For text that the template converts to markup, which `_escape_text` leaves unchanged.
    environment.filters["visible"] = visible_lines
    return environment.get_template(TEMPLATE).render(page=page)
