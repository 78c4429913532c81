"""Change a run's files at random: single values, text, arrays, or the whole file."""

import io
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from distill.models import checkpoint
from distill.runs.run_folder import file_sha256

# Values that replace a value in a JSON file.
ODD: list[Any] = [
    None, True, False, -1, 0, 1, 3, 2**31, 2**62, 2**200, 1e308, -0.5, float("inf"), float("nan"),
    "", "x" * 9000, "\0", "[bold]x[/red]", "\x1b[31mred\x07", "\u202egnp", "\ud800", "\udcff",
    "../../neighbour/file", "/dev/zero", "<script>", '""";PWNED', "9999-12-31", "nan",
    "2026-01-31T12:00:00Z", [], [None], [[[[]]]], ["x"] * 5000, {}, {"": None}, {"x": {"y": []}},
]  # fmt: skip


def change_value(value: Any, chance: random.Random) -> Any:
    """Return a JSON value in which one part, at any depth, is replaced, removed, renamed or
    repeated.
    """
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice(sorted(value))
        rest = {name: item for name, item in value.items() if name != key}
        kind = chance.random()
        if kind < 0.2:
            return rest
        if kind < 0.3:
            return rest | {chance.choice(["", "x", "\x1b[31m", key.upper()]): value[key]}
        return value | {key: change_value(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.8:
        at = chance.randrange(len(value))
        some = [change_value(value[at], chance)] * chance.choice([0, 1, 1, 1, 2])
        return [*value[:at], *some, *value[at + 1 :]]
    if isinstance(value, int | float) and chance.random() < 0.3:
        return value + chance.choice([-1, 1, 0.5, 1000])
    return chance.choice(ODD)


def change_text(text: bytes, chance: random.Random) -> bytes:
    """Return `text`, the content of a text file, damaged or replaced by something else."""
    at = chance.randrange(len(text) + 1)
    return chance.choice([
        b"", b"[]", b"null", b"0", b'"x"', b"{}", b"\xff\xfe\x00", b"\xef\xbb\xbf" + text,
        b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000, text[:at], text + text,
        text[:at] + bytes([chance.randrange(256)]) + text[at + 1 :], text.replace(b"\n", b""),
        text.replace(b'"', b"'"), text.replace(b"0", b"NaN"), b" " * 1_000_000 + text,
    ])  # fmt: skip


def change_json(path: Path, chance: random.Random) -> None:
    """Change a JSON file, or one line of a journal (.jsonl)."""
    text = path.read_bytes()
    if chance.random() < 0.25:
        path.write_bytes(change_text(text, chance))
        return
    is_journal = path.suffix == ".jsonl"
    rows = [json.loads(line) for line in text.splitlines()] if is_journal else [json.loads(text)]
    at = chance.randrange(len(rows))
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        rows[at] = change_value(rows[at], chance)
    if is_journal and chance.random() < 0.1:
        chance.shuffle(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def change_progress(path: Path, chance: random.Random) -> None:
    """Change the progress.json of a checkpoint; in half of the cases update its digest."""
    if chance.random() < 0.5:
        change_json(path, chance)
        return
    progress = json.loads(path.read_text())
    fields = {key: value for key, value in progress.items() if key not in ("sha256", "format")}
    changed = change_value(fields, chance)
    if isinstance(changed, dict):
        changed |= {"format": progress["format"]}
        digest = checkpoint.digest_of((path.parent / "state.pt").read_bytes(), changed)
        changed |= {"sha256": digest}
    path.write_text(json.dumps(changed))


def change_arrays(path: Path, chance: random.Random) -> None:
    """Change an array or a byte of an .npz; in most cases update its fingerprint in result.json."""
    content = path.read_bytes()
    if chance.random() < 0.3:
        at = chance.randrange(len(content))
        damaged = chance.choice([b"", content[:at], content[:at] + b"\xff" + content[at + 1 :]])
        path.write_bytes(damaged)
    else:
        with np.load(path) as file:
            arrays = dict(file)
        for _ in range(chance.choice([1, 1, 2])):
            name = chance.choice(sorted(arrays))
            arrays[name] = change_array(arrays[name], chance)
        buffer = io.BytesIO()
        np.savez(buffer, **{name: array for name, array in arrays.items() if array is not None})
        path.write_bytes(buffer.getvalue())
    result_file = path.with_name("result.json")
    if chance.random() < 0.7 and result_file.exists():
        result = json.loads(result_file.read_text())
        result["evaluation"] = file_sha256(path)
        result_file.write_text(json.dumps(result))


def change_array(array: Any, chance: random.Random) -> Any:
    """Return an array of another shape, type or other elements; None means to remove the array."""
    if array is None or not array.size:
        return np.zeros((3, 3))
    filled = np.full(array.shape, chance.choice([np.nan, np.inf, -1.0, 1e30, 99.0]))
    with np.errstate(invalid="ignore"):
        changes: list[Callable[[], Any]] = [
            lambda: None, lambda: array[:-1], lambda: array[..., :0], lambda: array[..., :1],
            lambda: array.reshape(-1), lambda: array[None], lambda: filled,
            lambda: filled.astype(array.dtype), lambda: array.astype(np.complex64),
            lambda: array.astype("U3"), lambda: array.astype(np.float16), lambda: array != 0,
            lambda: np.array(0), lambda: np.array([{"a": 1}], dtype=object),
            lambda: np.zeros((0, 2)), lambda: np.concatenate([array, array]),
        ]  # fmt: skip
        return chance.choice(changes)()


def change_recipe(path: Path, chance: random.Random) -> None:
    """Change the value of a key, or another line, of a recipe; sometimes damage the text too."""
    lines = path.read_text().splitlines()
    at = chance.randrange(len(lines))
    key, equals, _ = lines[at].partition(" = ")
    values = ["0", "-1", "1e308", "nan", '"x"', '"\\u001b[31m"', "[]", "true", "9" * 30, "[[["]
    lines[at] = f"{key} = {chance.choice(values)}" if equals else chance.choice(["", "[x]", "x"])
    path.write_text("\n".join(lines))
    if chance.random() < 0.2:
        path.write_bytes(change_text(path.read_bytes(), chance))


def replace_file(path: Path, chance: random.Random, target: Path) -> None:
    """Delete a file or folder, or put a folder, a pipe or a link in its place.

    `target`: a file outside the run, to which the link may point.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    kind = chance.choice(["missing", "folder", "pipe", "link", "loop", "dangling", "device"])
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(target)
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "dangling":
        path.symlink_to(target.with_name("not there"))
    elif kind == "device":
        path.symlink_to("/dev/zero")
