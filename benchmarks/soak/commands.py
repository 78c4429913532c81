"""Run a command of the CLI in this process, and check its result and its output."""

import io
import signal
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from types import FrameType

import cli

LIMIT_S = 300  # a command that runs longer counts as hanging; a report takes 15 s on one core
# Unicode categories: control and format characters, surrogates, line and paragraph separators.
UNSAFE = ("Cc", "Cf", "Cs", "Zl", "Zp")
ALLOWED = "\n\u200c\u200d"  # joiners are part of the spelling of some words and emoji


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, or the exception that ended it, and its output."""

    code: int | None
    exception: str
    out: str
    err: str


class Hanging(BaseException):
    """Raised if a command runs longer than LIMIT_S.

    A BaseException, so that no `except Exception` catches it.
    """


def run(*arguments: object) -> Ended:
    """Run `python cli.py ARGUMENTS…` in this process, for at most LIMIT_S seconds."""
    out, err = io.StringIO(), io.StringIO()
    code, exception, previous = None, "", sys.argv
    sys.argv = ["cli.py", *map(str, arguments)]
    try:
        with _limited(LIMIT_S), redirect_stdout(out), redirect_stderr(err):
            cli.main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException as fault:
        if isinstance(fault, KeyboardInterrupt):
            raise
        exception = f"{type(fault).__name__}: {fault}"[:300]
    finally:
        sys.argv = previous
    return Ended(code, exception, out.getvalue(), err.getvalue())


@contextmanager
def _limited(seconds: int) -> Iterator[None]:
    """Raise Hanging in the main thread if the context takes longer than `seconds`."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Hanging(f"runs for more than {seconds} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def fault_of(ended: Ended, *names: str) -> str:
    """Return what is wrong with how a command ended; empty if nothing is.

    A command must succeed, or fail with a message on stderr, which contains one of `names` if any
    are given. It must not print a traceback or a character that a terminal would interpret.
    """
    printed = ended.out + ended.err
    if ended.exception:
        return ended.exception
    if "Traceback" in printed:
        return f"a traceback: {printed[-300:]}"
    if unsafe := unsafe_in(printed):
        return f"prints {sorted(map(ascii, unsafe))}"
    if ended.code not in (0, 1, 2):
        return f"exit {ended.code}: {printed[-300:]}"
    if ended.code and not ended.err.strip():
        return f"exit {ended.code} without a message"
    if ended.code and names and not any(name in ended.err for name in names):
        return f"a message without {' or '.join(names)}: {ended.err[-300:]}"
    return ""


def unsafe_in(text: str) -> set[str]:
    """Return the characters of a text that a terminal or a web page would interpret."""
    return {
        letter
        for letter in set(text)
        if unicodedata.category(letter) in UNSAFE and letter not in ALLOWED
    }
