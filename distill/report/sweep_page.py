"""The HTML page of a sweep: history, importance, parallel coordinates."""

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
from distill.report.value_table import Column, ValueTable
from distill.runs.run_folder import write_text
from distill.terminal.sweep_table import (
    SweepSummary,
    counts_text,
    few_trials_warning,
    heads,
    in_order,
    key_text,
    n_complete,
    value_text,
)


def write(said: SweepSummary, path: Path) -> None:
    """The page, whole or not at all."""
    write_text(path, html(page(said)))


def page(said: SweepSummary) -> Page:
    """The page of a sweep; `said`: what `study.sweep_summary` found."""
    most = "largest" if said["goal"] == "maximize" else "smallest"
    return Page(
        title=said["sweep"],
        lead=f"The recipe {said['recipe']}, varied for the {most} {said['metric']} on held-out "
        f"images. {counts_text(said)}.",
        facts=list(_head_figures(said)),
        notes=() if said["best"] else ["No trial was trained to its end: there is no best one."],
        sections=list(_sections(said)),
    )


def _head_figures(said: SweepSummary) -> Iterator[HeadFigure]:
    """The best trial."""
    best = said["best"]
    if best:
        yield HeadFigure(
            said["metric"], value_text(best["value"]), f"trial {best['trial']}, the best"
        )
        for name, head in heads(list(said["space"])).items():
            yield HeadFigure(head, key_text(said, name, best["values"].get(name)))
        for measure, value in (said.get("test") or {}).items():
            yield HeadFigure(measure, value_text(value), f"trial {best['trial']}, measured once")


def _sections(said: SweepSummary) -> Iterator[Section]:
    if said.get("rungs"):
        yield Section("Rungs", [_rungs(said)])
    if drawings := list(_figures(said)):
        yield Section("History", drawings)
    if said["importance"]:
        yield Section("Importance", list(_importance(said)))
    yield Section("Trials", [_trials(said)])


def _figures(said: SweepSummary) -> Iterator[FigureBlock]:
    """None of one trial alone."""
    if len(said["trials"]) < 2:
        return
    over_trials, through = sweep_plots.history(said), sweep_plots.parallel(said)
    if over_trials is not None:
        told = "What each trial reached, one after the other, and the best so far."
        yield FigureBlock("history", told, over_trials)
    if through is not None:
        told = "Parallel coordinates: a line is a trial, through its values to what it reached."
        yield FigureBlock("parallel", f"{told} The best one is thick.", through)


def _importance(said: SweepSummary) -> Iterator[Block]:
    if (warning := few_trials_warning(n_complete(said))) is not None:
        yield Paragraph(warning)
    told = "The share of each key in what tells the best tenth of the trials from the others."
    drawn = sweep_plots.importance(said)
    yield FigureBlock("importance", f"{told} PED-ANOVA, arXiv 2304.10255.", drawn)


def _trials(said: SweepSummary) -> Table:
    """Every trial, the best first and marked; why where some were not trained."""
    rows, names = in_order(said), list(said["space"])
    columns = [Column("trial"), Column("state", is_number=False)]
    columns.append(Column(said["metric"], value_text))
    for name in names:
        is_number = not {"grid", "choice"} & set(said["space"][name])
        columns.append(Column(name, partial(key_text, said, name), is_number=is_number))
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
        columns, cells = columns[:-1], [each[:-1] for each in cells]
    return Table(
        ValueTable("trials", "", tuple(columns), cells), marked=0 if said["best"] else None
    )


def _rungs(said: SweepSummary) -> Table:
    """Of a search: every design's value in each rung, those that went furthest first, of these the
    best.
    """
    rungs = [rung["values"] for rung in said["rungs"]]
    found = {name: [r[name] for r in rungs if r.get(name) is not None] for name in rungs[0]}
    sign = -1 if said["goal"] == "maximize" else 1
    names = sorted(
        found, key=lambda name: (-len(found[name]), *(sign * v for v in found[name][-1:]))
    )
    lengths = [counted(rung["epochs"], "epoch") for rung in said["rungs"]]
    columns = (Column("design", is_number=False), *(Column(each, value_text) for each in lengths))
    cells = [(name, *(rung.get(name) for rung in rungs)) for name in names]
    return Table(ValueTable("rungs", "", columns, cells))
