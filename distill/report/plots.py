"""Plot the figures of a report; each function returns a matplotlib figure."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distill.files.escape_text import visible
from distill.format import percent
from distill.metrics import BINS, CalibrationCurve, Counts
from distill.report.figure_style import (
    BLUE,
    COLUMN,
    FAINT,
    HEIGHT,
    INK,
    ORANGE,
    PAPER,
    POINTS,
    RED,
    STYLE,
)
from distill.report.matplotlib_defaults import (
    Axes,
    Figure,
    FuncFormatter,
    MaxNLocator,
    PolyCollection,
    matplotlib,
    to_rgba,
)
from distill.runs.epoch_series import Floats, Line

LONGEST_NAME = 18  # characters of a class name beside an axis
MANY_CLASSES = 20  # a confusion matrix of more classes has neither numbers nor names beside it
FAINTEST = 0.01  # opacity below which a cell is invisible and not drawn
FEW_POINTS = 12  # a line of at most so many points has a marker at each
in_style = matplotlib.rc_context(STYLE)


@dataclass(frozen=True)
class Series:
    """One line of a figure, with its style."""

    line: Line
    colour: str
    name: str = ""  # in the legend; empty for none
    style: str = "-"  # matplotlib's line style; "" for points without a line
    marker: str = ""  # matplotlib's marker of each point; "" for none
    is_faint: bool = False


def new_figure(height: float = HEIGHT) -> Figure:
    """Return an empty figure of COLUMN width; `height` in inches."""
    return Figure(figsize=(COLUMN, height), layout="constrained")


@in_style
def over_epochs(series: Sequence[Series], label: str, *, is_share: bool = False) -> Figure:
    """Plot lines over the epochs.

    `label`: of the y axis. `is_share`: whether values are fractions, shown in percent.
    """
    figure = new_figure()
    axes = figure.add_subplot()
    _draw(axes, series)
    axes.set(xlabel="epoch", ylabel=label)
    _set_epoch_axis(axes)
    if is_share:
        _set_percent_axis(axes)
    legend(figure, axes)
    return figure


@in_style
def stacked_panels(panels: Sequence[tuple[str, Sequence[Series]]]) -> Figure:
    """Plot small panels below each other, such as one per loss term, each with a scale of its own.

    `panels`: (title, lines) from top to bottom; the x axis is the epoch.
    """
    figure = new_figure(0.35 + 0.95 * len(panels))
    every = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (title, series) in zip(every, panels, strict=True):
        _draw(axes, series)
        axes.set_title(title, loc="left", pad=3)
        axes.yaxis.set_major_locator(MaxNLocator(3))
    _set_epoch_axis(every[-1])
    every[-1].set_xlabel("epoch")
    return figure


@in_style
def confusion(counts: Counts, names: Sequence[str]) -> Figure:
    """Plot a confusion matrix in percent of each row; mistakes have a separate colour scale.

    `counts` [C, C]: numbers of images by label (row) and prediction (column). `names` [C]: of the
    classes.
    """
    n = len(counts)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    worst = max(float((shares * (1 - np.eye(n))).max()), 1e-9)
    figure = new_figure(COLUMN)
    axes = figure.add_subplot()
    depths = np.where(np.eye(n, dtype=bool), shares, 0.8 * shares / worst)
    filled = np.argwhere(depths > FAINTEST)
    squares = filled[:, None, ::-1] + [(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)]
    colours = [to_rgba(BLUE if i == j else ORANGE, depths[i, j]) for i, j in filled]
    axes.add_collection(PolyCollection(list(squares), facecolors=colours, linewidths=0))
    for i, j in np.argwhere(np.rint(100 * shares) > 0) if n <= MANY_CLASSES else ():
        ink = PAPER if i == j and shares[i, j] > 0.6 else INK
        size = POINTS - 1 if n <= 10 else POINTS - 3
        text = f"{100 * shares[i, j]:.0f}"
        axes.text(j, i, text, ha="center", va="center", color=ink, fontsize=size)
    axes.set(xlim=(-0.5, n - 0.5), ylim=(n - 0.5, -0.5), aspect="equal")
    axes.set(xlabel="prediction", ylabel="label")
    axes.grid(visible=False)
    axes.tick_params(length=0)
    if n <= MANY_CLASSES:
        axes.set_xticks(range(n), [short_name(name) for name in names], rotation=90)
        axes.set_yticks(range(n), [short_name(name) for name in names])
    else:
        axes.set(xticks=(), yticks=())
    return figure


@in_style
def by_class(
    shares: Floats,
    intervals: Floats,
    names: Sequence[str],
    others: Floats | None,
    other: str,
    n_between: int = 0,
) -> Figure:
    """Plot the accuracy of each class as a bar with its interval, the best class at the top.

    `shares` [C]: accuracies 0..1. `intervals` [C, 2]. `others` [C]: accuracies of another network,
    drawn as diamonds and named `other` in the legend; None for none. `n_between`: the number of
    classes that are left out between the better and the worse half.
    """
    order = np.argsort(shares, kind="stable")
    n, places = len(order), np.arange(float(len(order)))
    if n_between:
        places[n // 2 :] += 1
    figure = new_figure(0.6 + 0.19 * (n + bool(n_between)))
    axes = figure.add_subplot()
    if n_between:
        text = f"{n_between} more classes"
        axes.text(0.01, n // 2, text, va="center", color=FAINT, fontsize=POINTS - 1)
    _draw_bars(axes, places, shares[order], intervals[order])
    if others is not None:
        axes.plot(others[order], places, "D", color=RED, ms=3, label=other, clip_on=False)
    _set_name_axis(axes, places, [names[k] for k in order])
    axes.set(xlim=(0, 1), ylim=(-0.6, places[-1] + 0.6))
    axes.xaxis.set_major_formatter(FuncFormatter(_percent))
    legend(figure, axes, columns=3)
    return figure


@in_style
def reliability(plain: CalibrationCurve, scaled: CalibrationCurve | None = None) -> Figure:
    """Plot a reliability diagram: accuracy over confidence, and below it a histogram of confidence.

    The diagonal is perfect calibration. `scaled`: the curve after temperature scaling, if any.
    """
    figure = new_figure(2.7)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot((0, 1), (0, 1), "--", color=FAINT, linewidth=0.8)
    both = [(plain, BLUE, "unscaled", "o"), (scaled, RED, "temperature scaled", "s")]
    for curve, colour, name, marker in both:
        if curve is not None:
            filled = curve.counts > 0
            x, y = curve.confidence[filled], curve.accuracy[filled]
            label = f"{name}, ECE {percent(curve.ece)}"
            upper.plot(x, y, marker=marker, color=colour, label=label, clip_on=False)
            edges = np.arange(BINS + 1) / BINS
            shares = curve.counts / curve.counts.sum()
            lower.stairs(shares, edges, color=colour, alpha=0.35, fill=curve is plain)
            lower.stairs(shares, edges, color=colour)
    upper.set(ylabel="accuracy", ylim=(0, 1.02))
    lower.set(xlabel="confidence", ylabel="predictions", xlim=(0, 1))
    lower.yaxis.set_major_locator(MaxNLocator(2))
    lower.yaxis.set_major_formatter(FuncFormatter(_percent))
    figure.align_ylabels()
    legend(figure, upper, columns=1)
    return figure


@in_style
def seeds(groups: Sequence[tuple[str, Floats, float, tuple[float, float] | None, str]]) -> Figure:
    """Plot the test accuracies of groups of runs: a point per run, a bar at the mean of each group,
    and a line for the interval of the mean.

    `groups`: (name, accuracies, their mean, its interval or None, colour); accuracies are 0..1.
    """
    figure = new_figure(0.5 + 0.34 * len(groups))
    axes = figure.add_subplot()
    for place, (_, values, mean, interval, colour) in enumerate(reversed(groups)):
        if interval is not None:
            axes.plot(interval, (place, place), color=colour, linewidth=1)
        axes.plot((mean, mean), (place - 0.28, place + 0.28), color=colour, linewidth=2)
        axes.plot(values, np.full(len(values), place), "o", color=colour, alpha=0.6)
    _set_name_axis(axes, np.arange(float(len(groups))), [name for name, *_ in reversed(groups)])
    axes.set(ylim=(-0.6, len(groups) - 0.4), xlabel="accuracy on the test split")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(_percent))
    return figure


def short_name(name: str) -> str:
    """Shorten a name to LONGEST_NAME characters, so that it fits beside an axis."""
    shown = visible(name)
    return shown if len(shown) <= LONGEST_NAME else f"{shown[: LONGEST_NAME - 1]}…"


def point_marker(line: Line) -> str:
    """Return the marker of a line's points: a dot if they are few, none otherwise."""
    return "o" if len(line.x) <= FEW_POINTS else ""


