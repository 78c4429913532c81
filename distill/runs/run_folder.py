"""Name, check and find run folders; write their files atomically.

recipe.toml          the resolved recipe, with every value
journal.jsonl        every event of the training loop
last/ last.old/      the newest checkpoint and the previous one
best/                weights of the epoch that is best on the held-out images
epochs/              weights after some of the epochs (train.keep_epochs)
running.json .lock   the process that trains here, while it does
student.safetensors  the final weights (teacher.safetensors from train-teacher)
evaluation.npz       logits on test split and held-out images, teacher logits, mistakes
environment.json     versions, hardware, command, source hash
test_curve.json      measures of the saved epochs on training and test images, if computed
result.json          the measures; written last, so its presence means "finished"
"""

import json
import os
import re
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args
from uuid import uuid4

from distill.errors import UserError
from distill.files import regular_file, run_json_schemas
from distill.files.escape_text import is_utf8, shell_word
from distill.format import counted
from distill.runs import lock

Role = Literal["teacher", "student"]
FILES = (
    "recipe.toml", "journal.jsonl", "running.json", ".lock", "student.safetensors",
    "teacher.safetensors", "evaluation.npz", "environment.json", "test_curve.json", "result.json",
)  # fmt: skip
FOLDERS = (
    "last", "last.old", "last.new", "last.damaged", "best", "epochs", "tensorboard",
    "report_files", "report_files/figures", "report_files/tables",
)  # fmt: skip
# Training replaces nothing in these folders: it adds files under new names, or only the command
# `report` writes there.
NEVER_REPLACED = ("tensorboard", "report_files", "report_files/figures", "report_files/tables")
REPLACED = tuple(name for name in FOLDERS if name not in NEVER_REPLACED)
CHECKPOINT_FILES = ("state.pt", "progress.json")
PARTIAL_FILE = re.compile(
    rf"[.]({'|'.join(map(re.escape, FILES))})[.][0-9a-f]{{12}}"  # a temporary file of `write_bytes`
)
LARGEST_FILE = 16 << 30  # bytes of weights or predictions
ADVICE = "Choose another --out."
IS_TESTED = "is_tested"  # key in result.json: false if a trial was not measured on the test split
FINISHED_EARLY = "finished_early"  # table in result.json of a run that `finish` ended
RUNS = Path("runs")  # the default parent folder of runs


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run: the paths of its files, and the content of result.json.

    Creating this object does not create the folder.
    """

    path: Path

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.toml"

    @property
    def journal(self) -> Path:
        return self.path / "journal.jsonl"

    @property
    def last(self) -> Path:
        return self.path / "last"

    @property
    def best(self) -> Path:
        return self.path / "best"

    @property
    def epochs(self) -> Path:
        return self.path / "epochs"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation.npz"

    @property
    def test_curve(self) -> Path:
        return self.path / "test_curve.json"

    @property
    def environment(self) -> Path:
        return self.path / "environment.json"

    @property
    def result_file(self) -> Path:
        return self.path / "result.json"

    def weights(self, role: Role) -> Path:
        return self.path / f"{role}.safetensors"

    @property
    def is_run(self) -> bool:
        return self.recipe.exists()

    @property
    def is_finished(self) -> bool:
        return self.result_file.exists()

    @property
    def role(self) -> Role:
        """The role of the network that the run trained. Raises UserError if it is not finished."""
        role: Role = self.result()["role"]
        return role

    def result(self) -> dict[str, Any]:
        """Return the content of a finished run's result.json.

        Raises NotFinished, or UserError if the file is damaged. Reading a missing key of the dict
        raises UserError too.
        """
        if not self.is_finished:
            raise NotFinished(self)
        return run_json_schemas.result(self.result_file)

    def check_result(self) -> None:
        """Raise UserError if result.json lacks a value that other runs need."""
        result = self.result()
        for key in ("role", "class_names", "metrics", "weights", "finished_at"):
            result[key]
        result["data"]["fingerprint"]


class NotFinished(UserError):
    """The run has no result.json. The command line replaces `advice` by the run's own commands.

    `found`: the first line of the message; `advice`: the second.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.found = f"run {run.path} is not finished: it has no {run.result_file.name}."
        self.advice = (
            "Continue it with --resume, or end it with its best weights so far: "
            f"python cli.py finish {shell_word(str(run.path))}"
        )
        super().__init__(f"{self.found}\n{self.advice}")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically: to a temporary file, which is flushed to disk and then renamed.

    Missing folders are created. Raises OSError if it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A suffix that no other writer has: process ids of several machines may be equal.
    new = path.with_name(f".{path.name}.{uuid4().hex[:12]}")
    try:
        with new.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError:
        new.unlink(missing_ok=True)  # a partial file would take space on a full disk
        raise


