"""Class folders: what is read, what is refused, and the cache of decoded images."""

from hashlib import sha256
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image

from distill.data import array_cache, image_set
from distill.data.sources import class_folders, images_to_predict, load_data_set, pictures
from distill.errors import UserError

CLASSES = ("ant", "bee")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def pixels(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape or (32, 32, 3), dtype=np.uint8)


def write(root: Path, per_class: int = 3) -> Path:
    for number, split in enumerate(("train", "test")):
        for label, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(per_class):
                Image.fromarray(pixels(100 * number + 10 * label + i)).save(folder / f"{i}.png")
    return root


def test_sorted_classes_and_files(tmp_path: Path) -> None:
    root = write(tmp_path / "set")
    load_data_set.check(str(root))
    train = load_data_set.load(str(root), "train")
    assert train.class_names == CLASSES
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert train.labels.dtype == np.int64
    assert train.images.flags.c_contiguous
    seeds = (0, 1, 2, 10, 11, 12)
    assert (train.images == np.stack([pixels(s).transpose(2, 0, 1) for s in seeds])).all()
    assert (load_data_set.load(str(root), "test").images[3] == pixels(110).transpose(2, 0, 1)).all()


def test_greyscale_palette_and_bilevel_become_rgb(tmp_path: Path) -> None:
    root = write(tmp_path / "set")
    grey = pixels(1, 32, 32)
    Image.fromarray(grey).save(root / "train/ant/0.png")
    Image.fromarray(grey).convert("P").save(root / "train/ant/1.png")
    Image.fromarray(grey).convert("1").save(root / "train/ant/2.png")
    images = load_data_set.load(str(root), "train").images
    assert (images[0] == grey).all()  # in all three channels
    assert (images[1] == grey).all()
    assert set(np.unique(images[2])) == {0, 255}


def test_jpeg_and_webp_are_read(tmp_path: Path) -> None:
    root = write(tmp_path / "set")
    flat = np.full((32, 32, 3), (200, 100, 50), dtype=np.uint8)
    Image.fromarray(flat).save(root / "train/ant/a.JPG", format="JPEG", quality=95)
    Image.fromarray(flat).save(root / "train/ant/b.jpeg", quality=95)
    Image.fromarray(flat).save(root / "train/ant/c.webp", lossless=True)
    images = load_data_set.load(str(root), "train").images.astype(int)
    assert len(images) == 9
    for image in images[3:6]:
        assert np.abs(image - flat.transpose(2, 0, 1)).max() <= 3


def test_what_systems_hide_in_folders_is_passed_over(tmp_path: Path) -> None:
    root = write(tmp_path / "set")
    (root / "train/ant/.DS_Store").write_bytes(b"x")
    (root / "train/.cache").mkdir()
    load_data_set.check(str(root))
    assert len(load_data_set.load(str(root), "train").labels) == 6


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (
            lambda p: Image.fromarray(pixels(0, 64, 48, 3)).save(p),
            "train/bee/0.png: 48x64 pixels, not 32x32",
        ),
        (
            lambda p: Image.fromarray(pixels(0, 32, 32, 4)).save(p),
            "train/bee/0.png: has transparency, which RGB cannot represent",
        ),
        (
            lambda p: Image.new("CMYK", (32, 32)).save(p, format="JPEG"),
            "train/bee/0.png: has the colour mode CMYK, not RGB, greyscale or palette",
        ),
        (
            lambda p: p.write_bytes(b"nothing"),
            r"train/bee/0.png: unreadable \(its format is unknown",
        ),
        (
            lambda p: p.write_bytes(p.read_bytes()[:900]),
            r"train/bee/0.png: unreadable \(image file is truncated",
        ),
        (
            lambda p: Image.fromarray(pixels(0)).save(p, format="BMP"),
            r"train/bee/0.png: unreadable \(its format is unknown",
        ),
    ],
    ids=["size", "transparency", "mode", "garbage", "truncated", "format"],
)
def test_an_image_that_cannot_be_used_is_named(spoil, fault: str, tmp_path: Path) -> None:
    root = write(tmp_path / "set")
    spoil(root / "train/bee/0.png")
    with pytest.raises(UserError, match=fault):
        load_data_set.load(str(root), "train")
    with pytest.raises(UserError, match=fault):
        load_data_set.check(str(root))  # the first image of each class
    assert len(load_data_set.load(str(root), "test").labels) == 6


