"""Plot the figures of a sweep's page."""

import math
from collections.abc import Mapping
from itertools import accumulate
from typing import Any

from distill.format import shorten
from distill.report.figure_style import BLUE, FAINT, PAPER, POINTS, RED
from distill.report.matplotlib_defaults import Figure, MaxNLocator, PercentFormatter
from distill.report.plots import in_style, legend, new_figure
from distill.terminal.sweep_table import by_importance, key_text, ranked, short_keys, value_text

SweepSummary = Mapping[str, Any]
LETTERS = 36  # number of characters that fit in one line below an axis


@in_style
def history(summary: SweepSummary) -> Figure | None:
    """Plot the value of each complete trial as a point, and a line at the best value so far.

    Trials that ended early are crosses at their last value. Returns None if there are neither.
    """
    done = [row for row in summary["trials"] if row["value"] is not None]
    ended = [row for row in summary["trials"] if row["value"] is None and row["epochs"]]
    if not done and not ended:
        return None
    figure = new_figure()
    axes = figure.add_subplot()
    numbers, found = [row["trial"] for row in done], [row["value"] for row in done]
    last = [row["epochs"][max(row["epochs"], key=int)] for row in ended]
    if done:
        axes.plot(numbers, found, "o", color=BLUE, label="complete")
        best = [*accumulate(found, max if summary["goal"] == "maximize" else min)]
        until = max(row["trial"] for row in summary["trials"])
        line = [*numbers, until], [*best, best[-1]]
        axes.step(*line, where="post", color=RED, label="best so far")
    if ended:
        axes.plot([row["trial"] for row in ended], last, "x", color=FAINT, label="ended early")
    axes.set(xlabel="trial", ylabel=summary["metric"])
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    legend(figure, axes, columns=3)
    return figure


@in_style
def importance(summary: SweepSummary) -> Figure:
    """Plot the importance, 0..1, of each key in the search space as a bar, the largest at the
    top.
    """
    short = short_keys(list(summary["space"]))
    names, shares = zip(*reversed(by_importance(summary)), strict=True)
    figure = new_figure(0.5 + 0.25 * len(names))
    axes = figure.add_subplot()
    axes.barh([shorten(short[name], LETTERS // 2) for name in names], shares, color=BLUE)
    axes.set(xlim=(0, 1), xlabel="share")
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    return figure


@in_style
def parallel_coordinates(summary: SweepSummary) -> Figure | None:
    """Plot each trial as a line through its value of each key, from top to bottom, to its metric.

    The line of the best trial is red and thick. Returns None if no trial is complete.
    """
    rows, names = ranked(summary), list(summary["space"])
    if not rows:
        return None
    found = [row["value"] for row in rows]
    low, spread = min(found), (max(found) - min(found)) or 1.0
    figure = new_figure(0.4 * (len(names) + 2))
    axes = figure.add_subplot()
    for rank, row in reversed(list(enumerate(rows))):  # the best is drawn last, above the others
        across = [axis_position(summary, name, row["values"][name]) for name in names]
        across.append((row["value"] - low) / spread)
        colour, width, alpha = (RED, 2.0, 1.0) if rank == 0 else (BLUE, 0.8, 0.5)
        axes.plot(across, range(len(across)), color=colour, linewidth=width, alpha=alpha)
    marks = [_axis_labels(summary, name) for name in names]
    marks.append([(value_text(v), (v - low) / spread) for v in sorted({min(found), max(found)})])
    for depth, each in enumerate(marks):
        for text, at in each:
            side, inward = {0.0: ("left", 3), 1.0: ("right", -3)}.get(at, ("center", 0))
            axes.annotate(
                text, (at, depth), (inward, -3), textcoords="offset points", color=FAINT,
                ha=side, va="top", fontsize=POINTS - 1,
                bbox={"facecolor": PAPER, "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
            )  # fmt: skip
    short = [shorten(head, LETTERS // 2) for head in short_keys(names).values()]
    axes.set_yticks(range(len(names) + 1), [*short, summary["metric"]])
    axes.set_xticks([])
    axes.set_ylim(len(names) + 0.5, -0.2)  # the first key at the top
    axes.tick_params(axis="y", length=0)
    axes.spines[["left", "bottom"]].set_visible(False)
    return figure


def axis_position(summary: SweepSummary, name: str, value: Any) -> float:
    """Return the position, 0..1, of a value on the axis of its key.

    Options are evenly spaced in the order of the sweep file. Numbers are on the linear or
    logarithmic scale of their range.
    """
    [(kind, known)] = summary["space"][name].items()
    if kind in ("grid", "choice"):
        at: float = list(known).index(value) / max(1, len(known) - 1)
        return at
    scale = math.log if kind == "log" else float
    low, high = map(scale, known)
    return (scale(value) - low) / (high - low)


def _axis_labels(summary: SweepSummary, name: str) -> list[tuple[str, float]]:
    """Return (label, position 0..1) of each label on the axis of a key.

    If not all options fit, only the first and the last are labelled.
    """
    [(_, known)] = summary["space"][name].items()
    fit = sum(len(str(each)) for each in known) + 2 * len(known) <= LETTERS
    shown = known if fit else [known[0], known[-1]]
    return [
        (shorten(key_text(summary, name, each), LETTERS // 2), axis_position(summary, name, each))
        for each in shown
    ]
