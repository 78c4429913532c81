"""Stop on a signal: finish the step, save, exit."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

INTERRUPTED, TERMINATED = 130, 143  # the shell's words for a process that a signal ended
# SIGUSR1 is what a scheduler sends some time before it takes the machine away, SIGHUP what the
# system sends when the terminal or the connection to it is closed.
CODES = {
    getattr(signal, name): code
    for name, code in (
        ("SIGINT", INTERRUPTED),
        ("SIGTERM", TERMINATED),
        ("SIGUSR1", TERMINATED),
        ("SIGHUP", TERMINATED),
    )
    if hasattr(signal, name)
}


class Stopped(Exception):
    """The run was asked to stop and is saved. `code`: what the process exits with."""

    def __init__(self, code: int, step: int) -> None:
        super().__init__(f"stopped after step {step:,}, and saved")
        self.code = code


class StopSignal:
    """What was asked for, 0 or an exit code; read by the loop between two steps."""

    def __init__(self) -> None:
        self.code = 0
        self.interrupts = 0
        self.can_wait = False  # whether anybody will look: else a signal ends the process at once

    @contextmanager
    def handle_signals(self) -> Iterator[None]:
        """Take the signals, and give them back at the end.

        SIGHUP stays ignored if it is: nohup asks for that.
        """
        taken = [number for number in CODES if not _is_ignored_hangup(number)]
        before = {number: signal.signal(number, self._on_signal) for number in taken}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def defer(self) -> Iterator[None]:
        """While the loop runs, it is asked; before and after there is nothing to save."""
        self.can_wait = True
        try:
            yield
        finally:
            self.can_wait = False

    def _on_signal(self, number: int, _frame: object) -> None:
        self.interrupts += number == signal.SIGINT
        again = self.interrupts > 1 and not is_launched()
        self.code = self.code or CODES[number]
        if again or not self.can_wait:
            self._leave()

    def _leave(self) -> NoReturn:
        raise SystemExit(self.code)


def _is_ignored_hangup(number: int) -> bool:
    is_hangup = number == getattr(signal, "SIGHUP", None)
    return is_hangup and signal.getsignal(number) is signal.SIG_IGN


def is_launched() -> bool:
    """By torchrun or accelerate, whose Ctrl-C reaches a process twice: from the terminal and from
    the launcher.
    """
    return "TORCHELASTIC_RUN_ID" in os.environ