def test_files_that_system_will_not_read_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write(tmp_path / "set")
    read = pictures.content_of

    def denied(path: Path, most: int) -> bytes:
        if path.name == "1.png":
            raise PermissionError(13, "Permission denied")
        return read(path, most)

    monkeypatch.setattr(pictures, "content_of", denied)
    expected = r"2 faults.*\n  train/ant/1.png: unreadable \(Permission denied\)\n  train/bee/1.png"
    with pytest.raises(UserError, match=expected):
        load_data_set.load(str(root), "train")


def test_ten_faulty_images_are_named_and_rest_counted(tmp_path: Path) -> None:
    root = write(tmp_path / "set", per_class=12)
    for i in range(12):
        (root / f"train/ant/{i}.png").write_bytes(b"nothing")
    (root / "train/bee/5.png").write_bytes(b"nothing")
    with pytest.raises(
        UserError, match=r"13 faults in [^\n]*(\n  train/ant/.*){10}\n  and 3 more\n"
    ):
        load_data_set.load(str(root), "train")


def test_what_would_be_left_out_is_refused(tmp_path: Path) -> None:
    root = write(tmp_path / "set")
    (root / "train/ant/notes.txt").write_text("x")
    (root / "train/bee/more").mkdir()
    Image.fromarray(pixels(0)).save(root / "train/loose.png")
    with pytest.raises(UserError) as caught:
        load_data_set.load(str(root), "train")
    assert str(caught.value).splitlines()[:4] == [
        f"3 faults in {root}:",
        "  train/ant/notes.txt: not one of .png, .jpg, .jpeg, .webp",
        "  train/bee/more: not one of .png, .jpg, .jpeg, .webp",
        "  train/loose.png: an image outside a class folder",
    ]


def test_an_empty_class_is_named(tmp_path: Path) -> None:
    root = write(tmp_path / "set")
    for path in (root / "test/bee").iterdir():
        path.unlink()
    for action in (
        lambda: load_data_set.load(str(root), "test"),
        lambda: load_data_set.check(str(root)),
    ):
        with pytest.raises(UserError, match="test/bee/: the class has no image"):
            action()


def test_a_class_of_one_split_alone_is_named(tmp_path: Path) -> None:
    root = write(tmp_path / "set")
    (root / "test/bee").rename(root / "test/bees")
    expected = (
        r"2 faults.*\n  train/bee/: this class is only in train\n"
        r"  test/bees/: this class is only in test"
    )
    for action in (
        lambda: load_data_set.load(str(root), "train"),
        lambda: load_data_set.check(str(root)),
    ):
        with pytest.raises(UserError, match=expected):
            action()


def test_a_missing_split_is_known_before_training(tmp_path: Path) -> None:
    root = write(tmp_path / "set")
    (root / "test").rename(tmp_path / "away")
    with pytest.raises(
        UserError, match=r"test/: missing, or without class folders\nLay the images"
    ):
        load_data_set.check(str(root))
    with pytest.raises(UserError, match="test/: missing"):
        load_data_set.load(str(root), "test")
    assert len(load_data_set.load(str(root), "train").labels) == 6


def test_a_split_without_classes(tmp_path: Path) -> None:
    (tmp_path / "set/train").mkdir(parents=True)
    with pytest.raises(UserError, match="train/: missing, or without class folders"):
        load_data_set.load(str(tmp_path / "set"), "train")