def _draw(axes: Axes, series: Sequence[Series]) -> None:
    for each in series:
        axes.plot(
            *each.line,
            each.style or "none",
            color=each.colour,
            label=short_name(each.name) or "_",
            marker=each.marker,
            linewidth=0.7 if each.is_faint else None,
            alpha=0.45 if each.is_faint else None,
        )


def _draw_bars(axes: Axes, places: Floats, shares: Floats, intervals: Floats) -> None:
    """Draw accuracies [n] as horizontal bars at the heights `places`, with intervals [n, 2]."""
    axes.barh(places, shares, color=BLUE, alpha=0.45, height=0.72, label="accuracy")
    axes.errorbar(
        shares,
        places,
        xerr=np.abs(intervals.T - shares),
        label="95 % interval",
        fmt="none",
        ecolor=INK,
        elinewidth=0.8,
        capsize=1.5,
    )


def _set_epoch_axis(axes: Axes) -> None:
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def _set_name_axis(axes: Axes, places: Floats, names: Sequence[str]) -> None:
    """Write names, shortened, at the heights `places` of the y axis, without ticks and grid."""
    axes.set_yticks(places, [short_name(name) for name in names])
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)


def _set_percent_axis(axes: Axes) -> None:
    axes.yaxis.set_major_formatter(FuncFormatter(_percent))


def _percent(share: float, _: int) -> str:
    return f"{100 * share:g} %" if abs(share) > 1e-12 else "0"


def legend(figure: Figure, axes: Axes, columns: int = 2) -> None:
    """Draw the legend above the axes; do nothing if no line has a name."""
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        figure.legend(handles, labels, loc="outside upper left", ncols=columns)
