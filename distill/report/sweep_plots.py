"""Plot the figures of a sweep."""

import math
from collections.abc import Mapping
from itertools import accumulate
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from distill.format import shorten
from distill.report.plots import in_style, legend, new_figure
from distill.report.style import BLUE, FAINT, PAPER, POINTS, RED
from distill.terminal.sweep_table import by_importance, heads, key_text, ranked, value_text

SweepSummary = Mapping[str, Any]
LETTERS = 36  # that fit beside each other below an axis


@in_style
def history(said: SweepSummary) -> Figure | None:
    """A point a trial; a line at the best so far; crosses where a trial was ended early."""
    done = [row for row in said["trials"] if row["value"] is not None]
    ended = [row for row in said["trials"] if row["value"] is None and row["epochs"]]
    if not done and not ended:
        return None
    figure = new_figure()
    axes = figure.add_subplot()
    numbers, found = [row["trial"] for row in done], [row["value"] for row in done]
    last = [row["epochs"][max(row["epochs"], key=int)] for row in ended]
    if done:
        axes.plot(numbers, found, "o", color=BLUE, label="complete")
        best = [*accumulate(found, max if said["goal"] == "maximize" else min)]
        until = max(row["trial"] for row in said["trials"])
        line = [*numbers, until], [*best, best[-1]]
        axes.step(*line, where="post", color=RED, label="best so far")
    if ended:
        axes.plot([row["trial"] for row in ended], last, "x", color=FAINT, label="ended early")
    axes.set(xlabel="trial", ylabel=said["metric"])
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    legend(figure, axes, columns=3)
    return figure


@in_style
def importance(said: SweepSummary) -> Figure:
    """A bar a key, the longest above: its share in what tells the best trials from the others."""
    short = heads(list(said["space"]))
    names, shares = zip(*reversed(by_importance(said)), strict=True)
    figure = new_figure(0.5 + 0.25 * len(names))
    axes = figure.add_subplot()
    axes.barh([shorten(short[name], LETTERS // 2) for name in names], shares, color=BLUE)
    axes.set(xlim=(0, 1), xlabel="share")
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    return figure


@in_style
def parallel(said: SweepSummary) -> Figure | None:
    """A line a trial from key to key downwards, through the values that it had; the last axis is
    what it reached. The best one is red and thick.
    """
    rows, names = ranked(said), list(said["space"])
    if not rows:
        return None
    found = [row["value"] for row in rows]
    low, spread = min(found), (max(found) - min(found)) or 1.0
    figure = new_figure(0.4 * (len(names) + 2))
    axes = figure.add_subplot()
    for rank, row in reversed(list(enumerate(rows))):  # the best is drawn last, above the others
        across = [axis_position(said, name, row["values"][name]) for name in names]
        across.append((row["value"] - low) / spread)
        colour, width, alpha = (RED, 2.0, 1.0) if rank == 0 else (BLUE, 0.8, 0.5)
        axes.plot(across, range(len(across)), color=colour, linewidth=width, alpha=alpha)
    marks = [_axis_labels(said, name) for name in names]
    marks.append([(value_text(v), (v - low) / spread) for v in sorted({min(found), max(found)})])
    for depth, each in enumerate(marks):
        for text, at in each:
            side, inward = {0.0: ("left", 3), 1.0: ("right", -3)}.get(at, ("center", 0))
            axes.annotate(
                text, (at, depth), (inward, -3), textcoords="offset points", color=FAINT,
                ha=side, va="top", fontsize=POINTS - 1,
                bbox={"facecolor": PAPER, "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
            )  # fmt: skip
    short = [shorten(head, LETTERS // 2) for head in heads(names).values()]
    axes.set_yticks(range(len(names) + 1), [*short, said["metric"]])
    axes.set_xticks([])
    axes.set_ylim(len(names) + 0.5, -0.2)  # the first above
    axes.tick_params(axis="y", length=0)
    axes.spines[["left", "bottom"]].set_visible(False)
    return figure


def axis_position(said: SweepSummary, name: str, value: Any) -> float:
    """Where a value lies on the axis of its key, 0..1: options in the order of the file, numbers
    as they were drawn.
    """
    [(kind, known)] = said["space"][name].items()
    if kind in ("grid", "choice"):
        at: float = list(known).index(value) / max(1, len(known) - 1)
        return at
    scale = math.log if kind == "log" else float
    low, high = map(scale, known)
    return (scale(value) - low) / (high - low)


def _axis_labels(said: SweepSummary, name: str) -> list[tuple[str, float]]:
    """What is written below an axis, and where: every option, or the ends where room is short."""
    [(_, known)] = said["space"][name].items()
    fit = sum(len(str(each)) for each in known) + 2 * len(known) <= LETTERS
    shown = known if fit else [known[0], known[-1]]
    return [
        (shorten(key_text(said, name, each), LETTERS // 2), axis_position(said, name, each))
        for each in shown
    ]
