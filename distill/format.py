"""Format numbers, times and lists of names for people: in terminals, reports and messages.

A function that accepts None returns `UNKNOWN`, an en dash, for it.
"""

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from distill.files.escape_text import visible

UNKNOWN = "–"
SCRIPT = "understudy"  # the command that pip installs
DAY_S = 86_400
UNITS = (("s", 1), ("min", 60), ("h", 3_600), ("days", DAY_S))
SMALLEST_P = 1e-4  # more decimals would be false precision
MOST_NAMES = 10  # listed in a message


def as_typed(text: str) -> str:
    """Return a message with its commands as they are typed in this installation.

    Messages contain `python cli.py …`. If the program was started as the installed command
    `understudy`, that name is put in its place.
    """
    is_installed = Path(sys.argv[0]).stem == SCRIPT
    return text.replace("python cli.py", SCRIPT) if is_installed else text


def grouped(number: int | None) -> str:
    """Format a whole number with thousands separators: 4697162 as `4,697,162`."""
    return UNKNOWN if number is None else f"{number:,}"


def counted(number: int, singular: str, plural: str = "") -> str:
    """Format a number and its noun: `1 process`, `2 processes`.

    Without `plural`, the plural is `singular` with an s.
    """
    return f"{number:,} {singular if number == 1 else plural or f'{singular}s'}"


def change_of_ece(before: float, after: float) -> str:
    """Describe how temperature scaling changes the expected calibration error, a fraction:
    `lowers the calibration error from 1.44 % to 1.09 %`.
    """
    if percent(before) == percent(after):
        return f"leaves the calibration error at {percent(before)}"
    verb, worse = ("lowers", "") if after < before else ("raises", ", so it is no improvement")
    return f"{verb} the calibration error from {percent(before)} to {percent(after)}{worse}"


def percent(share: float | None) -> str:
    """Format a fraction as a percentage: 0.7117 as `71.17 %`."""
    return UNKNOWN if share is None or math.isnan(share) else f"{percent_number(share)} %"


def percent_number(share: float) -> str:
    """Format a fraction as a percentage without the percent sign: 0.7117 as `71.17`."""
    return f"{100 * share:.2f}"


def mean_and_std(
    mean: float, std: float | None, show: Callable[[float], str] = percent_number
) -> str:
    """Format a mean and its standard deviation: `71.46 ± 0.60`; only the mean if `std` is None."""
    return show(mean) if std is None else f"{show(mean)} ± {show(std)}"


def interval_text(interval: Sequence[float] | None, show: Callable[[float], str] = percent) -> str:
    """Format an interval with its unit only once: (0.7121, 0.7297) as `[71.21, 72.97] %`.

    `show` formats one end of the interval, with its unit.
    """
    if interval is None:
        return UNKNOWN
    low, (high, _, unit) = show(interval[0]).split(" ")[0], show(interval[1]).partition(" ")
    return f"[{low}, {high}] {unit}".rstrip()


def points(difference: float) -> str:
    """Format a difference of two fractions in percentage points: 0.0123 as `+1.23`."""
    return f"{100 * difference:+.2f}".replace("-", "−")


def bracketed(interval: Sequence[float], show: Callable[[float], str]) -> str:
    """Format an interval in brackets: `[71.21, 72.97]`. `show` formats one end of it."""
    low, high = map(show, interval)
    return f"[{low}, {high}]"


def nats(value: float) -> str:
    """Format a negative log-likelihood or a divergence: `0.7749 nats`."""
    return f"{value:.4f} nats"


def p_value(p: float) -> str:
    """Format a p-value: `0.13`, or `< 0.0001`."""
    return f"< {SMALLEST_P:.4f}" if p < SMALLEST_P else f"{p:.2g}"


def p_equation(p: float) -> str:
    """Format a p-value with its symbol: `p = 0.13`, or `p < 0.0001`."""
    return f"p {p_value(p)}" if p < SMALLEST_P else f"p = {p_value(p)}"


def duration(seconds: float | None) -> str:
    """Format seconds as minutes or hours: 151 s as `2:31`, 3,723 s as `1:02:03`."""
    if seconds is None or not math.isfinite(seconds):
        return UNKNOWN
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"


def rounded_time(seconds: float) -> str:
    """Format seconds in a suitable unit, rounded to two or three digits: `29 min`."""
    name, unit_s = _unit(seconds)
    return f"{_digits(seconds / unit_s)} {name}"


def time_with_range(seconds: float, low_s: float, high_s: float) -> str:
    """Format seconds and their range in one unit, rounded: `29 min (25 to 33)`."""
    name, unit_s = _unit(high_s)
    value, low, high = (_digits(each / unit_s) for each in (seconds, low_s, high_s))
    return f"{value} {name} ({low} to {high})"


def _unit(seconds: float) -> tuple[str, int]:
    """Return the name and the seconds of the smallest unit in which the time is below 100."""
    return next((unit for unit in UNITS if seconds < 100 * unit[1]), UNITS[-1])


def _digits(value: float) -> str:
    return f"{value:,.1f}" if value < 10 else f"{value:,.0f}"


def shorten(text: str, width: int) -> str:
    """Cut the middle of a text that is longer than `width` characters: `see…d-2`."""
    if len(text) <= width:
        return text
    head = (width - 1) // 2
    return f"{text[:head]}…{text[len(text) + 1 + head - width :]}"


def join_shortened(names: Sequence[str]) -> str:
    """Join names by commas; of more than ten, show the first ten: `a, b, … and 90 more`.

    Control characters are escaped, so that the text is one line.
    """
    shown = ", ".join(map(visible, names[:MOST_NAMES]))
    return shown if len(names) <= MOST_NAMES else f"{shown} and {len(names) - MOST_NAMES:,} more"


def describe_class_difference(first: Sequence[str], second: Sequence[str]) -> tuple[str, str]:
    """Describe two different lists of class names for a message: one text for each list.

    If both have at most ten names, a text has all names of its list; otherwise it has their number
    and the names that the other list lacks.
    """
    if max(len(first), len(second)) <= MOST_NAMES:
        return join_shortened(first), join_shortened(second)
    return _count_and_extra_names(first, second), _count_and_extra_names(second, first)


def _count_and_extra_names(names: Sequence[str], others: Sequence[str]) -> str:
    count, extra = counted(len(names), "class", "classes"), set(names) - set(others)
    if not extra:
        return f"{count}, none that the other lacks"
    return f"{count}, among them {join_shortened([name for name in names if name in extra])}"


def format_size(n_bytes: int) -> str:
    """Format a size as `12.8 kB`, `40.5 MB` or `1.2 GB`."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if n_bytes >= unit:
            return f"{n_bytes / unit:.1f} {name}"
    return f"{n_bytes / 1e3:.1f} kB"