def test_progress_reaches_the_total(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(class_folders, "REPORT_EVERY", 4)
    root = write(tmp_path / "set")
    calls: list[tuple[str, int, int]] = []

    def progress(what: str, done: int, total: int) -> None:
        calls.append((what, done, total))

    load_data_set.load(str(root), "train", progress=progress)
    assert [call for call in calls if call[2] == 6] == [
        ("reading train", 4, 6),
        ("reading train", 6, 6),
        ("decoding train", 4, 6),
        ("decoding train", 6, 6),
    ]


def test_the_second_load_decodes_nothing(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write(tmp_path / "set")
    first = load_data_set.load(str(root), "train")
    assert len(list(own_cache.rglob("*"))) == 2  # decoded/ and one file in it
    moved = root.rename(tmp_path / "elsewhere")
    monkeypatch.setattr(class_folders, "_picture", None)
    assert (load_data_set.load(str(moved), "train").images == first.images).all()


@pytest.mark.parametrize("change", ["bytes", "name", "class"])
def test_changed_content_is_decoded_anew(change: str, tmp_path: Path, own_cache: Path) -> None:
    root = write(tmp_path / "set")
    load_data_set.load(str(root), "train")
    if change == "bytes":
        Image.fromarray(pixels(999)).save(root / "train/ant/1.png")
    elif change == "name":
        (root / "train/ant/0.png").rename(root / "train/ant/9.png")
    else:
        (root / "train/ant/2.png").rename(root / "train/bee/20.png")
    again = load_data_set.load(str(root), "train")
    assert len(list(own_cache.rglob("*.npz"))) == 2
    expected = {"bytes": pixels(999), "name": pixels(2), "class": pixels(1)}[change]
    assert (again.images[1] == expected.transpose(2, 0, 1)).all()
    assert again.labels.tolist() == ([0, 0, 1, 1, 1, 1] if change == "class" else [0] * 3 + [1] * 3)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "other shape", "other key"])
def test_a_damaged_cache_file_is_rebuilt(damage: str, tmp_path: Path, own_cache: Path) -> None:
    root = write(tmp_path / "set")
    first = load_data_set.load(str(root), "train")
    (cached,) = own_cache.rglob("*.npz")
    content = bytearray(cached.read_bytes())
    if damage == "truncated":
        cached.write_bytes(content[:-500])
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
        cached.write_bytes(content)
    elif damage == "empty":
        cached.write_bytes(b"")
    elif damage == "other shape":
        np.savez(cached, array=first.images[:-1])
    else:
        np.savez(cached, pictures=first.images)
    assert (load_data_set.load(str(root), "train").images == first.images).all()
    with np.load(cached) as rebuilt:
        assert (rebuilt["array"] == first.images).all()


def test_unwritable_cache_costs_only_time(tmp_path: Path, own_cache: Path) -> None:
    own_cache.write_text("a file where the folder should be")
    assert len(load_data_set.load(str(write(tmp_path / "set")), "train").labels) == 6


