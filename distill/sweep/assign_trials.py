"""Assign trials to workers so that none is lost and none runs twice.

A sweep has trials 0 … n-1. Each attempt to run a trial is a row of the storage with a state:
WAITING, RUNNING, then COMPLETE or PRUNED, or FAIL if its worker ended before the trial did. Only
the first attempt that did not fail counts as the trial's result. If all attempts failed, the next
worker that notices this adds an attempt with the same values. If two workers add one at the same
time, the second one is set to FAIL. If a worker was wrongly considered dead, its attempt was set to
FAIL too: the worker notices this at its next write and abandons the trial.
"""

import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from distill.runs import lock, run_folder
from distill.runs.run_folder import RunFolder
from distill.sweep import optuna_space
from distill.sweep.storage import Storage
from distill.sweep.sweep_file import Sweep

# Attributes of an attempt: the number of its trial, its worker, the folder of the run, the values
# by epoch that earlier attempts at the trial reported, and whether the device's memory was full.
NUMBER, WORKER, RUN, TOLD, FULL = "trial", "worker", "run", "told", "full"


@dataclass(frozen=True)
class ClaimedTrial:
    """A trial that this worker has claimed."""

    number: int  # of the trial, from 0
    row: int  # id of the attempt's row in the storage
    trial: Trial  # optuna's object for the attempt


