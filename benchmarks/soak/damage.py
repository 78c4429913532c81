"""Truncate files or flip one bit, and check that their readers detect it."""

import gzip
import os
import random
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.soak.outcome import Outcome
from benchmarks.soak.pickles import write_batches
from distill.data import array_cache
from distill.data.sources import download, load_data_set
from distill.data.sources.cifar import CIFAR10
from distill.data.sources.download import Archive
from distill.errors import UserError
from distill.models import checkpoint
from distill.models.checkpoint import DamagedCheckpoint

# For each kind of file, what the user sees if it is damaged.
SEEN = {
    "a checkpoint's tensors": (
        "“… is damaged: its sha256 is not the one it was written with”; the previous one is used"
    ),
    "a checkpoint's progress": "the same",
    "a teacher's weights": "“… is not the file that its run wrote: its sha256 differs.”, exit 2",
    "cached teacher logits": "computed and cached again; the run's notes and `cache verify` say so",
    "the official archive": "“… is not the official cifar-10-python.tar.gz: its md5 is …”",
    "an archive of images": "“… unreadable, truncated or damaged (CRC check failed …)”, exit 2",
}


def damage(folder: Path, tries: int, seed: int) -> list[Outcome]:
    """Truncate files or flip one bit, at random positions; count how often the reader detects it.

    `tries`: number of damaged files, divided among the kinds of file.
    """
    chance = random.Random(seed)
    samples = folder / "samples"
    shutil.rmtree(samples, ignore_errors=True)
    readers = dict(_samples(samples))
    outcomes = []
    for what, (path, is_noticed) in readers.items():
        outcome = Outcome(f"{what}: cut, or one bit flipped", SEEN[what])
        content = path.read_bytes()
        for _ in range(-(-tries // len(readers))):
            path.write_bytes(_damaged(content, chance))
            try:
                outcome.count(is_noticed(), f"{what}: not noticed")
            except Exception as fault:
                outcome.count(False, f"{what}: {type(fault).__name__}: {fault}")
        path.write_bytes(content)
        outcomes.append(outcome)
    return outcomes


def _damaged(content: bytes, chance: random.Random) -> bytes:
    """Return the content with one bit flipped, or truncated."""
    changed = bytearray(content)
    if chance.random() < 0.5:
        changed[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    else:
        del changed[chance.randrange(len(content)) :]
    return bytes(changed)


def _samples(folder: Path) -> Iterator[tuple[str, tuple[Path, Callable[[], bool]]]]:
    """Yield (kind, (path, check)) of an undamaged file of each kind.

    `check()` reads the file again after it was damaged. It returns whether the reader detects the
    damage, or returns the original content, because some bits of a file have no effect.
    """
    yield from _checkpoint(folder / "last")
    weights = folder / "teacher.safetensors"
    net = torch.nn.Linear(64, 64)
    sha256 = checkpoint.save_weights(weights, checkpoint.copy_weights(net))
    yield (
        "a teacher's weights",
        (weights, lambda: _refuses(lambda: checkpoint.load_weights(weights, net, sha256))),
    )
    yield _cached(folder / "cache")
    yield from _archives(folder)


def _checkpoint(last: Path) -> Iterator[tuple[str, tuple[Path, Callable[[], bool]]]]:
    """Yield (kind, (path, check)) of the two files of a checkpoint."""
    checkpoint.save(last, {"student": {"weight": torch.randn(64, 64)}}, {"step": 7, "epoch": 1})
    progress = checkpoint.load(last)[1]

    def is_noticed() -> bool:
        try:
            return bool(checkpoint.load(last)[1] == progress)  # damaged white space has no effect
        except DamagedCheckpoint:
            return True

    yield "a checkpoint's tensors", (last / "state.pt", is_noticed)
    yield "a checkpoint's progress", (last / "progress.json", is_noticed)


def _cached(cache: Path) -> tuple[str, tuple[Path, Callable[[], bool]]]:
    """Return (kind, (path, check)) of a view in the teacher cache."""
    os.environ["UNDERSTUDY_CACHE"] = str(cache)
    logits = np.random.default_rng(0).normal(size=(100, 10)).astype(np.float16)
    array_cache.save_cached("targets/view", logits)

    def is_noticed() -> bool:
        found = array_cache.load_cached("targets/view", (100, 10), np.float16)
        return found is None or np.array_equal(found, logits)

    return "cached teacher logits", (cache / "targets" / "view.npz", is_noticed)


def _archives(folder: Path) -> Iterator[tuple[str, tuple[Path, Callable[[], bool]]]]:
    """Yield (kind, (path, check)) of a downloaded archive, whose md5 is known, and of an archive
    that a user packed.
    """
    archive = folder / CIFAR10.archive
    archive.write_bytes(gzip.compress(os.urandom(20_000)))
    n_bytes = archive.stat().st_size
    official = Archive(archive.name, download.md5_of(archive, n_bytes), n_bytes, ())
    yield (
        "the official archive",
        (archive, lambda: _refuses(lambda: download.check(archive, official))),
    )
    batches, packed = folder / CIFAR10.folder, folder / "packed.tar.gz"
    write_batches(batches)
    with tarfile.open(packed, "w:gz") as file:
        file.add(batches, batches.name)
    fingerprint = load_data_set.load(str(packed), "train").fingerprint

    def is_same() -> bool:
        return load_data_set.load(str(packed), "train").fingerprint == fingerprint

    yield "an archive of images", (packed, lambda: _refuses(is_same) or is_same())


def _refuses(read: Callable[[], object]) -> bool:
    """Whether `read` raises UserError."""
    try:
        read()
    except UserError:
        return True
    return False
