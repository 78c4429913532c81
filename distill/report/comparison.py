"""Write the report that compares several runs; runs that differ only in seeds form a group."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from distill.events import VALIDATED, measure_name
from distill.files import redact_urls
from distill.format import (
    UNKNOWN,
    bracketed,
    counted,
    duration,
    grouped,
    interval_text,
    mean_and_std,
    p_value,
    percent,
    percent_number,
    points,
)
from distill.recipe import compare_recipes
from distill.report import page as pages
from distill.report import plots
from distill.report.curves_by_group import group_colour, overlay_curves
from distill.report.page import Block, FigureBlock, HeadFigure, Page, Paragraph, Section, Table
from distill.report.result_sections import is_unverified, test_interval
from distill.report.table_html_csv_latex import FRACTION, Column, ValueTable
from distill.runs import check_runs_match
from distill.runs.read_predictions import NOT_VERIFIED
from distill.runs.read_run_folder import RunRecord, TestCurve, read
from distill.runs.run_folder import FINISHED_EARLY, RunFolder, early_end
from distill.runs.seed_groups import Group, group_differences, groups, without_seeds
from distill.statistics import Interval, MeanAndInterval

MEAN_AND_STD = "mean ± std over seeds"


def write(
    folders: Sequence[RunFolder], path: Path, test_curves: Mapping[Path, TestCurve] | None = None
) -> Path:
    """Write the page of several runs to `path`; return the folder of its figures and tables.

    `test_curves`: the measures of saved epochs, by run folder. Raises UserError if a file of a run
    is damaged, Failure if the page cannot be written.
    """
    curves = test_curves or {}
    records = [read(folder, curves.get(folder.path)) for folder in folders]
    return pages.write(page(records), path)


def page(records: Sequence[RunRecord]) -> Page:
    """Build the page of several runs, finished or not."""
    run_groups = groups(records)
    return Page(
        title=" · ".join(group.name for group in run_groups),
        lead=f"{counted(len(records), 'run')} in {counted(len(run_groups), 'group')}; "
        "runs of a group differ only in their seeds.",
        facts=[_head_figure(group) for group in run_groups],
        notes=list(_notes(records, run_groups)),
        sections=[
            Section("On the test split", list(_test_results(run_groups))),
            Section("Learning", overlay_curves(run_groups)),
            Section("Between the groups", list(_group_differences(run_groups))),
            Section("What was trained", [_trainings(run_groups)]),
            Section("Every run", [_runs(run_groups)]),
            Section("What differs", list(_differences(run_groups))),
        ],
    )


def _head_figure(group: Group) -> HeadFigure:
    spread = group.spread("top1")
    if spread is None:
        return HeadFigure(group.name, UNKNOWN, "not finished")
    return HeadFigure(group.name, percent(spread.mean), _std_text(spread))


def _std_text(spread: MeanAndInterval) -> str:
    if spread.std is None:
        return "test accuracy of one run"
    return f"± {percent_number(spread.std)} over {spread.n} seeds"


def _notes(records: Sequence[RunRecord], run_groups: Sequence[Group]) -> Iterator[str]:
    unfinished = [record.name for record in records if not record.is_finished]
    if unfinished:
        yield f"Not finished, and so without test results: {', '.join(unfinished)}."
    for record in records:
        if early := early_end(record.result):
            yield f"{record.name} was finished early, {early}."
    if unverified := [record.name for record in records if is_unverified(record)]:
        yield f"The test accuracy of {', '.join(unverified)} is {NOT_VERIFIED}."
    for group in run_groups:
        if group.duplicates:
            names = ", ".join(record.name for record in group.duplicates)
            yield (
                f"{group.name} already has the seeds or the weights of {names}: they are not "
                "counted twice."
            )
    images = {record.result["data"]["fingerprint"] for record in records if record.is_finished}
    if len(images) > 1:
        yield "These runs were trained on different images: do not compare their results."
    results = [record.result for record in records if record.is_finished]
    if differing := check_runs_match.test_split_differences(results):
        yield (
            f"These runs differ in their {' and '.join(differing)}: do not compare their test "
            "results."
        )
    yield from check_runs_match.missing_test_split_note(results)
    if any(record.test_curve for record in records):
        yield (
            "Test curves were computed after the runs from saved weights; nothing was selected by "
            "them."
        )


def _test_results(run_groups: Sequence[Group]) -> Iterator[Block]:
    finished = [(g, spread) for g in run_groups if (spread := g.spread("top1")) is not None]
    if not finished:
        yield Paragraph("No run is finished.")
        return
    yield _accuracy_figure(run_groups, finished)
    yield _group_table(finished)


def _accuracy_figure(
    run_groups: Sequence[Group], finished: Sequence[tuple[Group, MeanAndInterval]]
) -> FigureBlock:
    """Return the figure of test accuracies. `finished`: groups with results, and their top-1."""
    rows = [
        (
            group.name,
            np.array(group.test_accuracies),
            spread.mean,
            spread.interval,
            group_colour(run_groups, group),
        )
        for group, spread in finished
    ]
    caption = (
        "Accuracy on the test split: a point per run, a bar at the mean of a group, and the mean's "
        "95 % interval by Student's t if there are several seeds."
    )
    return FigureBlock("groups", caption, plots.seeds(rows))


def _interval(group: Group, spread: MeanAndInterval) -> Interval | None:
    """Return the 95 % interval of a group's mean test accuracy; of one run, Wilson's.

    None if that run has no evaluation.npz.
    """
    if spread.n > 1:
        return spread.interval
    return test_interval(next(r for r in group.records if r.test_metric("top1") is not None))


def _group_table(finished: Sequence[tuple[Group, MeanAndInterval]]) -> Table:
    """Return a row per group with results. `finished`: these groups, and their top-1."""
    columns = (
        Column("group", is_number=False),
        Column("seeds", grouped),
        Column(
            "test accuracy", _percent_mean_std, ("mean", "std"), unit=FRACTION, note=MEAN_AND_STD
        ),
        Column(
            "95 % interval of the mean",
            interval_text,
            ("low", "high"),
            unit=FRACTION,
            note="of one run: Wilson's",
        ),
        Column("NLL", _nats_mean_std, ("mean", "std"), unit="nats", note=MEAN_AND_STD),
        Column("ECE", _percent_mean_std, ("mean", "std"), unit=FRACTION, note=MEAN_AND_STD),
        Column("parameters", grouped),
        Column("training", duration, unit="s"),
    )
    rows = [
        (
            group.name,
            spread.n,
            _mean_and_std(spread),
            _interval(group, spread),
            _mean_and_std(group.spread("nll")),
            _mean_and_std(group.spread("ece")),
            group.records[0].parameters,
            _mean_time(group),
        )
        for group, spread in finished
    ]
    return Table(ValueTable("groups", "", columns, rows))


def _mean_and_std(spread: MeanAndInterval | None) -> tuple[float, float | None] | None:
    return None if spread is None else (spread.mean, spread.std)


def _percent_mean_std(pair: tuple[float, float | None]) -> str:
    return f"{mean_and_std(*pair)} %"


def _nats_mean_std(pair: tuple[float, float | None]) -> str:
    return mean_and_std(*pair, show="{:.4f}".format)


def _mean_time(group: Group) -> float:
    return float(np.mean([r.result["elapsed_s"] for r in group.records if r.is_finished]))


def _group_differences(run_groups: Sequence[Group]) -> Iterator[Block]:
    differences = group_differences(run_groups)
    if not differences:
        yield Paragraph("There is only one group.")
        return
    columns = (
        Column("first", is_number=False),
        Column("second", is_number=False),
        Column("difference", points, unit=FRACTION, note="points"),
        Column("95 % interval", _points_interval, ("low", "high"), unit=FRACTION, note="points"),
        Column("p", p_value),
        Column("by", is_number=False),
    )
    rows = [(d.a, d.b, d.difference, d.interval, d.p, d.method) for d in differences]
    yield Table(ValueTable("between", "", columns, rows))
    yield Paragraph(
        "Differences of accuracy on the test split, first minus second, in points. p is the "
        "probability of a difference at least as large if there is none, without correction for "
        "multiple comparisons: one in twenty is below 0.05 by chance. McNemar's test compares two "
        "networks, not their recipes."
    )


def _trainings(run_groups: Sequence[Group]) -> Table:
    """Return a row per group: what was trained, on which images, and with what."""
    columns = (
        *(Column(name, is_number=False) for name in ("group", "recipe", "network", "teacher")),
        Column("data", is_number=False),
        Column("training images", grouped),
        Column("epochs", grouped),
        Column("device", is_number=False),
        Column("torch", is_number=False),
    )
    return Table(ValueTable("trainings", "", columns, [_training(group) for group in run_groups]))


def _training(group: Group) -> tuple[str | int | None, ...]:
    """Return the row of a group in the table of trainings; None for what is unknown."""
    run = group.records[0]
    data = run.result.get("data", {})
    teachers = sorted({" + ".join(record.teachers) for record in group.records})
    return (
        group.name,
        run.requested_recipe,
        run.network,
        ", ".join(filter(None, teachers)) or ("none" if run.role != "teacher" else None),
        redact_urls.hide_secrets(data.get("source", run.recipe.data.source)),
        data.get("train_images"),
        _epochs(run),
        run.device,
        run.environment.get("packages", {}).get("torch"),
    )


def _epochs(run: RunRecord) -> int | None:
    """Return the epochs that a run trained or, if it is not finished, plans; None if unknown."""
    if early := run.result.get(FINISHED_EARLY):
        return int(early["epochs"])
    return None if run.start is None else run.start.epochs


def _points_interval(interval: Interval) -> str:
    return bracketed(interval, points)


def _runs(run_groups: Sequence[Group]) -> Table:
    """Return a row per run; accuracies on the held-out images are those of the final weights."""
    records = [run for group in run_groups for run in (*group.records, *group.duplicates)]
    splits = [split for split in VALIDATED if any(run.val_split == split for run in records)]
    columns = (
        Column("run", is_number=False),
        Column("group", is_number=False),
        Column("train.seed", str),
        Column("data.seed", str),
        Column("epoch", str),
        *(Column(measure_name("top1", split), percent, unit=FRACTION) for split in splits),
        Column(measure_name("top1", "test"), percent, unit=FRACTION),
        Column("95 % interval", interval_text, ("low", "high"), unit=FRACTION),
        Column("NLL", "{:.4f}".format, unit="nats"),
        Column("ECE", percent, unit=FRACTION),
        Column("training", duration, unit="s"),
    )
    rows = [
        (
            record.name,
            group.name,
            *record.seeds,
            record.result.get("epoch"),
            *(record.val_metric("top1") if record.val_split == s else None for s in splits),
            record.test_metric("top1"),
            test_interval(record),
            record.test_metric("nll"),
            record.test_metric("ece"),
            record.result.get("elapsed_s"),
        )
        for group in run_groups
        for record in (*group.records, *group.duplicates)
    ]
    return Table(ValueTable("runs", "", columns, rows))


def _differences(run_groups: Sequence[Group]) -> Iterator[Block]:
    """Yield for each group a table of the recipe keys in which it differs from the first group."""
    first, *others = run_groups
    if not others:
        yield Paragraph("Only the seeds.")
    columns = (
        Column("key", is_number=False),
        Column(f"{first.name} → the other", is_number=False),
    )
    for number, group in enumerate(others, start=1):
        pair = (member.records[0] for member in (first, group))
        read = (compare_recipes.values_read(without_seeds(record), record.role) for record in pair)
        rows = [line.split(": ", 1) for line in compare_recipes.differing(*read)]
        if not rows:
            why = "differ in data, teacher or role, not in their recipes."
            yield Paragraph(f"{first.name} and {group.name} {why}")
            continue
        shown = [(key, change.replace(" -> ", " → ")) for key, change in rows]
        title = f"{first.name} and {group.name}"
        yield Table(ValueTable(f"differences_{number}", title, columns, shown))
