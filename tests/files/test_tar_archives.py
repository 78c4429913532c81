"""Hostile tar archives: every bound by its message, in little memory and time."""

import bz2
import gzip
import io
import lzma
import tarfile
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from distill.data.sources import load_data_set
from distill.errors import UserError
from distill.files import tar_archives
from distill.files.tar_archives import InvalidArray, content_of, open_tar
from tests.data.sources.test_cifar import pack, write

FOLDER = "cifar-10-batches-py"
MB = 1 << 20


def header(
    name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, form: int = tarfile.GNU_FORMAT
) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(form, "utf-8", "surrogateescape")


def extension(kind: bytes, content: bytes) -> bytes:
    """A header that speaks of the member after it, padded."""
    return header("x", len(content), kind) + content + b"\0" * (-len(content) % 512)


def record(key: str, value: str) -> bytes:
    body = f" {key}={value}\n".encode()
    length = len(body) + 1
    while len(str(length)) + len(body) != length:
        length = len(str(length)) + len(body)
    return str(length).encode() + body


MEMBER = header(f"{FOLDER}/batches.meta", 5) + b"hello" + b"\0" * 507
END = b"\0" * 1024
HOSTILE = {
    "pax headers": (extension(b"x", record("mtime", "1.5")) * 5000 + MEMBER, "more than 8 headers"),
    "long names": (extension(b"L", b"name\0") * 5000 + MEMBER, "more than 8 headers"),
    "global headers": (extension(b"g", record("a", "b")) * 5000 + MEMBER, "more than 8 headers"),
    "pax length of words": (extension(b"x", b"abc path=x\n") + MEMBER, "wrong lengths"),
    "pax length of zero": (extension(b"x", b"0 path=x\n") + MEMBER, "wrong lengths"),
    "pax length beyond": (extension(b"x", b"99999 path=x\n") + MEMBER, "wrong lengths"),
    "pax length below": (extension(b"x", b"3 path=x\n") + MEMBER, "wrong lengths"),
    "pax length of thousands": (extension(b"x", b"9" * 5000 + b" a=b\n") + MEMBER, "wrong lengths"),
    "pax size of words": (extension(b"x", record("size", "1e9")) + MEMBER, "not a number"),
    "pax size below zero": (extension(b"x", record("size", "-1")) + MEMBER, "not a number"),
    "pax size beyond": (extension(b"x", record("size", "9" * 12)) + MEMBER, "has 999,999,999,999"),
    "global size": (extension(b"g", record("size", "5")) + MEMBER, "for all of its members"),
    "a path that climbs": (extension(b"x", record("path", "../x")) + MEMBER, "leaves the folder"),
    "a long path that climbs": (extension(b"L", b"a/" * 99 + b"../x") + MEMBER, "leaves the fol"),
    "a sparse member": (header(f"{FOLDER}/a", 0, b"S"), "is sparse"),
    "a sparse pax": (extension(b"x", record("GNU.sparse.map", "0,1")) + MEMBER, "sparse member"),
    "a large header": (header("x", 2 << 30, b"x") + bytes(2 * MB), "a header of 2,147,483,648"),
    "a negative size": (
        header(f"{FOLDER}/a").replace(b"00000000000\x00", b"\xff" * 12, 1), "invalid|checksum|bad",
    ),
    "a truncated member": (header(f"{FOLDER}/a", 1 << 29) + b"abc", "is truncated"),
    "a truncated header": (MEMBER + b"abc", "truncated header"),
    "ten thousand members": (header(f"{FOLDER}/a") * 10_001, "more than 10,000 members"),
}  # fmt: skip


@contextmanager
def little_memory(most: int = 16 * MB) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


def names(path: Path) -> list[str]:
    with open_tar(path) as archive:
        return [member.name for member in archive]


@pytest.mark.long
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_archive_is_refused_with_a_message(name: str, tmp_path: Path) -> None:
    content, fault = HOSTILE[name]
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(content, 1))
    with little_memory(), pytest.raises(UserError, match=fault) as caught:
        load_data_set.check(str(path))
    assert len(str(caught.value)) < 500 + len(str(path))


def test_gigabytes_of_zeros_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_archives, "LARGEST", 8 * MB)
    path = tmp_path / "a.tar.gz"
    for content in (
        (header(f"{FOLDER}/a", 4 * MB) + bytes(4 * MB)) * 3,  # members
        extension(b"x", record("comment", "x" * 500_000)) * 3 * 8,  # a comment of no member
        MEMBER + END + bytes(9 * MB),  # behind the end
    ):
        path.write_bytes(gzip.compress(content, 1))
        with (
            little_memory(),
            pytest.raises(InvalidArray, match="unpacks to more than|more than 8 head"),
        ):
            names(path)


@pytest.mark.long
def test_member_out_of_proportion_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 MB of zeros in a file of 64 kB, which would be read as pickled images."""
    monkeypatch.setattr(tar_archives, "HELD", 8 * MB)
    content = header(f"{FOLDER}/batches.meta", 64 * MB) + bytes(64 * MB) + END
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(content, 6))
    wanted = r"needs 67,108,864 bytes of memory, more than 20 times its own [\d,]+"
    with little_memory(), pytest.raises(UserError, match=wanted):
        load_data_set.load(str(path), "train")
    path.write_bytes(content)  # the same, not compressed
    with open_tar(path) as archive:
        assert [len(archive.read()) for _ in archive] == [64 * MB]


def test_members_out_of_proportion_are_counted_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tar_archives, "HELD", 8 * MB)
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress((header(f"{FOLDER}/a", 3 * MB) + bytes(3 * MB)) * 3 + END, 6))
    with (
        open_tar(path) as archive,
        pytest.raises(InvalidArray, match="needs 9,437,184 bytes of memory"),
    ):
        [archive.read() for _ in archive]


@pytest.mark.long
def test_unrequested_member_is_not_read(tmp_path: Path) -> None:
    folder = write(tmp_path)
    (folder / "more").write_bytes(bytes(64 * MB))
    path = pack(folder, tmp_path / "a.tar.gz")
    with little_memory():
        load_data_set.load(str(path), "train")


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_archives_of_every_kind(
    form: int, compress: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    content = io.BytesIO()
    long = f"{FOLDER}/{'é' * 60}/{'x' * 70}"
    wanted = [f"{FOLDER}/a", long] if form != tarfile.USTAR_FORMAT else [f"{FOLDER}/a"]
    with tarfile.open(fileobj=content, mode="w", format=form) as archive:
        for name in wanted:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = 700, 1.5
            archive.addfile(info, io.BytesIO(b"m" * 700))
    path = tmp_path / "a.tar"
    path.write_bytes(compress(content.getvalue()))
    with open_tar(path) as archive_:
        found = [(member.name, member.size, archive_.read()) for member in archive_]
    assert found == [(name, 700, b"m" * 700) for name in wanted]


def test_member_can_be_read_or_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(MEMBER * 3 + END)
    with open_tar(path) as archive:
        assert [archive.read() if i == 1 else b"" for i, _ in enumerate(archive)] == [
            b"", b"hello", b"",
        ]  # fmt: skip


def test_a_file_is_read_up_to_a_bound(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    assert content_of(path, 5) == b"12345"
    with pytest.raises(InvalidArray, match="has more than 4 bytes"):
        content_of(path, 4)
    with pytest.raises(InvalidArray, match="is not a regular file"):
        content_of(Path("/dev/zero"))
