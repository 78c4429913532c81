"""List the runs in a folder with their results and states.

No file is changed. A run that cannot be read is listed with the reason.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Literal

from distill.errors import UserError
from distill.events import Split, Start, total_steps
from distill.files import run_json_schemas
from distill.files.redact_urls import hide_secrets
from distill.recipe import recipes
from distill.runs import journal, lock, read_predictions
from distill.runs.run_folder import FINISHED_EARLY, RUNS, RunFolder, newest_runs_in
from distill.runs.teacher_student_summary import summary_row
from distill.statistics import Interval, wilson

State = Literal["finished", "training", "stopped", "killed", "never began", "damaged", "unreadable"]
DEEPEST = 3  # levels of folders of groups of runs: runs/search-kd/rung-1/trial-0000 needs 2
UNREADABLE = (UserError, OSError, ValueError, KeyError, TypeError, AttributeError)


@dataclass(frozen=True)
class RunListing:
    """One run in the list, with unformatted values; None for an unknown value.

    Accuracies are 0..1, `updated_at` is in seconds since 1970.
    """

    path: str
    updated_at: float  # when it finished, or when a file was last written
    state: State = "never began"
    recipe: str | None = None
    data: str | None = None  # data source, as in the recipe but without secrets of a URL
    teachers: tuple[str, ...] = ()  # run folders
    parameters: int | None = None
    top1_test: float | None = None
    top1_test_interval: Interval | None = None  # Wilson's, 95 %
    test_images: int | None = None
    top1_val: float | None = None  # of the final weights, on the held-out images
    val_split: Split = "val"  # "val_ema" if the final weights are averaged
    # From which a stopped run would continue, the last one logged, or that of an early end.
    step: int | None = None
    total_steps: int | None = None
    is_early: bool = False  # whether it was finished before its last step
    fault: str | None = None  # why the run is damaged or unreadable


def list_runs(folder: Path) -> list[RunListing]:
    """List the runs in `folder` and in groups of runs inside it, down to DEEPEST levels.

    If `folder` is a run, only this run is listed. The order is arbitrary. Raises UserError if there
    is no such folder; a missing `runs`, which the first run creates, gives an empty list.
    """
    if folder == RUNS and not folder.exists():
        return []
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder.\nGive a folder of runs, or none for runs/.")
    return [_list_run(run) for run in _runs(folder)]


def _runs(folder: Path) -> Iterator[RunFolder]:
    """Yield the runs in `folder` and in its groups, and the folders that cannot be read."""
    if RunFolder(folder).is_run:
        yield RunFolder(folder)
        return
    for parent in _groups(folder, DEEPEST):
        yield from newest_runs_in(parent)
        yield from (
            RunFolder(path)
            for path in _subfolders(parent)
            if _why_unreadable(path) or _lost_its_recipe(path)
        )


def _groups(folder: Path, levels: int) -> Iterator[Path]:
    """Yield `folder` and the folders inside it, down to `levels` levels, that are no runs.

    Only links in the uppermost folder are followed: others could lead back to a folder above.
    """
    yield folder
    for path in _subfolders(folder) if levels else ():
        is_group = not _why_unreadable(path) and not RunFolder(path).is_run
        if is_group and (levels == DEEPEST or not path.is_symlink()):
            yield from _groups(path, levels - 1)


def _why_unreadable(path: Path) -> str:
    """Return why a folder cannot be searched for runs; empty if it can."""
    try:
        if not RunFolder(path).is_run:
            os.listdir(path)
    except OSError as fault:
        return f"it cannot be read: {fault.strerror}"
    return ""


def _subfolders(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir()]


def _lost_its_recipe(path: Path) -> bool:
    run = RunFolder(path)
    return not run.is_run and (run.is_finished or run.journal.exists())


def _list_run(run: RunFolder) -> RunListing:
    if why := _why_unreadable(run.path):
        modified_at = run.path.stat().st_mtime
        return RunListing(str(run.path), modified_at, state="unreadable", fault=why)
    row = RunListing(str(run.path), _modified_at(run))
    if not run.is_run:
        return replace(row, state="damaged", fault=f"{run.recipe.name} is missing")
    try:
        recipe = recipes.read(run.recipe)
        row = replace(row, data=hide_secrets(recipe.data.source))
        if recipes.has_teacher(recipe) and recipe.teacher:
            row = replace(row, teachers=recipe.teacher.runs)
        return _finished(run, row) if run.is_finished else _unfinished(run, row)
    except UNREADABLE as fault:
        return replace(row, state="damaged", fault=_first_line(fault))


def _first_line(fault: Exception) -> str:
    """Return the first line of an error's message, or the first fault of a recipe."""
    if isinstance(fault, recipes.RecipeError):
        return fault.faults[0]
    if isinstance(fault, UserError):
        return str(fault).splitlines()[0]
    return "its files do not have the expected content"


def _finished(run: RunFolder, row: RunListing) -> RunListing:
    result, summary = run.result(), summary_row("", run)
    if not run.weights(run.role).exists():
        raise UserError(f"{run.weights(run.role).name} is missing")
    n = read_predictions.n_test_images(run)
    n_correct = None if n is None or summary.top1_test is None else round(summary.top1_test * n)
    early = result.get(FINISHED_EARLY)
    steps = {"step": early["steps"], "total_steps": early["planned_steps"]} if early else {}
    return replace(
        row,
        **steps,
        is_early=bool(early),
        state="finished",
        recipe=result["recipe"],
        parameters=summary.parameters,
        top1_test=summary.top1_test,
        top1_test_interval=None if n is None or n_correct is None else wilson(n_correct, n),
        test_images=n,
        top1_val=summary.top1_val,
        val_split=summary.val_split,
        updated_at=datetime.fromisoformat(result["finished_at"]).timestamp(),
    )


def _unfinished(run: RunFolder, row: RunListing) -> RunListing:
    holder, is_alive = lock.read_holder(run.path)
    events = journal.read(run.journal)
    starts = [event for event in events if event["event"] == "start"]
    if starts:
        start = journal.event(starts[-1])
        assert isinstance(start, Start)
        state: State = "killed" if holder else "stopped"
        row = replace(
            row,
            state=state,
            recipe=start.recipe,
            parameters=start.parameters,
            step=_saved_step(run),
            total_steps=total_steps(start),
        )
    if is_alive:
        newest = [event["step"] for event in events if "step" in event][-1:]
        row = replace(row, state="training", step=newest[0] if newest else row.step)
    return row


def _saved_step(run: RunFolder) -> int:
    """Return the step of the last readable checkpoint, last/ or last.old/; 0 if there is none."""
    for folder in (run.last, run.last.with_name(f"{run.last.name}.old")):
        with suppress(UserError, KeyError):
            return int(run_json_schemas.progress(folder / "progress.json")["step"])
    return 0


def _modified_at(run: RunFolder) -> float:
    files = (run.recipe, run.journal, run.last, run.result_file)
    return max(file.stat().st_mtime for file in files if file.exists())
