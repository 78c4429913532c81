"""The official archives in miniature: folder, parent and archive; every fault by name."""

import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from distill.data.sources import cifar, load_data_set
from distill.data.sources.cifar import CIFAR10, CIFAR100, Layout
from distill.errors import UserError

NAMES = ("ant", "bee", "cod")
PER_FILE = 6


def content_of(seed: int, labels_key: str, text: type[str] | type[bytes] = bytes) -> dict:
    data = np.random.default_rng(seed).integers(0, 256, (PER_FILE, 3072), dtype=np.uint8)
    labels = [i % len(NAMES) for i in range(PER_FILE)]
    batch = {"data": data, labels_key: labels, "batch_label": "one"}
    return {key.encode(): value for key, value in batch.items()} if text is bytes else batch


def write(
    root: Path, layout: Layout = CIFAR10, text: type[str] | type[bytes] = bytes, protocol: int = 2
) -> Path:
    """A whole small set in `root/<official folder>`; returns that folder."""
    folder = root / layout.folder
    folder.mkdir(parents=True)
    names = [name.encode() if text is bytes else name for name in NAMES]
    meta: dict = {layout.names_key: names}
    if layout is CIFAR10:
        meta |= {"num_cases_per_batch": PER_FILE, "num_vis": 3072}
    if text is bytes:
        meta = {key.encode(): value for key, value in meta.items()}
    (folder / layout.meta).write_bytes(pickle.dumps(meta, protocol))
    for seed, name in enumerate((*layout.files["train"], *layout.files["test"])):
        batch = content_of(seed, layout.labels_key, text)
        (folder / name).write_bytes(pickle.dumps(batch, protocol))
    return folder


def pack(folder: Path, path: Path) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, folder.name)
    return path


def rewrite(path: Path, **changes: object) -> None:
    """Replace entries of a pickled batch; None removes one."""
    batch = pickle.loads(path.read_bytes())
    for key, value in changes.items():
        batch[key.encode()] = value
        if value is None:
            del batch[key.encode()]
    path.write_bytes(pickle.dumps(batch, 2))


@pytest.mark.parametrize("text", [bytes, str])
@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize("layout", [CIFAR10, CIFAR100], ids=lambda layout: layout.title)
def test_planes_labels_and_names(layout: Layout, text: type, protocol: int, tmp_path: Path) -> None:
    folder = write(tmp_path, layout, text, protocol)
    load_data_set.check(str(folder))
    train = load_data_set.load(str(folder), "train")
    n_files = len(layout.files["train"])
    assert train.class_names == NAMES
    assert train.images.shape == (n_files * PER_FILE, 3, 32, 32)
    assert train.images.dtype == np.uint8
    assert train.images.flags.c_contiguous
    assert train.labels.dtype == np.int64
    assert train.labels.tolist() == [0, 1, 2, 0, 1, 2] * n_files
    first = content_of(0, "labels", str)["data"]
    assert train.images[1, 2, 3, 4] == first[1, 2 * 1024 + 3 * 32 + 4]  # blue, row 3, column 4
    test = load_data_set.load(str(folder), "test")
    assert (test.images.reshape(-1, 3072) == content_of(n_files, "labels", str)["data"]).all()


@pytest.mark.parametrize("layout", [CIFAR10, CIFAR100], ids=lambda layout: layout.title)
def test_folder_parent_and_archive_hold_the_same(layout: Layout, tmp_path: Path) -> None:
    folder = write(tmp_path / "a", layout)
    archive = pack(folder, tmp_path / "under another name.tgz")
    (tmp_path / "b").mkdir()
    pack(folder, tmp_path / "b" / layout.archive)
    places = [folder, folder.parent, archive, tmp_path / "b"]
    for place in places:
        load_data_set.check(str(place))
    prints = {load_data_set.load(str(place), "train").fingerprint for place in places}
    assert len(prints) == 1
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == [layout.archive]  # not extracted


def test_a_small_set_is_not_the_genuine_one(tmp_path: Path) -> None:
    assert load_data_set.describe(load_data_set.load(str(write(tmp_path)), "train")) is None


