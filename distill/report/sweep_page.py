"""Write the HTML page of a sweep: history, importance of keys, parallel coordinates, trials."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from distill.format import counted
from distill.report import sweep_plots
from distill.report.page import (
    Block,
    FigureBlock,
    HeadFigure,
    Page,
    Paragraph,
    Section,
    Table,
    html,
)
from distill.report.table_html_csv_latex import Column, ValueTable
from distill.runs.run_folder import write_text
from distill.terminal.sweep_table import (
    SweepSummary,
    counts_text,
    few_trials_warning,
    in_order,
    key_text,
    n_complete,
    short_keys,
    value_text,
)


def write(summary: SweepSummary, path: Path) -> None:
    """Write the page of a sweep to `path`, completely or not at all."""
    write_text(path, html(page(summary)))


def page(summary: SweepSummary) -> Page:
    """Build the page of a sweep from its summary, the content of sweep.json."""
    most = "largest" if summary["goal"] == "maximize" else "smallest"
    return Page(
        title=summary["sweep"],
        lead=f"The recipe {summary['recipe']}, varied for the {most} {summary['metric']} on "
        f"held-out images. {counts_text(summary)}.",
        facts=list(_head_figures(summary)),
        notes=() if summary["best"] else ["No trial was trained to its end: there is no best one."],
        sections=list(_sections(summary)),
    )


def _head_figures(summary: SweepSummary) -> Iterator[HeadFigure]:
    """Yield the best trial's value, keys and test metrics."""
    best = summary["best"]
    if best:
        yield HeadFigure(
            summary["metric"], value_text(best["value"]), f"trial {best['trial']}, the best"
        )
        for name, head in short_keys(list(summary["space"])).items():
            yield HeadFigure(head, key_text(summary, name, best["values"].get(name)))
        for measure, value in (summary.get("test") or {}).items():
            yield HeadFigure(measure, value_text(value), f"trial {best['trial']}, measured once")


def _sections(summary: SweepSummary) -> Iterator[Section]:
    if summary.get("rungs"):
        yield Section("Rungs", [_values_by_rung(summary)])
    if drawings := list(_figures(summary)):
        yield Section("History", drawings)
    if summary["importance"]:
        yield Section("Importance", list(_importance(summary)))
    yield Section("Trials", [_trials(summary)])


def _figures(summary: SweepSummary) -> Iterator[FigureBlock]:
    """Yield the figures of the sweep's history; none for a single trial."""
    if len(summary["trials"]) < 2:
        return
    over_trials, through = sweep_plots.history(summary), sweep_plots.parallel_coordinates(summary)
    if over_trials is not None:
        caption = "The value of each trial in order, and the best so far."
        yield FigureBlock("history", caption, over_trials)
    if through is not None:
        caption = "Parallel coordinates: each line is a trial, from its keys to its metric."
        yield FigureBlock("parallel", f"{caption} The best one is thick.", through)


def _importance(summary: SweepSummary) -> Iterator[Block]:
    if (warning := few_trials_warning(n_complete(summary))) is not None:
        yield Paragraph(warning)
    caption = "How much each key determines whether a trial is in the best tenth."
    drawn = sweep_plots.importance(summary)
    yield FigureBlock("importance", f"{caption} PED-ANOVA, arXiv 2304.10255.", drawn)


def _trials(summary: SweepSummary) -> Table:
    """Return a table of all trials, the best first and marked.

    It has a column with the reasons if some trials were not trained to their end.
    """
    rows, names = in_order(summary), list(summary["space"])
    columns = [Column("trial"), Column("state", is_number=False)]
    columns.append(Column(summary["metric"], value_text))
    for name in names:
        is_number = not {"grid", "choice"} & set(summary["space"][name])
        columns.append(Column(name, partial(key_text, summary, name), is_number=is_number))
    columns += [Column("epochs"), Column("why", is_number=False)]
    cells = [
        [
            *(row["trial"], row["state"], row["value"]),
            *(row["values"].get(name) for name in names),
            *(len(row["epochs"]), row["why"] or ""),
        ]
        for row in rows
    ]
    if not any(row["why"] for row in rows):
        columns, cells = columns[:-1], [row_cells[:-1] for row_cells in cells]
    return Table(
        ValueTable("trials", "", tuple(columns), cells), marked=0 if summary["best"] else None
    )


def _values_by_rung(summary: SweepSummary) -> Table:
    """Return a table of every design's value in each rung of a search.

    Designs that were trained in more rungs come first, then those with better values.
    """
    rungs = [rung["values"] for rung in summary["rungs"]]
    found = {name: [r[name] for r in rungs if r.get(name) is not None] for name in rungs[0]}
    sign = -1 if summary["goal"] == "maximize" else 1
    names = sorted(
        found, key=lambda name: (-len(found[name]), *(sign * v for v in found[name][-1:]))
    )
    lengths = [counted(rung["epochs"], "epoch") for rung in summary["rungs"]]
    columns = (
        Column("design", is_number=False),
        *(Column(length, value_text) for length in lengths),
    )
    cells = [(name, *(rung.get(name) for rung in rungs)) for name in names]
    return Table(ValueTable("rungs", "", columns, cells))
