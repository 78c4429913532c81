"""Files and recipes that are damaged, random or hostile: refused in words, and nothing runs."""

import gzip
import io
import json
import os
import pickle
import random
import shutil
import string
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.soak.outcome import Outcome
from distill.data import array_cache
from distill.data.sources import cifar, download, image_set
from distill.data.sources.cifar import CIFAR10
from distill.data.sources.download import Archive
from distill.errors import UserError
from distill.models import checkpoint
from distill.models.checkpoint import DamagedCheckpoint
from distill.recipe import recipes
from distill.recipe.compose import shipped_paths
from distill.recipe.validation import keys


def fuzz(place: Path, tries: int, seed: int) -> list[Outcome]:
    """Recipes of random parts, random keys and values, and shipped ones with random damage."""
    chance = random.Random(seed)
    outcome = Outcome(
        "a recipe of random parts, keys, values and damage",
        "the resolved recipe, or all its faults at once",
    )
    texts = [path.read_text() for path in shipped_paths()]
    names = [path.stem for path in shipped_paths()]
    for _ in range(tries):
        overrides = [_override(chance) for _ in range(chance.randrange(4))]
        if chance.random() < 0.5:
            parts = [chance.choice([*names, _word(chance)]) for _ in range(chance.randrange(1, 4))]
            asked: Callable[[], object] = partial(recipes.load, "+".join(parts), overrides)
        else:
            asked = partial(recipes.loads, _harmed(chance.choice(texts), chance), "fuzzed.toml")
        try:
            asked()
            is_well = True
        except UserError as fault:
            is_well = bool(str(fault).strip())
        except Exception as fault:  # what must not be
            is_well, what = False, f"{type(fault).__name__}: {fault}"
        outcome.count(is_well, "" if is_well else what)
    return [outcome]


def _override(chance: random.Random) -> str:
    key = chance.choice([*sorted(keys()), _word(chance), f"{_word(chance)}.{_word(chance)}"])
    return f"{key}={_value(chance)}" if chance.random() < 0.95 else _word(chance)


def _value(chance: random.Random) -> str:
    plain = [
        "0", "-1", "1", "1e400", "-0.0", "nan", "inf", "true", "false", '""', "[]", "{}", "[[[]]]",
        "1979-05-27", "0x10", "9" * 30, '"cutmix"', "[1, 2, 3]", "{a = 1}", "=", "[1,", '"', "\0",
        "é",
        "[" * 2000, "{a=" * 500, "1" + "0" * 5000,
    ]  # fmt: skip
    return chance.choice([*plain, _word(chance), str(chance.uniform(-10, 10))])


def _word(chance: random.Random) -> str:
    return "".join(chance.choices(string.printable, k=chance.randrange(1, 12)))


def _harmed(text: str, chance: random.Random) -> str:
    """A few letters changed, taken out, doubled; or cut; or lines in another order."""
    letters = list(text)
    for _ in range(chance.randrange(1, 8)):
        at = chance.randrange(len(letters))
        letters[at] = chance.choice(["", letters[at] * 2, chance.choice(string.printable), "\0"])
    lines = "".join(letters)[: chance.randrange(1, 2 * len(letters))].splitlines()
    if chance.random() < 0.3:
        chance.shuffle(lines)
    return "\n".join(lines)