def test_every_missing_file_is_named_at_once(tmp_path: Path) -> None:
    folder = write(tmp_path)
    for name in ("data_batch_2", "data_batch_4", "test_batch"):
        (folder / name).unlink()
    expected = (
        r"3 faults in .*\n  data_batch_2: missing\n  data_batch_4: missing\n  test_batch: miss"
    )
    with pytest.raises(UserError, match=expected):
        load_data_set.check(str(folder))
    with pytest.raises(
        UserError, match=r"2 faults.*\n  data_batch_2: missing\n  data_batch_4: mis"
    ):
        load_data_set.load(str(folder), "train")
    with pytest.raises(
        UserError, match="put the official archive cifar-10-python.tar.gz in ./data"
    ):
        load_data_set.load(str(folder), "test")


def test_without_meta_file_batches_are_still_looked_at(tmp_path: Path) -> None:
    folder = write(tmp_path)
    (folder / "batches.meta").unlink()
    (folder / "test_batch").write_bytes(b"")
    expected = r"2 faults.*\n  batches.meta: missing\n  test_batch: truncated, 0 bytes"
    with pytest.raises(UserError, match=expected):
        load_data_set.check(str(folder))
    with pytest.raises(
        UserError, match=r"batches.meta: missing\n  test_batch: truncated or damaged"
    ):
        load_data_set.load(str(folder), "test")


def test_a_missing_file_of_an_archive(tmp_path: Path) -> None:
    folder = write(tmp_path)
    (folder / "test_batch").unlink()
    archive = pack(folder, tmp_path / "c.tar.gz")
    with pytest.raises(UserError, match=r"1 fault in .*c.tar.gz:\n  test_batch: missing"):
        load_data_set.check(str(archive))
    with pytest.raises(UserError, match="test_batch: missing"):
        load_data_set.load(str(archive), "test")
    assert len(load_data_set.load(str(archive), "train").labels) == 5 * PER_FILE


def test_faults_of_many_kinds_in_one_message(tmp_path: Path) -> None:
    folder = write(tmp_path)
    rewrite(folder / "data_batch_1", labels=[0, 1, 2, 0, 1])
    rewrite(folder / "data_batch_2", labels=[0, 1, 2, 0, 1, 3])
    rewrite(folder / "data_batch_3", data=np.zeros((6, 3071), dtype=np.uint8))
    rewrite(folder / "data_batch_4", data=np.zeros((6, 3072), dtype=np.float32))
    whole = (folder / "data_batch_5").read_bytes()
    (folder / "data_batch_5").write_bytes(whole[:-1000])
    with pytest.raises(UserError) as caught:
        load_data_set.load(str(folder), "train")
    lines = str(caught.value).splitlines()
    assert lines[0] == f"5 faults in {folder}:"
    assert lines[1] == "  data_batch_1: 6 images but 5 labels"
    assert lines[2] == "  data_batch_2: label 3 is outside 0..2 (batches.meta)"
    assert lines[3] == "  data_batch_3: data has the shape [6, 3071], not [N, 3072]"
    assert lines[4] == "  data_batch_4: data is float32, not uint8"
    assert lines[5].startswith("  data_batch_5: truncated or damaged (")
    assert lines[6].startswith("Type python cli.py data fetch, put the")


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"labels": None}, "data_batch_1: has no 'labels'"),
        ({"labels": None, "data": None}, "data_batch_1: has no 'data' and no 'labels'"),
        ({"data": [1, 2]}, "data_batch_1: data is a list, not uint8"),
        ({"labels": [0, 1, 2, 0, 1, -1]}, r"label -1 is outside 0\.\.2"),
        ({"labels": [0.5] * 6}, r"labels is float64 \[6\], not integers \[N\]"),
        ({"labels": 7}, "labels is a number, not integers"),
        ({"labels": {b"a": 1}}, "labels is a dictionary, not integers"),
        ({"labels": [0, 1, 2, 0, 1, "x" * 10_000]}, "labels contains a string, not integers"),
        ({"labels": [[0], [1]]}, r"labels contains a list, not integers \[N\]"),
        (
            {"labels": [0, 1], "data": np.zeros((2, 3072), dtype=np.uint8)},
            "data_batch_1: 2 images, but batches.meta declares 6",
        ),
    ],
)
def test_one_faulty_batch(changes: dict, fault: str, tmp_path: Path) -> None:
    folder = write(tmp_path)
    rewrite(folder / "data_batch_1", **changes)
    with pytest.raises(UserError, match=fault):
        load_data_set.load(str(folder), "train")


