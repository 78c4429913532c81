"""One reader for untrusted files: never a pipe or a device, never more than a bound."""

import hashlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from distill.data.sources import download, images_to_predict, pictures
from distill.errors import UserError
from distill.files import regular_file, run_json_schemas, tar_archives, untrusted_arrays
from distill.files.regular_file import InvalidFile
from distill.models import checkpoint
from distill.models.checkpoint import DamagedCheckpoint
from distill.recipe import compose
from distill.runs.run_folder import file_sha256
from distill.sweep import sweep_file

REFUSALS = (UserError, ValueError, DamagedCheckpoint)


def read_state(path: Path) -> object:
    """Read a checkpoint whose state.pt is that file."""
    (path.parent / "state.pt").symlink_to(path)
    (path.parent / "progress.json").write_text('{"format": 2}')
    return checkpoint.read_verified(path.parent)


def recipe_of(path: Path) -> object:
    faults: list[str] = []
    compose.parsed(path, faults)
    raise ValueError(*faults)


def fetched(path: Path) -> object:
    archive = download.ARCHIVES["cifar10"]
    path.rename(path.with_name(archive.name))
    return download.fetch("cifar10", path.parent)


READERS: dict[str, Callable[[Path], Any]] = {
    "json": run_json_schemas.content_of,
    "npy": untrusted_arrays.read_npy,
    "npz": lambda path: untrusted_arrays.open_npz(path).__enter__(),
    "member": tar_archives.content_of,
    "tar": lambda path: tar_archives.open_tar(path).__enter__(),
    "picture": pictures.content,
    "images": images_to_predict.load,
    "state": read_state,
    "weights": lambda path: checkpoint.load_weights(path, nn.Linear(2, 2)),
    "fingerprint": file_sha256,
    "recipe": recipe_of,
    "sweep": sweep_file.load,
    "archive": fetched,
}


@pytest.fixture(autouse=True)
def no_waiting() -> Iterator[None]:
    """End a read that waits for ever."""

    def end(*_: object) -> None:
        raise AssertionError("waited for 5 s")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(5)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("name", READERS)
def test_pipe_is_refused_without_waiting(name: str, tmp_path: Path) -> None:
    path = tmp_path / ("a.png" if name == "images" else "a")
    os.mkfifo(path)
    with pytest.raises(REFUSALS, match=r"is not a regular file|is a pipe or a device"):
        READERS[name](path)


@pytest.mark.parametrize("name", ["state", "weights", "fingerprint", "picture", "json"])
def test_sparse_file_is_refused_unread(name: str, tmp_path: Path) -> None:
    with (tmp_path / "a").open("wb") as file:
        file.truncate(200 << 30)
    with pytest.raises(REFUSALS, match=r"more than [\d,]+ bytes|214,748,364,800 bytes"):
        READERS[name](tmp_path / "a")


@pytest.mark.parametrize("name", ["state", "weights", "fingerprint", "picture", "json"])
def test_device_is_refused_unread(name: str, tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("/dev/zero")
    with pytest.raises(REFUSALS, match="is not a regular file"):
        READERS[name](tmp_path / "a")


def test_full_memory_is_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"12345")

    class Full:
        def read(self, _: int) -> bytes:
            raise MemoryError

        def fileno(self) -> int:
            return opened.fileno()

        def __enter__(self) -> "Full":
            return self

        def __exit__(self, *_: object) -> None:
            opened.close()

    opened = (tmp_path / "a").open("rb")
    monkeypatch.setattr(regular_file, "open", lambda *_, **__: Full(), raising=False)
    with pytest.raises(InvalidFile, match="its 5 bytes do not fit into memory"):
        regular_file.content_of(tmp_path / "a", 10)


def test_digest_is_that_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    expected = hashlib.sha256(b"12345").hexdigest()
    assert regular_file.sha256_of(tmp_path / "a", 5) == expected
    with pytest.raises(InvalidFile, match="more than 4 bytes"):
        regular_file.sha256_of(tmp_path / "a", 4)
