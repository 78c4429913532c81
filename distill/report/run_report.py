"""Write the report of one run."""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from distill import metrics
from distill.errors import UserError
from distill.events import Epoch, measure_name
from distill.files import redact_urls
from distill.files.escape_text import visible
from distill.format import UNKNOWN, counted, duration, grouped, interval_text, percent
from distill.report import page as pages
from distill.report.curve_sections import learning_curves
from distill.report.page import Block, HeadFigure, Page, Paragraph, Preformatted, Section, Table
from distill.report.recipe_section import recipe_blocks
from distill.report.result_sections import is_unverified, result_sections, test_interval
from distill.report.table_html_csv_latex import Column, ValueTable
from distill.runs.commands_to_repeat import (
    continue_line,
    text_of,
    training_commands,
    without_command,
)
from distill.runs.read_predictions import NOT_VERIFIED
from distill.runs.read_run_folder import RunRecord, TestCurve, read
from distill.runs.run_folder import RunFolder, early_end
from distill.statistics import Interval

PAGE = "report.html"
TEACHER_COMMANDS = {"distill", "seeds", "sweep", "search"}  # commands that have --teacher
TEACHER_KEY = "teacher.runs"
PROCESS_NOTE = re.compile(  # start notes on the process and its files, not on the result
    r"was killed (here: its lock is taken over|while training in this folder: .*)$"
    r"|^keeps the weights of .* for report --test-curve"
    r"|^\d+ of \d+ views? of the teacher's logits (is|are) cached in "
)
LayerRow = tuple[str, str, tuple[int, ...], int]  # name, kind, output shape, parameters


def report_path(folders: Sequence[RunFolder], out: Path | None) -> Path:
    """Return the HTML file to write: `out` itself, or report.html in the folder `out`.

    Without `out` it is report.html in the run's folder. Raises UserError for several runs without
    `out`, if `out` has another suffix than .html, and if the file exists and is no report.
    """
    if out is not None and out.suffix not in ("", ".html"):
        raise UserError(
            f"--out {out} is neither a folder nor an HTML file.\nGive DIR, or NAME.html."
        )
    if out is None and len(folders) > 1:
        raise UserError(
            f"a report of {len(folders)} runs belongs to none of their folders.\n"
            "Give a folder: --out DIR."
        )
    path = out or folders[0].path
    if out is None or out.suffix != ".html":
        path = path / PAGE
    pages.check_replaceable(path)
    return path


def write(
    folder: RunFolder,
    path: Path,
    layers: Sequence[LayerRow],
    test_curve: TestCurve | None = None,
) -> Path:
    """Write the page of one run to `path`; return the folder of its figures and tables.

    `layers`: the network's layers; empty if they are unknown. `test_curve`: the measures of saved
    epochs, if computed. Raises UserError if a file of the run is damaged, Failure if the page
    cannot be written.
    """
    return pages.write(page(read(folder, test_curve), layers), path)


def page(record: RunRecord, layers: Sequence[LayerRow]) -> Page:
    """Build the page of one run, finished or not."""
    return Page(
        title=record.name,
        lead=lead(record),
        facts=list(_head_figures(record)),
        notes=list(_notes(record)),
        sections=[
            learning_curves(record),
            *result_sections(record),
            Section("The network", _network(record, layers)),
            Section("The recipe", recipe_blocks(record)),
            Section("How to reproduce it", list(_reproduction(record))),
        ],
    )


def lead(record: RunRecord) -> str:
    """Return a sentence on network, teacher, data and recipe."""
    network = record.network or "an unknown network"
    how = "trained"
    if record.role != "teacher":
        how = "trained without a teacher"
        if record.teachers:
            runs = "run" if len(record.teachers) == 1 else "runs"
            how = f"distilled from the {runs} {' and '.join(record.teachers)}"
    recipe = record.requested_recipe or UNKNOWN
    source = redact_urls.hide_secrets(record.recipe.data.source)
    return f"A {record.role or 'student'}, {network}, {how} on {source} with the recipe {recipe}."


def _notes(record: RunRecord) -> Iterator[str]:
    if not record.is_finished:
        planned = f" of {record.start.epochs}" if record.start else ""
        done = max((e.epoch for e in record.events if isinstance(e, Epoch)), default=0)
        epochs = counted(done, "epoch")
        yield (
            f"This run is not finished: this page shows {epochs}{planned}, and nothing "
            f"was measured on the test split. {continue_line(record.folder)}"
        )
    if is_unverified(record):
        yield f"The test accuracy is {NOT_VERIFIED}."
    if early := early_end(record.result):
        yield f"This run was finished early, {early}: the final weights are its best until then."
    if record.start is None:
        yield "The journal has no start event: when and how this run began is unknown."
    else:
        yield from (note for note in record.start.notes if not PROCESS_NOTE.search(note))
    for run in record.result.get("teacher", {}).get("imported", ()):
        yield f"The teacher {run} was imported: another program trained its weights."


