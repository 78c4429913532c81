"""Generate hostile archives (tar, .npy, .npz); each must be refused without using much memory."""

import bz2
import gzip
import io
import lzma
import random
import struct
import tarfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np

from benchmarks.soak.outcome import Outcome
from benchmarks.soak.pickles import write_batches
from benchmarks.soak.watched import Neighbour
from distill.data.sources import images_to_predict, load_data_set
from distill.data.sources.cifar import CIFAR10
from distill.errors import UserError
from distill.runs import read_predictions

MB = 1 << 20
MOST_BYTES = 48 * MB  # most memory that reading or refusing an archive may take
COMPRESSIONS: list[Callable[[bytes], bytes]] = [
    bytes, lambda content: gzip.compress(content, 1), lambda content: bz2.compress(content, 1),
    lambda content: lzma.compress(content, preset=0),
]  # fmt: skip
# Types of tar members that are not regular files.
LINKS = (
    tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE,
    tarfile.CONTTYPE, b"V", b"M", b"\xff",
)  # fmt: skip


# For each kind of archive, what the user sees: the message of a UserError, so the exit code is 2.
SEEN = {
    "with thousands of pax headers or long names": "“… has more than 8 headers before a member”",
    "with pax records or sizes that are wrong": "“… has a pax header with a size …”",
    "with a path that climbs out of its folder": "“… leaves the folder”",
    "with a link, a device, a pipe or a sparse member": "“… is a link or a device”",
    "of images, with bytes of its headers changed": "what is wrong; or the images",
}
# A bomb is an archive that unpacks to 17 pieces of 64 MiB of zeros, more than the reader's limit of
# 1 GiB.
ZEROS = 64 * MB
PIECES = 17


@cache
def deflated() -> bytes:
    """Return ZEROS zero bytes, compressed as a deflate block that may be repeated in a stream."""
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    return packer.compress(bytes(ZEROS)) + packer.flush(zlib.Z_FULL_FLUSH)


@cache
def gzipped() -> bytes:
    """Return ZEROS zero bytes, compressed as a gzip member; a file may have several members."""
    return gzip.compress(bytes(ZEROS), 1)