def test_cache_location(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert array_cache.cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("UNDERSTUDY_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert array_cache.cache_folder() == tmp_path / "xdg/understudy"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert array_cache.cache_folder() == tmp_path / "home/.cache/understudy"


def test_a_photograph_is_turned_upright(tmp_path: Path) -> None:
    """As `predict` turns it: a network sees what it was trained on."""
    root = write(tmp_path / "set")
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: to be turned by 90° clockwise
    for name in ("a.png", "a.webp"):
        Image.fromarray(pixels(7)).save(root / "train/ant" / name, exif=exif, lossless=True)
    upright = np.rot90(pixels(7), -1).transpose(2, 0, 1)
    trained = load_data_set.load(str(root), "train").images[3:5]
    predicted = images_to_predict.load(root / "train/ant/a.png").images()
    assert (trained == upright).all()
    assert (predicted == upright).all()


def test_images_that_were_decoded_otherwise_are_decoded_again(
    tmp_path: Path, own_cache: Path
) -> None:
    """Images cached by an earlier version, without orientation, have another key."""
    root = write(tmp_path / "set")
    paths = sorted((root / "train").rglob("*.png"))
    state = sha256(f"Pillow {PIL.__version__}".encode())
    for path in paths:
        content, name = path.read_bytes(), path.relative_to(root).as_posix()
        state.update(f"\n{name}\n{len(content)}\n".encode() + content)
    stale = np.zeros((len(paths), 3, 32, 32), np.uint8)
    array_cache.save_cached(f"decoded/{state.hexdigest()}", stale)
    assert load_data_set.load(str(root), "train").images.any()


@pytest.mark.parametrize("name", ["a.png", "a.webp"])
def test_a_film_is_refused(name: str, tmp_path: Path) -> None:
    root = write(tmp_path / "set")
    first, second = Image.fromarray(pixels(1)), Image.fromarray(pixels(2))
    first.save(root / "train/bee" / name, save_all=True, append_images=[second], lossless=True)
    expected = rf"1 fault in .*\n  train/bee/{name}: is an animation, not one picture"
    with pytest.raises(UserError, match=expected):
        load_data_set.load(str(root), "train")
    with pytest.raises(UserError, match=f"{name}: is an animation, not one picture"):
        images_to_predict.load(root / "train/bee")


def test_file_too_large_for_picture_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "LARGEST", 10_000)
    root = write(tmp_path / "set")
    with (root / "train/bee/0.png").open("ab") as file:
        file.truncate(1 << 40)  # a sparse file
    with pytest.raises(UserError, match="0.png: it has more than 10,000 bytes"):
        load_data_set.load(str(root), "train")
    expected = "0.png: it has more than 10,000 bytes"
    for read in (
        lambda: load_data_set.check(str(root)),
        lambda: images_to_predict.load(root / "train/bee"),
    ):
        with pytest.raises(UserError, match=expected):
            read()


def test_class_names_that_look_equal_are_refused(tmp_path: Path) -> None:
    root = write(tmp_path / "set")
    for split in ("train", "test"):
        (root / split / "ant").rename(root / split / "caf\xe9")
        (root / split / "bee").rename(root / split / "cafe\u0301")
    for read in (load_data_set.check, lambda source: load_data_set.load(source, "train")):
        with pytest.raises(UserError, match="are equal, or differ in their Unicode form only"):
            read(str(root))


def test_too_many_classes_are_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_set, "MOST_CLASSES", 1, raising=False)
    for read in (load_data_set.check, lambda source: load_data_set.load(source, "train")):
        with pytest.raises(UserError, match="2 classes; the maximum is 1"):
            read(str(write(tmp_path / f"set{len([*tmp_path.iterdir()])}")))


@pytest.mark.parametrize("change", ["pixels", "file mode", "folder mode", "link"])
def test_cache_that_others_may_change_is_ignored(
    change: str, tmp_path: Path, own_cache: Path
) -> None:
    root = write(tmp_path / "set")
    first = load_data_set.load(str(root), "train").images
    (cached,) = own_cache.rglob("*.npz")
    with np.load(cached) as saved:
        kept = {name: saved[name] for name in saved.files}
    pixels_of_others = np.zeros_like(first)
    if change == "pixels":  # their digest is that of other pixels
        np.savez(cached, **kept | {"array": pixels_of_others})
    else:  # a right digest, by whoever may write here
        array_cache.save_verified(f"decoded/{cached.stem}", pixels_of_others)
        if change == "file mode":
            cached.chmod(0o666)
        elif change == "folder mode":
            cached.parent.chmod(0o777)
        else:
            cached.rename(tmp_path / "other.npz")
            cached.symlink_to(tmp_path / "other.npz")
    assert (load_data_set.load(str(root), "train").images == first).all()


def test_images_are_cached_under_their_own_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that changes between the two readings, and back, must not stay in the cache."""
    root = write(tmp_path / "set")
    path = root / "train/ant/0.png"
    before, key = path.read_bytes(), class_folders._key

    def exchanged(*given: object) -> str:
        found = key(*given)  # type: ignore[arg-type]
        Image.fromarray(pixels(999)).save(path)
        return found

    monkeypatch.setattr(class_folders, "_key", exchanged)
    assert (
        load_data_set.load(str(root), "train").images[0] == pixels(999).transpose(2, 0, 1)
    ).all()
    monkeypatch.undo()
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    path.write_bytes(before)
    after = load_data_set.load(str(root), "train").images[0]
    assert (after == pixels(0).transpose(2, 0, 1)).all()
