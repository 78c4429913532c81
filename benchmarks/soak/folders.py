"""Give hostile run folders to commands: with links or pipes, or with files of other runs."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from benchmarks.soak import commands
from benchmarks.soak.outcome import Outcome
from benchmarks.soak.tiny_set import NO_TEACHER, Runs
from benchmarks.soak.watched import SECRET, Neighbour

# All files that a run writes or reads, and names that earlier versions used.
PLACES = (
    "running.json", ".lock", "journal.jsonl", "recipe.toml", "environment.json", "result.json",
    "evaluation.npz", ".evaluation.new.npz", ".evaluation.npz.123", "test_curve.json",
    "student.safetensors", ".student.safetensors.7", "last", "last.old", "last.new",
    "last.damaged", "best", "epochs", "last/progress.json", "last/state.pt",
    "best/epoch-1.safetensors", "epochs/epoch-1.safetensors", "epochs/epoch-9.safetensors",
    "report.html", "report_files",
)  # fmt: skip


def folders(folder: Path, tries: int, seed: int) -> list[Outcome]:
    """Run a command on each of `tries` run folders with a link, pipe or device in place of a file,
    and on as many with files of another run.
    """
    chance = random.Random(seed)
    runs = Runs(folder.parent / "runs of others")
    neighbour = Neighbour(folder / "neighbour")
    linked = Outcome(
        "a run folder with links, pipes or devices in place of its files",
        "the result without it, or “… is a symbolic link: a run writes inside its own folder”",
    )
    foreign = Outcome(
        "a run folder with checkpoints, weights or predictions of another run",
        "“… is not the file that its run wrote”, “… cannot be resumed”; exit 2",
    )
    for n in range(tries):
        runs.restore()
        command, run = _choice(runs, n)
        what = _link(run, neighbour, chance)
        ended = commands.run(*command)
        fault = commands.fault_of(ended) or neighbour.change() or _leaks(ended)
        linked.count(not fault, f"{what}: {' '.join(map(str, command))}: {fault}")
    for n in range(tries):
        runs.restore()
        command, what = _mix(runs, n, chance)
        ended = commands.run(*command)
        fault = commands.fault_of(ended) or neighbour.change()
        fault = fault or ("" if ended.code else "was accepted")
        foreign.count(not fault, f"{what}: {' '.join(map(str, command))}: {fault}")
    return [linked, foreign]


def _choice(runs: Runs, n: int) -> tuple[tuple[object, ...], Path]:
    """Return the command of the n-th try, and the run folder that it reads or writes."""
    student, unfinished = Path("runs/student"), Path("runs/unfinished")
    export = ("--format", "safetensors", "--out", "runs/new")
    resume = runs.command("distill", "unfinished", *runs.with_teacher, "--resume")
    again = runs.command("distill", "student", *runs.with_teacher, "--resume")
    anew = runs.command("distill", "student", *runs.with_teacher)
    teacher = runs.command("train-teacher", "unfinished", *NO_TEACHER, "--resume")
    choices: list[tuple[tuple[object, ...], Path]] = [
        (resume, unfinished), (again, student), (resume, unfinished), (anew, student),
        (("evaluate", student), student), (resume, unfinished), (("runs",), student),
        (("predict", student, "--input", "images.npy"), student), (resume, unfinished),
        (("export", student, *export), student), (resume, unfinished), (teacher, unfinished),
        (("replay", unfinished, "--step", 2), unfinished), (resume, unfinished),
        (("compare", student, "runs/other"), student), (("report", student), student),
        (("report", student, "--test-curve", "--out", "report.html"), student),
    ]  # fmt: skip
    return choices[n % len(choices)]


def _link(run: Path, neighbour: Neighbour, chance: random.Random) -> str:
    """Put a link, a pipe or a link to a device in place of a random file or folder of a run.

    Links may point to the files of `neighbour`. Returns a description of the change.
    """
    name = chance.choice(PLACES)
    path = run / name
    if chance.random() < 0.2:
        path = path.with_name(chance.choice(["epoch-2.safetensors", "x", ".x.12", "progress.json"]))
    is_folder = path.suffix == "" and not path.name.startswith(".")
    target = neighbour.folder / ("epochs" if is_folder else "file")
    path.parent.mkdir(parents=True, exist_ok=True)
    moved = path.with_name("moved") if path.exists() else None
    if moved is not None:
        shutil.rmtree(moved, ignore_errors=True)
        path.rename(moved)
    kind = chance.choice(["symbolic", "symbolic", "hard", "pipe", "dangling", "device", "own"])
    if kind == "hard" and not is_folder:
        os.link(target, path)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "dangling":
        path.symlink_to(neighbour.folder / "new")
    elif kind == "own" and moved is not None:  # the original content under another name
        path.symlink_to(moved.name)
    else:
        path.symlink_to(target)
    return f"{kind} {path}"


def _leaks(ended: commands.Ended) -> str:
    """Return a message if the command printed the content of a file outside the run, else ""."""
    return "printed a file outside" if SECRET in ended.out + ended.err else ""


def _mix(runs: Runs, n: int, chance: random.Random) -> tuple[tuple[object, ...], str]:
    """Put files of one run into another.

    Returns a command that must refuse the changed run, and a description of the change. `n`: number
    of the try, which selects the kind of file.
    """
    resume = runs.command("distill", "unfinished", *runs.with_teacher, "--resume")
    student = Path("runs/student")
    readers: dict[str, list[tuple[object, ...]]] = {
        "weights": [
            ("evaluate", student), ("predict", student, "--input", "images.npy"),
            ("export", student, "--format", "safetensors", "--out", "runs/new"),
            runs.command("distill", "new", "--teacher", student),
        ],
        "predictions": [("compare", student, "runs/other"), ("report", student, "--out", "r.html")],
    }  # fmt: skip
    kind = ["checkpoint", "weights", "predictions"][n % 3]
    other = Path("runs") / chance.choice(["other", "teacher", "seeds/tiny-seed-0"])
    if not other.exists():
        other = Path("runs/other")
    if kind == "checkpoint":
        target = Path("runs/unfinished")
        parts = chance.choice([["last"], ["last", "best"], ["last/state.pt"], ["last", "last.old"]])
        shutil.rmtree(target / "last.old", ignore_errors=True)
        for part in parts:
            _copy(other / part, target / part)
        return resume, f"{parts} of {other}"
    if kind == "weights":
        source = next(other.glob("*.safetensors"))
        _copy(source, student / "student.safetensors")
    else:
        _damage_predictions(student / "evaluation.npz", other / "evaluation.npz", chance)
    return chance.choice(readers[kind]), f"{kind} of {other}"


def _damage_predictions(path: Path, other: Path, chance: random.Random) -> None:
    """Replace the predictions file `path` by `other`, that of another run, or add or remove a
    byte.
    """
    change: Callable[[], object] = chance.choice([
        lambda: _copy(other, path),
        lambda: path.write_bytes(path.read_bytes() + b"\0"),
        lambda: path.write_bytes(path.read_bytes()[:-1]),
    ])  # fmt: skip
    change()


def _copy(source: Path, target: Path) -> None:
    """Copy a file or folder to `target`, which is replaced."""
    if source.is_dir():
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)
    else:
        shutil.copy(source, target)
