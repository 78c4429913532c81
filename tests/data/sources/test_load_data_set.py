"""Names and paths: what is found, where it is looked for, and the genuine images themselves."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distill.cli import data_command
from distill.data.sources import load_data_set
from distill.data.sources.cifar import CIFAR10, CIFAR100, Layout
from distill.data.split_by_content import split
from distill.errors import Failure, UserError
from tests.data.sources import test_cifar

LAYOUTS = {"cifar10": CIFAR10, "cifar100": CIFAR100}


@pytest.fixture(autouse=True)
def empty_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty current folder and an empty cache."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))


def write_batches(root: Path, layout: Layout, grey: int) -> None:
    """Every file with one image of one class, all of one grey."""
    folder = root / layout.folder
    folder.mkdir(parents=True)
    (folder / layout.meta).write_bytes(pickle.dumps({layout.names_key: ["only"]}))
    batch = {"data": np.full((1, 3072), grey, dtype=np.uint8), layout.labels_key: [0]}
    for name in (*layout.files["train"], *layout.files["test"]):
        (folder / name).write_bytes(pickle.dumps(batch))


def write_folders(root: Path, grey: int) -> None:
    for part in ("train", "test"):
        (root / part / "only").mkdir(parents=True)
        Image.new("RGB", (32, 32), (grey, grey, grey)).save(root / part / "only" / "0.png")


def grey_of(source: str) -> int:
    load_data_set.check(source)
    return int(load_data_set.load(source, "test").images[0, 0, 0, 0])


@pytest.mark.parametrize("name", LAYOUTS)
def test_name_is_searched_here_then_in_cache(name: str, tmp_path: Path) -> None:
    write_folders(tmp_path / "cache" / name, 1)
    assert grey_of(name) == 1
    write_batches(tmp_path / "cache", LAYOUTS[name], 2)
    assert grey_of(name) == 2
    write_folders(Path("data") / name, 3)
    assert grey_of(name) == 3
    write_batches(Path("data"), LAYOUTS[name], 4)
    assert grey_of(name) == 4


@pytest.mark.parametrize("name", LAYOUTS)
def test_unknown_name_lists_searched_places(name: str, tmp_path: Path) -> None:
    layout = LAYOUTS[name]
    with pytest.raises(UserError) as caught:
        load_data_set.check(name)
    cached = tmp_path / "cache"
    assert str(caught.value).splitlines() == [
        f"{layout.title} is in none of these locations:",
        *(f"  data/{part}" for part in (f"{layout.folder}/", layout.archive, f"{name}/")),
        *(f"  {cached}/{part}" for part in (f"{layout.folder}/", layout.archive, f"{name}/")),
        f"Type python cli.py data fetch {name}, put the official archive {layout.archive} in "
        "./data by hand, or type --data PATH.",
    ]
    with pytest.raises(UserError, match=f"{layout.title} is in none of these locations"):
        load_data_set.load(name, "train")


def test_a_misspelt_name() -> None:
    expected = (
        "data source 'cifra10' is neither synthetic, cifar10, cifar100 nor a path that exists. "
        "Did you mean cifar10?"
    )
    with pytest.raises(UserError, match=expected):
        load_data_set.load("cifra10", "train")


def test_a_path_that_does_not_exist() -> None:
    with pytest.raises(UserError, match=r"'/no/such' is neither .* exists\.\nType --data NAME or"):
        load_data_set.check("/no/such")


def test_a_folder_of_nothing() -> None:
    expected = (
        "^here contains no images: neither cifar-10-batches-py/, cifar-10-python.tar.gz or "
        "cifar-100-python/, cifar-100-python.tar.gz nor train/ and test/"
    )
    os.chdir("..")
    with pytest.raises(UserError, match=expected):
        load_data_set.check("here")


def test_a_folder_of_two_sets() -> None:
    for layout in LAYOUTS.values():
        write_batches(Path("both"), layout, 5)
    expected = (
        r"both contains CIFAR-10 and CIFAR-100.\nPass one of them: "
        r"--data both/cifar-10-batches-py or --data both/cifar-100-python"
    )
    with pytest.raises(UserError, match=expected):
        load_data_set.load("both", "train")
    assert grey_of("both/cifar-100-python") == 5


def test_the_home_folder_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_folders(tmp_path / "mine", 7)
    assert grey_of("~/mine") == 7


@pytest.mark.skipif(
    "UNDERSTUDY_CIFAR10" not in os.environ,
    reason="UNDERSTUDY_CIFAR10 names no folder with the genuine images",
)
def test_the_genuine_images_are_known_and_split() -> None:
    source = os.environ["UNDERSTUDY_CIFAR10"]
    load_data_set.check(source)
    train, test = load_data_set.load(source, "train"), load_data_set.load(source, "test")
    assert load_data_set.describe(train) == "CIFAR-10, train split"
    assert load_data_set.describe(test) == "CIFAR-10, test split"
    assert train.class_names[::9] == ("airplane", "truck")
    train_part, held_out = split(train, holdout=0.1)
    assert np.bincount(train.labels[held_out]).tolist() == [500] * 10
    assert np.bincount(train.labels[train_part]).tolist() == [4500] * 10


@pytest.mark.skipif(
    "UNDERSTUDY_CIFAR100" not in os.environ,
    reason="UNDERSTUDY_CIFAR100 names no folder with the genuine images",
)
def test_the_genuine_cifar100_is_known() -> None:
    facts = load_data_set.info(os.environ["UNDERSTUDY_CIFAR100"])
    assert facts["genuine"] == "CIFAR-100, train split; CIFAR-100, test split"
    assert facts["is_genuine"]


@pytest.mark.parametrize(
    ("title", "name"),
    [("CIFAR-10, test split", "cifar10"), ("CIFAR-100, test split", "cifar100"), ("", None)],
)
def test_published_set_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, title: str, name: str | None
) -> None:
    images = load_data_set.load(str(test_cifar.write(tmp_path)), "test")
    monkeypatch.setattr(load_data_set, "GENUINE", {images.fingerprint: title})
    assert load_data_set.published_set(images) == name


@pytest.mark.parametrize("source", ["x" * 300, "x" * 100_000, "~no-such-user/x", "a\0b"])
def test_name_that_no_file_can_have_is_message(source: str) -> None:
    with pytest.raises(UserError, match="is neither synthetic, cifar10, cifar100 nor") as caught:
        load_data_set.load(source, "train")
    assert len(str(caught.value)) < 400


def swapped(folder: Path, *names: str) -> Path:
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list(names)}))
    return folder


def test_images_with_swapped_class_names_are_not_genuine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = test_cifar.write(tmp_path)
    titles = {"train": "PETS, train split", "test": "PETS, test split"}
    prints = {load_data_set.load(str(folder), s).fingerprint: t for s, t in titles.items()}
    monkeypatch.setattr(load_data_set, "GENUINE", prints)
    monkeypatch.setattr(load_data_set, "CLASSES", dict.fromkeys(titles.values(), test_cifar.NAMES))
    facts = load_data_set.info(str(folder))
    assert (facts["genuine"], facts["is_genuine"]) == ("PETS, train split; PETS, test split", True)
    facts = load_data_set.info(
        str(swapped(folder, "0", "1", "2"))
    )  # numbers by position say no other
    assert facts["is_genuine"]
    facts = load_data_set.info(str(swapped(folder, "ant", "cod", "bee")))
    assert not facts["is_genuine"]
    assert facts["genuine"] == (
        "PETS, train split, but class 1 is called 'cod', not 'bee'; "
        "PETS, test split, but class 1 is called 'cod', not 'bee'"
    )
    with pytest.raises(Failure, match="is not the published CIFAR-10 .*called 'cod', not 'bee'"):
        data_command.verify(str(folder))


def test_the_published_names_are_the_official_ones() -> None:
    names = "airplane automobile bird cat deer dog frog horse ship truck"
    assert " ".join(load_data_set.CIFAR10_CLASSES) == names
    assert [len(names) for names in load_data_set.CLASSES.values()] == [10, 10, 100, 100]
    names_of_100 = load_data_set.CIFAR100_CLASSES
    assert list(names_of_100) == sorted(names_of_100)  # the official order of the fine labels
    assert load_data_set.CLASSES.keys() == set(load_data_set.GENUINE.values())
