"""Run `cli.py` in this process or in another, and check what it prints."""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distill.data.sources.cifar import CIFAR10
from distill.runs.journal import Journal

REPO = Path(__file__).parents[2]


ALONE = ["--set", "loss.kd=false", "--set", "loss.hard.weight=1"]


SMALL = [
    "--recipe", "tiny", "--set", "data.holdout=0.25", "--set", "data.train_images=24",
    "--set", "train.batch_size=8", "--set", "train.epochs=2",
]  # fmt: skip


@dataclass(frozen=True)
class CommandResult:
    """Exit code and output of one command."""

    code: int
    out: str
    err: str


RunCli = Callable[..., CommandResult]


def start_cli(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    """`python cli.py …` for real."""
    return subprocess.Popen(
        [sys.executable, str(REPO / "cli.py"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )


def assert_refused(result: CommandResult, *found: str, lines: int | None = None) -> None:
    """One message on stderr that holds every text of `found`, nothing on stdout, exit 2."""
    assert result.code == 2
    assert result.out == ""
    assert "Traceback" not in result.err
    for text in found:
        assert result.err.count(text) == 1, (text, result.err)
    assert lines is None or len(result.err.splitlines()) == lines, result.err


def after_each_epoch(patched: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    """Call `act` once the journal of a run in this process has the end of an epoch."""
    write = Journal.__call__

    def write_and_act(journal: Journal, event: object) -> None:
        write(journal, event)  # type: ignore[arg-type]
        if type(event).__name__ == "Epoch":
            act()

    patched.setattr(Journal, "__call__", write_and_act)


def write_pets(root: Path, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    """A set of noise in class folders: 16 images a class to train on, 8 to test."""
    pixels = np.random.default_rng(0)
    for split, n in (("train", 16), ("test", 8)):
        for name in classes:
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(n):
                array = pixels.integers(256, size=(32, 32, 3), dtype=np.uint8)
                Image.fromarray(array).save(folder / f"{i}.png")
    return root


def write_batches(root: Path) -> Path:
    """The official layout with four images a file."""
    folder = root / CIFAR10.folder
    folder.mkdir(parents=True)
    names = [f"class {i}" for i in range(4)]
    meta = {"label_names": names, "num_cases_per_batch": 4}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta))
    for k, name in enumerate((*CIFAR10.files["train"], "test_batch")):
        data = np.full((4, 3072), k, dtype=np.uint8)
        batch = {"data": data, "labels": list(range(4))}
        (folder / name).write_bytes(pickle.dumps(batch))
    return folder


def unfolded(text: str) -> str:
    """A screen of 80 columns as one line."""
    return " ".join(text.split())
