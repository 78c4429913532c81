"""Parts of messages: a number with its noun, a list of names that is cut, two lists that differ."""

from collections.abc import Sequence

MOST = 10  # names of a list in a message


def counted(number: int, one: str, many: str = "") -> str:
    """`1 process`, `2 processes`; `many` is by default `one` with an s."""
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def listed(names: Sequence[str]) -> str:
    """`a, b, c`; of more than MOST names the first ones, `a, b, … and 90 more`."""
    if len(names) <= MOST:
        return ", ".join(names)
    return f"{', '.join(names[:MOST])} and {len(names) - MOST:,} more"


def describe_class_difference(ours: Sequence[str], theirs: Sequence[str]) -> tuple[str, str]:
    """Two lists of class names that differ, each in words: the whole list if both are short,
    otherwise its length and the names that the other lacks.
    """
    if max(len(ours), len(theirs)) <= MOST:
        return ", ".join(ours), ", ".join(theirs)
    return _apart(ours, theirs), _apart(theirs, ours)


def _apart(names: Sequence[str], others: Sequence[str]) -> str:
    count, own = counted(len(names), "class", "classes"), set(names) - set(others)
    if not own:
        return f"{count}, none that the other lacks"
    return f"{count}, among them {listed([name for name in names if name in own])}"
