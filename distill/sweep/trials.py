"""Assign trials to workers: none is lost, none runs twice.

A sweep asks for trials 0 … n-1. An attempt at one is a row of the storage: WAITING, RUNNING, then
COMPLETE or PRUNED; FAIL where its worker ended before it did. The attempt that counts for a trial
is the first that did not fail; where all failed, whoever looks next adds one, with the same values.
Where two add one at once the second never counts, and is taken back. A worker that was taken for
dead and is not finds its attempt ended at its next write, and leaves it.
"""

import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from distill.runs import lock
from distill.runs.run_folder import RunFolder
from distill.sweep import optuna_space
from distill.sweep.storage import Storage
from distill.sweep.sweep_file import Sweep

# Attributes of an attempt: at which trial, by whom, in which folder, what those before it had told
# by epoch, and that its device's memory was full.
NUMBER, WORKER, RUN, TOLD, FULL = "trial", "worker", "run", "told", "full"


@dataclass(frozen=True)
class ClaimedTrial:
    """An attempt that is ours."""

    number: int  # of the trial, from 0
    row: int  # of the storage
    trial: Trial


@dataclass(frozen=True)
class Trials:
    """The trials of a sweep as one worker sees them; `place` holds their folders."""

    sweep: Sweep
    study: optuna.Study
    storage: Storage
    place: Path
    inputs: Mapping[str, str] = field(default_factory=dict)  # fingerprints, see `sweep.opened`

    def folder(self, number: int) -> RunFolder:
        return RunFolder(self.place / f"trial-{number:04}")

    def attempts(self) -> dict[int, list[FrozenTrial]]:
        """Every attempt by the number of its trial, the first one first; those of trials that an
        earlier worker was asked for, and this one is not, too.
        """
        found: dict[int, list[FrozenTrial]] = {n: [] for n in range(self.sweep.n_trials)}
        rows = self.study.get_trials(deepcopy=False)
        for attempt in sorted(rows, key=lambda row: row.number):
            found.setdefault(attempt.user_attrs[NUMBER], []).append(attempt)
        return dict(sorted(found.items()))

    def counted_attempts(self) -> dict[int, FrozenTrial]:
        """The attempt that counts, of every trial that has one."""
        return counted_attempts(self.attempts())

    def n_open(self) -> int:
        """How many trials are not done yet, by whomever."""
        return self.sweep.n_trials - sum(
            attempt.state.is_finished()
            for number, attempt in self.counted_attempts().items()
            if number < self.sweep.n_trials
        )

    def claim(self, worker: str) -> ClaimedTrial | None:
        """The first trial that nobody has; None where all are done or somebody has them.

        One whose folder is in use is left to who is there: it will notice that it lost the trial.
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
        """What draws a trial's values, by what is known when it begins, and judges it.

        A study of its own, since a study remembers what it has once read; a sampler of its own,
        since workers that begin with one seed would draw the same values, and who takes a trial
        must not decide what it is.
        """
        name, rows = self.study.study_name, self.storage.rows
        sampler = optuna_space.sampler(self.sweep.file.study, number)
        fresh = optuna.load_study(
            study_name=name, storage=rows, sampler=sampler, pruner=self.study.pruner
        )
        fresh.get_trials(deepcopy=False)  # optuna writes to no row that it has not read
        trial = Trial(fresh, row)
        for epoch, value in trial.user_attrs.get(TOLD, {}).items():
            trial.report(value, int(epoch))
            trial.should_prune()  # which marks how far it came; it went on then
        return trial

    def mark_full(self, taken: ClaimedTrial) -> bool:
        """Marks that the device's memory was full. Says whether the trial ends by it, without a
        value: where it was so before any epoch, twice. The first time somebody else may have had
        it.
        """
        attempts = self.attempts()[taken.number]
        self.storage.rows.set_trial_user_attr(taken.row, FULL, True)
        told = self.storage.rows.get_trial(taken.row).intermediate_values
        return not told and any(FULL in attempt.user_attrs for attempt in attempts)

    def release(self, worker: str) -> None:
        """What a worker still has, for the others."""
        for row in self._rows_of({worker}):
            self.storage.end(row, TrialState.FAIL)

    def release_dead(self) -> None:
        """What dead workers had: those of this host at once, by their lock; others when silent."""
        with self.storage.alone:
            self.storage.fail_silent_trials(self.study)
        here = {path.name for path in self._workers.glob("*") if _is_dead(path)}
        for row in self._rows_of(here):
            self.storage.end(row, TrialState.FAIL)

    @contextmanager
    def working(self, worker: str) -> Iterator[None]:
        """Holds the lock by which others see that this worker lives; gives back what it had."""
        with lock.hold_lock(self._workers / worker):
            try:
                yield
            finally:
                self.release(worker)

    @property
    def _workers(self) -> Path:
        return self.place / "workers"

    def _rows_of(self, workers: set[str]) -> list[int]:
        return [
            self.storage.id_of(self.study, attempt)
            for attempt in self.counted_attempts().values()
            if attempt.state == TrialState.RUNNING and attempt.user_attrs.get(WORKER) in workers
        ]

    def _add_attempts(self) -> None:
        """One for each trial that has none: its cell of the grid, or the values it had before."""
        cells = self.sweep.cells
        for number, failed in self.attempts().items():
            if number >= self.sweep.n_trials or any(a.state != TrialState.FAIL for a in failed):
                continue
            # Of those that failed the last that a worker had: others were added twice at once.
            before = max(
                failed, key=lambda row: (WORKER in row.user_attrs, row.number), default=None
            )
            known, told = cells[number % len(cells)], dict[str, float]()
            if before is not None and before.params:
                known = before.params
                told = before.user_attrs.get(TOLD, {}) | {
                    str(epoch): value for epoch, value in before.intermediate_values.items()
                }
            every = optuna_space.distributions(self.sweep.file)
            self.study.add_trial(
                optuna.create_trial(
                    state=TrialState.WAITING,
                    params=known,
                    distributions={name: every[name] for name in known},
                    user_attrs={NUMBER: number, TOLD: told},
                )
            )

    def _end_surplus(self) -> None:
        """What another worker added at the same moment."""
        for attempts in self.attempts().values():
            alive = [attempt for attempt in attempts if attempt.state != TrialState.FAIL]
            for attempt in alive[1:]:
                if attempt.state == TrialState.WAITING:
                    self.storage.end(self.storage.id_of(self.study, attempt), TrialState.FAIL)


def counted_attempts(attempts: Mapping[int, Sequence[FrozenTrial]]) -> dict[int, FrozenTrial]:
    """Of each trial's attempts the first that did not fail, where there is one."""
    firsts = {
        number: next((each for each in several if each.state != TrialState.FAIL), None)
        for number, several in attempts.items()
    }
    return {number: first for number, first in firsts.items() if first is not None}


def _is_dead(worker: Path) -> bool:
    """Whether a worker of this host was killed: its name is there, its lock is free."""
    holder, is_alive = lock.read_holder(worker)
    return holder is not None and holder.host == socket.gethostname() and not is_alive
