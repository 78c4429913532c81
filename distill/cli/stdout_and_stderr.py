"""Write results to stdout and everything else to stderr, from the first process only."""

import errno
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from io import StringIO, TextIOWrapper
from typing import TYPE_CHECKING, Any, Literal, TextIO

import typer

from distill.errors import RaisedByAll
from distill.files.escape_text import visible_lines
from distill.format import as_typed

if TYPE_CHECKING:
    from rich.console import Console


UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG, errno.EPIPE)  # as for stdout
LIMITS = (  # errors that the machine causes, not this program
    *UNWRITABLE, errno.EACCES, errno.EPERM, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM,
    errno.ESTALE,
)  # fmt: skip
# Seconds before another process than the first prints why it failed, by its number on its machine;
# and before a process that lost another ends, which makes a launcher end the others.
FAILURE_DELAYS_S, LOST_DELAY_S = (1, 2, 3, 4), 6
LONGEST_PATH = 80  # most characters that a message shows of a path


def is_main() -> bool:
    """Whether this is the first process (rank 0) of a training, which prints and saves.

    Read from the environment, since importing accelerate takes seconds. Unless WORLD_SIZE is a
    number above 1 there is one process, and RANK, which other programs may have set, is not read.
    """
    size = os.environ.get("WORLD_SIZE", "")
    has_others = size.isdecimal() and int(size) > 1
    return not has_others or os.environ.get("RANK", "0") == "0"


def stderr() -> "Console":
    """Return a console for progress and messages."""
    from distill.terminal.literal_console import LiteralConsole

    return LiteralConsole(stderr=True)


def stdout() -> "Console":
    """Return a console for results."""
    from distill.terminal.literal_console import LiteralConsole

    return LiteralConsole()


@contextmanager
def loading_libraries() -> Iterator[None]:
    """Show on a terminal, while inside this context, that libraries are being imported.

    PyTorch and what needs it take seconds.
    """
    from distill.terminal.progress import ProgressDisplay

    with ProgressDisplay(stderr()) as display:
        display.progress("loading PyTorch", 0, 0)
        yield


def print_facts(values: dict[str, Any], as_json: bool) -> None:
    """Print names and values, one per line, or as JSON."""
    from distill.terminal.recipe_and_cache_tables import fact_lines

    if as_json:
        echo_json(values)
    else:
        stdout().print(fact_lines(values), soft_wrap=True)


def echo(text: object, err: bool = False) -> None:
    """Print plain lines; unsafe characters in names and paths are escaped."""
    typer.echo(visible_lines(as_typed(str(text))), err=err)


def escape_unencodable() -> None:
    """Make stdout print escapes for characters outside its encoding, as stderr does."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def echo_json(values: Any) -> None:
    """Print JSON on one line; NaN and infinity are `null`."""
    from distill.runs.journal import without_nan

    typer.echo(json.dumps(without_nan(values), allow_nan=False))


class QuietOnError:
    """Wraps a text stream, which becomes silent instead of failing once it cannot be written.

    This happens if its terminal was closed, its reader exited or its disk is full; a display must
    not end a training. The file descriptor is then redirected to the null device, so that
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
            pass  # the reader is too slow: the rest of the text is dropped
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            try:
                os.dup2(null, self._stream.fileno())
            finally:
                os.close(null)


@contextmanager
def quiet_on_error(name: Literal["stdout", "stderr"]) -> Iterator[None]:
    """Inside this context, make `sys.stdout` or `sys.stderr` silent once it cannot be written.

    If the process was started without the stream, what is written to it is discarded.
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
        print(visible_lines(as_typed(text)), file=sys.__stderr__, flush=True)


def print_failure(text: object) -> None:
    """Print the message of a failed command to stderr.

    The first process prints it at once. Any other waits, and prints it with its number: if all
    processes failed alike, their launcher ends them before they print the same message again.
    """
    if is_main():
        echo(text, err=True)
        return
    if isinstance(text, RaisedByAll):
        return
    local_rank = os.environ.get("LOCAL_RANK", "0")
    number = int(local_rank) if local_rank.isdecimal() else 0
    time.sleep(FAILURE_DELAYS_S[min(number, len(FAILURE_DELAYS_S) - 1)])
    print_from_any_process(f"process {os.environ.get('RANK')}: {text}")


def print_lost_process(text: str) -> None:
    """Print that another process is lost, and wait until that one has printed why it failed."""
    print_from_any_process(text)
    time.sleep(LOST_DELAY_S)


@contextmanager
def only_first_process_prints() -> Iterator[None]:
    """Silence all processes but the first inside this context.

    A process that fails still prints its message with `print_failure`, and its traceback after
    this context.
    """
    if is_main():
        yield
    else:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            yield


def system_error_text(fault: OSError) -> str:
    """Return the system's message and the file: `No space left on device (runs/a/last)`."""
    where = f" ({fault.filename})" if fault.filename else ""
    return f"{fault.strerror or fault}{where}"


@contextmanager
def flush_stdout() -> Iterator[None]:
    """Flush stdout at the end of this context, so that a full disk raises OSError here.

    Without this, Python would flush stdout when it exits and print a traceback. After an error the
    rest of the output is discarded.
    """
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except OSError as fault:
        if fault.errno in UNWRITABLE and isinstance(sys.stdout, TextIOWrapper):
            with suppress(OSError):  # stdout may have no file descriptor
                descriptor, null = sys.stdout.fileno(), os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, descriptor)
                os.close(null)
        raise


def limit_text(fault: OSError | MemoryError) -> str | None:
    """Return a message for an error that the machine causes: a limit or a path that it refuses.

    None for any other error, which is a mistake in this program.
    """
    if isinstance(fault, MemoryError):
        return "The memory is too small for this command.\nEnd other programs, or name other files."
    if is_wrong_path(fault):
        name = shortened(str(fault.filename or ""))
        return f"{name} is not a valid path: {fault.strerror}.\nName another path."
    if fault.errno in LIMITS:
        reason = system_error_text(fault)
        return f"The command failed: {reason}.\nFix that, then type the command again."
    return None


def is_wrong_path(fault: OSError | MemoryError) -> bool:
    """Whether the system refused a path because it is too long or its links form a loop."""
    return isinstance(fault, OSError) and fault.errno in (errno.ENAMETOOLONG, errno.ELOOP)


def shortened(path: str) -> str:
    """Return a path, cut after LONGEST_PATH characters."""
    return path if len(path) <= LONGEST_PATH else f"{path[:LONGEST_PATH]}…"