def header(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    """Return a tar header, a block of 512 bytes.

    `size`: the declared size of the member. `kind`: its type. `link`: the target of a link.
    """
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, link
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


def extension(kind: bytes, content: bytes, size: int | None = None) -> bytes:
    """Return an extension header with its content: a pax header or a long name.

    `kind`: `x` or `g` for pax, `L` or `K` for a long name or link. `size`: the declared size; None
    for the actual one.
    """
    padding = b"\0" * (-len(content) % 512)
    return header("x", len(content) if size is None else size, kind) + content + padding


def record(key: str, value: str) -> bytes:
    """Return one record of a pax header, `<length> <key>=<value>` and a line feed."""
    body = f" {key}={value}\n".encode(errors="surrogateescape")
    length = len(body) + 1
    while len(str(length)) + len(body) != length:
        length = len(str(length)) + len(body)
    return str(length).encode() + body


def climbing(mark: str, chance: random.Random) -> str:
    """Return a path that leads out of the folder into which an archive is unpacked.

    `mark`: the absolute path of a file outside it.
    """
    up = "../" * chance.randrange(1, 12)
    return chance.choice([
        mark, f"/{mark}", f"{up}x", f"{CIFAR10.folder}/{up}../x", f"a/./{up}../../x", "..",
        f"{CIFAR10.folder}/data_batch_1/{up}{'../' * 3}x", "a/" * 60 + "../" * 70 + "x",
    ])  # fmt: skip


def tars(folder: Path, tries: int, seed: int) -> list[Outcome]:
    """Load `tries` hostile tar archives of each kind as a data set, and such arrays as images.

    Returns one outcome per kind; each try must be refused with a message, without effects.
    """
    chance = random.Random(seed)
    neighbour = Neighbour(folder / "neighbour")
    write_batches(folder / "sound" / CIFAR10.folder)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.add(folder / "sound" / CIFAR10.folder, CIFAR10.folder)
    sound, mark = packed.getvalue(), str(neighbour.mark)
    member = header(f"{CIFAR10.folder}/batches.meta", 5) + b"hello".ljust(512, b"\0")
    kinds: dict[str, Callable[[], bytes]] = {
        "with thousands of pax headers or long names": lambda: _many_headers(chance) + member,
        "with pax records or sizes that are wrong": lambda: _wrong_sizes(chance) + member,
        "with a path that climbs out of its folder": lambda: _member_outside(mark, chance),
        "with a link, a device, a pipe or a sparse member": lambda: _special_member(mark, chance),
        "of images, with bytes of its headers changed": lambda: _changed_headers(sound, chance),
    }
    outcomes = []
    for what, make in kinds.items():
        outcome = Outcome(f"a tar archive {what}", SEEN[what])
        for n in range(tries):
            content = make()
            # A valid header in front of some archives.
            start = sound[:512] if chance.random() < 0.3 and "bytes" not in what else b""
            path = folder / "a.tar.gz"
            path.write_bytes(chance.choice(COMPRESSIONS)(start + content))
            fault = _read(partial(load_data_set.load, str(path), "train"), "bytes" in what)
            fault = fault or neighbour.change()
            outcome.count(not fault, f"{seed}/{what}/{n}: {fault}: {content[:160]!r}")
        outcomes.append(outcome)
    outcomes.append(_tar_bombs(folder, -(-tries // 10), chance))
    return [*outcomes, *arrays(folder, tries, chance, neighbour)]


def _tar_bombs(folder: Path, tries: int, chance: random.Random) -> Outcome:
    """Load archives of a few hundred kilobytes that unpack to more than a gigabyte of zeros."""
    outcome = Outcome(
        "a tar archive that unpacks to more than a gigabyte", "“… unpacks to more than … bytes”"
    )
    for n in range(tries):
        size = chance.choice([ZEROS * PIECES - 512, MB, 1 << 30])
        name = chance.choice(["x", CIFAR10.meta, *CIFAR10.files["train"]])
        start = header(f"{CIFAR10.folder}/{name}", size)
        path = folder / "bomb.tar.gz"
        path.write_bytes(gzip.compress(start) + gzipped() * PIECES)
        fault = _read(partial(load_data_set.load, str(path), "train"), False)
        outcome.count(not fault, f"bomb {n}: {size} {name}: {fault}")
    return outcome


def _read(load: Callable[[], object], may_succeed: bool) -> str:
    """Read an archive by calling `load`; return what is wrong with the result, or "".

    The archive must be refused with a UserError; it may also be read if `may_succeed`. Both must
    take less than MOST_BYTES of memory.
    """
    tracemalloc.start()
    try:
        load()
        fault = "" if may_succeed else "was read"
    except UserError as refusal:
        fault = "" if str(refusal).strip() and len(str(refusal)) < 2000 else "no message, or long"
    except Exception as error:
        fault = f"{type(error).__name__}: {error}"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return fault or (f"took {peak:,} bytes" if peak > MOST_BYTES else "")


def _many_headers(chance: random.Random) -> bytes:
    """Return many extension headers, more than a valid archive has before a member, or a huge
    one.
    """
    if chance.random() < 0.3:
        size = chance.choice([2 * MB, 1 << 30, (1 << 31) - 1, (8 << 30) - 1])
        return extension(chance.choice([b"x", b"g", b"L", b"K"]), bytes(1024), size) + bytes(2048)
    kinds = chance.choice([b"x", b"L", b"g", b"K", b"X", b"xL", b"LKx"])
    contents = {
        b"L": b"name\0", b"K": b"link\0", b"x": record("mtime", "1.5"), b"X": record("a", "b"),
        b"g": record("comment", "x" * chance.randrange(2000)),
    }  # fmt: skip
    n = chance.choice([9, 50, 5000])
    return b"".join(
        extension(bytes([kinds[k % len(kinds)]]), contents[bytes([kinds[k % len(kinds)]])])
        for k in range(n)
    )


def _wrong_sizes(chance: random.Random) -> bytes:
    """Return a pax header with wrong records or sizes, or a member that declares too many bytes."""
    digits = "9" * chance.choice([1, 5, 12, 13, 400, 5000])
    value = chance.choice([digits, f"-{digits}", "1e9", "", "0x10", "²", "１２", "1_000", " 5"])
    kind = chance.choice([b"x", b"g"])
    lengths = chance.choice([b"0", b"3", b"99999", b"abc", b"-5", b"", b"\xff", digits.encode()])
    return chance.choice([
        extension(b"x", record("size", digits + "9" * 8)),
        extension(kind, record("size", value if not value.isdecimal() else "-1")),
        extension(kind, lengths + b" path=x\n"),
        extension(b"g", record(chance.choice(["size", "path"]), "5")),
        header(f"{CIFAR10.folder}/a", chance.randrange(MB, 1 << 33)) + b"abc",
        header(f"{CIFAR10.folder}/a").replace(b"00000000000\x00", b"\xff" * 12, 1),
        header(f"{CIFAR10.folder}/a") * 10_001,
    ])  # fmt: skip


def _member_outside(mark: str, chance: random.Random) -> bytes:
    """Return a member whose path leads out of the archive's folder.

    The path is in the member's header, in a pax record or in a long name. `mark`: the absolute path
    of a file outside the folder.
    """
    path = climbing(mark, chance)
    encoded = path.encode()
    inner = header(f"{CIFAR10.folder}/data_batch_1", 5) + b"hello".ljust(512, b"\0")
    return chance.choice([
        extension(b"x", record("path", path)) + inner,
        extension(b"L", encoded + b"\0") + inner,
        (header(path, 5) if len(encoded) < 100 else extension(b"L", encoded) + inner)
        + b"hello".ljust(512, b"\0"),
    ])  # fmt: skip


def _special_member(mark: str, chance: random.Random) -> bytes:
    """Return a member that is a link, a device, a pipe or a sparse file.

    `mark`: the absolute path of a file outside the archive's folder, to which links may point.
    """
    name = f"{CIFAR10.folder}/{chance.choice(['data_batch_1', 'batches.meta', 'x', 'test_batch'])}"
    target = chance.choice([mark, "/etc/passwd", "../x", name, "data_batch_2", "/dev/zero"])
    kind = chance.choice(LINKS)
    sparse = chance.choice(["GNU.sparse.map", "GNU.sparse.size", "GNU.sparse.major"])
    plain = header(name, 5) + b"hello".ljust(512, b"\0")
    return chance.choice([
        header(name, 0, kind, target),
        extension(b"x", record("linkpath", target)) + header(name, 0, tarfile.SYMTYPE, target),
        extension(b"K", target.encode()) + header(name, 0, tarfile.LNKTYPE, target),
        header(name, chance.randrange(1 << 30), b"S"),
        extension(b"x", record(sparse, "0,1")) + plain,
    ])  # fmt: skip


def _changed_headers(sound: bytes, chance: random.Random) -> bytes:
    """Return the valid archive `sound` with some bytes of a header changed.

    In half of the cases the checksum of the header is updated.
    """
    content = bytearray(sound)
    starts = [at for at in range(0, len(content), 512) if content[at + 257 : at + 262] == b"ustar"]
    at = chance.choice(starts)
    for _ in range(chance.randrange(1, 5)):
        content[at + chance.randrange(345)] = chance.randrange(256)
    if chance.random() < 0.5:
        content[at + 148 : at + 156] = b" " * 8
        content[at + 148 : at + 156] = b"%06o\0 " % sum(content[at : at + 512])
    return bytes(content)


def arrays(folder: Path, tries: int, chance: random.Random, neighbour: Neighbour) -> list[Outcome]:
    """Read `tries` hostile .npy files and as many .npz files as images to predict.

    The .npz files are read as a run's predictions too.
    """
    outcomes = []
    kinds = {
        "an .npy with a hostile header, or of Python objects": ("npy", _npy),
        "an .npz with wrong sizes of its members, or that unpacks to gigabytes": ("npz", _npz),
    }
    for what, (suffix, make) in kinds.items():
        seen = "“… contains Python objects, which could run code”, or what is wrong with the header"
        if suffix == "npz":
            seen = "“… unpacks to … bytes”, “… is larger than the file”, or what is wrong"
        outcome = Outcome(what, seen)
        for n in range(tries):
            path = folder / f"images.{suffix}"
            path.write_bytes(make(chance, str(neighbour.mark)))
            fault = _read(partial(images_to_predict.load, path), False)
            if suffix == "npz":
                fault = fault or _read(partial(read_predictions.read_if_present, path), False)
            fault = fault or neighbour.change()
            outcome.count(not fault, f"{what}/{n}: {fault}: {path.read_bytes()[:160]!r}")
        outcomes.append(outcome)
    return outcomes


def _npy(chance: random.Random, mark: str) -> bytes:
    """Return a .npy file with a hostile header, or one of Python objects that create the file
    `mark` when they are unpickled.
    """
    if chance.random() < 0.2:
        return _objects(mark)
    descr = chance.choice([
        "'|O'", "'|V9999'", "[('a', '|u1')]", "'|b1'", "'<M8[ns]'", "'|u1'", "'<f8'", "'|S99999'",
        "__import__('os').system('x')", "'" * 500,
    ])  # fmt: skip
    shape = chance.choice([
        f"({chance.randrange(1 << 50)},)", "(-1,)", "(1000000000, 1000000000)", "(1,) * 99",
        f"({'1, ' * 40})", f"({'9' * 5000},)", "(3073,)", "x", "(" * 3000,
    ])  # fmt: skip
    fortran = chance.choice(["True", "False", "0", "[]"])
    text = f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n".encode()
    version = bytes([chance.choice([1, 1, 2, 3, 9]), chance.choice([0, 0, 7])])
    length = chance.choice([len(text), len(text), 65_535, 0, chance.randrange(65_536)])
    width = 2 if version[0] == 1 else 4
    return b"\x93NUMPY" + version + length.to_bytes(width, "little") + text + bytes(3072)


def _objects(mark: str) -> bytes:
    """Return a .npy file of Python objects that create the file `mark` when they are unpickled."""

    class Touch:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (Path(mark),)

    file = io.BytesIO()
    np.save(file, np.array([Touch()], dtype=object), allow_pickle=True)
    return file.getvalue()


def _npz(chance: random.Random, mark: str) -> bytes:
    """Return a .npz file, a zip archive of hostile arrays, with a wrong field in its directory."""
    if chance.random() < 0.2:
        return _npz_bomb(chance)
    name = chance.choice(["data", "images", "logits", "ids", "labels"])
    kind = chance.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", kind) as archive:
        for each in dict.fromkeys([name, "data", "logits"]):
            archive.writestr(f"{each}.npy", _npy(chance, mark))
    content = bytearray(file.getvalue())
    at = content.index(b"PK\x01\x02")
    field, width = chance.choice([(8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (42, 4)])
    if chance.random() < 0.6:
        value = chance.choice([0, 1, 9, 12, 14, (1 << 8 * width) - 1, chance.randrange(1 << 16)])
        content[at + field : at + field + width] = value.to_bytes(width, "little")
    if chance.random() < 0.1:
        return b"PK\x03\x04" + bytes(content[at : at + 46]) * 30_000 + bytes(content[-22:])
    return bytes(content)


def _npz_bomb(chance: random.Random) -> bytes:
    """Return a .npz file whose array unpacks to more than a gigabyte; it may declare less."""
    n_bytes = ZEROS * PIECES
    shape = chance.choice([f"({n_bytes},)", f"({n_bytes // 3072}, 3072)", "(8, 3072)"])
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    start = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    packed = packer.compress(start) + packer.flush(zlib.Z_FULL_FLUSH)
    packed += deflated() * PIECES + b"\x03\x00"  # the last block, empty
    declared = chance.choice([n_bytes + len(start), len(start) + 8 * 3072, 1 << 30])
    name = chance.choice(["data", "images"]).encode() + b".npy"
    fields = [20, 0, 8, 0, 0, 0, len(packed), declared, len(name), 0]
    local = b"PK\x03\x04" + struct.pack("<HHHHHIIIHH", *fields) + name
    central = b"PK\x01\x02\x14\x00" + struct.pack("<HHHHHIIIHH", *fields)
    central += bytes(14) + name  # no comment; disk 0; the member begins at byte 0
    end = struct.pack("<HHHHIIH", 0, 0, 1, 1, len(central), len(local) + len(packed), 0)
    return local + packed + central + b"PK\x05\x06" + end
