"""The files of a run folder, and atomic writing.

recipe.toml          resolved, whole
journal.jsonl        every event of the training loop
last/ last.old/      state to resume from, and the one before it
best/                weights of the best epoch on the held-out part
epochs/              weights of the epochs that train.keep_epochs wants kept
running.json .lock   who trains here, while somebody does
student.safetensors  the weights to use (teacher.safetensors from train-teacher)
evaluation.npz       predictions on test split and held-out part, the teacher's opinion, mistakes
environment.json     versions, hardware, command, source hash
test_curve.json      what the kept epochs gave on training and test images, once asked
result.json          the figures; written last, so its presence means "finished"
"""

import hashlib
import json
import os
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from distill.errors import UserError
from distill.files import json_files
from distill.files.safe_text import is_utf8
from distill.recipe import recipes
from distill.recipe.recipes import Recipe
from distill.recipe.schema import Teacher
from distill.runs import lock

Role = Literal["teacher", "student"]
# What a resumed run may do otherwise: how often it speaks, saves and keeps, what else it measures,
# and if it goes back.
NOT_FINGERPRINTED = {
    f"train.{key}"
    for key in (
        "log_every",
        "save_every",
        "save_steps",
        "save_minutes",
        "keep_epochs",
        "validate_both",
        "retries",
        "retry_lr",
    )
}
TESTED = {  # keys of "data" in result.json that say on what a run was tested
    "test split": "test_fingerprint",
    "class names": "class_names_fingerprint",
}
FILES = (
    "recipe.toml", "journal.jsonl", "running.json", ".lock", "student.safetensors",
    "teacher.safetensors", "evaluation.npz", "environment.json", "test_curve.json", "result.json",
)  # fmt: skip
FOLDERS = ("last", "last.old", "last.new", "last.damaged", "best", "epochs")
ADVICE = "Choose another --out."
IS_TESTED = "is_tested"  # false in result.json of a trial without figures of the test split
RUNS = Path("runs")  # where runs lie unless --out says otherwise


@dataclass(frozen=True)
class RunFolder:
    """Paths and small files of one run; creates nothing until something is written."""

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
        """What the finished run trained. Raises UserError where it is not finished."""
        role: Role = self.result()["role"]
        return role

    def result(self) -> dict[str, Any]:
        """The figures of a finished run. Raises UserError if it is not finished, if result.json is
        damaged, and later if a key is read that it does not have.
        """
        if not self.is_finished:
            raise UserError(
                f"run {self.path} is not finished: it has no {self.result_file.name}.\n"
                "Finish it by its own command with --resume."
            )
        return json_files.result(self.result_file)

    def check_result(self) -> None:
        """result.json has all that another run needs of it. Raises UserError otherwise."""
        result = self.result()
        for key in ("role", "class_names", "metrics", "weights", "finished_at"):
            result[key]
        result["data"]["fingerprint"]


