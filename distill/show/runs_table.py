"""Runs as a table: put in order, and as narrow as the terminal."""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from distill.errors import UserError
from distill.show.display import DAY_S, UNKNOWN, grouped
from distill.show.runs import Listed
from distill.statistics import Interval

FIGURES_WIDTH = 29  # characters that the columns of figures and age take
LEGEND = "test: ± half of Wilson's 95 % interval; val: the held-out images"
WIDE = 100  # characters from which on the columns stand two spaces apart

# What each column says, raw; it is sorted by this.
COLUMNS: Mapping[str, Callable[[Listed], Any]] = {
    "run": lambda run: run.path,
    "recipe": lambda run: run.recipe,
    "teacher": lambda run: [Path(path).name for path in run.teachers] or None,
    "parameters": lambda run: run.parameters,
    "test": lambda run: run.top1_test,
    "val": lambda run: run.top1_val,
    "state": lambda run: run.state,
    "age": lambda run: -run.updated_at,
}
BEST_FIRST = ("parameters", "test", "val")


ALSO = {"params": "parameters", "accuracy": "test", "top1": "test", "name": "run"}  # what is tried


def ordered(runs: Sequence[Listed], column: str) -> list[Listed]:
    """Words from A, figures from the largest, age from the newest; what has none comes last.

    Raises UserError where there is no such column.
    """
    if column not in COLUMNS:
        near = [ALSO[column]] if column in ALSO else get_close_matches(column, COLUMNS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"--sort {column} is no column{hint}\nType one of {', '.join(COLUMNS)}.")
    value = COLUMNS[column]
    newest = sorted(runs, key=lambda run: -run.updated_at)
    some = [run for run in newest if value(run) is not None]
    none = [run for run in newest if value(run) is None]
    return sorted(some, key=value, reverse=column in BEST_FIRST) + none


def runs_table(
    runs: Sequence[Listed], folder: Path, width: int, now: float | None = None
) -> RenderableType:
    """One row a run, and below it why a damaged one is.

    `width`: characters of the terminal; `now`: seconds since 1970.
    """
    now = time.time() if now is None else now
    names = [_names(run, folder) for run in runs]
    states = max(len(line) for run in runs for line in state(run).splitlines())
    longest = [max(map(len, column)) for column in zip(*names, strict=True)]
    padding = 1 if width >= WIDE else 0
    table = Table(box=SIMPLE_HEAD, padding=(0, padding, 0, 0), show_edge=False, pad_edge=False)
    each = fitting(width - FIGURES_WIDTH - states - 7 * (1 + padding), longest)
    for heading in ("run", "recipe", "teacher"):
        table.add_column(heading, overflow="fold")
    for heading in ("params", "test %", "val %"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("age", justify="right", no_wrap=True)
    for run, (name, recipe, teachers) in zip(runs, names, strict=True):
        table.add_row(
            Text(broken(name, each), "bold"),
            broken(recipe, each),
            broken(teachers, each),
            grouped(run.parameters),
            accuracy(run.top1_test, run.top1_test_interval),
            accuracy(run.top1_val, None),
            Text(state(run), "" if run.state == "finished" else "yellow"),
            age(now - run.updated_at),
        )
    faults = [
        Text(f"{name}: {run.fault}", "yellow")
        for run, (name, *_) in zip(runs, names, strict=True)
        if run.fault
    ]
    return Group(table, *faults, Text(LEGEND, "dim"))


def _names(run: Listed, folder: Path) -> tuple[str, str, str]:
    """Run, recipe and teachers, as long as they are."""
    path = Path(run.path)
    name = str(path.relative_to(folder)) if path != folder else path.name
    teachers = " + ".join(Path(teacher).name for teacher in run.teachers)
    return name, run.recipe or UNKNOWN, teachers or UNKNOWN


def fitting(width: int, longest: Sequence[int]) -> int:
    """The most that each of some columns may take so that all fit into `width`."""
    widest = max(longest)
    fits = (each for each in range(widest, 0, -1) if sum(min(each, n) for n in longest) <= width)
    return next(fits, 1)


def broken(name: str, width: int) -> str:
    """A long name in lines of up to `width`, broken where its words end: `student_`, `alone`."""
    lines = [""]
    for word in re.split(r"(?<=[-_/ ])|(?=\+)", name):
        if lines[-1] and len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] += word
    return "\n".join(lines)


def state(run: Listed) -> str:
    """`finished`; `stopped` over `1,200/39,000`: steps done, of how many."""
    if run.step is None or run.total_steps is None:
        return run.state
    return f"{run.state}\n{run.step:,}/{run.total_steps:,}"


def accuracy(share: float | None, interval: Interval | None) -> str:
    """0.721 as `72.10`, with half the width of its interval `72.10 ±0.88`, in per cent."""
    if share is None:
        return UNKNOWN
    spread = "" if interval is None else f" ±{50 * (interval[1] - interval[0]):.2f}"
    return f"{100 * share:.2f}{spread}"


def age(seconds: float) -> str:
    """`12 s`, `5 min`, `16 h`, `3 d`: the largest unit that fits, rounded down."""
    for unit_s, unit in ((DAY_S, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit_s:
            return f"{seconds // unit_s:,.0f} {unit}"
    return f"{max(seconds, 0) // 1:.0f} s"
