"""Parts of messages: a count with its noun, a shortened list of names, two lists that differ."""

from collections.abc import Sequence

MOST = 10  # names of a list in a message


def counted(number: int, one: str, many: str = "") -> str:
    """Return `1 process`, `2 processes`; `many` is by default `one` with an s."""
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def listed(names: Sequence[str]) -> str:
    """Return `a, b, c`; of more than MOST names the first MOST, `a, b, … and 90 more`."""
    if len(names) <= MOST:
        return ", ".join(names)
    return f"{', '.join(names[:MOST])} and {len(names) - MOST:,} more"


def describe_class_difference(first: Sequence[str], second: Sequence[str]) -> tuple[str, str]:
    """Describe two differing lists of class names: each whole if both are short, otherwise its
    length and the names that the other lacks.
    """
    if max(len(first), len(second)) <= MOST:
        return ", ".join(first), ", ".join(second)
    return _compared(first, second), _compared(second, first)


def _compared(names: Sequence[str], others: Sequence[str]) -> str:
    count, missing = counted(len(names), "class", "classes"), set(names) - set(others)
    if not missing:
        return f"{count}, none that the other lacks"
    return f"{count}, among them {listed([name for name in names if name in missing])}"
