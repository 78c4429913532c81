"""Display the progress of a download."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from distill.format import UNKNOWN, duration
from distill.terminal.progress import quarters_done

SPEED_OVER_S = 30.0  # the speed is averaged over this time, since the official host's varies
PRINT_EVERY_S = 60.0  # without a terminal


class DownloadDisplay:
    """Displays a download: a callback with (what, bytes done, total bytes), used inside `with`.

    On a terminal it shows a bar. Otherwise it prints a line after each quarter and each minute.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            speed_estimate_period=SPEED_OVER_S,
        )
        self._task = None if not console.is_interactive else self._bars.add_task("", total=None)
        self._began: tuple[float, int] | None = None  # time and bytes
        self._printed: tuple[float, int] = (0.0, 0)

    def __enter__(self) -> "DownloadDisplay":
        if self._task is not None:
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._task is not None:
            self._bars.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Update the bar, or print a line if there is no terminal and a line is due."""
        if self._task is not None:
            self._bars.update(self._task, description=what, completed=done, total=total)
            return
        now = time.monotonic()
        began_at, first = self._began = self._began or (now, done)
        printed_at, printed = self._printed
        if (
            quarters_done(done, total) > quarters_done(printed, total)
            or now - printed_at > PRINT_EVERY_S
        ):
            speed = (done - first) / max(now - began_at, 1e-3)
            left = duration((total - done) / speed) if speed else UNKNOWN
            self.console.print(
                f"{what}  {done / 1e6:,.1f} of {total / 1e6:,.1f} MB, {speed / 1e6:,.2f} MB/s, "
                f"{left} left",
                soft_wrap=True,
            )
            self._printed = now, done
