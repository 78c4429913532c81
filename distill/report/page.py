"""Build an HTML page of sections, with its figures and tables in files beside it.

Whatever came from outside (names, paths, claims, classes) is text here and is escaped by the
template; the drawings alone are markup, and matplotlib has escaped the text in them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from distill.errors import Failure
from distill.files.safe_text import visible_lines
from distill.report import style
from distill.report.value_table import ValueTable
from distill.runs.run_folder import write_bytes, write_text

TEMPLATE = "report.html.j2"


@dataclass(frozen=True)
class Paragraph:
    """A paragraph."""

    kind: ClassVar[str] = "note"
    text: str


@dataclass(frozen=True)
class Preformatted:
    """Text as it is, line by line."""

    kind: ClassVar[str] = "listing"
    text: str


@dataclass(frozen=True)
class FigureBlock:
    """A figure; `name` is that of its files, `caption` says what is to be seen."""

    kind: ClassVar[str] = "drawing"
    name: str
    caption: str
    figure: Figure

    @property
    def svg(self) -> str:
        """For the inside of the page."""
        return style.svg(self.figure, self.name)


@dataclass(frozen=True)
class Table:
    """A grid; a long one is folded until it is asked for, the row `marked` (from 0) stands out."""

    kind: ClassVar[str] = "table"
    grid: ValueTable
    is_long: bool = False
    marked: int | None = None


@dataclass(frozen=True)
class ClassProbabilities:
    """What a network holds of one image: (class, probability), the likeliest first."""

    whose: str
    shares: Sequence[tuple[str, float]]


@dataclass(frozen=True)
class Mistake:
    """One image that was taken for something else. `picture` is a data: address of a PNG."""

    picture: str
    title: str
    label: str
    opinions: Sequence[ClassProbabilities]


@dataclass(frozen=True)
class Gallery:
    """Mistakes side by side."""

    kind: ClassVar[str] = "gallery"
    mistakes: Sequence[Mistake]


Block = Paragraph | Preformatted | FigureBlock | Table | Gallery


@dataclass(frozen=True)
class Section:
    """A title and what stands under it."""

    title: str
    blocks: Sequence[Block]

    @property
    def parts(self) -> list[list[Block]]:
        """The blocks in order; drawings that follow each other are one part, side by side."""
        parts: list[list[Block]] = []
        for block in self.blocks:
            if parts and block.kind == "drawing" == parts[-1][-1].kind:
                parts[-1].append(block)
            else:
                parts.append([block])
        return parts


@dataclass(frozen=True)
class HeadFigure:
    """One figure of the head: its name, itself, what stands under it."""

    name: str
    value: str
    beside: str = ""


@dataclass(frozen=True)
class Page:
    """A report. `lead` is the sentence under its title, `notes` what must be known first."""

    title: str
    lead: str
    facts: Sequence[HeadFigure]
    sections: Sequence[Section]
    notes: Sequence[str] = ()


def write(page: Page, path: Path) -> Path:
    """The page at `path`, and `<its stem>_files/` with `figures/` and `tables/` beside it.

    What an earlier report left there under the same names is overwritten. Returns the folder.
    Raises Failure where the disk does not take it.
    """
    beside = path.with_name(f"{path.stem}_files")
    try:
        for section in page.sections:
            for block in section.blocks:
                _write_files(block, beside)
        write_text(path, html(page))
    except OSError as fault:
        raise Failure(
            f"The report cannot be written: {fault.filename or path}: {fault.strerror or fault}.\n"
            "Give it another place: --out DIR."
        ) from fault
    return beside


def _write_files(block: Block, beside: Path) -> None:
    """What a block leaves for a paper."""
    if isinstance(block, FigureBlock):
        write_bytes(beside / "figures" / f"{block.name}.pdf", style.pdf(block.figure))
        write_bytes(beside / "figures" / f"{block.name}.png", style.png(block.figure))
    elif isinstance(block, Table):
        write_text(beside / "tables" / f"{block.grid.name}.csv", block.grid.csv())
        write_text(beside / "tables" / f"{block.grid.name}.tex", block.grid.latex())


def _finalized(value: Any) -> Any:
    """Text without control characters; drawings, which are markup, as they are."""
    return visible_lines(value) if type(value) is str else value


def html(page: Page) -> str:
    """The page as one file that asks for nothing beside itself."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=_finalized,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["visible"] = visible_lines  # for text that a filter turns into markup
    return environment.get_template(TEMPLATE).render(page=page)
