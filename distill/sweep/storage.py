"""Store trials in a SQLite file, or in a database server that many hosts share."""

import re
import shlex
import time
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import Any
from warnings import catch_warnings, simplefilter

import optuna
from filelock import FileLock, Timeout
from optuna.exceptions import DuplicatedStudyError, StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import DateTime, Integer, column, func, select, table
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.pool import QueuePool

from distill.errors import Failure, UserError
from distill.files import redact_urls
from distill.files.escape_text import visible
from distill.runs import lock
from distill.sweep import sqlite_file
from distill.sweep.sqlite_file import SQLiteFile

SILENT = 3  # heartbeats that a worker may miss before it counts as dead
BUSY_S = 60  # how long a worker waits until another one has written the SQLite file
HEARTBEATS = table("trial_heartbeats", column("trial_id", Integer), column("heartbeat", DateTime))
TRIES = 30  # to open the storage, which fails while another worker creates the tables


def url_of(requested: str | None, parent: Path) -> str | URL:
    """Return the SQLAlchemy URL of the storage.

    `requested`: the option --storage; if None, the URL is that of a SQLite file in `parent`.
    `postgresql://` selects the driver psycopg 3.
    """
    if requested is None:
        return URL.create("sqlite", database=str(parent.resolve() / "sweep.db"))
    return re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", requested)


FINGERPRINT = "fingerprint."  # prefix of the lines of a sweep's definition on images and teachers