def _head_figures(record: RunRecord) -> Iterator[HeadFigure]:
    """Yield the numbers that are shown at the top of the page."""
    interval, epoch = test_interval(record), record.result.get("epoch")
    remark = NOT_VERIFIED if is_unverified(record) else _with_level(interval)
    yield HeadFigure("test accuracy", percent(record.test_metric("top1")), remark)
    if record.val_images:
        images = counted(record.val_images, "image")
        remark = f"{measure_name('top1', record.val_split)} of {images}" + (
            f"; selected epoch {epoch}" if epoch else ""
        )
        yield HeadFigure("held-out accuracy", percent(record.val_metric("top1")), remark)
    yield HeadFigure("parameters", grouped(record.parameters))
    if record.teacher_top1 is not None:
        remark = f"on {record.teacher_images}, as this run recorded{_teacher_on_test(record)}"
        split = "held-out" if record.val_images else "training"
        yield HeadFigure(f"teacher's {split} accuracy", percent(record.teacher_top1), remark)
    total_s = record.result.get("total_s")
    total = f"{duration(total_s)} with preparation and test" if total_s is not None else ""
    remark = ", ".join(filter(None, [f"on {record.device}" if record.device else "", total]))
    yield HeadFigure("training time", duration(record.result.get("elapsed_s")), remark)


def _teacher_on_test(record: RunRecord) -> str:
    """Return `; on the test images 95.31 %`; empty without the teacher's test predictions."""
    predictions = record.predictions
    if predictions is None or predictions.teacher_logits is None:
        return ""
    top1 = metrics.is_correct(predictions.teacher_logits, predictions.labels).mean()
    return f"; on the test images {percent(float(top1))}"


def _with_level(interval: Interval | None) -> str:
    return "" if interval is None else f"95 % interval {interval_text(interval)}"


def _network(record: RunRecord, layers: Sequence[LayerRow]) -> list[Block]:
    if not layers:
        return [Paragraph("The network is unknown: neither result nor journal names it.")]
    columns = (
        Column("layer", is_number=False),
        Column("kind", is_number=False),
        Column("output", _shape_text, ("channels", "height", "width"), is_number=False),
        Column("parameters", grouped),
    )
    total = sum(row[-1] for row in layers)
    return [
        Paragraph(
            f"{grouped(total)} parameters in {counted(len(layers), 'layer')}, in the order of "
            "execution; the output is that for one image, channels first."
        ),
        Table(ValueTable("layers", "Layer by layer", columns, layers), is_long=len(layers) > 24),
    ]


def _shape_text(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))


def _reproduction(record: RunRecord) -> Iterator[Block]:
    if record.is_finished:
        yield from _training_commands(record)
    yield from _environment(record)


def _training_commands(record: RunRecord) -> Iterator[Block]:
    """Yield the commands that train the run and its teachers again."""
    commands = training_commands(record.folder, record.recipe, record.result)
    if commands:
        yield Paragraph(
            "From the beginning, in the root of the checkout. On this machine, a teacher that "
            "exists need not be trained again, and the run needs another --out: the folder of a "
            "finished run is not overwritten."
        )
        if early := early_end(record.result):
            yield Paragraph(f"The commands train to the end. This run was finished early, {early}.")
        yield Preformatted(text_of(commands))
    for run in without_command(commands, record.result):
        yield Paragraph(
            f"How the teacher {visible(run)} was trained is unknown: its folder does not hold that "
            "run, or another program trained its weights."
        )


def _environment(record: RunRecord) -> Iterator[Block]:
    """Yield the command as typed, the machine and the fingerprints."""
    environment = record.environment
    if not environment:
        yield Paragraph("There is no environment.json: what it ran on is unknown.")
        return
    if environment.get("command"):
        typed, teacher = environment["command"], _unnamed_teacher(record)
        yield Paragraph("The command that was typed:")
        # Earlier versions recorded the command with passwords in URLs.
        yield Preformatted(
            f"python {shlex.join(map(redact_urls.hide_secrets, [*typed, *teacher]))}"
        )
        if teacher:
            yield Paragraph(
                "The run selected its teacher itself; --teacher is added here to name it."
            )
    columns = (Column("what", is_number=False), Column("value", is_number=False))
    yield Table(
        ValueTable("environment", "What it ran on", columns, list(_environment_rows(environment)))
    )
    prints = [
        ("recipe", record.result.get("recipe_fingerprint")),
        ("data", record.result.get("data", {}).get("fingerprint")),
        ("teachers", record.result.get("teacher", {}).get("fingerprint")),
        ("weights", record.result.get("weights")),
        ("source", environment.get("source")),
    ]
    rows = [(what, value) for what, value in prints if value]
    yield Table(ValueTable("fingerprints", "Fingerprints (SHA-256)", columns, rows))


def _unnamed_teacher(record: RunRecord) -> list[str]:
    """Return the `--teacher RUN` options that the run's command needs to use the same teachers.

    Empty if the command names them, or trains without a teacher.
    """
    typed = record.environment["command"]
    is_named = any(word.startswith(("--teacher", "-t")) or TEACHER_KEY in word for word in typed)
    if is_named or not TEACHER_COMMANDS.intersection(typed[1:]) or not record.recipe.teacher:
        return []
    return [word for run in record.recipe.teacher.runs for word in ("--teacher", run)]


def _environment_rows(environment: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (name, value) of environment.json, without the keys that are shown elsewhere."""
    for name, value in environment.items():
        if name == "packages":
            yield from ((package, str(version)) for package, version in value.items() if version)
        elif name not in {"command", "source", "sources", "recipe_origins"} and value is not None:
            yield name, str(value)
