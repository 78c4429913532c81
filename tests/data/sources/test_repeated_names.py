"""Files that contain one name twice: which content is meant is unknown, so they are refused."""

import io
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from distill.data.sources import cifar, unpickle
from distill.errors import UserError
from distill.files.untrusted_arrays import InvalidArray, open_npz


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("second", ["data.npy", "data"])
def test_array_name_twice_is_refused(second: str, tmp_path: Path) -> None:
    content, path = io.BytesIO(), tmp_path / "a.npz"
    np.save(content, np.zeros(2))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.npy", content.getvalue())
        archive.writestr(second, content.getvalue())
    with pytest.raises(InvalidArray, match="two of its arrays have the same name"), open_npz(path):
        pass


def test_key_as_text_and_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match="two of its keys are the same text"):
        unpickle.loads(pickle.dumps({"data": 1, b"data": 2}))
    assert unpickle.loads(pickle.dumps({b"\xff": 1, b"\xfe": 2}, protocol=2)) is not None


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def test_member_twice_is_refused_elsewhere_ignored(tmp_path: Path) -> None:
    layout = cifar.CIFAR10
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        add(archive, f"{layout.folder}/{layout.meta}", b"first")
        add(archive, f"evil/{layout.folder}/{layout.meta}", b"elsewhere")
    batches = cifar.Batches(path, layout)
    assert cifar._read(batches, [layout.meta]) == {layout.meta: b"first"}
    with tarfile.open(path, "a") as archive:
        add(archive, f"{layout.folder}/{layout.meta}", b"second")
    with pytest.raises(UserError, match=f"it contains {layout.meta} twice"):
        cifar._read(batches, [layout.meta])
