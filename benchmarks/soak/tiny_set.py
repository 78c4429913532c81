"""Write a few images and train small runs on them, whose files the soak test then changes."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.soak import commands

CLASSES = ("cat", "dog")
SMALL = (
    "--recipe", "tiny", "--set", "data.holdout=0.25", "--set", "data.train_images=24",
    "--set", "train.batch_size=8", "--set", "train.epochs=2", "--set", "train.keep_epochs=1",
)  # fmt: skip
NO_TEACHER = ("--set", "loss.kd=false", "--set", "loss.hard.weight=1")


def write_images(root: Path, classes: Sequence[str] = CLASSES) -> Path:
    """Write PNG images of noise to `root/<split>/<class>/`; return `root`.

    Each class has 16 training and 8 test images.
    """
    chance = np.random.default_rng(0)
    for split, n in (("train", 16), ("test", 8)):
        for name in classes:
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(n):
                pixels = chance.integers(256, size=(32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


class Runs:
    """Small finished and unfinished runs in `folder/runs`, which `restore` resets after changes.

    They are trained once, and reused if they exist: teacher, student, other (a student with another
    seed), unfinished, seeds/ (the runs of `seeds`) and exported (an export of student). The
    constructor changes the working directory to `folder`, because commands look for teachers in
    `runs/`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.sound, self.cache = folder, folder / "sound", folder / "cache"
        os.environ["UNDERSTUDY_CACHE"] = str(self.cache)
        if not (self.sound / "cache").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            os.chdir(folder)
            self._make()
        os.chdir(folder)
        self.restore()

    def _make(self) -> None:
        """Train the runs, write a report and an export, and copy runs and cache to `sound/`."""
        folder = self.folder
        write_images(folder / "images")
        np.save(folder / "images.npy", np.zeros((2, 32, 32, 3), np.uint8))
        self._train("train-teacher", "teacher", *NO_TEACHER)
        self._train("distill", "student", *self.with_teacher)
        self._train("distill", "other", *self.with_teacher, "--set", "train.seed=1")
        self._run("report", "runs/student", "--test-curve", "--out", "student.html")
        self._run("export", "runs/student", "--format", "safetensors", "--out", "runs/exported")
        shutil.copytree("runs/student", "runs/unfinished")
        for name in ("result.json", "evaluation.npz", "student.safetensors", "test_curve.json"):
            (folder / "runs/unfinished" / name).unlink()
        shutil.rmtree("runs/unfinished/last")
        os.rename("runs/unfinished/last.old", "runs/unfinished/last")
        self._run("seeds", *self.seeds)
        shutil.copytree("runs", self.sound / "runs")
        shutil.copytree(self.cache, self.sound / "cache")

    @property
    def with_teacher(self) -> tuple[str, ...]:
        """The options that train a student with the run `teacher` and a cache."""
        return ("--teacher", "runs/teacher", "--set", "cache.views=2")

    def command(self, verb: str, name: str, *more: object) -> tuple[object, ...]:
        """Return the CLI arguments that train a run into `runs/name`.

        `verb`: the command, such as `distill`. `more`: additional arguments.
        """
        return (verb, *SMALL, "--data", "images", "--out", f"runs/{name}", *more)

    @property
    def seeds(self) -> tuple[object, ...]:
        """The options of the command `seeds` with which the runs in `runs/seeds` were trained."""
        return (*SMALL, *NO_TEACHER, "--data", "images", "--n", 2, "--out", "runs/seeds")

    def restore(self) -> None:
        """Replace runs and cache by the unchanged copies."""
        for name in ("runs", "cache"):
            shutil.rmtree(name, ignore_errors=True)
            shutil.copytree(self.sound / name, name)

    def _train(self, verb: str, name: str, *more: object) -> None:
        self._run(*self.command(verb, name, *more))

    def _run(self, *arguments: object) -> None:
        ended = commands.run(*arguments)
        if ended.code:
            raise RuntimeError(f"{arguments}: {ended}")
