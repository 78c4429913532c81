"""Figures have a paper's size and reproducible bytes, and show class names as plain text."""

import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure

from distill.metrics import calibration_curve
from distill.report import figure_style, plots
from distill.report.figure_style import CellTitle
from distill.report.plots import Series
from distill.runs.epoch_series import Line

NAMES = ["<script>alert(1)</script>", "$\\frac{a}{$ & co", "]]>", "plain"]
COUNTS = np.array([[8, 2, 0, 0], [0, 9, 1, 0], [3, 0, 7, 0], [0, 0, 0, 10]])
LINE = Line(np.array([1.0, 2.0, 3.0]), np.array([0.5, 0.3, 0.2]))


def confusion() -> Figure:
    return plots.confusion(COUNTS, NAMES)


def bars() -> Figure:
    shares = np.array([0.8, 0.9, 0.7, 1.0])
    reach = np.stack([shares - 0.1, np.minimum(shares + 0.1, 1)], axis=1)
    return plots.by_class(shares, reach, NAMES, shares - 0.05, "the teacher")


def curve() -> Figure:
    return plots.over_epochs([Series(LINE, figure_style.BLUE, NAMES[0])], "error", is_share=True)


def texts(drawing: str) -> list[str]:
    return [each.text or "" for each in ElementTree.fromstring(drawing).iter("text")]


@pytest.mark.parametrize("draw", [confusion, bars])
def test_a_class_is_text_whatever_it_is_called(draw: object) -> None:
    drawing = figure_style.svg(draw(), "a")  # type: ignore[operator]
    assert "<script" not in drawing
    assert {plots.short_name(name) for name in NAMES} <= set(texts(drawing))


def test_drawing_loads_nothing_and_uses_page_colours() -> None:
    drawing = figure_style.svg(confusion(), "a")
    assert not re.search(r"https?:|<metadata|<!DOCTYPE|@import|url\((?!#)", drawing)
    assert "var(--blue)" in drawing and "currentColor" in drawing
    named = set(re.findall(r"(?:fill|stroke): (#\w+)", drawing))
    assert named <= {"#ffffff"} or not named, named


@pytest.mark.long
def test_the_same_figure_is_the_same_bytes() -> None:
    for leave in (lambda figure: figure_style.svg(figure, "a"), figure_style.pdf, figure_style.png):
        assert leave(curve()) == leave(curve())


@pytest.mark.long
def test_pdf_fits_column_without_date() -> None:
    content = figure_style.pdf(curve())
    box = re.search(rb"/MediaBox \[ 0 0 ([\d.]+) ([\d.]+) \]", content)
    assert box is not None and float(box[1]) == pytest.approx(3.3 * 72, abs=0.1)
    assert b"/FontFile2" in content and b"/Type3" not in content
    assert b"CreationDate" not in content and b"Matplotlib" not in content


def test_text_is_eight_points_outside_the_matrix() -> None:
    sizes = set(re.findall(r"font(?:-size)?: ([\d.]+)px", figure_style.svg(curve(), "a")))
    assert sizes == {"8"}


def test_cells_of_matrix_are_percents_of_their_row() -> None:
    assert {"80", "20", "90", "10", "30", "70", "100"} <= set(
        texts(figure_style.svg(confusion(), "a"))
    )


def test_hundred_classes_have_no_figures_in_their_cells() -> None:
    counts = np.eye(100, dtype=int) * 5 + 1
    (axes,) = plots.confusion(counts, [str(k) for k in range(100)]).axes
    (cells,) = axes.collections
    assert not axes.texts and len(cells.get_paths()) == 10_000


def test_cell_titles_lie_on_their_cells() -> None:
    titles = [CellTitle(1, 0, f"{NAMES[0]} as {NAMES[1]}"), CellTitle(3, 3, "last")]
    drawing = ElementTree.fromstring(figure_style.svg(confusion(), "a", titles))
    [group] = [g for g in drawing.iter("g") if g.get("pointer-events") == "all"]
    assert [title.text for title in group.iter("title")] == [title.text for title in titles]
    assert [path.get("d") for path in group.iter("path")] == ["M1 0h1v1h-1z", "M3 3h1v1h-1z"]
    numbers = [float(x) for x in re.findall(r"[-\d.]+", group.get("transform", ""))]
    width, _, _, height, left, top = numbers
    assert width == pytest.approx(height, rel=1e-3), "cells are square"
    drawn = [text for text in drawing.iter("text") if text.text == "10"]  # in the second row
    x, y = map(float, re.findall(r"[\d.]+", drawn[0].get("x", "") + " " + drawn[0].get("y", "")))
    assert left + 2 * width < x < left + 3 * width and top + height < y < top + 2 * height


def test_reliability_shows_one_line_or_two() -> None:
    chance = np.random.default_rng(0)
    shares = chance.dirichlet(np.ones(4), size=100)
    known = calibration_curve(shares, chance.integers(4, size=100))
    upper, _ = plots.reliability(known).axes
    assert len(upper.lines) == 2  # with the diagonal
    upper, _ = plots.reliability(known, known).axes
    assert len(upper.lines) == 3


def test_best_class_is_first() -> None:
    (axes,) = bars().axes
    assert [label.get_text() for label in axes.get_yticklabels()][-1] == "plain"


def test_panels_share_their_epochs() -> None:
    figure = plots.stacked_panels(
        [("hard", [Series(LINE, figure_style.BLUE)]), ("kd", [Series(LINE, figure_style.RED)])]
    )
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["hard", "kd"]
    assert figure.axes[0].get_xlim() == figure.axes[1].get_xlim()


def test_seeds_are_points_and_their_mean_a_bar() -> None:
    groups = [("kd", np.array([0.7, 0.8]), 0.75, (0.6, 0.9), figure_style.BLUE)]
    (axes,) = plots.seeds(groups).axes
    drawn = [np.asarray(line.get_xdata()).tolist() for line in axes.lines]
    assert drawn == [[0.6, 0.9], [0.75, 0.75], [0.7, 0.8]]


@pytest.mark.long
def test_own_settings_of_matplotlib_are_not_read(tmp_path: Path) -> None:
    """A file in the working folder may be a pipe; the user's own may run LaTeX."""
    os.mkfifo(tmp_path / "matplotlibrc")
    (tmp_path / "own").write_text("text.usetex: True")
    code = (
        "import os; from distill.report.matplotlib_defaults import matplotlib as m; "
        "print(m.rcParams['text.usetex'], os.getcwd(), "
        "*map(os.environ.get, ('MATPLOTLIBRC', 'MPLBACKEND')))"
    )
    own = {"MATPLOTLIBRC": str(tmp_path / "own"), "MPLBACKEND": "nonsense"}
    own["PYTHONPATH"] = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | own, cwd=tmp_path, timeout=60,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == f"False {tmp_path} {tmp_path / 'own'} nonsense\n"


def test_no_global_state_is_left() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    curve()
    assert dict(matplotlib.rcParams) == before