def write_bytes(path: Path, content: bytes) -> None:
    """Write whole or not at all: a new file, flushed to disk, renamed over the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A number that no other writer has, whatever the machine: process ids come twice.
    new = path.with_name(f".{path.name}.{uuid4().int % 10**12}")
    try:
        with new.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError:
        new.unlink(missing_ok=True)  # on a full disk the half of it is in the way
        raise


def delete_partial_files(folder: RunFolder) -> None:
    """Delete what a process that was killed while it wrote has left: no file has such a name."""
    for path in folder.path.glob(".*.*"):
        if path.suffix[1:].isdecimal() and path.is_file():
            path.unlink()


def write_text(path: Path, text: str) -> None:
    """Write whole or not at all."""
    write_bytes(path, text.encode())  # TOML is UTF-8 wherever we run


def write_json(path: Path, content: Any) -> None:
    """Write whole or not at all, keys sorted."""
    write_text(path, json.dumps(content, indent=2, sort_keys=True) + "\n")


def check_same(folder: RunFolder, recipe: Recipe) -> None:
    """The run began with this recipe. Raises UserError naming the keys that differ.

    Teachers that are not named are those the run has. Those that are named may be in other folders
    than they were: their weights must be the same, which are compared here if the run is finished,
    and with the checkpoint when it is resumed. A run that began with the TrivialAugment of an
    earlier version, whose strengths and place differ, is refused too.
    """
    began_with = recipes.read(folder.recipe)
    if began_with.augment.trivial and "before_crop" not in folder.recipe.read_text():
        raise UserError(
            f"{folder.path} cannot be resumed: it began with another augment.trivial, which had "
            "no before_crop and other strengths.\nChoose another --out."
        )
    if began_with.teacher and not (recipe.teacher and recipe.teacher.runs):
        recipe = recipes.with_teacher(recipe, began_with.teacher.runs)
    differing = {line.split(":")[0]: line for line in recipes.differences(began_with, recipe)}
    changed = [
        line for key, line in differing.items() if key not in {*NOT_FINGERPRINTED, "teacher.runs"}
    ]
    if not changed and "teacher.runs" in differing and folder.is_finished:
        changed = _changed_teachers(folder, recipe)
    if changed:
        raise UserError(
            f"{folder.path} cannot be resumed: the recipe is not the one it began with:\n  "
            + "\n  ".join(changed)
            + "\nGive the same recipe and --set values, or choose another --out."
        )


def _changed_teachers(folder: RunFolder, recipe: Recipe) -> list[str]:
    """A line if the teachers that the recipe names have other weights than those that a finished
    run had; none if they are the same. Raises UserError if one is no finished run.
    """
    known = folder.result()["teacher"]["fingerprint"]
    today = teachers_fingerprint(open_finished(path) for path in (recipe.teacher or Teacher()).runs)
    return [] if today == known else [f"the teacher's weights: {known} -> {today}"]


def teachers_fingerprint(runs: Iterable[RunFolder]) -> str:
    """The identity of the teachers' weights: the sha256 of each file, hex, joined by `+`; empty
    without a teacher.
    """
    return "+".join(hashlib.sha256(_weights(run)).hexdigest() for run in runs)


def _weights(run: RunFolder) -> bytes:
    path = run.weights(run.role)
    try:
        return path.read_bytes()
    except OSError as fault:
        raise UserError(f"{path} cannot be read as weights: {fault.strerror}.") from fault


def check_role(folder: RunFolder, role: Role) -> None:
    """The run, if there is one, trains a network of that role. Raises UserError otherwise."""
    known = _role_begun(folder)
    if known in (None, role):
        return
    command = {"teacher": "train-teacher", "student": "distill"}
    raise UserError(
        f"{folder.path} is the run of a {known}, and {command[role]} trains a {role}.\n"
        f"Go on with it by python cli.py {command.get(str(known), 'distill')}, or choose another "
        "--out."
    )


def _role_begun(folder: RunFolder) -> str | None:
    """The role in the result, else in a checkpoint; None if neither has one."""
    files = (
        folder.result_file,
        folder.last / "progress.json",
        folder.path / "last.old" / "progress.json",
    )
    for file in files:
        with suppress(OSError, ValueError, KeyError, TypeError):
            return str(json_files.parsed(json_files.content_of(file))["role"])
    return None


def is_tested(result: Mapping[str, Any]) -> bool:
    """Whether a finished run was measured on the test split: trials of a sweep are not."""
    return result.get(IS_TESTED, True) is not False


def check_is_tested(folder: RunFolder) -> None:
    """Raises UserError if a finished run has no figures of the test split."""
    if is_tested(folder.result()):
        return
    verb = "train-teacher" if folder.role == "teacher" else "distill"
    raise UserError(
        f"run {folder.path} is a trial of a sweep, which was not measured on the test split: only "
        "the best one is.\n"
        f"Train its recipe as a run: python cli.py {verb} --recipe {folder.recipe}"
    )


def test_split_differences(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """In which of TESTED the results differ. One of an earlier version, which lacks the keys,
    differs from none.
    """
    known = {
        what: {result["data"].get(key) for result in results} - {None}
        for what, key in TESTED.items()
    }
    return [what for what, fingerprints in known.items() if len(fingerprints) > 1]


def test_split_unnamed(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """A note if some of the results do not name their test split; none if all do."""
    n = sum(TESTED["test split"] not in result["data"] for result in results)
    if not n:
        return []
    verbs = ("is", "has") if n == 1 else ("are", "have")
    return [
        f"{n} of {len(results)} results {verbs[0]} of an earlier version and {verbs[1]} no "
        "fingerprint of the test split: that all were tested on the same images is not checked."
    ]


def training_fingerprint(recipe: Recipe) -> str:
    """SHA-256, hex, of what a recipe trains: of the keys that differ from their defaults, without
    [about], HABITS, and the paths of images and teachers, which have fingerprints of their own.

    A key that a later version adds, at its default, does not change it.
    """
    content = recipe.model_dump(mode="json", exclude={"about"}, exclude_defaults=True)
    for key in (*NOT_FINGERPRINTED, "data.source", "teacher.runs"):
        table, _, name = key.partition(".")
        content.get(table, {}).pop(name, None)
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def default_path(name: str, runs: Path = RUNS) -> Path:
    """`runs/<recipe>-<time>`, local time to the second."""
    return runs / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"


def check_out(folder: RunFolder, resume: bool) -> None:
    """A run may be written here. Raises UserError where one lies here already and is not to be
    resumed, where no file can be written, and if a file of the run is a link or a device; leaves
    nothing behind.
    """
    check_inside_folder(folder)
    if folder.is_run and not resume:
        lock.check_free(folder.path)
        raise UserError(
            f"{folder.path} already holds a run.\n"
            "Continue it with --resume, or choose another --out."
        )
    check_writable(folder.path, "a run folder")


def check_inside_folder(folder: RunFolder) -> None:
    """All that a run writes is inside its folder. Raises UserError if one of its files or folders
    is a symbolic link, a pipe or a device: writing or deleting would change something elsewhere.

    Hard links, as copies by `cp -l` have them, change nothing elsewhere: a run replaces its files
    by new ones, also the journal (`journal.rewind`) before it appends to it, and running.json; of
    the lock's file see `lock.hold_lock`.
    """
    for path in _own_paths(folder):
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


def _own_paths(folder: RunFolder) -> Iterator[Path]:
    """Every file and folder that a run may write; a folder before what is in it."""
    yield from (folder.path / name for name in FILES)
    for name in FOLDERS:
        place = folder.path / name
        yield place
        with suppress(OSError):
            yield from place.iterdir()


def check_writable(folder: Path, what: str) -> None:
    """Files can be written in `folder`, which need not be there yet; `what` it shall be, in words.

    Raises UserError otherwise; leaves nothing behind.
    """
    advice = "Choose another --out."
    if not is_utf8(str(folder)):  # safetensors takes no other path
        raise UserError(f"{folder} cannot be {what}: its name is not UTF-8.\n{advice}")
    # The folder itself, or what it would be made in.
    place = next(path for path in (folder, *folder.parents) if path.exists())
    if not place.is_dir():
        raise UserError(f"{folder} cannot be {what}: {place} is a file.\n{ADVICE}")
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise UserError(
            f"{folder} cannot be {what}: nothing can be written in {place} "
            f"({error.strerror}).\n{ADVICE}"
        ) from error


def open_finished(path: str | Path) -> RunFolder:
    """The finished run at `path`. Raises UserError where there is none."""
    folder = open_run(path)
    folder.result()
    return folder


def open_run(path: str | Path) -> RunFolder:
    """The run at `path`. Raises UserError where there is none, naming those that may be meant, and
    if one of its files is a pipe or a device, for which reading might wait for ever.
    """
    folder = RunFolder(Path(path))
    if folder.is_run:
        _check_readable(folder)
        return folder
    found = (
        "it exists but holds no recipe.toml" if folder.path.exists() else "there is no such folder"
    )
    raise UserError(f"{path} is not a run: {found}.\n{_suggestions(folder.path)}")


def _check_readable(folder: RunFolder) -> None:
    for path in (folder.path / name for name in FILES):
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise UserError(
                f"{path} is a pipe or a device: a run has files alone.\n"
                "Put the file itself there, or name another run."
            )


def _suggestions(path: Path) -> str:
    """The run that a path lies in; else those in it, beside it and in runs/, the likest first."""
    if RunFolder(path.parent).is_run:
        return f"Its run is {path.parent}."
    groups = [each for each in RUNS.iterdir() if each.is_dir()] if RUNS.is_dir() else []
    places = dict.fromkeys([path, path.parent, RUNS, *groups])
    known = {str(run.path): run.path.name for place in places for run in runs_in(place)}
    likest = get_close_matches(path.name, known.values(), n=5, cutoff=0.5)
    inside = [run for run in known if Path(run).parent == path]
    named = inside or [run for name in likest for run in known if known[run] == name] or [*known]
    if not named:
        return f"There are no runs in {path.parent}."
    return f"Runs there are: {', '.join([*dict.fromkeys(named)][:5])}."


def unfinished_in(folder: Path) -> str:
    """`; unfinished in runs: a, b`, the newest first, for a message; empty where there is none."""
    found = [str(run.path) for run in runs_in(folder) if not run.is_finished][:5]
    return f"; unfinished there: {', '.join(found)}" if found else ""


def runs_in(folder: Path) -> Iterator[RunFolder]:
    """The runs directly in a folder, the newest first."""
    if not folder.is_dir():
        return
    found: list[tuple[float, RunFolder]] = []
    for path in folder.iterdir():
        run = RunFolder(path)
        with suppress(OSError):  # no run, deleted meanwhile, or not readable for this user
            known = run.recipe.stat()
            if stat.S_ISREG(known.st_mode):  # reading a pipe would wait for ever
                found.append((known.st_mtime, run))
    yield from (run for _, run in sorted(found, key=lambda each: each[0], reverse=True))


def broken_in(folder: Path) -> list[str]:
    """One note for each finished run directly in a folder whose result.json cannot be read."""
    notes = []
    for run in runs_in(folder):
        try:
            if run.is_finished:
                run.check_result()
        except (UserError, OSError) as fault:
            notes.append(f"{run.path} is passed over: {str(fault).splitlines()[0]}")
    return notes
