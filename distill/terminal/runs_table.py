"""Terminal table of runs, sorted and fitted to the terminal's width.

Of the trials of a sweep or search only the best one has a row, and those that need attention.
"""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from distill.errors import UserError
from distill.files.escape_text import visible
from distill.format import DAY_S, UNKNOWN, grouped, percent_number, shorten
from distill.runs.list_runs import RunListing
from distill.runs.read_predictions import NOT_VERIFIED
from distill.statistics import Interval
from distill.terminal.table_style import blank_table

LEGEND = (
    "test: top1/test ± half of Wilson's 95 % interval; val: top1/val on the held-out images, with "
    "ema top1/val_ema"
)
UNVERIFIED = "?"  # after an accuracy that no predictions confirm
TRIAL = re.compile(r"trial-\d+")  # folder name of a trial of a sweep or of a rung of a search
SHOWN = ("training", "damaged", "unreadable")  # states of trials that always have a row
WIDE = 100  # terminal width from which columns are two spaces apart instead of one
NAMES = ("run", "recipe", "teacher", "data")
FIGURES = ("params", "test %", "val %", "state", "age")
# Where a name may be split into two lines: best after / or a space or before +, else after - or _.
MOST_LINES = 5  # of a name, if two are not enough
BREAKS = (r"(?<=[/ ])|(?=\+)", r"(?<=[-_])")

# The raw value of each column, by which it is sorted.
COLUMNS: Mapping[str, Callable[[RunListing], Any]] = {
    "run": lambda run: run.path,
    "recipe": lambda run: run.recipe,
    "teacher": lambda run: [Path(path).name for path in run.teachers] or None,
    "data": lambda run: run.data,
    "parameters": lambda run: run.parameters,
    "test": lambda run: run.top1_test,
    "val": lambda run: run.top1_val,
    "state": lambda run: run.state,
    "age": lambda run: -run.updated_at,
}
BEST_FIRST = ("parameters", "test", "val")
ACCURACIES = ("test", "val")
SYNTHETIC = "synthetic"  # the data source of generated images


# Other names that users may type for a column.
ALSO = {"params": "parameters", "accuracy": "test", "top1": "test", "name": "run"}


def sort_runs(runs: Sequence[RunListing], column: str) -> list[RunListing]:
    """Sort runs by a column of the table.

    Text is sorted from A to Z, numbers from the largest, age from the newest; runs without a value
    are last. By accuracy, runs on synthetic images are below those on real ones, which are harder.
    Raises UserError for an unknown column.
    """
    if column not in COLUMNS:
        near = [ALSO[column]] if column in ALSO else get_close_matches(column, COLUMNS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"--sort {column} is not a column{hint}\nType one of {', '.join(COLUMNS)}.")
    value = COLUMNS[column]
    newest = sorted(runs, key=lambda run: -run.updated_at)
    some = [run for run in newest if value(run) is not None]
    none = [run for run in newest if value(run) is None]
    ordered = sorted(some, key=value, reverse=column in BEST_FIRST)
    if column in ACCURACIES:
        ordered.sort(key=lambda run: run.data == SYNTHETIC)
    return ordered + none


def fold_trials(
    runs: Sequence[RunListing], folder: Path
) -> tuple[list[RunListing], dict[str, int]]:
    """Leave out the trials of sweeps and searches inside `folder`, except for the best of each.

    Trials that are training, damaged or unreadable are not left out, nor those directly in
    `folder`. The best trial is the one with the highest accuracy on the held-out images. Returns
    the other runs in their order, and by the path of a best trial the number of trials.
    """
    sweeps: dict[Path, list[RunListing]] = {}
    for run in runs:
        path = Path(run.path)
        if TRIAL.fullmatch(path.name) and path.parent != folder:
            sweeps.setdefault(path.parent, []).append(run)
    n_trials, left_out = dict[str, int](), set[str]()
    for trials in sweeps.values():
        best = max(trials, key=lambda run: -1.0 if run.top1_val is None else run.top1_val)
        n_trials[best.path] = len(trials)
        left_out |= {run.path for run in trials if run is not best and run.state not in SHOWN}
    return [run for run in runs if run.path not in left_out], n_trials