def damage(place: Path, tries: int, seed: int) -> list[Outcome]:
    """Files cut short or with one bit turned, each at a random place."""
    chance = random.Random(seed)
    samples = place / "samples"
    shutil.rmtree(samples, ignore_errors=True)
    readers = dict(_samples(samples))
    outcomes = []
    for what, (path, is_noticed) in readers.items():
        outcome = Outcome(f"{what}: cut, or a bit turned", SEEN[what])
        content = path.read_bytes()
        for _ in range(-(-tries // len(readers))):
            harmed = bytearray(content)
            if chance.random() < 0.5:
                harmed[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
            else:
                del harmed[chance.randrange(len(content)) :]
            path.write_bytes(harmed)
            try:
                outcome.count(is_noticed(), f"{what}: not noticed")
            except Exception as fault:
                outcome.count(False, f"{what}: {type(fault).__name__}: {fault}")
        path.write_bytes(content)
        outcomes.append(outcome)
    return outcomes


SEEN = {
    "a checkpoint's tensors": (
        "“… is damaged: its sha256 is not the one it was written with: gone on from the one before”"
    ),
    "a checkpoint's progress": "the same",
    "a teacher's weights": "“… is not the file that its run wrote: its sha256 is another.”, exit 2",
    "stored answers": "asked and stored anew; the head of the run and `cache verify` say so",
    "the official archive": "“… is not the official cifar-10-python.tar.gz: its md5 is …”",
    "an archive of images": "“… unreadable, truncated or damaged (CRC check failed …)”, exit 2",
}


def _samples(place: Path) -> Iterator[tuple[str, tuple[Path, Callable[[], bool]]]]:
    """A sound file of each kind, and whether its reader notices what was done to it."""
    last = place / "last"
    checkpoint.save(last, {"student": {"weight": torch.randn(64, 64)}}, {"step": 7, "epoch": 1})

    known_progress = checkpoint.load(last)[1]

    def load() -> bool:
        """Not read; or read as it was, where what changed is a space."""
        try:
            return bool(checkpoint.load(last)[1] == known_progress)
        except DamagedCheckpoint:
            return True

    yield "a checkpoint's tensors", (last / "state.pt", load)
    yield "a checkpoint's progress", (last / "progress.json", load)
    weights = place / "teacher.safetensors"
    net = torch.nn.Linear(64, 64)
    known = checkpoint.save_weights(weights, checkpoint.copy_weights(net))
    yield (
        "a teacher's weights",
        (weights, lambda: _refuses(lambda: checkpoint.load_weights(weights, net, known))),
    )
    os.environ["UNDERSTUDY_CACHE"] = str(place / "cache")
    answers = np.random.default_rng(0).normal(size=(100, 10)).astype(np.float16)
    array_cache.save_cached("targets/view", answers)

    def recall() -> bool:
        """Not read; or read as it was, where the bit is one that says nothing."""
        found = array_cache.load_cached("targets/view", (100, 10), np.float16)
        return found is None or np.array_equal(found, answers)

    yield "stored answers", (place / "cache" / "targets" / "view.npz", recall)
    archive = place / CIFAR10.archive
    archive.write_bytes(gzip.compress(os.urandom(20_000)))
    official = Archive(archive.name, download.md5_of(archive), archive.stat().st_size, ())
    yield (
        "the official archive",
        (archive, lambda: _refuses(lambda: download.check(archive, official))),
    )
    folder = place / CIFAR10.folder
    _batches(folder, None)
    by_hand = place / "by-hand.tar.gz"
    with tarfile.open(by_hand, "w:gz") as packed:
        packed.add(folder, folder.name)
    known_images = image_set.load(str(by_hand), "train").fingerprint

    def images() -> bool:
        """Not read; or read as they were, where the bit is one that says nothing."""
        return image_set.load(str(by_hand), "train").fingerprint == known_images

    yield "an archive of images", (by_hand, lambda: _refuses(images) or images())


def _refuses(read: Callable[[], object]) -> bool:
    try:
        read()
    except UserError:
        return True
    return False


def hostile(place: Path, tries: int, seed: int) -> list[Outcome]:
    """Pickles that call, checkpoints that call, archives that climb: each with a mark to leave."""
    outcome = Outcome(
        "a hostile pickle, checkpoint or archive",
        "“… wants to run code (os.system); images need none”, “… is a link or a device”, “… leaves "
        "the folder”",
    )
    mark = place / "mark"
    place.mkdir(parents=True, exist_ok=True)
    for n, (what, read) in enumerate(_attacks(place, mark)):
        mark.unlink(missing_ok=True)
        try:
            read()
            is_refused = False
        except (UserError, DamagedCheckpoint) as fault:
            is_refused = any(reason in str(fault) for reason in REASONS)
        except Exception:  # what it called failed: it was called
            is_refused = False
        outcome.count(is_refused and not mark.exists(), f"{n}: {what}")
    return [outcome]


REASONS = ("wants to run code", "is a link or a device", "leaves the folder", "in the codec")


class _Calls:
    """Pickled, it is a call."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def _attacks(place: Path, mark: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    touch = f"touch {mark}"
    code = f"open({str(mark)!r}, 'w')"
    calls: dict[str, object] = {
        "os.system": _Calls(os.system, touch),
        "eval": _Calls(eval, code),
        "exec": _Calls(exec, code),
        "open": _Calls(open, str(mark), "w"),
        "getattr": _Calls(getattr, _Calls(__import__, "os"), "system"),
        "subprocess": _Calls(__import__("subprocess").call, ["touch", str(mark)]),
        "numpy's loader": _Calls(np.load, str(mark), None, True),
        "a codec": _Calls(__import__("codecs").encode, "x", "rot13"),
        "Path.touch": _Calls(Path.touch, mark),
    }
    for name, call in calls.items():
        for where in ("data", "key"):
            folder = place / f"{name}-{where}" / CIFAR10.folder
            _batches(folder, call if where == "data" else None)
            if where == "key":
                (folder / CIFAR10.meta).write_bytes(pickle.dumps({"label_names": [call] * 10}))
            there = cifar.Batches(folder, CIFAR10)
            yield f"{name} in {where}", partial(cifar.load, there, "train")
        if name == "a codec":
            continue  # torch lets it through: it turns a text into bytes
        last = place / f"{name}-last"
        checkpoint.save(last, {"student": {}}, {"step": 1})
        content = io.BytesIO()
        torch.save({"student": call}, content)
        _forged(last, content.getvalue())
        yield f"{name} in a checkpoint", partial(checkpoint.load, last)
    for name, member in _members(mark).items():
        path = place / f"{name}.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            info = tarfile.TarInfo(f"{CIFAR10.folder}/batches.meta")
            archive.addfile(info, io.BytesIO())
            archive.addfile(member)
        yield name, partial(cifar.check, cifar.Batches(path, CIFAR10))


def _forged(last: Path, state: bytes) -> None:
    """Another state under a digest that fits it."""
    progress = json.loads((last / "progress.json").read_text())
    del progress["sha256"]
    (last / "state.pt").write_bytes(state)
    digest = checkpoint.digest_of(state, progress)
    (last / "progress.json").write_text(json.dumps(progress | {"sha256": digest}))


def _batches(folder: Path, payload: object) -> None:
    """The official layout with four images a file, its first batch's pixels this or sound."""
    folder.mkdir(parents=True)
    (folder / CIFAR10.meta).write_bytes(pickle.dumps({"label_names": list("abcd")}))
    for n, name in enumerate((*CIFAR10.files["train"], *CIFAR10.files["test"])):
        pixels: Any = np.zeros((4, 3072), np.uint8)
        batch = {
            "data": payload if payload is not None and not n else pixels,
            "labels": [0, 1, 2, 3],
        }
        (folder / name).write_bytes(pickle.dumps(batch))


def _members(mark: Path) -> dict[str, tarfile.TarInfo]:
    """Members that no archive of images has."""

    def made(
        name: str, kind: bytes = tarfile.REGTYPE, to: str = "", size: int = 0
    ) -> tarfile.TarInfo:
        info = tarfile.TarInfo(name)
        info.type, info.linkname, info.size = kind, to, size
        return info

    inside = f"{CIFAR10.folder}/data_batch_1"
    return {
        "a path that climbs": made(f"../../{mark.name}"),
        "an absolute path": made(str(mark)),
        "a path that climbs inside": made(f"{CIFAR10.folder}/../../{mark.name}"),
        "a symbolic link": made(inside, tarfile.SYMTYPE, str(mark)),
        "a hard link": made(inside, tarfile.LNKTYPE, str(mark)),
        "a device": made(inside, tarfile.CHRTYPE),
        "a pipe": made(inside, tarfile.FIFOTYPE),
    }


PARTS: dict[str, Callable[[Path, int, int], list[Outcome]]] = {
    "recipes": fuzz,
    "damage": damage,
    "hostile": hostile,
}
