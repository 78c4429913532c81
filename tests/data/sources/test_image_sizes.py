"""Square images of one size from 16 to 128 pixels: as they are, or resized by `data.size`."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distill.components.read_test_split import identify_test
from distill.data import image_set
from distill.data.sources import class_folders, load_data_set, pictures
from distill.errors import UserError


def write(root: Path, sizes: list[tuple[int, int]], split: str = "train") -> Path:
    """Write two classes, each with one image of every size (width, height)."""
    for label, name in enumerate(("ant", "bee")):
        (root / split / name).mkdir(parents=True)
        for i, (width, height) in enumerate(sizes):
            draw = np.random.default_rng(10 * label + i)
            pixels = draw.integers(256, size=(height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


def refusal(root: Path, size: int | None = None) -> str:
    with pytest.raises(UserError) as caught:
        load_data_set.load(str(root), "train", size=size)
    return str(caught.value)


@pytest.mark.parametrize("side", [16, 33, 64, 128])
def test_one_size_is_kept(tmp_path: Path, side: int) -> None:
    root = str(write(tmp_path, [(side, side)] * 3))
    images = load_data_set.load(root, "train")
    assert images.images.shape == (6, 3, side, side) and images.size == side
    with Image.open(tmp_path / "train/bee/2.png") as image:
        assert (images.images[5] == np.asarray(image).transpose(2, 0, 1)).all()


@pytest.mark.parametrize("size", [32, 64])
def test_other_sizes_are_resized_on_request(tmp_path: Path, size: int) -> None:
    root = str(write(tmp_path, [(64, 64), (80, 60), (20, 20)]))
    images = load_data_set.load(root, "train", size=size).images
    assert images.shape == (6, 3, size, size)
    for i, name in enumerate(("ant/0", "ant/1", "ant/2")):
        with Image.open(tmp_path / f"train/{name}.png") as image:
            expected = image.resize((size, size), pictures.FILTER)
        assert (images[i] == np.asarray(expected).transpose(2, 0, 1)).all()


def test_few_other_sizes_are_named(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, [(64, 64), (64, 64), (80, 60)]))
    assert "train/ant/2.png: 80x60 pixels, not 64x64" in message
    assert "train/bee/2.png: 80x60 pixels, not 64x64" in message
    assert message.endswith("Or type --set data.size=64 to resize all images, without cropping.")


@pytest.mark.parametrize(
    ("sizes", "found", "typed"),
    [
        ([(80, 60), (80, 60), (64, 64)], "4 images of 80x60 pixels, such as train/ant/0.png", 60),
        ([(8, 8)], "2 images of 8x8 pixels, such as train/ant/0.png", 16),
        ([(224, 224)], "2 images of 224x224 pixels, such as train/ant/0.png", 128),
    ],
)
def test_unusable_sizes_are_counted(
    tmp_path: Path, sizes: list[tuple[int, int]], found: str, typed: int
) -> None:
    message = refusal(write(tmp_path, sizes))
    assert found in message and f"--set data.size={typed} to resize" in message
    assert "square and of one size from 16 to 128 pixels" in message


def test_resized_images_are_cached_by_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mixed sizes stay refused after they were resized, and a size is not read for another."""
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    root = write(tmp_path / "data", [(64, 64), (64, 64), (32, 32)])
    at = {size: load_data_set.load(str(root), "train", size=size).images for size in (64, 32)}
    assert "32x32 pixels, not 64x64" in refusal(root)
    monkeypatch.setattr(class_folders, "_decode", None)
    for size, images in at.items():
        assert (load_data_set.load(str(root), "train", size=size).images == images).all()


def test_unresized_images_are_cached_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    root = str(write(tmp_path / "data", [(48, 48)]))
    images = load_data_set.load(root, "train").images
    monkeypatch.setattr(class_folders, "_decode", None)
    assert (load_data_set.load(root, "train", size=48).images == images).all()


def test_check_compares_both_splits(tmp_path: Path) -> None:
    root = write(write(tmp_path, [(64, 64)]), [(32, 32)], "test")
    with pytest.raises(UserError, match=r"0.png: \d\dx\d\d pixels, not .*(\n.*)*data.size="):
        load_data_set.check(str(root))
    load_data_set.check(str(root), size=64)
    with pytest.raises(UserError, match="have 64x64 pixels, and its test images 32x32"):
        identify_test(str(root), load_data_set.load(str(root), "train"))


@pytest.mark.long
@pytest.mark.parametrize("size", [16, 64])
def test_synthetic_images_are_resized(size: int) -> None:
    plain = load_data_set.load("synthetic", "test")
    images = load_data_set.load("synthetic", "test", size=size)
    expected = Image.fromarray(plain.images[7].transpose(1, 2, 0)).resize(
        (size, size), pictures.FILTER
    )
    assert (images.images[7] == np.asarray(expected).transpose(2, 0, 1)).all()
    assert images.normalised_as == "cifar10" and images.fingerprint != plain.fingerprint
    assert load_data_set.load("synthetic", "test", size=32) is plain


def test_images_larger_than_memory_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write(tmp_path, [(64, 64)])
    n_bytes = 2 * 2 * 3 * 64 * 64  # twice two images
    monkeypatch.setattr(image_set, "free_memory", lambda: n_bytes)
    load_data_set.load(str(root), "train")
    monkeypatch.setattr(image_set, "free_memory", lambda: n_bytes - 1)
    message = refusal(root)
    assert "2 images of 64x64 pixels need 0.0 GB of memory (2 x 2 x 3 x 64 x 64 bytes)" in message
    assert "Type --set data.size=56, or a machine with more memory." in message
    monkeypatch.setattr(image_set, "free_memory", lambda: 100)
    assert "Use fewer images" in refusal(root, 64)


def test_free_memory_is_known_on_linux() -> None:
    free = image_set.free_memory()
    assert free is None or 0 < free < 1 << 50
