"""Assign trials to workers so that none is lost and none runs twice.

A sweep has trials 0 … n-1. An attempt at a trial is a row of the storage: WAITING, RUNNING, then
COMPLETE or PRUNED, or FAIL if its worker ended before the trial did. The attempt that counts for a
trial is the first that did not fail. If all failed, the next worker to notice adds one with the
same values. If two workers add one at once, the second never counts and is ended. If a live worker
was taken for dead, it finds at its next write that its attempt has ended, and abandons it.
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

# Attributes of an attempt: its trial, worker and folder, the values by epoch that earlier attempts
# reported, and whether the device's memory was full.
NUMBER, WORKER, RUN, TOLD, FULL = "trial", "worker", "run", "told", "full"


@dataclass(frozen=True)
class ClaimedTrial:
    """A trial that this worker has claimed; `row` is the attempt's row in the storage."""

    number: int  # number of the trial, from 0
    row: int  # of its attempt in the storage
    trial: Trial


@dataclass(frozen=True)
class Trials:
    """The trials of a sweep, as one worker sees them; `parent` contains their folders."""

    sweep: Sweep
    study: optuna.Study
    storage: Storage
    parent: Path
    inputs: Mapping[str, str] = field(default_factory=dict)  # fingerprints, see worker.open_trials

    def folder(self, number: int) -> RunFolder:
        return RunFolder(self.parent / f"trial-{number:04}")

    def check_folders(self) -> None:
        """Raise UserError if the folder of a trial or of a worker is a symbolic link, or if a file
        or folder inside a trial's folder is one.
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
        """Return the attempts of each trial by its number, oldest first.

        Includes trials beyond this worker's number of trials that an earlier worker had.
        """
        by_trial: dict[int, list[FrozenTrial]] = {n: [] for n in range(self.sweep.n_trials)}
        rows = self.study.get_trials(deepcopy=False)
        for attempt in sorted(rows, key=lambda row: row.number):
            by_trial.setdefault(attempt.user_attrs[NUMBER], []).append(attempt)
        return dict(sorted(by_trial.items()))

    def counted_attempts(self) -> dict[int, FrozenTrial]:
        """Return, by the number of its trial, each attempt that counts; trials may have none."""
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
            self._end_surplus()
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
        """Return an optuna trial that samples its values from the results so far and decides on
        pruning.

        It has its own study, since a study caches what it has read, and its own sampler, since
        workers that start with the same seed would draw the same values, and a trial's values must
        not depend on its worker.
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
            trial.should_prune()  # records the rung that it reached; it was not pruned there
        return trial

    def mark_full(self, claimed: ClaimedTrial) -> bool:
        """Record that the device's memory was full. Return whether that ends the trial without a
        value.

        It does if the memory was full twice, and now before any epoch: the first time another
        process may have used the memory.
        """
        attempts = self.attempts()[claimed.number]
        self.storage.rows.set_trial_user_attr(claimed.row, FULL, True)
        reported = self.storage.rows.get_trial(claimed.row).intermediate_values
        return not reported and any(FULL in attempt.user_attrs for attempt in attempts)

    def release(self, worker: str) -> None:
        """End the attempts that a worker still runs, so that others can claim their trials."""
        for row in self._rows_of({worker}):
            self.storage.end(row, TrialState.FAIL)

    def release_dead(self) -> list[int]:
        """Release trials of dead workers: on this host by their lock, elsewhere by heartbeat.

        Returns the trials that have no heartbeat; the time without one is counted from now.
        """
        with self.storage.alone:
            uncounted = self.storage.fail_silent_trials(self.study)
        dead = {path.name for path in self._workers.glob("*") if _is_dead(path)}
        for row in self._rows_of(dead):
            self.storage.end(row, TrialState.FAIL)
        return [attempt.user_attrs[NUMBER] for attempt in uncounted]

    @contextmanager
    def working(self, worker: str) -> Iterator[None]:
        """Hold the lock that shows that this worker is alive; release its trials at the end."""
        with lock.hold_lock(self._workers / worker):
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
        """Add an attempt to each trial that has none, with its grid cell or its earlier values."""
        cells = self.sweep.cells
        for number, failed in self.attempts().items():
            if number >= self.sweep.n_trials or any(a.state != TrialState.FAIL for a in failed):
                continue
            # The last failed one that a worker ran: those without a worker were surplus.
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

    def _end_surplus(self) -> None:
        """End attempts that another worker added at the same moment."""
        for attempts in self.attempts().values():
            alive = [attempt for attempt in attempts if attempt.state != TrialState.FAIL]
            for attempt in alive[1:]:
                if attempt.state == TrialState.WAITING:
                    self.storage.end(self.storage.id_of(self.study, attempt), TrialState.FAIL)


def counted_attempts(attempts: Mapping[int, Sequence[FrozenTrial]]) -> dict[int, FrozenTrial]:
    """Return the first attempt that did not fail, by trial, for each trial that has one."""
    firsts = {
        number: next((a for a in of_trial if a.state != TrialState.FAIL), None)
        for number, of_trial in attempts.items()
    }
    return {number: first for number, first in firsts.items() if first is not None}


def _is_dead(worker: Path) -> bool:
    """Whether a worker of this host has died: its file exists and no process locks it."""
    holder, is_alive = lock.read_holder(worker)
    return holder is not None and holder.host == socket.gethostname() and not is_alive
