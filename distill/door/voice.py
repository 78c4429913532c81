"""Where the door speaks: results to stdout, all else to stderr, of several processes the first."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO, TextIOWrapper
from typing import TYPE_CHECKING, Any

import typer

from distill.safe_text import visible_lines

if TYPE_CHECKING:
    from rich.console import Console


def is_main() -> bool:
    """Whether this is the process that speaks and keeps, before accelerate knows."""
    return os.environ.get("RANK", "0") == "0"


def stderr() -> "Console":
    """Where a person looks."""
    from distill.show.screen import Screen

    return Screen(stderr=True)


def stdout() -> "Console":
    """Where results go."""
    from distill.show.screen import Screen

    return Screen()


def print_facts(values: dict[str, Any], as_json: bool) -> None:
    """Names and values, one a line, or the same as JSON."""
    from distill.show.tables import fact_lines

    if as_json:
        echo_json(values)
    else:
        stdout().print(fact_lines(values), soft_wrap=True)


def echo(text: object, err: bool = False) -> None:
    """Plain lines; what names and paths hold beside letters is printed as escapes."""
    typer.echo(visible_lines(str(text)), err=err)


def take_every_letter() -> None:
    """Let stdout print escapes for letters that its encoding lacks, as stderr does by itself."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def echo_json(values: Any) -> None:
    """Plain JSON on one line; a number that is none is `null`."""
    from distill.show.journal import without_nan

    typer.echo(json.dumps(without_nan(values), allow_nan=False))


@contextmanager
def one_voice() -> Iterator[None]:
    """Of several processes the first speaks. A traceback is printed later, by whom it befell."""
    if is_main():
        yield
    else:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            yield


def of_system(fault: OSError) -> str:
    """`No space left on device (runs/a/last)`: what the system said, and of which file."""
    where = f" ({fault.filename})" if fault.filename else ""
    return f"{fault.strerror or fault}{where}"
