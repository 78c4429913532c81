"""Build an HTML page of sections, with its figures and tables in files beside it.

External text (names, paths, claims, classes) is escaped by the template. Only figures are inserted
as raw markup; matplotlib has already escaped their text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from distill.errors import Failure
from distill.files.safe_text import visible_lines
from distill.report import figure_style
from distill.report.table_html_csv_latex import ValueTable
from distill.runs.run_folder import check_subfolder, write_bytes, write_text

TEMPLATE = "report.html.j2"


@dataclass(frozen=True)
class Paragraph:
    """A paragraph."""

    kind: ClassVar[str] = "note"
    text: str


@dataclass(frozen=True)
class Preformatted:
    """Text whose lines are preserved."""

    kind: ClassVar[str] = "listing"
    text: str


@dataclass(frozen=True)
class FigureBlock:
    """A figure; `name` is the stem of its files."""

    kind: ClassVar[str] = "drawing"
    name: str
    caption: str
    figure: Figure

    @property
    def svg(self) -> str:
        """The figure as inline SVG."""
        return figure_style.svg(self.figure, self.name)


@dataclass(frozen=True)
class Table:
    """A table; a long one is collapsed at first, and the row `marked` (from 0) is highlighted."""

    kind: ClassVar[str] = "table"
    grid: ValueTable
    is_long: bool = False
    marked: int | None = None


@dataclass(frozen=True)
class ClassProbabilities:
    """A network's prediction for one image: (class, probability), the most probable first."""

    whose: str
    shares: Sequence[tuple[str, float]]


@dataclass(frozen=True)
class Mistake:
    """A misclassified image. `picture` is a data: URL of a PNG."""

    picture: str
    title: str
    label: str
    opinions: Sequence[ClassProbabilities]


@dataclass(frozen=True)
class Gallery:
    """A block that shows misclassified images side by side."""

    kind: ClassVar[str] = "gallery"
    mistakes: Sequence[Mistake]


Block = Paragraph | Preformatted | FigureBlock | Table | Gallery


@dataclass(frozen=True)
class Section:
    """A part of the page: a title and its blocks."""

    title: str
    blocks: Sequence[Block]

    @property
    def parts(self) -> list[list[Block]]:
        """The blocks in order, grouped for the layout: consecutive figures form one part, side by
        side.
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
    """One number at the top of the page: its name, value and a remark below."""

    name: str
    value: str
    remark: str = ""


@dataclass(frozen=True)
class Page:
    """A report. `lead` is the sentence under its title; `notes` are shown before the sections."""

    title: str
    lead: str
    facts: Sequence[HeadFigure]
    sections: Sequence[Section]
    notes: Sequence[str] = ()


def write(page: Page, path: Path) -> Path:
    """Write the page to `path`, and `<its stem>_files/` with `figures/` and `tables/` beside it.

    Files of an earlier report with the same names are overwritten. Returns the folder. Raises
    Failure if it cannot be written, UserError if one of the folders is a symbolic link.
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
    """Write the figure or table of a block to files for use in a paper."""
    if isinstance(block, FigureBlock):
        write_bytes(files_folder / "figures" / f"{block.name}.pdf", figure_style.pdf(block.figure))
        write_bytes(files_folder / "figures" / f"{block.name}.png", figure_style.png(block.figure))
    elif isinstance(block, Table):
        write_text(files_folder / "tables" / f"{block.grid.name}.csv", block.grid.csv())
        write_text(files_folder / "tables" / f"{block.grid.name}.tex", block.grid.latex())


def _escape_text(value: Any) -> Any:
    """Escape control characters in text; leave figures unchanged, which are markup."""
    return visible_lines(value) if type(value) is str else value


def html(page: Page) -> str:
    """Return the page as one file without external resources."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=_escape_text,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["visible"] = visible_lines  # for text that a filter turns into markup
    return environment.get_template(TEMPLATE).render(page=page)