class Storage:
    """Optuna's storage of trials, which several workers can use at once.

    Each row is an attempt at a trial. A change of its state, from WAITING to RUNNING or from
    RUNNING to an end state, is one transaction of the database: if several workers try it, one
    succeeds. SQLite, as Python opens it, reads before the transaction begins. Therefore a lock file
    beside a SQLite database serialises the changes.
    """

    def __init__(self, url: str | URL, heartbeat_s: int) -> None:
        """Open the storage.

        `heartbeat_s`: seconds between a worker's heartbeats. Raises UserError if the URL is
        invalid, its driver is missing, or the file is not one that a sweep wrote; Failure if the
        database cannot be reached.
        """
        self.url = url if isinstance(url, str) else f"sqlite:///{url.database}"
        self.is_typed = isinstance(url, str)  # by the user; it may contain a password
        self.shown = visible(redact_urls.hide_secrets(self.url) if self.is_typed else self.url)
        self.heartbeat_s = heartbeat_s
        self._lock: FileLock | None = None
        with self._explain_url():
            file = sqlite_file.from_url(url)
            if file is not None and "\0" in str(file.path):
                raise ValueError("a file name cannot contain a NUL character")
        if file is not None:
            file.path.parent.mkdir(parents=True, exist_ok=True)
            lock_file = Path(f"{file.path}.lock")
            lock.check_lock_file(lock_file)
            self._lock = FileLock(lock_file, timeout=BUSY_S)
        with self.alone, self.explain_errors(), self._explain_damage():
            if file is not None:
                file.check()
                file.check_size()
            self.rows = self._open(file)

    @property
    def alone(self) -> AbstractContextManager[object]:
        """A context in which no other worker writes the SQLite file; no effect on a server.

        Entering it raises Failure if another process holds the lock for BUSY_S seconds.
        """
        return nullcontext() if self._lock is None else _hold(self._lock)

    def _open(self, file: SQLiteFile | None) -> RDBStorage:
        """Open the database. Raises UserError if the URL is invalid or its driver is missing."""
        url, options = self.url, dict[str, Any](pool_pre_ping=True)
        if file is not None:  # optuna accepts no URL object, and replaces braces in a text
            url = f"{file.url.drivername}://"
            options |= {"creator": partial(file.connect, timeout=BUSY_S), "poolclass": QueuePool}
        for left in reversed(range(TRIES)):
            try:
                with catch_warnings(), self._explain_url():
                    simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                    return RDBStorage(
                        url,
                        engine_kwargs=options,
                        heartbeat_interval=self.heartbeat_s,
                        grace_period=self.silence_s,
                    )
            except (SQLAlchemyError, StorageInternalError) as fault:
                if not left or not re.search("exist|unique|duplicate", str(fault), re.IGNORECASE):
                    raise
                time.sleep(0.2)  # another worker is creating the tables
        raise AssertionError

    @contextmanager
    def _explain_url(self) -> Iterator[None]:
        """Turn errors raised for an invalid URL or a missing driver into a UserError."""
        try:
            yield
        except (ArgumentError, ImportError, ValueError) as fault:
            why = self._first_line_without_secrets(fault)
            raise UserError(
                f"--storage {self.shown} cannot be opened: {why}\n"
                "Type it as sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE."
            ) from None

    def _first_line_without_secrets(self, fault: BaseException) -> str:
        """Return the first line of an error's message, without the secrets in the URL."""
        text = redact_urls.without_secrets(str(fault), self.url) if self.is_typed else str(fault)
        return visible((text or type(fault).__name__).splitlines()[0])

    @contextmanager
    def explain_errors(self) -> Iterator[None]:
        """Turn a database error into a message without the password.

        It is a UserError if the database is damaged, otherwise a Failure.
        """
        try:
            yield
        except (SQLAlchemyError, StorageInternalError) as fault:
            why = self._first_line_without_secrets(fault.__cause__ or fault)
            if _is_damage(fault):
                raise self.damaged(why) from None
            raise Failure(
                f"The storage {self.shown} failed: {why}\n"
                "Finished trials are saved there. Type the same command again to continue."
            ) from None

    @contextmanager
    def _explain_damage(self) -> Iterator[None]:
        """Turn errors that optuna raises for values that it did not write into a UserError."""
        try:
            yield
        except (UserError, OSError, SQLAlchemyError, StorageInternalError):
            raise
        except Exception as fault:  # ValueError, KeyError, AssertionError, …
            why = self._first_line_without_secrets(fault)
            if type(fault) is not RuntimeError:
                raise self.damaged(why) from None
            raise UserError(
                f"The storage {self.shown} is of another version of optuna: {why}\n"
                "Install that version, or choose another --out or --storage."
            ) from None

    def damaged(self, why: str) -> UserError:
        """Return the error for a storage that was not written by a sweep."""
        return UserError(
            f"The storage {self.shown} is damaged: {why.rstrip('.')}.\n"
            "Restore it as the sweep wrote it, or choose another --out or --storage."
        )

    def read_attempts(self, study: optuna.Study) -> list[FrozenTrial]:
        """Return all attempts of a study. Raises UserError if they cannot be read."""
        # Not through the study, whose cache hides all but one of the attempts with a number.
        with self._explain_damage():
            study_id = self.rows.get_study_id_from_name(study.study_name)
            return self.rows.get_all_trials(study_id, deepcopy=False)

    def study(
        self, name: str, direction: str, definition: str, defaults: Collection[str] = ()
    ) -> optuna.Study:
        """Load the study of that name, or create it. Raises UserError if its definition differs.

        `direction`: "maximize" or "minimize". `definition`: what all workers must have in common,
        one line per key. `defaults`: lines of `definition` that may be absent from a study created
        before their keys existed.
        """
        with self.alone, self._explain_damage():
            try:
                study = optuna.create_study(storage=self.rows, study_name=name, direction=direction)
                study.set_user_attr("definition", definition)
            except DuplicatedStudyError:
                study = optuna.load_study(study_name=name, storage=self.rows)
            if [each.name.lower() for each in study.directions] != [direction]:
                raise self.damaged(f"the study does not {direction} one value")
            if not isinstance(study.user_attrs.get("definition", ""), str):
                raise self.damaged("its definition is not text")
            _check_same(name, study, definition, defaults)
        return study

    def id_of(self, study: optuna.Study, attempt: FrozenTrial) -> int:
        """Return the id of an attempt's row in the storage."""
        study_id = self.rows.get_study_id_from_name(study.study_name)
        return self.rows.get_trial_id_from_study_id_trial_number(study_id, attempt.number)

    def take(self, row: int) -> bool:
        """Change a row from WAITING to RUNNING; return whether this call changed it.

        If several workers try it, one succeeds. `row`: its id.
        """
        self.rows.record_heartbeat(row)  # before it runs: a death from now on is noticed
        try:
            return self.rows.set_trial_state_values(row, TrialState.RUNNING)
        except UpdateFinishedTrialError:
            return False

    def end(self, row: int, state: TrialState, value: float | None = None) -> bool:
        """Change a row from RUNNING to an end state; return whether this call changed it.

        If several workers try it, one succeeds. `row`: its id; `value`: the trial's metric.
        """
        with self.alone:
            try:
                values = None if value is None else [value]
                return self.rows.set_trial_state_values(row, state, values)
            except UpdateFinishedTrialError:
                return False

    @property
    def silence_s(self) -> int:
        """How many seconds without a heartbeat make a running attempt count as failed."""
        return SILENT * self.heartbeat_s

    def fail_silent_trials(self, study: optuna.Study) -> list[FrozenTrial]:
        """Set every running row to FAIL that has had no heartbeat for `silence_s` seconds.

        Returns the running attempts that never had a valid heartbeat, which another program may
        have stored (one more than `silence_s` in the future is invalid). They receive a heartbeat
        now, so that their time without one is counted from this call.
        """
        with catch_warnings(), self._explain_damage():
            simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            optuna.storages.fail_stale_trials(study)
            uncounted = self._without_heartbeat(study)
            for row in uncounted:
                self.rows.record_heartbeat(row)
        return list(uncounted.values())

    def _without_heartbeat(self, study: optuna.Study) -> dict[int, FrozenTrial]:
        """Return the running attempts without a valid heartbeat, by the id of their row.

        A heartbeat more than `silence_s` seconds in the future is invalid.
        """
        running = study.get_trials(deepcopy=False, states=[TrialState.RUNNING])
        attempts = {self.id_of(study, attempt): attempt for attempt in running}
        query = select(HEARTBEATS.c.trial_id, HEARTBEATS.c.heartbeat, func.now())
        with self.rows.engine.connect() as connection:
            found = connection.execute(query.where(HEARTBEATS.c.trial_id.in_(attempts))).all()
        counted = {
            row
            for row, heartbeat, now in found
            if (heartbeat - now.replace(tzinfo=None)).total_seconds() <= self.silence_s
        }
        return {row: attempt for row, attempt in attempts.items() if row not in counted}

    @contextmanager
    def heartbeat(self, row: int) -> Iterator[None]:
        """Inside this context, record every `heartbeat_s` seconds that a row's worker is alive.

        A thread does so. `row`: the row's id.
        """
        done = Event()

        def beat() -> None:
            while not done.wait(self.heartbeat_s):
                try:
                    self.rows.record_heartbeat(row)
                except Exception:  # database unreachable: the trial's own writes will raise
                    continue
            self.rows.remove_session()

        thread = Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def _is_damage(fault: BaseException) -> bool:
    """Whether a database error shows that the content is damaged.

    Then SQLite cannot read the file, or a table or a column is missing.
    """
    while fault.__cause__ is not None:
        fault = fault.__cause__
    return type(fault).__name__ == "DatabaseError" or "no such " in str(fault)