def runs_table(
    runs: Sequence[RunListing], folder: Path, width: int, now: float | None = None
) -> RenderableType:
    """Show a row for each run, of two lines if they suffice; below, faults of damaged runs and
    names that do not fit.

    `folder`: names of runs are shown relative to it. `width`: characters of the terminal. `now`:
    seconds since 1970. Trials are left out as by `fold_trials`, and so is the column of the data
    source if it is the same for all runs.
    """
    now = time.time() if now is None else now
    runs, n_trials = fold_trials(runs, folder)
    sources = {run.data for run in runs}
    headings = NAMES if len(sources) > 1 else NAMES[:-1]
    names = [_names(run, folder, n_trials.get(run.path, 0))[: len(headings)] for run in runs]
    figures = [_number_cells(run, now) for run in runs]
    padding = 1 if width >= WIDE else 0
    used = sum(max(map(_width, column)) for column in zip(FIGURES, *figures, strict=True))
    gaps = (len(headings) + len(FIGURES) - 1) * (1 + padding)
    widths = fit_widths(width - used - gaps, names)
    table = _empty_table(headings, widths, padding)
    for run, texts, (*counts, state, age) in zip(runs, names, figures, strict=True):
        name, *others = map(wrap_name, texts, widths)
        colour = "" if run.state == "finished" else "yellow"
        table.add_row(Text(name, "bold"), *others, *counts, Text(state, colour), age)
    faults = [
        Text(f"{name}: {run.fault}", "yellow")
        for run, (name, *_) in zip(runs, names, strict=True)
        if run.fault
    ]
    cut = [name for name, *_ in names if "…" in wrap_name(name, widths[0])]
    in_full = [Text(f"in full: {name}", "dim") for name in cut]
    return Group(table, *faults, Text(_legend(runs, sources), "dim"), *in_full)


def _empty_table(headings: Sequence[str], widths: Sequence[int], padding: int) -> Table:
    """Return a table without rows: columns of names with these headings and widths, then FIGURES.

    `padding`: extra spaces between columns.
    """
    table = blank_table(padding)
    for heading, column_width in zip(headings, widths, strict=True):
        table.add_column(heading, no_wrap=True, width=column_width)
    for heading in FIGURES:
        table.add_column(heading, justify="left" if heading == "state" else "right", no_wrap=True)
    return table


def _legend(runs: Sequence[RunListing], sources: set[str | None]) -> str:
    """Return the explanation of the columns, with the data source if all runs have the same."""
    same = runs[0].data if len(sources) == 1 else None
    legend = LEGEND if same is None else f"{LEGEND}; data: {visible(same)}"
    if any(map(_is_unverified, runs)):
        legend = f"{legend}\n{UNVERIFIED}: {NOT_VERIFIED}"
    return legend


def _is_unverified(run: RunListing) -> bool:
    return run.top1_test is not None and run.test_images is None


def _names(run: RunListing, folder: Path, n_trials: int) -> tuple[str, ...]:
    """Return the full names of a run, its recipe, its teachers and its data source.

    `n_trials`: of how many trials the run is the best; 0 if it has a row for itself alone.
    """
    path = Path(run.path)
    name = str(path.relative_to(folder)) if path != folder else path.name
    best_of = f" best of {n_trials:,}" if n_trials > 1 else ""
    teachers = " + ".join(Path(teacher).name for teacher in run.teachers)
    data = None if run.data is None else Path(run.data).name or run.data
    others = (run.recipe, teachers, data)
    return (visible(name) + best_of, *(visible(text or UNKNOWN) for text in others))


def _number_cells(run: RunListing, now: float) -> tuple[str, ...]:
    """Return a run's cells in the columns FIGURES: parameters, accuracies, state and age."""
    return (
        grouped(run.parameters),
        accuracy_text(run.top1_test, run.top1_test_interval)
        + (f" {UNVERIFIED}" if _is_unverified(run) else ""),
        accuracy_text(run.top1_val, None) + (" ema" if run.val_split == "val_ema" else ""),
        state_text(run),
        age_text(now - run.updated_at),
    )


def _width(cell: str) -> int:
    return max(map(len, cell.split("\n")))


