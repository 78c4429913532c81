"""Write results to stdout and everything else to stderr, from the first process only."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from io import StringIO, TextIOWrapper
from typing import TYPE_CHECKING, Any, Literal, TextIO

import typer

from distill.files.safe_text import visible_lines

if TYPE_CHECKING:
    from rich.console import Console


def is_main() -> bool:
    """Whether this is the first process, which prints and saves; needs no accelerate."""
    return os.environ.get("RANK", "0") == "0"


def stderr() -> "Console":
    """Return a console for progress and messages."""
    from distill.terminal.safe_console import SafeConsole

    return SafeConsole(stderr=True)


def stdout() -> "Console":
    """Return a console for results."""
    from distill.terminal.safe_console import SafeConsole

    return SafeConsole()


def print_facts(values: dict[str, Any], as_json: bool) -> None:
    """Print names and values, one per line, or as JSON."""
    from distill.terminal.recipe_and_cache_tables import fact_lines

    if as_json:
        echo_json(values)
    else:
        stdout().print(fact_lines(values), soft_wrap=True)


def echo(text: object, err: bool = False) -> None:
    """Print plain lines; unsafe characters in names and paths are escaped."""
    typer.echo(visible_lines(str(text)), err=err)


def escape_unencodable() -> None:
    """Make stdout print characters that its encoding lacks as escapes, as stderr does."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def echo_json(values: Any) -> None:
    """Print JSON on one line; NaN and infinity are `null`."""
    from distill.runs.journal import without_nan

    typer.echo(json.dumps(without_nan(values), allow_nan=False))


class QuietOnError:
    """A text stream that becomes silent, instead of failing, once it cannot be written: its
    terminal was closed, its reader exited or its disk is full.

    A display must not end a training. The file descriptor is redirected to the null device, so that
    libraries, and Python when it exits, can still write.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with self._without_failing():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._without_failing():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextmanager
    def _without_failing(self) -> Iterator[None]:
        try:
            yield
        except BlockingIOError:
            pass  # a slow reader: the rest of the text is dropped
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            try:
                os.dup2(null, self._stream.fileno())
            finally:
                os.close(null)


@contextmanager
def quiet_on_error(name: Literal["stdout", "stderr"]) -> Iterator[None]:
    """Make `sys.stdout` or `sys.stderr` silent, inside this context, once it cannot be written.

    The stream is None if the process was started without it.
    """
    stream = getattr(sys, name)
    wrapped = QuietOnError(StringIO() if stream is None else stream)
    setattr(sys, name, wrapped)
    try:
        yield
    finally:
        wrapped.flush()
        setattr(sys, name, stream)


def print_from_any_process(text: str) -> None:
    """Print a line to stderr regardless of this process's rank; do nothing if stderr is not
    writable.
    """
    with suppress(OSError):
        print(visible_lines(text), file=sys.__stderr__, flush=True)


@contextmanager
def only_first_process_prints() -> Iterator[None]:
    """Silence all processes but the first. A traceback is printed later, by the failed process."""
    if is_main():
        yield
    else:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            yield


def system_error_text(fault: OSError) -> str:
    """Return the system's message and the file: `No space left on device (runs/a/last)`."""
    where = f" ({fault.filename})" if fault.filename else ""
    return f"{fault.strerror or fault}{where}"
