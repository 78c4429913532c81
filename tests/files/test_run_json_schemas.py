"""The JSON files of a run come from anybody: each damage is one message, never a traceback."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from distill.errors import UserError
from distill.files import run_json_schemas
from distill.files.run_json_schemas import fingerprint_of_names
from distill.runs.run_folder import RunFolder, write_json

SOUND: dict[str, Any] = {
    "role": "teacher", "recipe": "kd", "recipe_fingerprint": "ab", "network": "WRN",
    "parameters": 7, "class_names": ["cat", "dog"], "epoch": 1, "epochs": 2, "elapsed_s": 3.5,
    "data": {"source": "synthetic", "fingerprint": "f", "train_images": 5, "val_images": 0},
    "teacher": {"runs": [], "fingerprint": "", "top1": None}, "device": "cpu", "precision": "fp32",
    "metrics": {"top1/test": 1, "nll/test": float("nan")}, "processes": 1, "weights": "cd",
    "finished_at": "2026-01-31T12:00:00Z",
}  # fmt: skip
NOT_A_TABLE = {
    "empty": (b"", "is not JSON"),
    "a list": (b"[]", "it contains a list instead of a table"),
    "null": (b"null", "it contains null instead of a table"),
    "a number": (b"3", "it contains a number instead of a table"),
    "deep": (b'{"a":' * 100_000, "nested more than 32 levels"),
    "whole and deep": (b'{"a":' + b"[" * 40 + b"]" * 40 + b"}", "nested more than 32 levels"),
    "not text": (b"\xff\xfe\xfd", "is not (JSON|text in UTF-8)"),
    "half a character": (rb'{"network": "\ud800"}', "is not text in UTF-8"),
    "a long integer": (b'{"epoch": ' + b"9" * 5000 + b"}", "integer of more than 64 bits"),
    "large": (b" " * ((16 << 20) + 1), "more than 16,777,216 bytes"),
}
WRONG = [
    ("role", "tutor"), ("role", None), ("network", 3), ("parameters", -1), ("parameters", "7"),
    ("class_names", "cat"), ("class_names", [1]), ("data", []), ("data", {"fingerprint": 1}),
    ("data", {"val_images": True}), ("teacher", None), ("teacher", {"runs": "runs/t"}),
    ("metrics", {"top1/test": "1"}), ("metrics", {"top1/test": 1.5}), ("metrics", [0.5]),
    ("metrics", {"top1/test": float("nan")}), ("elapsed_s", float("inf")), ("elapsed_s", -1),
    ("finished_at", "yesterday"), ("finished_at", 7), ("weights", {}), ("network", "x" * 5000),
]  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


def test_sound_result_is_read_unchanged(run: RunFolder) -> None:
    later = SOUND | {"metrics": {"top1/test": 0.5}, "data": SOUND["data"] | {"test": "ef"}, "x": 1}
    write_json(run.result_file, later)
    assert run.result() == later


@pytest.mark.parametrize("name", NOT_A_TABLE)
def test_damaged_file_is_one_message(run: RunFolder, name: str) -> None:
    content, fault = NOT_A_TABLE[name]
    readers = {
        run.result_file: run.result,
        run.environment: lambda: run_json_schemas.environment(run.environment),
        run.path / "progress.json": lambda: run_json_schemas.progress(run.path / "progress.json"),
    }
    for path, read in readers.items():
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"^{re.escape(str(path))} is damaged: .*{fault}"):
            read()


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_wrong_type_in_result_is_named(run: RunFolder, key: str, value: object) -> None:
    write_json(run.result_file, SOUND | {key: value})
    with pytest.raises(UserError, match=f"result.json is damaged: '{key}.*\nRestore the file"):
        run.result()


def test_class_names_must_have_their_fingerprint(run: RunFolder) -> None:
    data = SOUND["data"] | {"class_names_fingerprint": fingerprint_of_names(["cat", "dog"])}
    write_json(run.result_file, SOUND | {"data": data})
    assert run.result()["class_names"] == ["cat", "dog"]
    write_json(run.result_file, {"data": data, "class_names": ["dog", "cat"]})
    with pytest.raises(UserError, match="its class_names do not have its class_names_fingerprint"):
        run.result()


def test_missing_key_is_named_when_needed(run: RunFolder) -> None:
    write_json(run.result_file, {"data": {"source": "x"}})
    assert run.result()["data"]["source"] == "x"
    with pytest.raises(UserError, match="has no 'data.fingerprint': another version wrote it"):
        run.result()["data"]["fingerprint"]
    with pytest.raises(UserError, match="has no 'role': another version"):
        _ = run.role


def test_number_of_classes_is_bounded(run: RunFolder) -> None:
    names = [f"c{k}" for k in range(2_001)]
    write_json(run.result_file, SOUND | {"class_names": names[:2_000]})
    assert len(run.result()["class_names"]) == 2_000
    write_json(run.result_file, SOUND | {"class_names": names})
    with pytest.raises(UserError, match="'class_names': it has 2001 items; at most 2000 are read"):
        run.result()


def test_pipe_and_folder_are_refused(run: RunFolder) -> None:
    os.mkfifo(run.result_file)
    with pytest.raises(UserError, match="is damaged: it is not a regular file"):
        run.result()
    run.result_file.unlink()
    run.result_file.mkdir()
    with pytest.raises(UserError, match=r"result.json cannot be read: Is a directory"):
        run.result()


@pytest.mark.parametrize(
    "content",
    [
        {"a": []},
        {"a": {"top1/test": "1"}},
        [],
        {"a": {"top1/test": 1.5}},
        {"a": {"nll/train": 1e308}},
        {"a": {"top1/test": float("nan")}},
    ],
)
def test_wrong_type_in_test_curve_is_named(run: RunFolder, content: object) -> None:
    run.test_curve.write_text(json.dumps(content))
    with pytest.raises(UserError, match="test_curve.json is damaged: .*\nDelete it: its measures"):
        run_json_schemas.test_curve(run.test_curve)


@pytest.mark.parametrize(
    "change",
    [
        {"step": "3"},
        {"best": {"epoch": "../../x", "metrics": {}, "weights": ""}},
        {"best": {"epoch": 1, "metrics": {}, "weights": "", "more": 1}},
        {"elapsed_s": None},
        {"lr_factor": float("nan")},
    ],
)
def test_wrong_type_in_progress_is_named(run: RunFolder, change: dict[str, object]) -> None:
    path = run.path / "progress.json"
    path.write_text(json.dumps(change))
    with pytest.raises(UserError, match=f"progress.json is damaged: '{next(iter(change))}"):
        run_json_schemas.progress(path)
