"""Stop on a signal: finish the step, save, exit."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import NoReturn


class Request(IntEnum):
    """What a process requests between two steps. Across processes the largest counts."""

    NONE = 0
    SAVE = 1
    INTERRUPT = 2  # save and stop
    TERMINATE = 3  # save and stop

    @property
    def stops(self) -> bool:
        """Whether the run stops."""
        return self > Request.SAVE


# The exit codes by which a shell reports a process that SIGINT or SIGTERM ended.
EXIT_CODES = {Request.INTERRUPT: 130, Request.TERMINATE: 143}
# A scheduler sends SIGUSR1 some time before it takes the machine away; the system sends SIGHUP when
# the terminal or the connection to it is closed.
REQUESTS = {
    getattr(signal, name): request
    for name, request in (
        ("SIGINT", Request.INTERRUPT),
        ("SIGTERM", Request.TERMINATE),
        ("SIGUSR1", Request.TERMINATE),
        ("SIGHUP", Request.TERMINATE),
    )
    if hasattr(signal, name)
}


class Stopped(Exception):
    """The run stopped on request and is saved. `code`: the exit code of the process."""

    def __init__(self, request: Request, step: int) -> None:
        super().__init__(f"stopped after step {step:,}, and saved")
        self.code = EXIT_CODES[request]


class StopSignal:
    """The first request made by a signal; the training loop reads it between two steps."""

    def __init__(self) -> None:
        self.request = Request.NONE
        self.interrupts = 0
        self.can_wait = False  # whether the loop reads requests; if not, a signal ends the process

    @contextmanager
    def handle_signals(self) -> Iterator[None]:
        """Install the signal handlers, and restore the previous ones at the end.

        SIGHUP stays ignored if it was ignored before, as `nohup` requires.
        """
        handled = [number for number in REQUESTS if not _is_ignored_hangup(number)]
        previous = {number: signal.signal(number, self._on_signal) for number in handled}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    @contextmanager
    def defer(self) -> Iterator[None]:
        """Make signals wait for the training loop, inside this context.

        Outside of it there is nothing to save, and a signal ends the process.
        """
        self.can_wait = True
        try:
            yield
        finally:
            self.can_wait = False

    def _on_signal(self, number: int, _frame: object) -> None:
        self.interrupts += number == signal.SIGINT
        is_repeated = self.interrupts > 1 and not is_launched()
        self.request = self.request or REQUESTS[number]
        if is_repeated or not self.can_wait:
            self._exit()

    def _exit(self) -> NoReturn:
        raise SystemExit(EXIT_CODES[self.request])


def _is_ignored_hangup(number: int) -> bool:
    is_hangup = number == getattr(signal, "SIGHUP", None)
    return is_hangup and signal.getsignal(number) is signal.SIG_IGN


def is_launched() -> bool:
    """Whether torchrun or accelerate launched this process: Ctrl-C then reaches it twice, from the
    terminal and from the launcher.
    """
    return "TORCHELASTIC_RUN_ID" in os.environ
