"""The trainings of a cell of the CRD paper's table, carried out beside other processes."""

import shlex
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple

from benchmarks.claim import top1
from benchmarks.methods import train
from benchmarks.published_cells import Cell
from distill.errors import UserError
from distill.format import counted
from distill.runs import lock
from distill.runs.run_folder import RunFolder

POLL_S = 5  # between two looks at a run that another process trains


class Run(NamedTuple):
    """A training of a cell: what is typed, and where the run is written."""

    command: str  # of cli.py
    recipe: str
    settings: tuple[str, ...]  # key=value
    out: Path
    teacher: Path | None = None
    data: str | None = None

    @property
    def typed(self) -> list[str]:
        """The whole command."""
        options = [part for setting in self.settings for part in ("--set", setting)]
        options += ["--data", self.data] if self.data else []
        options += ["--teacher", str(self.teacher)] if self.teacher else []
        arguments = [self.command, "--recipe", self.recipe, *options, "--out", str(self.out)]
        return [sys.executable, "cli.py", *arguments, "--resume"]

    @property
    def shown(self) -> str:
        """The command without paths of this machine, for files of results."""
        name = {str(path): path.name for path in (self.out, self.teacher) if path}
        if self.data:
            name[self.data] = Path(self.data).name
        return shlex.join(["python", *(name.get(word, word) for word in self.typed[1:])])


class Plan(NamedTuple):
    """The trainings of a cell. `teacher` is None if a finished run was given."""

    cell: Cell
    teacher: Run | None
    teacher_path: Path
    controls: dict[int, Run]  # by seed
    students: dict[int, Run]  # by seed

    @property
    def runs(self) -> list[Run]:
        """All trainings, the teacher's first."""
        first = [self.teacher] if self.teacher else []
        return [*first, *self.controls.values(), *self.students.values()]


class TrainedElsewhere(Exception):
    """Another process trains this run, or the teacher that it needs."""


def carried_out(planned: Plan, workers: int) -> Generator[None]:
    """Train what is not finished, `workers` runs at a time; yield after each finished run.

    Students wait for the teacher. A run that another process trains is skipped, and waited for
    at the end. A run that fails does not stop the others. Prints each begin and end to stderr.
    Raises UserError at the end, with all faults. If the iteration is closed or interrupted, no
    further run begins, and those that have begun are waited for.
    """
    faults: list[str] = []
    remaining: Sequence[Run] = planned.runs
    while remaining:
        elsewhere = []
        for run, fault in _tried(remaining, planned.teacher, workers):
            if isinstance(fault, TrainedElsewhere):
                elsewhere.append(run)
            elif isinstance(fault, UserError):
                faults.append(str(fault))
            elif fault is not None:
                raise fault
            else:
                _say(run, f"finished with {100 * top1(RunFolder(run.out)):.2f} % on test")
                yield
        remaining = elsewhere
        _wait_for(remaining, planned.teacher)
    if faults:
        raise UserError("\n".join(dict.fromkeys(faults)))


def _tried(
    runs: Sequence[Run], teacher: Run | None, workers: int
) -> Iterator[tuple[Run, BaseException | None]]:
    """Try to train each run; yield it with its fault, None if it is finished.

    Runs that need the teacher are begun when it is finished, if it is one of `runs`.
    """
    later = [run for run in runs if run.teacher] if teacher in runs else []
    with ThreadPoolExecutor(workers) as pool:
        begun = {pool.submit(_train, run): run for run in runs if run not in later}
        try:
            while begun:
                done, _ = wait(begun, return_when=FIRST_COMPLETED)
                for future in done:
                    run, fault = begun.pop(future), future.exception()
                    if run is teacher and fault is None:
                        begun |= {pool.submit(_train, student): student for student in later}
                    elif run is teacher:
                        yield from ((student, fault) for student in later)
                    yield run, fault
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _train(run: Run) -> None:
    """Train a run. Raises UserError if it fails, TrainedElsewhere if another process trains it."""
    if _is_elsewhere(run):
        raise TrainedElsewhere
    if not RunFolder(run.out).is_finished:
        _say(run, f"training, with the output in {run.out.with_suffix('.log')}")
    try:
        train(run.typed, run.out)
    except UserError:
        if _is_elsewhere(run) or RunFolder(run.out).is_finished:  # the other was faster
            raise TrainedElsewhere from None
        raise


def _is_elsewhere(run: Run) -> bool:
    return lock.read_holder(run.out)[1]


def _wait_for(runs: Sequence[Run], teacher: Run | None) -> None:
    """Wait until other processes no longer train the teacher, or one of the runs."""
    blocking = [run for run in runs if run is teacher] or runs
    if blocking and all(map(_is_elsewhere, blocking)):
        waiting = counted(len(runs), "run")
        print(f"waiting for another process, which trains {waiting}", file=sys.stderr, flush=True)
    while blocking and all(map(_is_elsewhere, blocking)):
        time.sleep(POLL_S)


def _say(run: Run, text: str) -> None:
    print(f"{run.out.name}: {text}", file=sys.stderr, flush=True)