def fit_widths(width: int, names: Sequence[Sequence[str]]) -> list[int]:
    """Return the widths of the name columns, whose sum is at most `width` characters if possible.

    `names`: a row per run. Names are put on one line if they fit, else on two lines. If two lines
    are still too wide, the widest columns are limited to the same width, but no part of a name is
    cut if all parts fit.
    """
    columns = list(zip(*names, strict=True))
    heads = [len(heading) for heading, _ in zip(NAMES, columns, strict=False)]
    parts = [
        max(len(part.rstrip()) for name in column for part in _parts(name)) for column in columns
    ]
    if sum(map(max, heads, parts)) <= width:
        heads = [*map(max, heads, parts)]
    halves = [max(map(two_line_width, column)) for column in columns]
    whole = [max(map(len, column)) for column in columns]
    return _limit_widths(width, whole, _limit_widths(width, [*map(max, heads, halves)], heads))


def _limit_widths(width: int, most: Sequence[int], least: Sequence[int]) -> list[int]:
    """Return the widths in `most`, limited to a common maximum so that their sum fits into `width`.

    The maximum is the largest possible. No width is limited below the one in `least`.
    """
    for limit in range(max(most), 0, -1):
        widths = [max(low, min(high, limit)) for low, high in zip(least, most, strict=True)]
        if sum(widths) <= width:
            return widths
    return list(least)


def two_line_width(name: str) -> int:
    """Return the smallest width, in characters, at which a name fits on two lines."""
    return min(max(map(len, lines)) for lines in _break_points(name))


def wrap_name(name: str, width: int) -> str:
    """Split a name longer than `width` characters into two lines: `kd_cutmix`, `+ema`.

    It is split at one of BREAKS. If two lines are too short, it is split into up to MOST_LINES. If
    these are too short as well, it has two lines that are shortened in their middle.
    """
    if len(name) <= width:
        return name
    if two_line_width(name) > width and (several := _filled_lines(name, width)):
        return "\n".join(several)
    # The split that loses the fewest characters; of several, the first.
    lines = min(
        _break_points(name), key=lambda pair: sum(max(0, len(line) - width) for line in pair)
    )
    return "\n".join(shorten(line, width) for line in lines)


def _filled_lines(name: str, width: int) -> list[str]:
    """Split a name into lines of at most `width` characters, as few as possible.

    Empty if a part of it is longer, or if it needs more than MOST_LINES lines.
    """
    lines = [""]
    for part in _parts(name):
        if len((lines[-1] + part).rstrip()) <= width:
            lines[-1] += part
        else:
            lines.append(part)
    lines = [line.rstrip() for line in lines if line]
    return lines if len(lines) <= MOST_LINES and max(map(len, lines)) <= width else []


def _parts(name: str) -> list[str]:
    """Return the parts of a name between all its BREAKS."""
    return re.split("|".join(BREAKS), name)


def _break_points(name: str) -> list[tuple[str, ...]]:
    """Return the ways to split a name into two lines, the best first.

    If it cannot be split, the only way is the whole name on one line.
    """
    starts = [match.start() for pattern in BREAKS for match in re.finditer(pattern, name)]
    return [(name[:k].rstrip(), name[k:]) for k in starts if 0 < k < len(name)] or [(name,)]


def state_text(run: RunListing) -> str:
    """Return a run's state, such as `finished`.

    For an unfinished run, and for one that was finished early, a second line has the number of
    steps done and of all: `1,200/39,000`.
    """
    if run.step is None or run.total_steps is None:
        return run.state
    return f"{run.state}{' early' if run.is_early else ''}\n{run.step:,}/{run.total_steps:,}"


def accuracy_text(share: float | None, interval: Interval | None) -> str:
    """Format a fraction in percent: 0.721 as `72.10`.

    With an interval, half of its width is added: `72.10 ±0.88`.
    """
    if share is None:
        return UNKNOWN
    spread = "" if interval is None else f" ±{50 * (interval[1] - interval[0]):.2f}"
    return f"{percent_number(share)}{spread}"


def age_text(seconds: float) -> str:
    """Format an age in the largest unit that fits, rounded down: `12 s`, `5 min`, `16 h`, `3 d`."""
    for unit_s, unit in ((DAY_S, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit_s:
            return f"{seconds // unit_s:,.0f} {unit}"
    return f"{max(seconds, 0) // 1:.0f} s"
