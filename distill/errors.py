"""Exceptions that end a command with one message, ready to print.

The text states what was requested, what was found and what to type next; cli.py prints it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from distill.files.escape_text import visible

LISTED = 10  # faults of a data set that one message lists; further ones are only counted
MOST_FAULTS = 100  # of a recipe or sweep in a message


class UserError(Exception):
    """An error in the user's request: recipe, data or arguments. Exit code 2."""


class UnsuitableRecipe(UserError):
    """A valid recipe that is unsuitable for these images, this teacher or this machine.

    Another value of one of its keys would be suitable. In a sweep such a trial has no value.
    """


class RaisedByAll(UserError):
    """An error that all processes of a command raise alike, so that only the first prints it."""


class Failure(Exception):
    """A valid request could not be carried out: disk, network, divergence. Exit code 1."""


def first_faults(faults: Sequence[str]) -> list[str]:
    """Return the first MOST_FAULTS faults, and a line with the number of the others, if any."""
    more = len(faults) - MOST_FAULTS
    return [*faults[:MOST_FAULTS], *([f"and {more:,} more"] if more > 0 else [])]


def data_error(source: str, faults: Sequence[str], advice: str) -> UserError:
    """Return an error that names the data source, up to ten faults and what to do next.

    Each fault is one line: control characters in names are escaped.
    """
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    lines = [f"{count} in {visible(source)}:"]
    lines += [f"  {visible(fault)}" for fault in faults[:LISTED]]
    if len(faults) > LISTED:
        lines.append(f"  and {len(faults) - LISTED} more")
    return UserError("\n".join([*lines, advice]))


@contextmanager
def collect_faults(faults: list[str]) -> Iterator[None]:
    """Append the message of a UserError to `faults` instead of raising it.

    This lets one command report the faults of several independent checks at once.
    """
    try:
        yield
    except UserError as fault:
        faults.append(str(fault))