def _is_older_than_key(key: str, keys: Collection[str], tables: Collection[str]) -> bool:
    """Whether a study was created before `key` existed: it has other keys of the key's table only.

    `keys` and `tables`: those in the study's definition.
    """
    return key not in keys and key.rpartition(".")[0] in tables


def _check_same(name: str, study: optuna.Study, definition: str, defaults: Collection[str]) -> None:
    """Raise UserError, listing the lines that differ, if a study has another definition.

    `definition`: the worker's, one line per key. `defaults`: lines that may be absent from a study
    created before their keys existed. A study without a definition gets the worker's, and one
    without fingerprints gets the worker's fingerprints.
    """
    stored_definition = study.user_attrs.get("definition")
    if stored_definition is None:  # the worker that created the study was killed before writing it
        study.set_user_attr("definition", definition)
    if stored_definition in (None, definition):
        return
    here, stored = definition.splitlines(), stored_definition.splitlines()
    prints = [[s for s in lines if s.startswith(FINGERPRINT)] for lines in (here, stored)]
    if not all(prints):  # an earlier version created it, or this caller has read no images
        here, stored = (
            [s for s in lines if not s.startswith(FINGERPRINT)] for lines in (here, stored)
        )
    keys = {line.partition(" = ")[0] for line in stored}
    tables = {key.rpartition(".")[0] for key in keys}
    added = {
        line for line in defaults if _is_older_than_key(line.partition(" = ")[0], keys, tables)
    }
    differing = [f"here:   {line}" for line in here if line not in stored and line not in added]
    differing += [f"stored: {line}" for line in stored if line not in here]
    if not differing:
        if prints[0] and not prints[1]:  # add the current fingerprints
            study.set_user_attr("definition", "\n".join([*stored, *prints[0]]))
        return
    raise UserError(
        f"the storage already has another sweep of the name {name}:\n  "
        + "\n  ".join(differing)
        + "\nGive the same file, options, images and teachers, or another --out; in a database "
        "another name, study.name in the file of a sweep, --name for a search."
    )


@contextmanager
def _hold(file_lock: FileLock) -> Iterator[None]:
    """Hold a lock inside this context.

    Raises Failure if another process, such as a suspended one, does not release it in time.
    """
    try:
        file_lock.acquire()
    except Timeout:
        raise Failure(
            f"The storage is locked: another process has held {file_lock.lock_file} for "
            f"{file_lock.timeout:g} seconds.\nA worker holds it for a moment only: continue or end "
            f"the process that holds it (fuser {shlex.quote(file_lock.lock_file)} names it), then "
            "type the same command again."
        ) from None
    try:
        yield
    finally:
        file_lock.release()
