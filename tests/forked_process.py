"""Start a program in a process that has imported the modules already, and control it.

Importing torch, timm and accelerate takes seconds. A server process imports them once and each
program begins as a copy (fork) of it. Programs that must begin in a new interpreter, such as those
of torchrun, are started with `subprocess`.
"""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any

REPO = Path(__file__).parents[1]
MODULES = ("cli", "distill.training.run", "timm.optim", "torch._dynamo")


@cache
def server() -> Any:
    """Return the context of multiprocessing whose server has imported the modules."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*MODULES])
    return context


class ForkedProcess:
    """A running program, with the interface of `subprocess.Popen` that the tests use.

    `argv`: the path of a Python script, relative to the repository, and its arguments.
    `environment`: added to the variables of this process. `before`: called in the process before
    the script begins. stdin is empty; stdout and stderr are text.
    """

    def __init__(
        self,
        argv: Sequence[object],
        environment: Mapping[str, str],
        before: Callable[[], None] | None = None,
    ) -> None:
        context = server()
        self.args = [str(word) for word in argv]
        (out, child_out), (err, child_err) = context.Pipe(False), context.Pipe(False)
        variables = dict(os.environ) | dict(environment)
        self._process = context.Process(
            target=_run, args=(self.args, variables, child_out, child_err, before)
        )
        self._process.start()
        for end in (child_out, child_err):
            end.close()
        self.stdout, self.stderr = _text_file(out), _text_file(err)
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, negative after a signal; None while the program runs."""
        code: int | None = self._process.exitcode
        return code

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Return the rest of stdout and stderr at the end of the program.

        Raises subprocess.TimeoutExpired if it has not ended after `timeout` seconds.
        """
        rest = {"out": "", "err": ""}
        readers = [
            threading.Thread(target=_read_rest, args=(file, rest, name), daemon=True)
            for name, file in (("out", self.stdout), ("err", self.stderr))
        ]
        for reader in readers:
            reader.start()
        self._process.join(timeout)
        if self.poll() is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        for reader in readers:
            reader.join()
        return rest["out"], rest["err"]


def _read_rest(file: IO[str], rest: dict[str, str], name: str) -> None:
    rest[name] = file.read()


def _text_file(connection: Connection) -> IO[str]:
    """Return the reading end of a pipe as a text file."""
    file = os.fdopen(os.dup(connection.fileno()), encoding="utf-8")
    connection.close()
    return file


def _run(
    argv: list[str],
    variables: dict[str, str],
    out: Connection,
    err: Connection,
    before: Callable[[], None] | None,
) -> None:
    """Run a script as `python SCRIPT …` would, in the root of the repository."""
    import torch

    os.environ.clear()
    os.environ.update(variables)
    os.chdir(REPO)
    for connection, number in ((out, 1), (err, 2)):
        os.dup2(connection.fileno(), number)
        connection.close()
    sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1, closefd=False) for n in (1, 2))
    sys.argv = argv
    if threads := variables.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))
    if before is not None:
        before()
    runpy.run_path(str(REPO / argv[0]), run_name="__main__")
