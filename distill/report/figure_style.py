"""Define the size and colours of figures; convert figures to SVG, PDF and PNG.

A figure is drawn once, with colours for print. In an HTML page they are replaced by CSS variables,
so that the figure is readable in light and dark mode. The colours are distinguishable with any
colour vision: Okabe and Ito, "Color Universal Design", 2008.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from distill.files.escape_text import visible
from distill.report.matplotlib_defaults import Figure, matplotlib

COLUMN = 3.3  # width of a figure in inches: a column of a two-column paper
HEIGHT = 2.1  # height of most figures in inches
POINTS = 8  # size of all text, in points

INK, FAINT, RULE, PAPER = "#1b1e23", "#6a707b", "#dadde3", "#ffffff"
BLUE, ORANGE, GREEN, RED = "#0072b2", "#e69f00", "#009e73", "#d55e00"
# The yellow is darker than the original, to be visible on white.
PURPLE, SKY, YELLOW = "#cc79a7", "#56b4e9", "#b8a200"
SERIES = (BLUE, RED, GREEN, PURPLE, ORANGE, SKY, YELLOW, INK)

# CSS names of the colours; `report.html.j2` defines them for light and dark mode.
ON_PAGE = {
    INK: "currentColor", FAINT: "var(--faint)", RULE: "var(--rule)", PAPER: "var(--paper)",
    BLUE: "var(--blue)", ORANGE: "var(--orange)", GREEN: "var(--green)", RED: "var(--red)",
    PURPLE: "var(--purple)", SKY: "var(--sky)", YELLOW: "var(--yellow)",
}  # fmt: skip

STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same everywhere
    "font.size": POINTS,
    "axes.labelsize": POINTS,
    "axes.titlesize": POINTS,
    "xtick.labelsize": POINTS,
    "ytick.labelsize": POINTS,
    "legend.fontsize": POINTS,
    "text.parse_math": False,  # a class may be called "$x$"
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.use_mathtext": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "grid.color": RULE,
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "legend.borderaxespad": 0.2,
    "legend.handlelength": 1.6,
    "legend.columnspacing": 1.2,
    "figure.constrained_layout.h_pad": 0.03,
    "figure.constrained_layout.w_pad": 0.03,
}


@dataclass(frozen=True)
class CellTitle:
    """The text that a browser shows while the pointer is on a cell of a matrix."""

    column: int  # from 0
    row: int  # from 0, at the top
    text: str


def svg(figure: Figure, name: str, titles: Sequence[CellTitle] = ()) -> str:
    """Return the figure as inline SVG, with selectable text and CSS variables as colours.

    `name`: seeds the ids in the SVG, so that the same figure and name give the same output.
    `titles`: of the cells of a matrix, which has side 1 and its centre at (column, row) on the
    first axes. Matplotlib escapes the text of the figure.
    """
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context(STYLE | {"svg.fonttype": "none", "svg.hashsalt": name}):
        _fix_layout(figure)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata=nothing)
    drawing = file.getvalue()
    drawing = drawing[drawing.index("<svg") :]  # without the XML prologue
    drawing = re.sub(r' width="[\d.]+pt" height="[\d.]+pt"', "", drawing, count=1)
    drawing = re.sub(r'<g id="[^"]*"', "<g", drawing)  # unused, and not unique within a page
    drawing = re.sub(r" xmlns(:\w+)?=\"[^\"]*\"| version=\"1.1\"", "", drawing)
    drawing = re.sub(r"xlink:href", "href", drawing)
    for colour, variable in ON_PAGE.items():
        drawing = re.sub(rf"(fill|stroke): {colour}", rf"\1: {variable}", drawing)
    if titles:
        drawing = drawing.replace("</svg>", f"{_title_elements(figure, titles)}</svg>")
    return drawing


def _title_elements(figure: Figure, titles: Sequence[CellTitle]) -> str:
    """Return an invisible SVG square with a title for each cell."""
    points_each = 72 / figure.dpi
    corners = figure.axes[0].transData.transform(((-0.5, -0.5), (0.5, 0.5))) * points_each
    (left, top), (right, bottom) = corners  # of the cell (0, 0), from the lower edge of the figure
    height = 72 * figure.get_figheight() - top
    place = f"matrix({right - left:.4f} 0 0 {top - bottom:.4f} {left:.4f} {height:.4f})"
    squares = "".join(
        f'<path d="M{cell.column} {cell.row}h1v1h-1z">'
        f"<title>{escape(visible(cell.text))}</title></path>"
        for cell in titles
    )
    return f'<g transform="{place}" fill="none" pointer-events="all">{squares}</g>\n'


def pdf(figure: Figure) -> bytes:
    """Return a PDF with embedded TrueType fonts and no date, as conferences require."""
    nothing = dict.fromkeys(("CreationDate", "Creator", "Producer"))
    return _save(figure, "pdf", {"pdf.fonttype": 42}, metadata=nothing)


def png(figure: Figure) -> bytes:
    """Return a PNG with 300 dots per inch, on a white background."""
    return _save(figure, "png", {}, metadata={"Software": None}, dpi=300, facecolor=PAPER)


def _save(figure: Figure, kind: str, style: dict[Any, Any], **options: Any) -> bytes:
    with matplotlib.rc_context(STYLE | style):
        _fix_layout(figure)
        file = io.BytesIO()
        figure.savefig(file, format=kind, **options)
    return file.getvalue()


def _fix_layout(figure: Figure) -> None:
    """Compute the figure's layout and fix it: it would change slightly whenever it is drawn."""
    if figure.get_layout_engine() is not None:
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
