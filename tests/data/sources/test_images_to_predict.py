"""Images to be predicted: every container, nothing in silence, all faults at once."""

import io
import os
import pickle
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distill.data.sources import images_to_predict, pictures
from distill.errors import UserError

N = 4
PIXELS = np.random.default_rng(0).integers(256, size=(N, 32, 32, 3), dtype=np.uint8)
PLANES = PIXELS.transpose(0, 3, 1, 2)
LAYOUTS = {"NHWC": PIXELS, "NCHW": PLANES, "flat": PLANES.reshape(N, -1)}


def pickled(path: Path, values: object, protocol: int = 2) -> Path:
    path.write_bytes(pickle.dumps(values, protocol))
    return path


def refusal(path: Path) -> str:
    with pytest.raises(UserError, match=re.escape(str(path))) as refused:
        images_to_predict.load(path)
    return str(refused.value)


def picture(path: Path, array: np.ndarray, mode: str | None = None) -> Path:
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path)
    return path


# Arrays


@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize("key", [bytes, str])
def test_kaggles_pickle(tmp_path: Path, key: type, protocol: int) -> None:
    data, ids = (b"data", b"ids") if key is bytes else ("data", "ids")
    values = {data: PIXELS, ids: np.array([7, 3, 9, 0])}
    read = images_to_predict.load(pickled(tmp_path / "cifar_test_nolabel.pkl", values, protocol))
    assert (read.images() == PLANES).all()
    assert (read.images().shape, read.images().dtype) == ((N, 3, 32, 32), np.uint8)
    assert read.ids == ("7", "3", "9", "0")
    assert read.notes == ()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("container", ["npy", "npz", "pkl"])
def test_every_layout_is_the_same_images(tmp_path: Path, layout: str, container: str) -> None:
    path, array = tmp_path / f"x.{container}", LAYOUTS[layout]
    if container == "npy":
        np.save(path, array)
    elif container == "npz":
        np.savez_compressed(path, images=array, ids=["a", "b", "c", "é,"])
    else:
        pickled(path, {"data": array, "labels": [0] * N, "ids": [b"a", "b", "c", "é,"]})
    read = images_to_predict.load(path)
    assert (read.images() == PLANES).all()
    assert read.ids == (("0", "1", "2", "3") if container == "npy" else ("a", "b", "c", "é,"))
    assert any("all red, then green" in note for note in read.notes) == (layout == "flat")
    assert any("numbered 0..3" in note for note in read.notes) == (container == "npy")


def test_arrays_of_other_sizes_are_resized_by_pillow(tmp_path: Path) -> None:
    large = np.random.default_rng(1).integers(256, size=(2, 40, 64, 3), dtype=np.uint8)
    np.save(tmp_path / "x.npy", large)
    read = images_to_predict.load(tmp_path / "x.npy")
    by_hand = Image.fromarray(large[1]).resize((32, 32), Image.Resampling.BICUBIC)
    assert (read.images()[1] == np.asarray(by_hand).transpose(2, 0, 1)).all()
    note = "2 images resized to 32x32 from 64x40 (Pillow's bicubic); 2 not square and squeezed"
    assert note in read.notes


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"data": PIXELS / 255}, "data is float64: whether it is scaled or normalised is unknown"),
        ({"data": PIXELS.astype(np.int64)}, "data is int64, not uint8"),
        ({"data": PIXELS.tolist()}, "data is a list, not an array"),
        ({"data": PIXELS[0]}, "the shape [32, 32, 3], not [N, H, W, 3], [N, 3, H, W] or [N, 3072]"),
        ({"data": PIXELS[..., :1]}, "the shape [4, 32, 32, 1], not"),
        ({"data": PIXELS.reshape(N, 2, -1)}, "the shape [4, 2, 1536], not"),
        ({"data": PIXELS[:0], "ids": []}, "contains no image: the shape is [0, 32, 32, 3]"),
        ({}, "contains nothing; the images must be called data or images"),
        ({"x": PIXELS, "y": PIXELS}, "contains 'x', 'y'; the images must be called data or images"),
        ([PIXELS], "contains a list, not a dictionary"),
        ({"data": PIXELS, "ids": [1, 2, 3]}, "4 images but 3 ids"),
        ({"data": PIXELS, "ids": 7}, "ids is a number, not a list of [4]"),
        ({"data": PIXELS, "ids": [1, 2, 3, 4.5]}, "an id is 4.5; ids are whole numbers or text"),
        ({"data": PIXELS, "ids": [1, 2, 3, None]}, "an id is None; ids are"),
        ({"data": PIXELS, "ids": [1, 2, True, 4]}, "an id is True; ids are"),
        ({"data": PIXELS, "ids": [1, 2, 2, 2]}, "id 2 occurs 3 times"),
    ],
)
def test_file_of_wrong_kind_is_explained(tmp_path: Path, values: object, found: str) -> None:
    message = refusal(pickled(tmp_path / "x.pkl", values, 5))
    assert message.startswith("1 fault in ")
    assert found in message
    assert message.endswith(images_to_predict.ADVICE)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch ran",)


