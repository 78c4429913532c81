"""Plot the parameters and MACs (multiply-accumulates) of ResNet designs."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import groupby
from math import cos, hypot, pi, sin
from pathlib import Path
from typing import Any

from distill.errors import Failure, UserError
from distill.format import counted
from distill.report.figure_style import SERIES
from distill.report.matplotlib_defaults import Figure
from distill.runs.run_folder import write_bytes

FORMATS = (".svg", ".png", ".pdf")
CLEAR = 8  # least distance of a label from other labels and from points, in 1 / 72 inch
Point = tuple[float, float]  # x, y


def figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Plot each design as a point: its MACs over its parameters, both in millions.

    `rows`: designs sorted by number of stages, with `stages`, `blocks`, `parameters` and `macs`.
    Each number of stages has a colour. A point is labelled with the blocks per stage if all stages
    have the same number.
    """
    drawn = Figure(figsize=(6.6, 4.2), layout="constrained")
    axes = drawn.subplots()
    labels: dict[Point, tuple[str, str]] = {}
    for n, (stages, group) in enumerate(groupby(rows, key=lambda row: row["stages"])):
        points = {(row["parameters"] / 1e6, row["macs"] / 1e6): row["blocks"] for row in group}
        colour = SERIES[n % len(SERIES)]
        across, upwards = zip(*points, strict=True)
        axes.scatter(across, upwards, s=14, color=colour, label=counted(stages, "stage"))
        labels |= {point: (str(n), colour) for point, n in points.items() if isinstance(n, int)}
    axes.set_yscale("log")
    axes.set_xlabel("parameters (millions)")
    axes.set_ylabel("multiply-accumulates per image (millions)")
    axes.legend(frameon=False, fontsize=8, title="label: blocks per stage", title_fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    drawn.draw_without_rendering()  # fixes the points' positions on the page
    on_page = [axes.transData.transform(point) * 72 / drawn.dpi for point in labels]
    places = place_labels([(float(x), float(y)) for x, y in on_page])
    for (point, (text, colour)), (x, y) in zip(labels.items(), places, strict=True):
        axes.annotate(
            text, point, (x, y), textcoords="offset points", fontsize=7, color=colour,
            ha="center", va="center",
        )  # fmt: skip
    return drawn


def place_labels(points: Sequence[Point]) -> list[Point]:
    """Return the offset of each point's label from the point, so that labels do not overlap.

    Each label gets the free position nearest to its point that is at least CLEAR from all points
    and other labels. Positions and offsets are in 1 / 72 inch.
    """
    occupied, places = list(points), []
    for x, y in points:
        rings = (
            (radius * cos(angle), radius * sin(angle))
            for radius in range(CLEAR, 8 * CLEAR)
            for angle in (n * pi / 8 for n in range(16))
        )
        free = (
            (dx, dy)
            for dx, dy in rings
            if all(hypot(x + dx - a, y + dy - b) >= CLEAR for a, b in occupied)
        )
        dx, dy = next(free, (CLEAR, CLEAR))
        occupied.append((x + dx, y + dy))
        places.append((dx, dy))
    return places


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the figure of the designs `rows` to a .svg, .png or .pdf file.

    Raises UserError if `rows` is empty or `path` has another suffix, Failure if the file cannot be
    written.
    """
    if path.suffix not in FORMATS:
        raise UserError(f"--plot {path} must end in {', '.join(FORMATS)}.")
    if not rows:
        raise UserError("no design is within the budget: there is nothing to draw.")
    buffer = BytesIO()
    figure(rows).savefig(buffer, format=path.suffix[1:], dpi=200, metadata=_undated(path.suffix))
    try:
        write_bytes(path, buffer.getvalue())
    except OSError as fault:
        raise Failure(
            f"--plot {path} cannot be written: {fault.strerror or fault}.\n"
            "Free some space, or give another --plot FILE."
        ) from fault


def _undated(suffix: str) -> dict[str, None]:
    """Return savefig's metadata that omits the date, so that equal figures give equal files."""
    return {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(suffix, {})
