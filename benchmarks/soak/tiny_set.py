"""A few images and some runs on them, trained in this process, for attacks to change."""

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
    """Noise in class folders: 16 images of each class to train on, 8 to test."""
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
    """Runs in `place/runs`: teacher, student, other (another seed), unfinished, seeds/; and an
    export. They are trained once, and used again if they are there.

    The working directory is `place` while they are used: commands look for teachers in `runs/`.
    """

    def __init__(self, place: Path) -> None:
        self.place, self.sound, self.cache = place, place / "sound", place / "cache"
        os.environ["UNDERSTUDY_CACHE"] = str(self.cache)
        if not (self.sound / "cache").exists():
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
            os.chdir(place)
            self._make()
        os.chdir(place)
        self.restore()

    def _make(self) -> None:
        """Train, report and export once; `sound` has a copy of it all."""
        place = self.place
        write_images(place / "images")
        np.save(place / "images.npy", np.zeros((2, 32, 32, 3), np.uint8))
        self._train("train-teacher", "teacher", *NO_TEACHER)
        self._train("distill", "student", *self.with_teacher)
        self._train("distill", "other", *self.with_teacher, "--set", "train.seed=1")
        self._run("report", "runs/student", "--test-curve", "--out", "student.html")
        self._run("export", "runs/student", "--format", "safetensors", "--out", "runs/exported")
        shutil.copytree("runs/student", "runs/unfinished")
        for name in ("result.json", "evaluation.npz", "student.safetensors", "test_curve.json"):
            (place / "runs/unfinished" / name).unlink()
        shutil.rmtree("runs/unfinished/last")
        os.rename("runs/unfinished/last.old", "runs/unfinished/last")
        self._run("seeds", *self.seeds)
        shutil.copytree("runs", self.sound / "runs")
        shutil.copytree(self.cache, self.sound / "cache")

    @property
    def with_teacher(self) -> tuple[str, ...]:
        """Options that train a student with the teacher."""
        return ("--teacher", "runs/teacher", "--set", "cache.views=2")

    def command(self, verb: str, name: str, *more: object) -> tuple[object, ...]:
        """The arguments that train a run."""
        return (verb, *SMALL, "--data", "images", "--out", f"runs/{name}", *more)

    @property
    def seeds(self) -> tuple[object, ...]:
        """Options of `seeds`: runs that are finished, in a folder of their own."""
        return (*SMALL, *NO_TEACHER, "--data", "images", "--n", 2, "--out", "runs/seeds")

    def restore(self) -> None:
        """Put the runs and the cache back as they were trained."""
        for name in ("runs", "cache"):
            shutil.rmtree(name, ignore_errors=True)
            shutil.copytree(self.sound / name, name)

    def _train(self, verb: str, name: str, *more: object) -> None:
        self._run(*self.command(verb, name, *more))

    def _run(self, *arguments: object) -> None:
        ended = commands.run(*arguments)
        if ended.code:
            raise RuntimeError(f"{arguments}: {ended}")
