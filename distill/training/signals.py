"""Handle signals that stop a run: finish the step, save, exit."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import NoReturn


class Request(IntEnum):
    """What a process requests after a step. The largest request of all processes is executed."""

    NONE = 0
    SAVE = 1
    INTERRUPT = 2  # save and stop, exit code 130
    TERMINATE = 3  # save and stop, exit code 143

    @property
    def stops(self) -> bool:
        """Whether the request is to stop the run."""
        return self > Request.SAVE


# 128 plus the signal's number, as in a shell: SIGINT is 2, SIGTERM 15.
EXIT_CODES = {Request.INTERRUPT: 130, Request.TERMINATE: 143}
# A cluster's scheduler sends SIGUSR1 some time before it ends the job; the system sends SIGHUP if
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
    """Raised if the run stopped on request, after saving. `code`: the exit code of the process."""

    def __init__(self, request: Request, step: int) -> None:
        super().__init__(f"stopped after step {step:,}, and saved")
        self.code = EXIT_CODES[request]


class StopSignal:
    """Stores the first request made by a signal; the training loop reads it after each step.

    A second Ctrl-C ends the process at once, unless torchrun or accelerate launched it.
    """

    def __init__(self) -> None:
        self.request = Request.NONE
        self.interrupts = 0  # number of SIGINT (Ctrl-C) received
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
        """Inside this context, let signals wait until the training loop reads the request.

        Outside it there is nothing to save, and a signal ends the process at once.
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
    """Whether torchrun or accelerate launched this process.

    One Ctrl-C then arrives twice: from the terminal and from the launcher.
    """
    return "TORCHELASTIC_RUN_ID" in os.environ