@pytest.mark.parametrize("name", ["x.pkl", "x.npy", "x.npz"])
def test_a_file_that_runs_code_runs_none(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    objects = np.array([Evil()], dtype=object)
    if name == "x.pkl":
        pickled(tmp_path / name, {"data": Evil()})
    elif name == "x.npy":
        np.save(tmp_path / name, objects, allow_pickle=True)
    else:
        np.savez(tmp_path / name, data=objects)
    message = refusal(tmp_path / name)
    assert ("tries to run code" if name == "x.pkl" else "Python objects ('|O')") in message
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.pkl", "x.txt"])
def test_a_damaged_file(tmp_path: Path, name: str) -> None:
    whole = tmp_path / "whole"
    if name == "x.npy":
        with whole.open("wb") as file:
            np.save(file, PIXELS)
    elif name == "x.npz":
        with whole.open("wb") as file:
            np.savez(file, data=PIXELS)
    else:
        pickled(whole, {"data": PIXELS})
    content = whole.read_bytes()[:6000] if name != "x.txt" else b"ID,Labels\n0,1\n"
    (tmp_path / name).write_bytes(content)
    message = refusal(tmp_path / name)
    assert "  unreadable (" in message or "cannot be read as a pickle: " in message


# Pictures


def test_pictures_are_ordered_by_number_or_name(tmp_path: Path) -> None:
    for i, stem in enumerate(["10", "9", "100"]):
        picture(tmp_path / f"{stem}.png", PIXELS[i])
    read = images_to_predict.load(tmp_path)
    assert read.ids == ("9", "10", "100")
    assert (read.images() == PLANES[[1, 0, 2]]).all()
    picture(tmp_path / "b.PNG", PIXELS[3])
    assert images_to_predict.load(tmp_path).ids == ("10", "100", "9", "b")


def test_one_picture(tmp_path: Path) -> None:
    read = images_to_predict.load(picture(tmp_path / "cat.png", PIXELS[2]))
    assert read.ids == ("cat",)
    assert (read.images() == PLANES[2:3]).all()


def test_pictures_become_rgb_with_a_note(tmp_path: Path) -> None:
    red = np.full((32, 32, 3), (200, 10, 10), np.uint8)
    picture(tmp_path / "grey.png", red, "L")
    picture(tmp_path / "palette.png", red, "P")
    picture(tmp_path / "solid.png", red, "RGBA")
    clear = np.dstack([red, np.zeros((32, 32), np.uint8)])
    picture(tmp_path / "transparent.png", clear)
    (tmp_path / ".DS_Store").touch()
    (tmp_path / "train").mkdir()
    (tmp_path / "sample.csv").touch()
    read = images_to_predict.load(tmp_path)
    images = dict(zip(read.ids, read.images(), strict=True))
    assert (images["solid"] == red.transpose(2, 0, 1)).all()
    assert (images["transparent"] == 255).all()
    assert np.ptp(images["grey"], axis=0).max() == 0
    assert read.notes == (
        "ignored, not pictures: sample.csv, train/",
        "2 images of grey levels or a palette, converted to RGB",
        "2 images with an alpha channel, transparency replaced by white",
    )


def test_a_photograph_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: to be turned by 90° clockwise
    Image.fromarray(PIXELS[0]).save(tmp_path / "x.png", exif=exif)
    read = images_to_predict.load(tmp_path / "x.png")
    assert (read.images()[0] == np.rot90(PIXELS[0], -1).transpose(2, 0, 1)).all()


def test_pictures_of_other_sizes_are_counted(tmp_path: Path) -> None:
    for i, (height, width) in enumerate([(64, 64), (64, 64), (20, 30), (32, 32), (8, 8), (9, 9)]):
        picture(tmp_path / f"{i}.png", np.full((height, width, 3), 7, np.uint8))
    read = images_to_predict.load(tmp_path)
    assert (read.images() == 7).all()
    (note,) = read.notes
    assert note == (
        "5 images resized to 32x32 from 64x64, 30x20, 8x8 and 1 more (Pillow's bicubic); "
        "1 not square and squeezed"
    )


def test_every_unusable_picture_is_named(tmp_path: Path) -> None:
    picture(tmp_path / "good.png", PIXELS[0])
    (tmp_path / "text.png").write_text("no image")
    Image.fromarray(PIXELS[0]).convert("CMYK").save(tmp_path / "print.jpg")
    frames = [Image.fromarray(pixels) for pixels in PIXELS]
    frames[0].save(tmp_path / "film.webp", save_all=True, append_images=frames[1:], lossless=True)
    picture(tmp_path / "good.webp", PIXELS[1])
    message = refusal(tmp_path)
    assert message.startswith(
        f"4 faults in {tmp_path}:\n  film.webp: is an animation, not one picture\n"
    )
    assert "print.jpg: has the colour mode CMYK; save it as RGB" in message
    assert "text.png: unreadable (its format is unknown" in message
    assert "id good occurs 2 times" in message


def test_a_place_without_pictures(tmp_path: Path) -> None:
    assert "no picture is directly in this folder; it is empty" in refusal(tmp_path)
    for name in "abcde":
        (tmp_path / name).mkdir()
    assert "in this folder; it contains a/, b/, c/ and 2 more" in refusal(tmp_path)
    assert refusal(tmp_path / "none").startswith(f"input {tmp_path / 'none'} does not exist.\n")


def test_a_folder_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", closed)
    assert "  unreadable (Permission denied)\n" in refusal(tmp_path)


@pytest.mark.long
def test_number_of_images_is_bounded_before_reading(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", data=np.zeros((1_000_001, 4, 4, 3), np.uint8))
    tracemalloc.start()
    assert "1,000,001 images; at most 1,000,000 are read. Split" in refusal(tmp_path / "a.npz")
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()
    np.save(tmp_path / "a.npy", np.zeros((1_000_001, 1, 1, 3), np.uint8))
    assert "1,000,001 images; at most 1,000,000 are read. Split" in refusal(tmp_path / "a.npy")


@pytest.mark.long
def test_images_are_resized_in_pieces(tmp_path: Path) -> None:
    pixels = np.arange(50_000, dtype=np.uint32).astype(np.uint8).reshape(-1, 1, 1, 1)
    np.savez_compressed(tmp_path / "a.npz", data=pixels.repeat(3, axis=3))
    tracemalloc.start()
    read = images_to_predict.load(tmp_path / "a.npz")
    piece = read.images(1000, 2000)
    assert tracemalloc.get_traced_memory()[1] < 20_000_000  # all of them take 154 MB
    tracemalloc.stop()
    assert piece.shape == (1000, 3, 32, 32)
    assert (piece == pixels[1000:2000].astype(np.uint8)).all()


def test_full_memory_is_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    np.savez(tmp_path / "a.npz", data=np.zeros((2, 1, 1, 3), np.uint8))
    monkeypatch.setattr(images_to_predict, "_planes", fail)
    assert "do not fit into memory" in refusal(tmp_path / "a.npz")


@pytest.mark.long
@pytest.mark.parametrize(
    ("sides", "fault"),
    [
        ((1, 70_000), "70000x1 pixels; at most 65,535 a side are read"),
        ((70_000, 1), "1x70000 pixels; at most 65,535 a side are read"),
        ((8000, 8000), "8000x8000 pixels; at most 50,000,000 are read"),
    ],
)
def test_array_with_long_sides_is_refused(
    tmp_path: Path, sides: tuple[int, int], fault: str
) -> None:
    np.savez_compressed(tmp_path / "a.npz", data=np.zeros((1, *sides, 3), np.uint8))
    assert f"its images have {fault}: make it smaller" in refusal(tmp_path / "a.npz")


def test_picture_of_many_pixels_is_refused(tmp_path: Path) -> None:
    Image.new("1", (9000, 9000)).save(tmp_path / "a.png")
    assert "9000x9000 pixels; at most 50,000,000 are read" in refusal(tmp_path / "a.png")


def test_large_picture_of_few_bytes_is_refused(tmp_path: Path) -> None:
    Image.new("1", (7070, 7070)).save(tmp_path / "a.png", optimize=True)
    n = (tmp_path / "a.png").stat().st_size
    assert f"7070x7070 pixels in {n:,} bytes: it is almost empty" in refusal(tmp_path / "a.png")
    with pytest.raises(ValueError, match="it is almost empty"):
        pictures.decode((tmp_path / "a.png").read_bytes(), lambda image: image)
    Image.new("1", (2000, 2000)).save(tmp_path / "b.png", optimize=True)
    assert images_to_predict.load(tmp_path / "b.png").ids == ("b",)


def test_id_beyond_unicode_is_one_fault(tmp_path: Path) -> None:
    ids = np.array([0xFFFFFFFF], np.uint32).view("<U1")
    np.savez(tmp_path / "a.npz", data=np.zeros((1, 32, 32, 3), np.uint8), ids=ids)
    with pytest.raises(UserError, match="has text with characters beyond Unicode"):
        images_to_predict.load(tmp_path / "a.npz")


def test_jpeg_of_many_scans_is_refused(tmp_path: Path) -> None:
    """Each scan takes milliseconds, whatever its size."""
    content = io.BytesIO()
    Image.new("RGB", (64, 64)).save(content, "JPEG", progressive=True)
    written = content.getvalue()
    at = written.index(b"\xff\xda")
    scan = written[at : written.index(b"\xff", at + 2)]
    (tmp_path / "a.jpg").write_bytes(written[:at] + scan * 101 + written[at:])
    with pytest.raises(UserError, match="a.jpg: has more than 100 scans: save it again"):
        images_to_predict.load(tmp_path / "a.jpg")


def test_damaged_exif_data_prints_no_warning(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    exif = b"Exif\0\0II*\0\x08\0\0\0" + b"\xff\x00" + b"\xff" * 40
    Image.new("RGB", (32, 32)).save(tmp_path / "a.jpg", exif=exif)
    with Image.open(tmp_path / "a.jpg") as image:
        image.getexif()
    assert "EXIF" in str(recwarn.pop(UserWarning).message)  # Pillow warns of these bytes
    recwarn.clear()
    assert pictures.read(tmp_path / "a.jpg", 32).images.shape == (1, 3, 32, 32)
    assert not recwarn.list
