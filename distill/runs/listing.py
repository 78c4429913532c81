"""List the runs in a folder with their results and states.

Looks at files alone and changes none. A run that cannot be read is a row that says so.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Literal

from distill.errors import UserError
from distill.events import Start, total_steps
from distill.files import json_files
from distill.recipe import recipes
from distill.runs import journal, lock, saved_predictions
from distill.runs.run_folder import RUNS, RunFolder, runs_in
from distill.runs.summary import summary_row as figures
from distill.statistics import Interval, wilson

State = Literal["finished", "training", "stopped", "killed", "never began", "damaged"]
UNREADABLE = (UserError, OSError, ValueError, KeyError, TypeError, AttributeError)


@dataclass(frozen=True)
class RunListing:
    """One run, raw: shares 0..1, seconds since 1970; None where a figure is not known."""

    path: str
    updated_at: float  # when it finished, or when something was last written
    state: State = "never began"
    recipe: str | None = None
    teachers: tuple[str, ...] = ()  # run folders
    parameters: int | None = None
    top1_test: float | None = None
    top1_test_interval: Interval | None = None  # Wilson's, 95 %
    test_images: int | None = None
    top1_val: float | None = None  # of the kept weights, on the held-out part
    step: int | None = None  # that a stopped run would go on from, or the newest one logged
    total_steps: int | None = None
    fault: str | None = None  # why it is damaged


def list_runs(folder: Path) -> list[RunListing]:
    """Every run in `folder` and in its groups one level below, in no order; or `folder` itself.

    Raises UserError where there is no such folder; `runs` need not be there before the first run.
    """
    if folder == RUNS and not folder.exists():
        return []
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder.\nGive a folder of runs, or none for runs/.")
    return [_list_run(run) for run in _runs(folder)]


def _runs(folder: Path) -> Iterator[RunFolder]:
    if RunFolder(folder).is_run:
        yield RunFolder(folder)
        return
    for place in (folder, *_groups(folder)):
        yield from runs_in(place)
        yield from (RunFolder(path) for path in _subfolders(place) if _lost_its_recipe(path))


def _groups(folder: Path) -> list[Path]:
    return [path for path in _subfolders(folder) if not RunFolder(path).is_run]


def _subfolders(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir()]


def _lost_its_recipe(path: Path) -> bool:
    run = RunFolder(path)
    return not run.is_run and (run.is_finished or run.journal.exists())


def _list_run(run: RunFolder) -> RunListing:
    known = RunListing(str(run.path), _modified_at(run))
    if not run.is_run:
        return replace(known, state="damaged", fault=f"{run.recipe.name} is gone")
    try:
        recipe = recipes.read(run.recipe)
        if recipes.has_teacher(recipe) and recipe.teacher:
            known = replace(known, teachers=recipe.teacher.runs)
        return _finished(run, known) if run.is_finished else _unfinished(run, known)
    except UNREADABLE as fault:
        return replace(known, state="damaged", fault=_first_line(fault))


def _first_line(fault: Exception) -> str:
    """The first thing wrong, in one line."""
    if isinstance(fault, recipes.RecipeError):
        return fault.faults[0]
    if isinstance(fault, UserError):
        return str(fault).splitlines()[0]
    return f"its files do not say what they should ({type(fault).__name__}: {fault})"


def _finished(run: RunFolder, known: RunListing) -> RunListing:
    result, row = run.result(), figures("", run)
    if not run.weights(run.role).exists():
        raise UserError(f"{run.weights(run.role).name} is gone")
    n = _test_images(run)
    right = None if n is None or row.top1_test is None else round(row.top1_test * n)
    return replace(
        known,
        state="finished",
        recipe=result["recipe"],
        parameters=row.parameters,
        top1_test=row.top1_test,
        top1_test_interval=None if n is None or right is None else wilson(right, n),
        test_images=n,
        top1_val=row.top1_val,
        updated_at=datetime.fromisoformat(result["finished_at"]).timestamp(),
    )


def _test_images(run: RunFolder) -> int | None:
    """How many images the accuracy is of; None where the answers are not there any more."""
    with suppress(UserError):
        if (answers := saved_predictions.read_run(run)) is not None:
            return len(answers.labels)
    return None


def _unfinished(run: RunFolder, known: RunListing) -> RunListing:
    somebody, is_alive = lock.read_holder(run.path)
    rows = journal.read(run.journal)
    starts = [row for row in rows if row["event"] == "start"]
    if starts:
        start = journal.event(starts[-1])
        assert isinstance(start, Start)
        state: State = "killed" if somebody else "stopped"
        known = replace(
            known,
            state=state,
            recipe=start.recipe,
            parameters=start.parameters,
            step=_saved_step(run),
            total_steps=total_steps(start),
        )
    if is_alive:
        newest = [row["step"] for row in rows if "step" in row][-1:]
        known = replace(known, state="training", step=newest[0] if newest else known.step)
    return known


def _saved_step(run: RunFolder) -> int:
    """Of the newest checkpoint that can be read; 0 where there is none."""
    for place in (run.last, run.last.with_name(f"{run.last.name}.old")):
        with suppress(UserError, KeyError):
            return int(json_files.progress(place / "progress.json")["step"])
    return 0


def _modified_at(run: RunFolder) -> float:
    files = (run.recipe, run.journal, run.last, run.result_file)
    return max(file.stat().st_mtime for file in files if file.exists())
