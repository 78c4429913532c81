"""Replay a run's journal through the progress display into an SVG.

    python -m distill.terminal.display_to_svg RUN --out docs/run.svg

Shows the display at three fifths of the run, and the closing table at its end.
"""

import argparse
import re
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.text import Text

from distill.errors import UserError
from distill.events import Epoch, Event, Start, Step, total_steps
from distill.format import counted
from distill.runs import journal
from distill.runs.run_folder import RunFolder, open_run, write_text
from distill.runs.teacher_student_summary import closing_rows
from distill.terminal.progress import ProgressDisplay, closing_table

WIDTH = 100  # characters
MOMENT = 0.6  # fraction of all steps at which the bars are drawn
EPOCH_LINES = 8  # most epochs whose lines are shown


def svg(journal_path: Path, out: Path) -> None:
    """Draw the display of a finished run as an SVG file `out`.

    Raises UserError if the run is not finished or its journal has no epoch.
    """
    events = journal.events(journal_path)
    start = first_start(journal_path, events)
    console = Console(record=True, width=WIDTH, file=StringIO(), force_interactive=True)
    display = ProgressDisplay(console)  # without `with`: a picture needs no animation
    for event in events_until(start, events):
        display(event)
    console.print(display.bars())
    console.print(Text("\n⋮\n", "dim"))
    console.print(closing_table(closing_rows(RunFolder(journal_path.parent))))
    write_text(out, without_remote_fonts(console.export_svg(title=command(start))))


def events_until(start: Start, events: Sequence[Event]) -> list[Event]:
    """Return `start`, and of the events in the first MOMENT (fraction) of the run all steps and the
    last EPOCH_LINES epochs.
    """
    moment = MOMENT * total_steps(start)
    passed = [e for e in events if isinstance(e, Step | Epoch) and e.step <= moment]
    epochs = [e for e in passed if isinstance(e, Epoch)]
    left_out = epochs[:-EPOCH_LINES]
    return [start, *(event for event in passed if event not in left_out)]


def first_start(journal_path: Path, events: Sequence[Event]) -> Start:
    """Return the first `Start` in a run's events; a resumed run has several.

    Raises UserError, naming the journal, if there is none or no epoch was finished.
    """
    starts = [event for event in events if isinstance(event, Start)]
    if not starts or not any(isinstance(event, Epoch) for event in events):
        raise UserError(
            f"{journal_path} has {counted(len(events), 'event')} and no finished epoch: nothing "
            "to draw.\n"
            "Continue it with its own command and --resume, or give another run."
        )
    return starts[0]


def command(start: Start) -> str:
    """Return the command that started the run, for the title of the picture."""
    verb = "train-teacher" if start.role == "teacher" else "distill"
    return f"python cli.py {verb} --recipe {start.recipe}"


def without_remote_fonts(picture: str) -> str:
    """Remove rich's links to a font server, so that the viewer's own monospace font is used."""
    return re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line of this module."""
    parser = argparse.ArgumentParser(
        prog="python -m distill.terminal.display_to_svg", description=__doc__
    )
    parser.add_argument("run", metavar="RUN", help="the folder of a run")
    parser.add_argument("--out", type=Path, required=True, help="the SVG to write")
    given = parser.parse_args(arguments)
    try:
        svg(open_run(given.run).journal, given.out)
    except UserError as fault:
        parser.error(str(fault))


if __name__ == "__main__":
    main()