def test_labels_in_an_array_are_labels(tmp_path: Path) -> None:
    folder = write(tmp_path)
    rewrite(folder / "test_batch", labels=np.array([2, 1, 0, 2, 1, 0], dtype=np.uint8))
    assert load_data_set.load(str(folder), "test").labels.tolist() == [2, 1, 0, 2, 1, 0]


def test_a_class_without_an_image_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path)
    rewrite(folder / "test_batch", labels=[0, 0, 0, 2, 2, 2])
    with pytest.raises(UserError, match="class 'bee' has no test image"):
        load_data_set.load(str(folder), "test")


def test_a_batch_that_wants_to_run_code(tmp_path: Path) -> None:
    folder = write(tmp_path)
    (folder / "data_batch_3").write_bytes(b"cposix\nsystem\n(S'true'\ntR.")
    with pytest.raises(UserError, match=r"data_batch_3: tries to run code \(posix.system\)"):
        load_data_set.load(str(folder), "train")


@pytest.mark.parametrize(
    ("meta", "fault"),
    [
        ({"label_names": ["a", 3]}, "batches.meta: label_names contains a number, not a name"),
        ({"label_names": ["a" * 1001]}, "label_names contains a name of 1,001 characters"),
        ({"label_names": ["a"] * 2_001}, "label_names has 2,001 names; the maximum is 2,000"),
        (
            {"label_names": ["a", "b\ud800"]},
            "the class name 'b\\\\ud800' is not text",
        ),
        ({"label_names": ["a", "b", "a"]}, "batches.meta: the class names 'a' and 'a' are equal"),
        ({"label_names": ["\xe9", "e\u0301"]}, "are equal, or differ in their Unicode form only"),
        ({"label_names": 3}, "batches.meta: has no list 'label_names'"),
        ({"label_names": []}, "batches.meta: has no list 'label_names'"),
        ([1], "batches.meta: contains a list, not a dictionary"),
    ],
)
def test_a_faulty_meta_file(meta: object, fault: str, tmp_path: Path) -> None:
    folder = write(tmp_path)
    (folder / "batches.meta").write_bytes(pickle.dumps(meta))
    with pytest.raises(UserError, match=fault):
        load_data_set.load(str(folder), "train")
    with pytest.raises(UserError, match=fault):
        load_data_set.check(str(folder))


def test_check_sees_a_short_file_without_reading_it(tmp_path: Path) -> None:
    folder = write(tmp_path)
    (folder / "test_batch").write_bytes(b"x" * 1000)
    expected = r"test_batch: truncated, 1,000 bytes, while its images need 18,432"
    with pytest.raises(UserError, match=expected):
        load_data_set.check(str(folder))


def test_a_truncated_archive(tmp_path: Path) -> None:
    archive = pack(write(tmp_path), tmp_path / "c.tar.gz")
    archive.write_bytes(archive.read_bytes()[:-40_000])
    for action in (
        lambda: load_data_set.check(str(archive)),
        lambda: load_data_set.load(str(archive), "train"),
    ):
        with pytest.raises(UserError, match=r"c.tar.gz:\n  unreadable, truncated or damaged \("):
            action()


def test_flipped_bit_of_an_archive_is_refused(tmp_path: Path) -> None:
    """gzip's checksum follows the last member, and nothing else reads it."""
    archive = pack(write(tmp_path), tmp_path / "a.tar.gz")
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 1
    archive.write_bytes(content)
    with pytest.raises(UserError, match="unreadable, truncated or damaged"):
        load_data_set.load(str(archive), "train")


def test_a_file_that_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "c.tar.gz").write_bytes(b"<html>404</html>")
    with pytest.raises(UserError, match=r"c.tar.gz:\n  not a readable tar archive"):
        load_data_set.load(str(tmp_path / "c.tar.gz"), "train")


def test_an_archive_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "a.txt").write_text("sun")
    archive = pack(tmp_path / "holiday", tmp_path / "c.tar.gz")
    with pytest.raises(UserError, match="begins with 'holiday', not with cifar-10-batches-py/ or"):
        load_data_set.check(str(archive))


def test_archive_files_in_other_folders_are_ignored(tmp_path: Path) -> None:
    folder = write(tmp_path)
    (folder / "old").mkdir()
    (folder / "test_batch").rename(folder / "old" / "test_batch")
    archive = pack(folder, tmp_path / "c.tar.gz")
    with pytest.raises(UserError, match="test_batch: missing"):
        cifar.load(cifar.identify_archive(archive), "test")
