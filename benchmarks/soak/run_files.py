"""Change the files of real runs at random, and run every command that reads runs on them."""

import random
from collections.abc import Callable
from pathlib import Path

from benchmarks.soak import commands, mutations
from benchmarks.soak.outcome import Outcome
from benchmarks.soak.tiny_set import Runs
from benchmarks.soak.watched import Neighbour

Change = Callable[[Path, random.Random], None]
# The files that are changed, and how.
FILES: dict[str, Change] = {
    "result.json": mutations.change_json,
    "environment.json": mutations.change_json,
    "test_curve.json": mutations.change_json,
    "journal.jsonl": mutations.change_json,
    "evaluation.npz": mutations.change_arrays,
    "recipe.toml": mutations.change_recipe,
    "last/progress.json": mutations.change_progress,
    "export.json": mutations.change_json,
    "about.json": mutations.change_json,
}
KIND = {
    "export.json": "the export.json of an export",
    "about.json": "the about.json of a cache entry",
    "last/progress.json": "the progress.json of a checkpoint",
}
CHANGED = ("teacher", "student", "student", "unfinished")
REPLACED = 0.1  # probability that the file is deleted, or replaced by a link, folder or pipe


def run_files(folder: Path, tries: int, seed: int) -> list[Outcome]:
    """Change a file of a run at random and run a command on the run, `tries` times in total.

    Returns one outcome per kind of file.
    """
    chance = random.Random(seed)
    runs, neighbour = Runs(folder.parent / "runs of others"), Neighbour(folder / "neighbour")
    choices = list(_command_lines(runs))
    outcomes = []
    for name, change in FILES.items():
        outcome = Outcome(
            f"{KIND.get(name, f'the {name} of a run')}, changed at random, and every command",
            "the result without it, or one message that names the file or its run",
        )
        for n in range(-(-tries // len(FILES))):
            runs.restore()
            path = _chosen(runs, name, chance)
            if chance.random() < REPLACED:
                mutations.replace_file(path, chance, neighbour.folder / "file")
            else:
                change(path, chance)
            command = choices[(n + chance.randrange(2)) % len(choices)]
            fault = commands.fault_of(commands.run(*command), path.name, *_folders(path))
            fault = fault or neighbour.change()
            outcome.count(not fault, f"{seed}/{name}/{n}: {' '.join(map(str, command))}: {fault}")
        outcomes.append(outcome)
    return outcomes


def _folders(path: Path) -> list[str]:
    """Return the folders of a file. A message on the file may name one of them instead of it."""
    return [str(folder) for folder in path.parents if folder.name not in ("", "runs")]


def _chosen(runs: Runs, name: str, chance: random.Random) -> Path:
    """Return the path of the file to change; `name`: a key of FILES."""
    if name == "export.json":
        return Path("runs/exported") / name
    if name == "about.json":
        return next(runs.cache.rglob(name))
    found = [Path("runs") / run / name for run in CHANGED]
    return chance.choice([path for path in found if path.exists()])


def _command_lines(runs: Runs) -> list[tuple[object, ...]]:
    """Return the commands to run; the fast ones occur twice, so that they are run more often."""
    student, other, teacher = "runs/student", "runs/other", "runs/teacher"
    export = ("--format", "safetensors", "--out", "runs/exported", "--replace")
    fast: list[tuple[object, ...]] = [
        ("runs",),
        ("runs", "--json"),
        ("compare", student, other),
        ("compare", other, teacher, "--json"),
        ("evaluate", student),
        ("evaluate", teacher, "--json"),
        ("evaluate", other, "--against", student),
        ("predict", student, "--input", "images.npy"),
        ("predict", teacher, "--input", "images.npy", "--labels", "names"),
        ("export", student, *export),
        ("export", teacher, *export),
        ("replay", student, "--step", 2),
        ("replay", "runs/unfinished", "--step", 5),
        ("params", "--recipe", f"{student}/recipe.toml"),
        ("recipes", f"{student}/recipe.toml"),
        ("cache", "info"),
        ("cache", "verify"),
        runs.command("distill", "new"),
        runs.command("distill", "new", "--teacher", teacher),
        runs.command("distill", "new", "--teacher", student),
        runs.command("distill", "unfinished", *runs.with_teacher, "--resume"),
        runs.command("distill", "student", *runs.with_teacher, "--resume"),
    ]
    slow: list[tuple[object, ...]] = [
        ("report", student, "--out", "report.html"),
        ("report", student, "--test-curve", "--out", "report.html"),
        ("report", student, other, teacher, "runs/unfinished", "--out", "report.html"),
        ("report", "runs/unfinished", "--out", "report.html"),
        ("export", student, "--format", "project1", "--out", "runs/handed in"),
        runs.command("distill", "new", "--teacher", student, "--teacher", teacher),
        ("seeds", *runs.seeds),
    ]
    return [*fast, *slow, *fast]
