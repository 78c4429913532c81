"""The report of one run."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.errors import UserError
from distill.events import Epoch
from distill.files import urls
from distill.format import UNKNOWN, counted, duration, grouped, interval_text, percent
from distill.recipe import recipes
from distill.report import page as pages
from distill.report.curve_sections import learning_curves
from distill.report.page import Block, HeadFigure, Page, Paragraph, Preformatted, Section, Table
from distill.report.test_sections import result_sections, test_interval
from distill.report.value_table import Column, ValueTable
from distill.runs.record import RunRecord, TestCurve, read
from distill.runs.run_folder import RunFolder
from distill.statistics import Interval

PAGE = "report.html"
TAUGHT = {"distill", "seeds", "sweep", "search"}  # commands with --teacher
TEACHER_KEY = "teacher.runs"
LayerRow = tuple[str, str, tuple[int, ...], int]  # name, kind, output of one image, parameters


def report_path(folders: Sequence[RunFolder], out: Path | None) -> Path:
    """The HTML file to write: `out`, or in it, or in the run's own folder.

    Raises UserError where several runs were asked for and nobody says where their report goes, and
    for a file of another kind.
    """
    if out is not None:
        if out.suffix not in ("", ".html"):
            raise UserError(f"--out {out} is no place for a report.\nGive DIR, or NAME.html.")
        return out if out.suffix == ".html" else out / PAGE
    if len(folders) > 1:
        raise UserError(
            f"{len(folders)} runs were asked for, and their report lies in none of them.\n"
            "Say where it goes: --out DIR."
        )
    return folders[0].path / PAGE


def write(
    folder: RunFolder,
    path: Path,
    layers: Sequence[LayerRow],
    test_curve: TestCurve | None = None,
) -> Path:
    """One run's page at `path`; the folder of its figures and tables.

    `layers` is empty where nobody knows them. Raises UserError for damaged files.
    """
    return pages.write(page(read(folder, test_curve), layers), path)


def page(record: RunRecord, layers: Sequence[LayerRow]) -> Page:
    """The page of one run, finished or not."""
    return Page(
        title=record.name,
        lead=_lead(record),
        facts=list(_head_figures(record)),
        notes=list(_notes(record)),
        sections=[
            learning_curves(record),
            *result_sections(record),
            Section("The network", _network(record, layers)),
            Section("The recipe", list(_recipe(record))),
            Section("How to get it again", list(_reproduction(record))),
        ],
    )


def _lead(record: RunRecord) -> str:
    """Who was taught what, in a sentence."""
    network = record.network or "a network that is not known"
    by = " and ".join(record.teachers)
    taught = f", taught by {by}" if by else ", without a teacher"
    what = f"A teacher, {network}" if record.role == "teacher" else f"A student, {network}{taught}"
    recipe = record.requested_recipe or UNKNOWN
    return f"{what}, on {record.recipe.data.source} by the recipe {recipe}."


def _notes(record: RunRecord) -> Iterator[str]:
    if not record.is_finished:
        planned = f" of {record.start.epochs}" if record.start else ""
        done = max((e.epoch for e in record.events if isinstance(e, Epoch)), default=0)
        epochs = counted(done, "epoch")
        yield (
            f"This run is not finished: {epochs}{planned} are told here, and nothing "
            "was measured on the test split. Its own command with --resume goes on with it."
        )
    if record.start is None:
        yield "The journal has no head: when and how this run began is not known."
    else:
        yield from record.start.notes


def _head_figures(record: RunRecord) -> Iterator[HeadFigure]:
    """The head: what a reader looks for first."""
    reach, epoch = test_interval(record), record.result.get("epoch")
    yield HeadFigure("test accuracy", percent(record.test_metric("top1")), _with_level(reach))
    if record.val_images:
        beside = f"of {grouped(record.val_images)} images" + (
            f"; chose epoch {epoch}" if epoch else ""
        )
        yield HeadFigure("held-out accuracy", percent(record.val_metric("top1")), beside)
    yield HeadFigure("parameters", grouped(record.parameters))
    if record.teacher_top1 is not None:
        yield HeadFigure(
            "its teacher", percent(record.teacher_top1), "on up to 1,024 held-out images"
        )
    beside = f"on {record.device}" if record.device else ""
    yield HeadFigure("training time", duration(record.result.get("elapsed_s")), beside)


def _with_level(reach: Interval | None) -> str:
    return "" if reach is None else f"95 % interval {interval_text(reach)}"


def _network(record: RunRecord, layers: Sequence[LayerRow]) -> list[Block]:
    if not layers:
        return [Paragraph("What was trained is not known: neither result nor journal tell it.")]
    columns = (
        Column("layer", is_number=False),
        Column("kind", is_number=False),
        Column("output", lambda shape: " × ".join(map(str, shape)), is_number=False),
        Column("parameters", grouped),
    )
    total = sum(row[-1] for row in layers)
    return [
        Paragraph(
            f"{grouped(total)} parameters in {len(layers)} layers, in the order in which they "
            "answer; the output is that for one image, channels first."
        ),
        Table(ValueTable("layers", "Layer by layer", columns, layers), is_long=len(layers) > 24),
    ]


def _recipe(record: RunRecord) -> Iterator[Block]:
    about = [(name, str(value)) for name, value in record.recipe.about if value]
    if about:
        columns = (Column("what", is_number=False), Column("lab note", is_number=False))
        yield Table(ValueTable("about", "", columns, about))
    yield from _provenance(record)
    yield Preformatted(_with_origins(record))


def _with_origins(record: RunRecord) -> str:
    """The recipe, each value with the file that set it where the run kept that."""
    text = recipes.dumps(record.recipe, {"about": True}).strip()
    return recipes.annotated(text, record.environment.get("recipe_origins", {}))


def _provenance(record: RunRecord) -> Iterator[Block]:
    """What the folder can tell of where the values came from."""
    name = record.requested_recipe
    if name is None:
        return
    try:
        shipped = recipes.load(name).recipe if _is_shipped(record) else None
    except UserError:
        shipped = None
    if shipped is None:
        yield Paragraph(f"No recipe of the name {name} comes with the program; this is all of it.")
        return
    # Who taught a student is told above, by its run; the table is that of the recipe.
    nobody = {"teacher": None} if record.role == "student" else {}
    shipped, recipe = (each.model_copy(update=nobody) for each in (shipped, record.recipe))
    changed = [line.split(": ", 1) for line in recipes.differences(shipped, recipe)]
    if not changed:
        yield Paragraph(f"The recipe {name} as it comes with the program, resolved.")
        return
    columns = (Column("key", is_number=False), Column("shipped → this run", is_number=False))
    rows = [(key, change.replace(" -> ", " → ")) for key, change in changed]
    yield Table(
        ValueTable("recipe_differences", f"What differs from {name} as shipped", columns, rows)
    )


def _is_shipped(record: RunRecord) -> bool:
    """Whether the name is one of the program's own: a path of the same name is another's."""
    command = record.environment.get("command") or ()
    return not any(str(word).endswith(".toml") for word in command)


def _reproduction(record: RunRecord) -> Iterator[Block]:
    known = record.environment
    if not known:
        yield Paragraph("There is no environment.json: what it ran on is not known.")
        return
    if known.get("command"):
        typed, teacher = known["command"], _unnamed_teacher(record)
        # A run of an earlier version may hold a password in it.
        yield Preformatted(f"python {shlex.join(map(urls.hide_secrets, [*typed, *teacher]))}")
        if teacher:
            yield Paragraph("The run chose its teacher itself; --teacher, added here, names it.")
        yield Paragraph("With another --out: a folder that holds a finished run is left as it is.")
    columns = (Column("what", is_number=False), Column("value", is_number=False))
    yield Table(
        ValueTable("environment", "What it ran on", columns, list(_environment_rows(known)))
    )
    prints = [
        ("recipe", record.result.get("recipe_fingerprint")),
        ("data", record.result.get("data", {}).get("fingerprint")),
        ("teachers", record.result.get("teacher", {}).get("fingerprint")),
        ("weights", record.result.get("weights")),
        ("source", known.get("source")),
    ]
    rows = [(what, value) for what, value in prints if value]
    yield Table(ValueTable("fingerprints", "Fingerprints (SHA-256)", columns, rows))


def _unnamed_teacher(record: RunRecord) -> list[str]:
    """The `--teacher RUN` options that a command needs to train with the run's teachers again;
    empty if it names them.
    """
    typed = record.environment["command"]
    is_named = any(word.startswith(("--teacher", "-t")) or TEACHER_KEY in word for word in typed)
    if is_named or not TAUGHT.intersection(typed[1:]) or not record.recipe.teacher:
        return []
    return [word for run in record.recipe.teacher.runs for word in ("--teacher", run)]


def _environment_rows(known: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """environment.json, flat, without what has a place of its own."""
    for name, value in known.items():
        if name == "packages":
            yield from ((package, str(version)) for package, version in value.items() if version)
        elif name not in {"command", "source", "sources", "recipe_origins"} and value is not None:
            yield name, str(value)
