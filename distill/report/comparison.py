"""The report that compares several runs, grouped by seeds."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from distill.format import (
    UNKNOWN,
    counted,
    duration,
    grouped,
    interval_text,
    p_value,
    percent,
    percent_number,
    points,
)
from distill.recipe import recipes
from distill.report import page as pages
from distill.report import plots
from distill.report.group_curves import group_colour, overlay_curves
from distill.report.page import Block, FigureBlock, HeadFigure, Page, Paragraph, Section, Table
from distill.report.test_sections import test_interval
from distill.report.value_table import Column, ValueTable
from distill.runs import run_folder
from distill.runs.groups import Group, group_differences, groups, without_seeds
from distill.runs.record import RunRecord, TestCurve, read
from distill.runs.run_folder import RunFolder
from distill.statistics import Interval, MeanAndInterval


def write(
    folders: Sequence[RunFolder], path: Path, test_curves: Mapping[Path, TestCurve] | None = None
) -> Path:
    """The page of several runs at `path`; the folder of its figures and tables.

    `test_curves` by run folder. Raises UserError for damaged files.
    """
    curves_of = test_curves or {}
    return pages.write(page([read(each, curves_of.get(each.path)) for each in folders]), path)


def page(records: Sequence[RunRecord]) -> Page:
    """The page of several runs, finished or not."""
    found = groups(records)
    return Page(
        title=" · ".join(group.name for group in found),
        lead=f"{counted(len(records), 'run')} in {counted(len(found), 'group')}; "
        "the runs of a group differ in their seeds alone.",
        facts=[_head_figure(group) for group in found],
        notes=list(_notes(records, found)),
        sections=[
            Section("On the test split", list(_test_results(found))),
            Section("Learning", overlay_curves(found)),
            Section("Between the groups", list(_group_differences(found))),
            Section("Every run", [_runs(found)]),
            Section("What differs", list(_differences(found))),
        ],
    )


def _head_figure(group: Group) -> HeadFigure:
    known = group.spread("top1")
    if known is None:
        return HeadFigure(group.name, UNKNOWN, "not finished")
    return HeadFigure(group.name, percent(known.mean), _beside(known))


def _beside(known: MeanAndInterval) -> str:
    if known.std is None:
        return "test accuracy of one run"
    return f"± {percent_number(known.std)} over {known.n} seeds"


def _notes(records: Sequence[RunRecord], found: Sequence[Group]) -> Iterator[str]:
    unfinished = [record.name for record in records if not record.is_finished]
    if unfinished:
        yield f"Not finished, and so without figures of the test split: {', '.join(unfinished)}."
    for group in found:
        if group.duplicates:
            names = ", ".join(record.name for record in group.duplicates)
            yield f"The seeds of {names} are in {group.name} already: they do not count twice."
    images = {record.result["data"]["fingerprint"] for record in records if record.is_finished}
    if len(images) > 1:
        yield "These runs were trained on different images: their figures are not to be compared."
    results = [record.result for record in records if record.is_finished]
    if apart := run_folder.test_split_differences(results):
        yield (
            f"These runs differ in their {' and '.join(apart)}: their test figures are not to be "
            "compared."
        )
    yield from run_folder.test_split_unnamed(results)
    if any(record.test_curve for record in records):
        yield "The test curves were drawn after the runs by kept weights; they chose nothing."


def _test_results(found: Sequence[Group]) -> Iterator[Block]:
    finished = [(group, known) for group in found if (known := group.spread("top1")) is not None]
    if not finished:
        yield Paragraph("No run is finished.")
        return
    rows = [
        (group.name, np.array(group.tested), known.mean, known.interval, group_colour(found, group))
        for group, known in finished
    ]
    caption = (
        "Accuracy on the test split: a point a run, a bar at the mean of a group, and the mean's "
        "95 % interval by Student's t where there are several seeds."
    )
    yield FigureBlock("groups", caption, plots.seeds(rows))
    columns = (
        Column("group", is_number=False),
        Column("seeds", grouped),
        Column("test accuracy", _mean_std, ("mean", "std")),
        Column("95 % interval of the mean", interval_text, ("low", "high")),
        Column("NLL", _plain_mean_std, ("mean", "std")),
        Column("ECE", _plain_mean_std, ("mean", "std")),
        Column("parameters", grouped),
        Column("time", duration),
    )
    table = [
        (
            group.name,
            known.n,
            _pair(known),
            known.interval,
            _pair(group.spread("nll")),
            _pair(group.spread("ece")),
            group.records[0].parameters,
            _mean_time(group),
        )
        for group, known in finished
    ]
    yield Table(ValueTable("groups", "", columns, table))


def _pair(known: MeanAndInterval | None) -> tuple[float, float | None] | None:
    return None if known is None else (known.mean, known.std)


def _mean_std(pair: tuple[float, float | None]) -> str:
    mean, std = pair
    return percent(mean) if std is None else f"{percent_number(mean)} ± {percent(std)}"


def _plain_mean_std(pair: tuple[float, float | None]) -> str:
    mean, std = pair
    return f"{mean:.4f}" if std is None else f"{mean:.4f} ± {std:.4f}"


def _mean_time(group: Group) -> float:
    return float(np.mean([r.result["elapsed_s"] for r in group.records if r.is_finished]))


def _group_differences(found: Sequence[Group]) -> Iterator[Block]:
    known = group_differences(found)
    if not known:
        yield Paragraph("There is one group alone.")
        return
    columns = (
        Column("first", is_number=False),
        Column("second", is_number=False),
        Column("difference", points),
        Column("95 % interval", _points_interval, ("low", "high")),
        Column("p", p_value),
        Column("by", is_number=False),
    )
    rows = [(v.a, v.b, v.difference, v.interval, v.p, v.method) for v in known]
    yield Table(ValueTable("between", "", columns, rows))
    yield Paragraph(
        "Differences of accuracy on the test split, first less second, in points. p is the "
        "probability of a difference as large where there is none, of one comparison alone: of "
        "twenty such, one is below 0.05 by chance. McNemar's test compares two networks, not the "
        "recipes behind them."
    )


def _points_interval(interval: Interval) -> str:
    return " to ".join(map(points, interval))


def _runs(found: Sequence[Group]) -> Table:
    columns = (
        Column("run", is_number=False),
        Column("group", is_number=False),
        Column("train.seed", str),
        Column("data.seed", str),
        Column("epoch", str),
        Column("held-out", percent),
        Column("test", percent),
        Column("95 % interval", interval_text, ("low", "high")),
        Column("NLL", "{:.4f}".format),
        Column("ECE", "{:.4f}".format),
        Column("time", duration),
    )
    rows = [
        (
            record.name,
            group.name,
            *record.seeds,
            record.result.get("epoch"),
            record.val_metric("top1"),
            record.test_metric("top1"),
            test_interval(record),
            record.test_metric("nll"),
            record.test_metric("ece"),
            record.result.get("elapsed_s"),
        )
        for group in found
        for record in (*group.records, *group.duplicates)
    ]
    return Table(ValueTable("runs", "", columns, rows))


def _differences(found: Sequence[Group]) -> Iterator[Block]:
    """Key by key, each group against the first."""
    first, *others = found
    if not others:
        yield Paragraph("Nothing but the seeds.")
    columns = (
        Column("key", is_number=False),
        Column(f"{first.name} → the other", is_number=False),
    )
    for number, group in enumerate(others, start=1):
        ours, theirs = (without_seeds(each.records[0]) for each in (first, group))
        rows = [line.split(": ", 1) for line in recipes.differences(ours, theirs)]
        if not rows:
            why = "differ in what they were trained on or as, not in their recipes."
            yield Paragraph(f"{first.name} and {group.name} {why}")
            continue
        shown = [(key, change.replace(" -> ", " → ")) for key, change in rows]
        title = f"{first.name} and {group.name}"
        yield Table(ValueTable(f"differences_{number}", title, columns, shown))
