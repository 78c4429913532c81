""".npy and .npz of other people: what is read, and every refusal before memory is reserved."""

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from distill.data.sources import images_to_predict
from distill.errors import UserError
from distill.files import untrusted_arrays
from distill.files.untrusted_arrays import InvalidArray, open_npz, read_npy
from distill.runs import read_predictions
from tests.files.test_tar_archives import little_memory

MB = 1 << 20
PIXELS = np.arange(2 * 3072, dtype=np.int64).astype(np.uint8).reshape(2, 32, 32, 3)


def npy(array: np.ndarray, **header: str) -> bytes:
    """An .npy, whose header may say something else."""
    file = io.BytesIO()
    np.save(file, array)
    content = file.getvalue()
    if not header:
        return content
    header_items = {"descr": "'|u1'", "fortran_order": "False", "shape": str(array.shape)} | header
    text = "{" + ", ".join(f"'{name}': {value}" for name, value in header_items.items()) + ", }"
    text = text.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + array.tobytes()


def zipped(path: Path, kind: int = zipfile.ZIP_DEFLATED, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


@pytest.mark.parametrize("dtype", ["u1", "<i8", ">i2", "<f2", "<f4", "f8", "U3", "S2"])
@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (2, 3, 4)])
def test_arrays_of_every_type_and_order(dtype: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    array = (np.arange(np.prod(shape, dtype=int)) % 100).reshape(shape).astype(dtype)
    wanted = {"c": array, "f": np.array(array, order="F")}
    np.savez(tmp_path / "a.npz", **wanted)
    np.savez_compressed(tmp_path / "b.npz", **wanted)
    for name in ("a.npz", "b.npz"):
        with open_npz(tmp_path / name) as found:
            assert list(found) == ["c", "f"]
            for each in found.values():
                assert (each.dtype, each.shape) == (array.dtype, shape)
                assert (each == array).all()
                assert each.flags.writeable
    for each in wanted.values():
        np.save(tmp_path / "c.npy", each)
        assert (read_npy(tmp_path / "c.npy") == array).all()


def test_a_large_array_is_read_in_pieces(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(256, size=3 * MB + 7, dtype=np.uint8)
    np.savez_compressed(tmp_path / "a.npz", x=array)
    with open_npz(tmp_path / "a.npz") as found:
        assert (found["x"] == array).all()


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (npy(PIXELS, shape="(1000000000000, 32, 32, 3)"), "has 6,144 bytes"),
        (npy(PIXELS, shape="(2, 32, 32, 2)"), "has 6,144 bytes"),
        (npy(PIXELS, shape="(1, 1, 1, 1, 1, 1, 1, 1, 6144)"), "an invalid shape: 9 dimensions"),
        (npy(PIXELS, shape="(-1,)"), "does not describe a plain array"),
        (
            npy(PIXELS, shape="(" + "(" * 5000 + ")"),
            "its header has|does not describe a plain array",
        ),
        (npy(PIXELS, descr="'|O'"), r"Python objects \('\|O'\), which could run code"),
        (npy(PIXELS, descr="[('a', '|u1')]"), "has arrays of"),
        (npy(PIXELS, descr="'|V9999'"), r"has arrays of '\|V9999'"),
        (npy(PIXELS, descr="'|b1'"), r"has arrays of '\|b1'"),
        (npy(PIXELS)[:60], "does not describe a plain array"),
        (npy(PIXELS)[:-1], "has 6,143 bytes"),
        (npy(PIXELS) + b"x", "has 6,145 bytes"),
        (b"\x93NUMPY\x01\x00\xff\xff" + b" " * 9999, "header has 65,535 bytes"),
        (b"\x93NUMPY\x03\x00", "not an .npy of version 1 or 2"),
    ],
)
def test_hostile_npy_is_refused_with_a_message(content: bytes, fault: str, tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    zipped(tmp_path / "a.npz", data=content)
    for name in ("a.npy", "a.npz"):
        with little_memory(), pytest.raises(UserError, match=fault) as caught:
            images_to_predict.load(tmp_path / name)
        assert "1 fault in" in str(caught.value)


def bomb(path: Path, name: str, n_bytes: int) -> Path:
    """A small .npz with an array of so many zeros."""
    start = npy(np.zeros(0, np.uint8), shape=f"({n_bytes},)")
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open(f"{name}.npy", "w", force_zip64=True) as member,
    ):
        member.write(start)
        for _ in range(n_bytes // MB):
            member.write(bytes(MB))
    return path


@pytest.mark.long
def test_bomb_is_refused_when_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(untrusted_arrays, "LARGEST", 32 * MB)
    path = bomb(tmp_path / "a.npz", "data", 64 * MB)
    assert path.stat().st_size < MB
    with little_memory(), pytest.raises(UserError, match="unpacks to 67,108,992 bytes"):
        images_to_predict.load(path)
    with zipfile.ZipFile(bomb(path, "more", 64 * MB), "a") as archive:
        archive.writestr("data.npy", npy(PIXELS))
        archive.writestr("logits.npy", npy(np.zeros((2, 3), np.float32)))
        archive.writestr("labels.npy", npy(np.zeros(2, np.int64)))
    with little_memory():
        assert len(images_to_predict.load(path).ids) == 2
        predictions = read_predictions.read_if_present(path)
    assert predictions is not None and predictions.logits.shape == (2, 3)


def test_a_bomb_among_predictions_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(untrusted_arrays, "LARGEST", 32 * MB)
    path = bomb(tmp_path / "evaluation.npz", "logits", 64 * MB)
    with little_memory(), pytest.raises(UserError, match="cannot be read as predictions: .*unpack"):
        read_predictions.read_if_present(path)


@pytest.mark.parametrize(
    ("offset", "value", "fault"),
    [
        (8, (1).to_bytes(2, "little"), "is encrypted, or compressed by a method"),
        (10, zipfile.ZIP_LZMA.to_bytes(2, "little"), "is encrypted, or compressed by a method"),
        (20, (1 << 30).to_bytes(4, "little"), "is larger than the file"),
        (
            24,
            (1 << 30).to_bytes(4, "little"),
            "declares 1,073,741,824 bytes, more than it can hold",
        ),
        (16, b"abcd", r"is not a valid zip archive \(Bad CRC-32"),
    ],
    ids=["encrypted", "lzma", "packed size", "unpacked size", "checksum"],
)
def test_false_member_sizes_are_refused(
    offset: int, value: bytes, fault: str, tmp_path: Path
) -> None:
    content = bytearray(zipped(tmp_path / "a.npz", data=npy(PIXELS)).read_bytes())
    at = content.index(b"PK\x01\x02") + offset
    content[at : at + len(value)] = value
    (tmp_path / "a.npz").write_bytes(content)
    with little_memory(), pytest.raises(UserError, match=fault):
        images_to_predict.load(tmp_path / "a.npz")


@pytest.mark.parametrize("code", [0x110000, 0x7FFFFFFF, 0xFFFFFFFF])
@pytest.mark.parametrize("order", ["<", ">"])
def test_text_beyond_unicode_is_refused(code: int, order: str, tmp_path: Path) -> None:
    codes = np.array([[65, code]], f"{order}u4")
    content = npy(codes, descr=f"'{order}U2'", shape="(1,)")
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(InvalidArray, match="has text with characters beyond Unicode"):
        read_npy(tmp_path / "a.npy")
    with pytest.raises(InvalidArray, match="has text with characters beyond Unicode"):
        untrusted_arrays.from_bytes(codes.tobytes(), np.dtype(f"{order}U2"), (1,), fortran=False)
    codes[0, 1] = 0x10FFFF
    (tmp_path / "a.npy").write_bytes(npy(codes, descr=f"'{order}U2'", shape="(1,)"))
    assert read_npy(tmp_path / "a.npy").tolist() == ["A\U0010ffff"]


def test_very_long_name_is_not_quoted(tmp_path: Path) -> None:
    content = bytearray(
        zipped(tmp_path / "a.npz", zipfile.ZIP_STORED, data=npy(PIXELS)).read_bytes()
    )
    content[26:28] = (6000).to_bytes(2, "little")  # the name's length in the member's own header
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(
        UserError, match=r"is not a valid zip archive \(File name in directory"
    ) as caught:
        images_to_predict.load(tmp_path / "a.npz")
    assert len(str(caught.value)) < 500


def test_a_list_of_a_hundred_thousand_members(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    entry = b"PK\x01\x02" + bytes(42)
    n = 100_000
    end = b"PK\x05\x06" + bytes(8) + (n * 46).to_bytes(4, "little") + bytes(6)
    path.write_bytes(b"PK\x03\x04" + entry * n + end)
    with little_memory(), pytest.raises(UserError, match="list of its members has more than"):
        images_to_predict.load(path)


def test_endless_input_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (Path("/dev/zero"), tmp_path / "pipe"):
        with little_memory(), pytest.raises(UserError, match="is not a regular file"):
            images_to_predict.load(path)


def test_a_pickle_larger_than_the_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images_to_predict, "LARGEST", MB)
    (tmp_path / "x.pkl").write_bytes(bytes(MB + 1))
    with pytest.raises(UserError, match=r"has more than 1,048,576 bytes"):
        images_to_predict.load(tmp_path / "x.pkl")


def test_the_type_of_an_array_is_plain() -> None:
    with pytest.raises(InvalidArray, match="only plain numbers and text"):
        untrusted_arrays.plain_dtype("V8")


def test_members_are_bounded_in_sum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(untrusted_arrays, "LARGEST", 5 * MB)
    zeros = npy(np.zeros(2 * MB, np.uint8))
    zipped(tmp_path / "a.npz", a=zeros, b=zeros, c=zeros)
    with open_npz(tmp_path / "a.npz") as found:
        assert "c" in found  # is not read
        assert len(found["a"]) == len(found["b"]) == len(found["a"]) == 2 * MB
        with pytest.raises(InvalidArray, match="unpack to more than 5,242,880 bytes"):
            found["c"]
