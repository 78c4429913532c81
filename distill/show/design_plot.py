"""Parameters and multiply-accumulates of the widest designs, drawn."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from distill.errors import UserError
from distill.run_folder import write_bytes

FORMATS = (".svg", ".png", ".pdf")
# Okabe and Ito, 2008: told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """A point a design: millions of parameters across, of MACs upwards; a colour a number of
    stages, beside each point its blocks where they are a number.
    """
    drawn = Figure(figsize=(6.6, 4.2), layout="constrained")
    axes = drawn.subplots()
    for n, (stages, same) in enumerate(groupby(rows, key=lambda row: row["stages"])):
        points = {(row["parameters"] / 1e6, row["macs"] / 1e6): row["blocks"] for row in same}
        colour = COLOURS[n % len(COLOURS)]
        across, upwards = zip(*points, strict=True)
        axes.scatter(across, upwards, s=14, color=colour, label=f"{stages} stages")
        for point, blocks in points.items():
            if isinstance(blocks, int):
                axes.annotate(
                    str(blocks), point, (4, 3), textcoords="offset points",
                    fontsize=7, color=colour,
                )  # fmt: skip
    axes.set_yscale("log")
    axes.set_xlabel("parameters (millions)")
    axes.set_ylabel("multiply-accumulates for an image (millions)")
    axes.legend(frameon=False, fontsize=8, title="beside a point: blocks a stage", title_fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return drawn


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the figure of some designs. Raises UserError where there is none, or for another ending
    than .svg, .png or .pdf.
    """
    if path.suffix not in FORMATS:
        raise UserError(f"--plot {path} must end in {', '.join(FORMATS)}.")
    if not rows:
        raise UserError("no design is within the budget: there is nothing to draw.")
    buffer = BytesIO()
    figure(rows).savefig(buffer, format=path.suffix[1:], dpi=200, metadata=_undated(path.suffix))
    write_bytes(path, buffer.getvalue())


def _undated(suffix: str) -> dict[str, None]:
    """The same rows give the same file."""
    return {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(suffix, {})
