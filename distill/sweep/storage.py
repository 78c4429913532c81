"""Store trials in SQLite, or in a database for many hosts."""

import re
import time
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from threading import Event, Thread
from warnings import catch_warnings, simplefilter

import optuna
from filelock import FileLock
from optuna.exceptions import DuplicatedStudyError, StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from distill.errors import Failure, UserError
from distill.files import urls
from distill.files.safe_text import visible

SILENT = 3  # heartbeats that a worker may miss
BUSY_S = 60  # how long SQLite waits for another writer
TRIES = 30  # at opening: of several workers that begin at once one makes the tables


def url_of(asked: str | None, place: Path) -> str:
    """The storage's address as SQLAlchemy has it: `postgresql://` means psycopg 3."""
    if asked is None:
        return f"sqlite:///{place.resolve() / 'sweep.db'}"
    return re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", asked)


FINGERPRINT = "fingerprint."  # begins the lines of a definition that name images and teachers


class Storage:
    """The rows of optuna's trials, with what several workers must not do at once.

    The change of a row from WAITING to RUNNING, and from RUNNING to its end, is one transaction of
    the database, and only one of several workers makes it. SQLite, as Python opens it, reads before
    its transaction begins: there a lock file beside the database makes them one.
    """

    def __init__(self, url: str, heartbeat_s: int) -> None:
        self.url, self.shown = url, visible(urls.hide_secrets(url))
        self.heartbeat_s = heartbeat_s
        file = re.fullmatch(r"sqlite(?:\+\w+)?:///(.+)", url)
        if file is not None:
            Path(file[1]).parent.mkdir(parents=True, exist_ok=True)
        self.alone: AbstractContextManager[object] = (
            nullcontext() if file is None else FileLock(f"{file[1]}.lock")
        )
        with self.alone, self.explain_errors():
            self.rows = self._opened(url, {} if file is None else {"timeout": BUSY_S})

    def _opened(self, url: str, arguments: dict[str, int]) -> RDBStorage:
        """Raises UserError where the address is none or its driver is absent."""
        for left in reversed(range(TRIES)):
            try:
                with catch_warnings():
                    simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                    return RDBStorage(
                        url,
                        engine_kwargs={"connect_args": arguments, "pool_pre_ping": True},
                        heartbeat_interval=self.heartbeat_s,
                        grace_period=SILENT * self.heartbeat_s,
                    )
            except (ArgumentError, ImportError, ValueError) as fault:
                why = self._reason(fault)
                raise UserError(
                    f"--storage {self.shown} cannot be opened: {why}\n"
                    "Type it as sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE."
                ) from None
            except (SQLAlchemyError, StorageInternalError) as fault:
                if not left or not re.search("exist|unique|duplicate", str(fault), re.IGNORECASE):
                    raise
                time.sleep(0.2)  # somebody else makes the tables
        raise AssertionError

    def _reason(self, fault: BaseException) -> str:
        """The first line of a driver's message, without a secret of the address."""
        text = urls.without_secrets(str(fault), self.url) or type(fault).__name__
        return visible(text.splitlines()[0])

    @contextmanager
    def explain_errors(self) -> Iterator[None]:
        """A database that does not answer is one message, without its password."""
        try:
            yield
        except (SQLAlchemyError, StorageInternalError) as fault:
            why = self._reason(fault.__cause__ or fault)
            raise Failure(
                f"The storage {self.shown} failed: {why}\n"
                "Every trial that is done is kept there. Type the same command again to go on."
            ) from None

    def study(
        self, name: str, direction: str, definition: str, defaults: Collection[str] = ()
    ) -> optuna.Study:
        """The study of that name, made where there is none. Raises UserError where it is another.

        `definition`: what all workers must have in common, a line for each key; one of `defaults`
        may be absent from an older study, which was made before its key existed.
        """
        with self.alone:
            try:
                made = optuna.create_study(storage=self.rows, study_name=name, direction=direction)
                made.set_user_attr("definition", definition)
            except DuplicatedStudyError:
                made = optuna.load_study(study_name=name, storage=self.rows)
        _check_same(name, made, definition, defaults)
        return made

    def id_of(self, study: optuna.Study, attempt: FrozenTrial) -> int:
        """The row of a trial."""
        study_id = self.rows.get_study_id_from_name(study.study_name)
        return self.rows.get_trial_id_from_study_id_trial_number(study_id, attempt.number)

    def take(self, row: int) -> bool:
        """WAITING becomes RUNNING: true for one of those who ask, false where it is done by now."""
        self.rows.record_heartbeat(row)  # before it runs: who dies now is noticed, too
        try:
            return self.rows.set_trial_state_values(row, TrialState.RUNNING)
        except UpdateFinishedTrialError:
            return False

    def end(self, row: int, state: TrialState, value: float | None = None) -> bool:
        """RUNNING becomes done: true for one of those who ask."""
        with self.alone:
            try:
                values = None if value is None else [value]
                return self.rows.set_trial_state_values(row, state, values)
            except UpdateFinishedTrialError:
                return False

    def fail_silent_trials(self, study: optuna.Study) -> None:
        """FAIL for every row that runs and was not heard of for three heartbeats, by its clock."""
        with catch_warnings():
            simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            optuna.storages.fail_stale_trials(study)

    @contextmanager
    def heartbeat(self, row: int) -> Iterator[None]:
        """Says every so many seconds that the row's worker lives."""
        done = Event()

        def beat() -> None:
            while not done.wait(self.heartbeat_s):
                try:
                    self.rows.record_heartbeat(row)
                except Exception:  # the database is away for a while; the trial's own writes tell
                    continue
            self.rows.remove_session()

        thread = Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def _is_older_than_key(key: str, keys: Collection[str], tables: Collection[str]) -> bool:
    """Whether a study was made before `key` existed: it has its table, with other keys alone."""
    return key not in keys and key.rpartition(".")[0] in tables


def _check_same(name: str, study: optuna.Study, definition: str, defaults: Collection[str]) -> None:
    """Raises UserError naming the lines in which a worker's sweep is not the study's."""
    known = study.user_attrs.get("definition")
    if known is None:  # its maker was killed before he said
        study.set_user_attr("definition", definition)
    if known in (None, definition):
        return
    ours, theirs = definition.splitlines(), known.splitlines()
    named = [[s for s in lines if s.startswith(FINGERPRINT)] for lines in (ours, theirs)]
    if not all(named):  # an earlier version made it, or who asks has read no images
        ours, theirs = (
            [s for s in lines if not s.startswith(FINGERPRINT)] for lines in (ours, theirs)
        )
    keys = {line.partition(" = ")[0] for line in theirs}
    tables = {key.rpartition(".")[0] for key in keys}
    added = {
        line for line in defaults if _is_older_than_key(line.partition(" = ")[0], keys, tables)
    }
    differing = [f"here:   {line}" for line in ours if line not in theirs and line not in added]
    differing += [f"stored: {line}" for line in theirs if line not in ours]
    if not differing:
        if named[0] and not named[1]:  # it takes the fingerprints of today
            study.set_user_attr("definition", "\n".join([*theirs, *named[0]]))
        return
    raise UserError(
        f"the storage holds another sweep of the name {name}:\n  "
        + "\n  ".join(differing)
        + "\nGive the same file, options, images and teachers, or another --out; in a database "
        "another name, study.name in the file of a sweep, --name for a search."
    )
