"""A sweep as one page that needs nothing beside it: history, importance, parallel coordinates."""

import math
from collections.abc import Mapping, Sequence
from io import StringIO
from itertools import accumulate
from pathlib import Path
from typing import Any

from jinja2 import Environment
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from distill.run_folder import write_text
from distill.show.design_plot import COLOURS
from distill.show.sweep_table import counts_text, ranked, value_text

Said = Mapping[str, Any]
BLUE, RED, GREY = COLOURS[0], COLOURS[1], "#999999"
MOST_TICKS = 12  # of an axis of options: more would lie on each other
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ said.sweep }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
svg { max-width: 100%; height: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: .15rem .8rem .15rem 0; text-align: left; border-bottom: 1px solid #ddd; }
.wide { overflow-x: auto; }
</style></head><body>
<h1>{{ said.sweep }}</h1>
<p>{{ said.recipe }}, {{ said.goal }} {{ said.metric }} on held-out images. {{ counts }}.</p>
{% if best %}<p>Best: trial {{ best.trial }}, {{ said.metric }} = {{ "%.4f"|format(best.value) }},
{% for name, value in best.values_.items() %}{{ name }} = {{ value }}{{ ", " if not loop.last }}
{%- endfor %}.</p>{% endif %}
{% if rungs %}<h2>Rungs</h2>
<div class="wide"><table><tr><th>design</th>
{%- for epochs in rungs.epochs %}<th>{{ epochs }} epochs</th>{% endfor %}</tr>
{% for name, values in rungs.designs.items() %}<tr><td>{{ name }}</td>
{%- for value in values %}<td>{{ value }}</td>{% endfor %}</tr>
{% endfor %}</table></div>
{% endif %}{% for title, drawn in figures.items() %}<h2>{{ title }}</h2>
{{ drawn|safe }}
{% endfor %}<h2>Trials</h2>
<div class="wide"><table>
<tr><th>trial</th><th>state</th><th>{{ said.metric }}</th>
{%- for name in said.space %}<th>{{ name }}</th>{% endfor %}<th>epochs</th><th>why</th></tr>
{% for row in rows %}<tr><td>{{ row.trial }}</td><td>{{ row.state }}</td><td>{{ row.value }}</td>
{%- for value in row.values_ %}<td>{{ value }}</td>{% endfor %}<td>{{ row.epochs }}</td>
<td>{{ row.why }}</td></tr>
{% endfor %}</table></div>
</body></html>
"""


def page(said: Said) -> str:
    """The page of a sweep; `said`: what `study.sweep_summary` found."""
    drawn = {
        "History": history(said),
        "Importance": importance(said),
        "Parallel coordinates": parallel(said),
    }
    rows = [
        {
            "trial": row["trial"],
            "state": row["state"],
            "value": value_text(row["value"]),
            "values_": [value_text(row["values"].get(name)) for name in said["space"]],
            "epochs": len(row["epochs"]),
            "why": row["why"] or "",
        }
        for row in said["trials"]
    ]
    best = said["best"] and {
        "trial": said["best"]["trial"],
        "value": said["best"]["value"],
        "values_": {name: value_text(value) for name, value in said["best"]["values"].items()},
    }
    return (
        Environment(autoescape=True)
        .from_string(PAGE)
        .render(
            said=said,
            counts=counts_text(said),
            best=best,
            rows=rows,
            rungs=_rungs(said),
            figures={title: svg(figure) for title, figure in drawn.items() if figure is not None},
        )
    )


def _rungs(said: Said) -> dict[str, Any] | None:
    """Of a search: every design's value in each rung, those that went furthest first."""
    rungs = said.get("rungs")
    if rungs is None:
        return None
    every = {name: len([r for r in rungs if name in r["values"]]) for name in rungs[0]["values"]}
    names = sorted(every, key=lambda name: -every[name])
    cells = {name: [value_text(rung["values"].get(name)) for rung in rungs] for name in names}
    return {"epochs": [rung["epochs"] for rung in rungs], "designs": cells}


def write(said: Said, path: Path) -> None:
    """The page, whole or not at all."""
    write_text(path, page(said))


def history(said: Said) -> Figure:
    """A point a trial; a line at the best so far; crosses where a trial was ended early."""
    figure, axes = _empty(2.8)
    done = [row for row in said["trials"] if row["value"] is not None]
    ended = [row for row in said["trials"] if row["value"] is None and row["epochs"]]
    numbers, found = [row["trial"] for row in done], [row["value"] for row in done]
    choose = max if said["goal"] == "maximize" else min
    axes.scatter(numbers, found, s=16, color=BLUE, label="trained to its end")
    last = [row["epochs"][max(row["epochs"], key=int)] for row in ended]
    axes.scatter(
        [row["trial"] for row in ended], last, marker="x", s=16, color=GREY, label="pruned"
    )
    axes.step(
        numbers, list(accumulate(found, choose)), where="post", color=RED, label="best so far"
    )
    axes.set_xlabel("trial")
    axes.set_ylabel(said["metric"])
    axes.legend(frameon=False, fontsize=8)
    return figure


def importance(said: Said) -> Figure | None:
    """A bar a key: its share in what tells the best trials from the others."""
    shares = said["importance"]
    if not shares:
        return None
    figure, axes = _empty(0.8 + 0.3 * len(shares))
    names = list(shares)[::-1]
    axes.barh(names, [shares[name] for name in names], color=BLUE)
    axes.set_xlabel("share (PED-ANOVA, arXiv 2304.10255)")
    return figure


def parallel(said: Said) -> Figure | None:
    """A line a trial through its values, the best one red; the last axis is its value."""
    rows, names = ranked(said), list(said["space"])
    if not rows:
        return None
    figure, axes = _empty(3.6)
    ends = [row["value"] for row in rows]
    scales = [_scale(said, name, rows) for name in names]
    low, spread = min(ends), (max(ends) - min(ends)) or 1.0
    for rank, row in reversed(list(enumerate(rows))):  # the best is drawn last, above the others
        heights = [scale[row["values"][name]] for name, scale in zip(names, scales, strict=True)]
        heights.append((row["value"] - low) / spread)
        colour, width = (RED, 2.0) if rank == 0 else (BLUE, 0.8)
        axes.plot(heights, color=colour, linewidth=width, alpha=1.0 if rank == 0 else 0.5)
    for across, scale in enumerate(scales):
        for value, height in _ticks(scale):
            axes.annotate(
                value_text(value), (across, height), (3, 0), textcoords="offset points", fontsize=7
            )
    for value in {min(ends), max(ends)}:
        axes.annotate(f"{value:.4f}", (len(names), (value - low) / spread), fontsize=7)
    axes.set_xticks(range(len(names) + 1), [*names, said["metric"]], fontsize=8)
    axes.set_yticks([])
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.grid(axis="x", color=GREY)
    return figure


def svg(figure: Figure) -> str:
    """A figure as an element of a page; the same figure gives the same text."""
    buffer = StringIO()
    with rc_context({"svg.hashsalt": "sweep"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _empty(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.5, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _scale(said: Said, name: str, rows: Sequence[Mapping[str, Any]]) -> dict[Any, float]:
    """The height, 0..1, of each value of a key; a span is as it was drawn from."""
    [(kind, known)] = said["space"][name].items()
    if kind in ("grid", "choice"):  # in the order of the file
        return {label: k / max(1, len(known) - 1) for k, label in enumerate(known)}
    at = math.log if kind == "log" else float
    low, high = map(at, known)
    return {v: (at(v) - low) / (high - low) for v in {row["values"][name] for row in rows}}


def _ticks(scale: Mapping[Any, float]) -> list[tuple[Any, float]]:
    """The values that are written beside an axis: all, or the ends where they are many."""
    pairs = sorted(scale.items(), key=lambda pair: pair[1])
    return pairs if len(pairs) <= MOST_TICKS else [pairs[0], pairs[-1]]
