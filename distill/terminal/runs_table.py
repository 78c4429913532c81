"""Terminal table of runs, sorted and fitted to the terminal's width."""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from distill.errors import UserError
from distill.files.escape_text import visible
from distill.format import DAY_S, UNKNOWN, grouped, percent_number, shorten
from distill.runs.list_runs import RunListing
from distill.statistics import Interval
from distill.terminal.table_style import blank_table

LEGEND = "test: ± half of Wilson's 95 % interval; val: the held-out images"
WIDE = 100  # terminal width from which columns are two spaces apart instead of one
NAMES = ("run", "recipe", "teacher")
FIGURES = ("params", "test %", "val %", "state", "age")
# Where a name may be split into two lines: best after / or a space or before +, else after - or _.
BREAKS = (r"(?<=[/ ])|(?=\+)", r"(?<=[-_])")

# The raw value of each column, by which it is sorted.
COLUMNS: Mapping[str, Callable[[RunListing], Any]] = {
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


# Other names that users may type for a column.
ALSO = {"params": "parameters", "accuracy": "test", "top1": "test", "name": "run"}


def sort_runs(runs: Sequence[RunListing], column: str) -> list[RunListing]:
    """Sort runs by a column of the table.

    Text is sorted from A to Z, numbers from the largest, age from the newest; runs without a value
    are last. Raises UserError for an unknown column.
    """
    if column not in COLUMNS:
        near = [ALSO[column]] if column in ALSO else get_close_matches(column, COLUMNS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"--sort {column} is not a column{hint}\nType one of {', '.join(COLUMNS)}.")
    value = COLUMNS[column]
    newest = sorted(runs, key=lambda run: -run.updated_at)
    some = [run for run in newest if value(run) is not None]
    none = [run for run in newest if value(run) is None]
    return sorted(some, key=value, reverse=column in BEST_FIRST) + none


def runs_table(
    runs: Sequence[RunListing], folder: Path, width: int, now: float | None = None
) -> RenderableType:
    """Show a row of at most two lines for each run, and the faults of damaged runs below.

    `folder`: names of runs are shown relative to it. `width`: characters of the terminal. `now`:
    seconds since 1970.
    """
    now = time.time() if now is None else now
    names = [_names(run, folder) for run in runs]
    figures = [_number_cells(run, now) for run in runs]
    padding = 1 if width >= WIDE else 0
    used = sum(max(map(_width, column)) for column in zip(FIGURES, *figures, strict=True))
    gaps = (len(NAMES) + len(FIGURES) - 1) * (1 + padding)
    widths = fit_widths(width - used - gaps, names)
    table = blank_table(padding)
    for heading, column_width in zip(NAMES, widths, strict=True):
        table.add_column(heading, no_wrap=True, width=column_width)
    for heading in FIGURES:
        table.add_column(heading, justify="left" if heading == "state" else "right", no_wrap=True)
    for run, texts, (*counts, state, age) in zip(runs, names, figures, strict=True):
        name, *others = map(wrap_name, texts, widths)
        colour = "" if run.state == "finished" else "yellow"
        table.add_row(Text(name, "bold"), *others, *counts, Text(state, colour), age)
    faults = [
        Text(f"{name}: {run.fault}", "yellow")
        for run, (name, *_) in zip(runs, names, strict=True)
        if run.fault
    ]
    return Group(table, *faults, Text(LEGEND, "dim"))


def _names(run: RunListing, folder: Path) -> tuple[str, str, str]:
    """Return the full names of a run, its recipe and its teachers."""
    path = Path(run.path)
    name = str(path.relative_to(folder)) if path != folder else path.name
    teachers = " + ".join(Path(teacher).name for teacher in run.teachers)
    return visible(name), visible(run.recipe or UNKNOWN), visible(teachers or UNKNOWN)


def _number_cells(run: RunListing, now: float) -> tuple[str, ...]:
    """Return a run's cells in the columns FIGURES: parameters, accuracies, state and age."""
    return (
        grouped(run.parameters),
        accuracy_text(run.top1_test, run.top1_test_interval),
        accuracy_text(run.top1_val, None),
        state_text(run),
        age_text(now - run.updated_at),
    )


def _width(cell: str) -> int:
    return max(map(len, cell.split("\n")))


def fit_widths(width: int, names: Sequence[Sequence[str]]) -> list[int]:
    """Return the widths of the name columns, whose sum is at most `width` characters if possible.

    `names`: a row per run. Names are put on one line if they fit, else on two lines. If two lines
    are still too wide, the widest columns are limited to the same width.
    """
    columns = list(zip(*names, strict=True))
    heads = [*map(len, NAMES)]
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

    It is split at one of BREAKS. A line that is still too long is shortened in its middle.
    """
    if len(name) <= width:
        return name
    # The split that loses the fewest characters; of several, the first.
    lines = min(
        _break_points(name), key=lambda pair: sum(max(0, len(line) - width) for line in pair)
    )
    return "\n".join(shorten(line, width) for line in lines)


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