@dataclass(frozen=True)
class Trials:
    """The trials of a sweep, and what a worker does with them.

    `parent`: the folder that contains the folders of the trials and of the workers.
    """

    sweep: Sweep
    study: optuna.Study
    storage: Storage
    parent: Path
    inputs: Mapping[str, str] = field(default_factory=dict)  # fingerprints, see worker.open_trials

    def folder(self, number: int) -> RunFolder:
        return RunFolder(self.parent / f"trial-{number:04}")

    def check_folders(self) -> None:
        """Raise UserError if a folder of a trial or a worker is or contains a symbolic link.

        Writing there would change files outside the sweep's folder.
        """
        links = (path for path in self._workers.glob("*") if path.is_symlink())
        for path in (self._workers, *links):
            run_folder.check_subfolder(path)
        for path in self.parent.glob("trial-*"):
            if re.fullmatch(r"trial-\d+", path.name):
                run_folder.check_subfolder(path)
                run_folder.check_inside_folder(RunFolder(path))
                lock.check_lock_file(path / ".lock")

    def attempts(self) -> dict[int, list[FrozenTrial]]:
        """Return the attempts at each trial, oldest first, by trial number.

        Includes trials with numbers beyond this worker's limit if an earlier worker with a higher
        limit created them.
        """
        by_trial: dict[int, list[FrozenTrial]] = {n: [] for n in range(self.sweep.n_trials)}
        rows = self.study.get_trials(deepcopy=False)
        for attempt in sorted(rows, key=lambda row: row.number):
            by_trial.setdefault(attempt.user_attrs[NUMBER], []).append(attempt)
        return dict(sorted(by_trial.items()))

    def counted_attempts(self) -> dict[int, FrozenTrial]:
        """Return the first attempt at each trial that did not fail, by trial number.

        Trials without such an attempt are absent.
        """
        return counted_attempts(self.attempts())

    def n_open(self) -> int:
        """Return the number of trials that are not done yet."""
        return self.sweep.n_trials - sum(
            attempt.state.is_finished()
            for number, attempt in self.counted_attempts().items()
            if number < self.sweep.n_trials
        )

    def claim(self, worker: str) -> ClaimedTrial | None:
        """Claim the first trial that no worker has; None if all are done or claimed.

        A trial whose folder is locked is skipped: the process that still trains there will notice
        that it no longer owns the trial.
        """
        with self.storage.alone:
            self._add_attempts()
            self._end_duplicates()
            for number, attempt in self.counted_attempts().items():
                if number >= self.sweep.n_trials or attempt.state != TrialState.WAITING:
                    continue
                if lock.read_holder(self.folder(number).path)[1]:
                    continue
                row = self.storage.id_of(self.study, attempt)
                if self.storage.take(row):
                    self.storage.rows.set_trial_user_attr(row, WORKER, worker)
                    self.storage.rows.set_trial_user_attr(row, RUN, str(self.folder(number).path))
                    return ClaimedTrial(number, row, self._trial(number, row))
        return None

    def _trial(self, number: int, row: int) -> Trial:
        """Return optuna's object for an attempt, which draws its values and decides on pruning.

        `row`: id of the attempt's row. The object has its own study, since a study caches the rows
        that it has read. It has its own sampler, seeded by the trial's number: the values of a
        trial must not depend on its worker, and workers must not draw the same values.
        """
        name, rows = self.study.study_name, self.storage.rows
        sampler = optuna_space.sampler(self.sweep.file.study, number)
        study = optuna.load_study(
            study_name=name, storage=rows, sampler=sampler, pruner=self.study.pruner
        )
        study.get_trials(deepcopy=False)  # optuna writes to no row that it has not read
        trial = Trial(study, row)
        for epoch, value in trial.user_attrs.get(TOLD, {}).items():
            trial.report(value, int(epoch))
            trial.should_prune()  # records the rung of this epoch; its earlier attempt passed it
        return trial

    def record_out_of_memory(self, claimed: ClaimedTrial) -> bool:
        """Record that the device's memory was full; return whether the trial ends without a value.

        It ends if the memory was full in an earlier attempt too and this attempt has finished no
        epoch. The first time, another process may have used the memory.
        """
        attempts = self.attempts()[claimed.number]
        self.storage.rows.set_trial_user_attr(claimed.row, FULL, True)
        reported = self.storage.rows.get_trial(claimed.row).intermediate_values
        return not reported and any(FULL in attempt.user_attrs for attempt in attempts)

    def release(self, worker: str) -> None:
        """Set the running attempts of a worker to FAIL, so that others can claim their trials."""
        for row in self._rows_of({worker}):
            self.storage.end(row, TrialState.FAIL)

    def release_dead(self) -> list[int]:
        """Set the running attempts of dead workers to FAIL, so that others can claim their trials.

        On this host, a worker is dead if it does not hold its lock; on other hosts, if its
        heartbeats have stopped. Returns the numbers of running trials that have no heartbeat at
        all: for these, the time without one is counted from now.
        """
        with self.storage.alone:
            uncounted = self.storage.fail_silent_trials(self.study)
        dead = {path.name for path in self._workers.glob("*") if _is_dead(path)}
        for row in self._rows_of(dead):
            self.storage.end(row, TrialState.FAIL)
        return [attempt.user_attrs[NUMBER] for attempt in uncounted]

    @contextmanager
    def working(self, worker: str) -> Iterator[None]:
        """Inside this context, hold the lock that shows that a worker is alive.

        At its end, the worker's trials are released.
        """
        with lock.lock_run_folder(self._workers / worker):
            try:
                yield
            finally:
                self.release(worker)

    @property
    def _workers(self) -> Path:
        return self.parent / "workers"

    def _rows_of(self, workers: set[str]) -> list[int]:
        return [
            self.storage.id_of(self.study, attempt)
            for attempt in self.counted_attempts().values()
            if attempt.state == TrialState.RUNNING and attempt.user_attrs.get(WORKER) in workers
        ]

    def _add_attempts(self) -> None:
        """Add an attempt to each trial that has none or whose attempts all failed.

        Its values are those of the last failed attempt, or else of the trial's cell in the grid.
        """
        cells = self.sweep.cells
        for number, failed in self.attempts().items():
            if number >= self.sweep.n_trials or any(a.state != TrialState.FAIL for a in failed):
                continue
            # The last failed attempt that a worker ran: one without a worker was a duplicate.
            previous = max(
                failed, key=lambda row: (WORKER in row.user_attrs, row.number), default=None
            )
            params, reported = cells[number % len(cells)], dict[str, float]()
            if previous is not None and previous.params:
                params = previous.params
                reported = previous.user_attrs.get(TOLD, {}) | {
                    str(epoch): value for epoch, value in previous.intermediate_values.items()
                }
            distributions = optuna_space.distributions(self.sweep.file)
            self.study.add_trial(
                optuna.create_trial(
                    state=TrialState.WAITING,
                    params=params,
                    distributions={name: distributions[name] for name in params},
                    user_attrs={NUMBER: number, TOLD: reported},
                )
            )

    def _end_duplicates(self) -> None:
        """Set duplicate attempts to FAIL: several workers added one to a trial at the same time."""
        for attempts in self.attempts().values():
            alive = [attempt for attempt in attempts if attempt.state != TrialState.FAIL]
            for attempt in alive[1:]:
                if attempt.state == TrialState.WAITING:
                    self.storage.end(self.storage.id_of(self.study, attempt), TrialState.FAIL)


def counted_attempts(attempts: Mapping[int, Sequence[FrozenTrial]]) -> dict[int, FrozenTrial]:
    """Return the first attempt at each trial that did not fail, by trial number.

    `attempts`: by trial number, oldest first. Trials without such an attempt are absent.
    """
    firsts = {
        number: next((a for a in of_trial if a.state != TrialState.FAIL), None)
        for number, of_trial in attempts.items()
    }
    return {number: first for number, first in firsts.items() if first is not None}


def _is_dead(worker: Path) -> bool:
    """Whether a worker of this host has died: its file exists and no process locks it."""
    holder, is_alive = lock.read_holder(worker)
    return holder is not None and holder.host == socket.gethostname() and not is_alive