def file_sha256(path: Path) -> str:
    """Return the sha256, hex, of a run's file: weights or predictions.

    Raises UserError if it cannot be read, is not a regular file or has more than 16 GiB.
    """
    try:
        return regular_file.sha256_of(path, LARGEST_FILE)
    except regular_file.InvalidFile as fault:
        raise UserError(f"{path} cannot be read: {fault}.\n{run_json_schemas.RETRAIN}") from fault
    except OSError as fault:
        raise UserError(f"{path} cannot be read: {fault.strerror}.") from fault


def delete_partial_files(folder: RunFolder) -> None:
    """Delete the temporary files of a process that was killed while writing, and no other files."""
    for path in folder.path.glob(".*.*"):
        if PARTIAL_FILE.fullmatch(path.name) and path.is_file() and not path.is_symlink():
            path.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text atomically, in UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically, with sorted keys."""
    write_text(path, json.dumps(content, indent=2, sort_keys=True) + "\n")


def check_role(folder: RunFolder, role: Role) -> None:
    """Raise UserError if the folder has a run of the other role (teacher or student)."""
    found = role_begun(folder)
    if found in (None, role):
        return
    command: dict[Role, str] = {"teacher": "train-teacher", "student": "distill"}
    raise UserError(
        f"{folder.path} is the run of a {found}, and {command[role]} trains a {role}.\n"
        f"Continue it with python cli.py {command[found]}, or choose another "
        "--out."
    )


def role_begun(folder: RunFolder) -> Role | None:
    """Return the role in the result, else in a checkpoint; None if neither has one of the two."""
    files = (
        folder.result_file,
        folder.last / "progress.json",
        folder.path / "last.old" / "progress.json",
    )
    for file in files:
        with suppress(OSError, ValueError, KeyError, TypeError):
            role: Role = run_json_schemas.parsed(run_json_schemas.content_of(file))["role"]
            if role in get_args(Role):
                return role
    return None


def is_tested(result: Mapping[str, Any]) -> bool:
    """Whether a finished run was measured on the test split; trials of a sweep are not.

    `result`: the content of result.json.
    """
    return result.get(IS_TESTED, True) is not False


def early_end(result: Mapping[str, Any]) -> str:
    """Describe the early end of a run that `finish` ended: `after 3 of 10 planned epochs (…)`.

    Empty if the run was trained to its end. `result`: the content of result.json.
    """
    early = result.get(FINISHED_EARLY)
    if not early:
        return ""
    return (
        f"after {early['epochs']:,} of {counted(early['planned_epochs'], 'planned epoch')} "
        f"(step {early['steps']:,} of {early['planned_steps']:,})"
    )


def check_is_tested(folder: RunFolder) -> None:
    """Raise UserError if a finished run was not measured on the test split."""
    if is_tested(folder.result()):
        return
    verb = "train-teacher" if folder.role == "teacher" else "distill"
    raise UserError(
        f"run {folder.path} is a trial of a sweep, which was not measured on the test split: only "
        "the best one is.\n"
        f"Train its recipe as a run: python cli.py {verb} --recipe {folder.recipe}"
    )


def default_path(name: str, runs: Path = RUNS) -> Path:
    """Return `runs/<name>-<time>`, with the local time to the second."""
    return runs / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"


def check_out(folder: RunFolder, resume: bool, *, can_resume: bool = True) -> None:
    """Raise UserError if no run may be written in the folder. Leaves no file behind.

    `can_resume`: whether the command has the option --resume, for the message.

    This is so if the folder has a run and `resume` is False, if it has other files that a run would
    replace or delete, if nothing can be written in it, if it is inside a checkpoint of another run,
    or if a file of the run is a link, a pipe or a device.
    """
    check_inside_folder(folder)
    if not folder.is_run:
        _check_nothing_replaced(folder)
    elif resume:
        _check_checkpoints(folder)
    else:
        lock.check_free(folder.path)
        advice = "Continue it with --resume, or choose" if can_resume else "Choose"
        raise UserError(f"{folder.path} already contains a run.\n{advice} another --out.")
    check_writable(folder.path, "a run folder")


def _check_nothing_replaced(folder: RunFolder) -> None:
    """Raise UserError if a folder without a run has files that a run would replace or delete.

    A run writes recipe.toml first: without it, such files are the user's own.
    """
    # Two files exist before recipe.toml is written. `lock.lock_run_folder` checks .lock.
    at_start = {".lock"}
    if lock.is_own_record(folder.path / "running.json"):
        at_start.add("running.json")
    names = (name for name in (*FILES, *REPLACED) if name not in at_start)
    found = [name for name in names if (folder.path / name).exists()]
    if found:
        raise UserError(
            f"{folder.path} has no run (no recipe.toml), but {', '.join(found)}, which a run would "
            f"replace or delete.\nMove what is yours elsewhere. {ADVICE}"
        )


def _check_checkpoints(folder: RunFolder) -> None:
    """Raise UserError if a folder of a checkpoint has other files, which saving would delete."""
    checkpoints = (folder.path / name for name in REPLACED if name.startswith("last"))
    found = [str(path) for checkpoint in checkpoints for path in foreign_in(checkpoint)]
    if found:
        raise UserError(
            f"{', '.join(found[:3])}{' …' if found[3:] else ''} would be deleted with the "
            f"checkpoint.\nMove what is yours elsewhere. {ADVICE}"
        )


def foreign_in(checkpoint: Path) -> list[Path]:
    """Return what the folder of a checkpoint contains besides a checkpoint; empty if it is absent.

    Hidden files count as the checkpoint's: temporary files, and those of file managers.
    """
    if not checkpoint.is_dir():
        return []
    return sorted(
        path
        for path in checkpoint.iterdir()
        if path.is_dir() or not (path.name in CHECKPOINT_FILES or path.name.startswith("."))
    )


def check_outside_runs(path: Path) -> None:
    """Raise UserError if a path is in a subfolder of a run whose content the run may delete.

    The path need not exist.
    """
    resolved = path.resolve()
    for inner in (resolved, *resolved.parents):
        if inner.name in REPLACED and os.path.isfile(inner.parent / "recipe.toml"):
            raise UserError(
                f"{path} is in {inner}, where the run {inner.parent} saves and deletes its own "
                f"files.\n{ADVICE}"
            )


def check_inside_folder(folder: RunFolder) -> None:
    """Raise UserError if a file or folder of the run is a symbolic link, a pipe or a device.

    Writing to it or deleting it would change something outside the run folder. Hard links, as in
    copies by `cp -l`, are safe: a run replaces its files by new ones instead of changing them. The
    journal is replaced (`journal.rewind`) before lines are appended. The lock file is checked by
    `lock.check_lock_file`.
    """
    for path in _run_paths(folder):
        try:
            mode = path.lstat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}.\n{ADVICE}") from error
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            kind = "a symbolic link" if stat.S_ISLNK(mode) else "a pipe or a device"
            raise UserError(
                f"{path} is {kind}: a run writes and deletes inside its own folder only.\n"
                f"Put the file itself there. {ADVICE}"
            )


def check_subfolder(path: Path) -> None:
    """Raise UserError if a subfolder to be created is a symbolic link or not a folder.

    A link would lead out of the folder that the user named. A missing subfolder is accepted.
    """
    if path.is_symlink():
        fault = "is a symbolic link: files are written only inside the named folder"
    elif path.exists() and not path.is_dir():
        fault = "is not a folder, so no file can be written in it"
    else:
        return
    raise UserError(f"{path} {fault}.\nDelete it, or choose another --out.")


def _run_paths(folder: RunFolder) -> Iterator[Path]:
    """Yield the path of every file and folder that a run may write; a folder before its content."""
    yield from (folder.path / name for name in FILES)
    for name in FOLDERS:
        subfolder = folder.path / name
        yield subfolder
        with suppress(OSError):
            yield from subfolder.iterdir()


def check_writable(folder: Path, what: str) -> None:
    """Raise UserError if files cannot be written in `folder`, or a run may delete them there.

    `what`: the purpose of the folder in the message, such as "a run folder". The folder need not
    exist. Leaves no file behind.
    """
    if not is_utf8(str(folder)):  # safetensors accepts no other path
        raise UserError(f"{folder} cannot be {what}: its name is not UTF-8.\n{ADVICE}")
    check_outside_runs(folder)
    # The folder itself, or its nearest parent that exists.
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir():
        raise UserError(f"{folder} cannot be {what}: {existing} is a file.\n{ADVICE}")
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise UserError(
            f"{folder} cannot be {what}: nothing can be written in {existing} "
            f"({error.strerror}).\n{ADVICE}"
        ) from error


def open_finished(path: str | Path) -> RunFolder:
    """Return the finished run at `path`. Raises UserError if there is none or it is unfinished."""
    folder = open_run(path, lambda run: run.is_finished)
    folder.result()
    return folder


def open_teacher(path: str | Path) -> RunFolder:
    """Return the run at `path`, finished or not, as `open_run` does; it suggests teachers."""
    return open_run(path, _is_finished_teacher)


def _is_finished_teacher(run: RunFolder) -> bool:
    with suppress(UserError):
        return run.role == "teacher"
    return False


def open_run(
    path: str | Path, is_likely: Callable[[RunFolder], bool] = lambda run: True
) -> RunFolder:
    """Return the run at `path`, finished or not.

    Raises UserError if there is none, with suggestions: runs for which `is_likely` is true, or any
    if it is true for none. Raises UserError also if one of the run's files is a pipe or a device:
    reading it might wait for ever.
    """
    folder = RunFolder(Path(path))
    if folder.is_run:
        _check_readable(folder)
        return folder
    found = (
        "it exists but contains no recipe.toml"
        if folder.path.exists()
        else "there is no such folder"
    )
    raise UserError(f"{path} is not a run: {found}.\n{_suggestions(folder.path, is_likely)}")


def _check_readable(folder: RunFolder) -> None:
    for path in (folder.path / name for name in FILES):
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise UserError(
                f"{path} is a pipe or a device: a run has only files.\n"
                "Put the file itself there, or name another run."
            )


def _suggestions(path: Path, is_likely: Callable[[RunFolder], bool]) -> str:
    """Return a sentence that suggests runs to a user who typed a path without a run.

    If the path is inside a run folder, it names this run. Otherwise it lists at most five: the runs
    in the path, or else runs with similar names beside it or in runs/, or else any runs there. Only
    those for which `is_likely` is true are listed, unless there are none.
    """
    if RunFolder(path.parent).is_run:
        return f"Its run is {path.parent}."
    groups = [entry for entry in RUNS.iterdir() if entry.is_dir()] if RUNS.is_dir() else []
    folders = dict.fromkeys([path, path.parent, RUNS, *groups])
    runs = [run for folder in folders for run in newest_runs_in(folder)]
    names = {str(run.path): run.path.name for run in filter(is_likely, runs)}
    names = names or {str(run.path): run.path.name for run in runs}
    similar = get_close_matches(path.name, names.values(), n=5, cutoff=0.5)
    inside = [run for run in names if Path(run).parent == path]
    listed = inside or [run for name in similar for run in names if names[run] == name] or [*names]
    if not listed:
        return (
            f"There are no runs in {path.parent}. Choose a recipe that fits into your time: "
            "python cli.py plan"
        )
    return f"Give one of these runs: {', '.join([*dict.fromkeys(listed)][:5])}."


def unfinished_in(folder: Path) -> str:
    """Return `; unfinished there: a, b` for a message: at most five unfinished runs in a folder.

    The newest is first. Empty if there is none.
    """
    paths = [str(run.path) for run in newest_runs_in(folder) if not run.is_finished][:5]
    return f"; unfinished there: {', '.join(paths)}" if paths else ""


def newest_runs_in(folder: Path) -> Iterator[RunFolder]:
    """Yield the runs directly in a folder, the newest first; none if there is no such folder."""
    if not folder.is_dir():
        return
    runs: list[tuple[float, RunFolder]] = []
    for path in folder.iterdir():
        run = RunFolder(path)
        with suppress(OSError):  # not a run, deleted meanwhile, or not readable for this user
            status = run.recipe.stat()
            if stat.S_ISREG(status.st_mode):  # reading a pipe would wait for ever
                runs.append((status.st_mtime, run))
    yield from (run for _, run in sorted(runs, key=lambda pair: pair[0], reverse=True))


def runs_in_same_folder(run: RunFolder) -> Iterator[RunFolder]:
    """Yield the runs in the folder that contains `run`, the newest first, `run` among them.

    None if this user may not list the folder: files can be written in it even so.
    """
    if os.access(run.path.parent, os.R_OK):
        yield from newest_runs_in(run.path.parent)


def unreadable_results_in(folder: Path) -> list[str]:
    """Return a note for each finished run in a folder whose result.json cannot be read."""
    notes = []
    for run in newest_runs_in(folder):
        try:
            if run.is_finished:
                run.check_result()
        except (UserError, OSError) as fault:
            notes.append(f"{run.path} was skipped: {str(fault).splitlines()[0]}")
    return notes
