"""Read class folders: `train/<class>/*` and `test/<class>/*`, square png, jpg or webp.

A label is the position of a class folder among the sorted folder names. The images have one size,
which is that of the data set, or they are resized. Decoded images are cached; the key of the cache
is a digest of the relative paths and bytes of all files, and of the size if any was resized.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from distill.data import array_cache
from distill.data.image_set import (
    CHANNELS,
    LARGEST_SIDE,
    LEAST_SIDE,
    ImageSet,
    Progress,
    Split,
    check_memory,
    fault_of_names,
)
from distill.data.sources import pictures
from distill.data.sources.pictures import MODES, SUFFIXES
from distill.errors import data_error
from distill.format import counted

WRONG_SIZE = re.compile(r": \d+x\d+ pixels, not (\d+)x\1$")  # a fault of `pictures.decode`
SPLITS: tuple[Split, ...] = ("train", "test")
REPORT_EVERY = 500  # images between two calls of the progress callback
ADVICE = (
    "Lay the images out as train/<class>/* and test/<class>/*, RGB, square and of one size from "
    f"{LEAST_SIDE} to {LARGEST_SIDE} pixels, as {', '.join(SUFFIXES)}."
)


@dataclass(frozen=True)
class ClassFolders:
    """The location of class folders."""

    path: Path  # holds train/ and test/


@dataclass(frozen=True)
class _Listing:
    class_names: tuple[str, ...]
    files: tuple[tuple[Path, ...], ...]  # the files of each class, sorted by name
    faults: tuple[str, ...]


def find(folder: Path) -> ClassFolders | None:
    """Return the class folders in `folder`; None if it has neither train/ nor test/."""
    return ClassFolders(folder) if any((folder / split).is_dir() for split in SPLITS) else None


def check(folders: ClassFolders, size: int | None = None) -> None:
    """Raise UserError unless both splits have the same classes and their first images are usable.

    `size`: as in `load`; without it these images must have one size. Decodes one image per class
    and split.
    """
    faults = _class_faults(folders, SPLITS)
    first = list[Path]()
    for split in SPLITS:
        listing = _listing(folders, split)
        faults += listing.faults
        first += [files[0] for files in listing.files if files]
    if not faults:
        side = _one_side(folders, first) if size is None else size
        faults += _decoding_faults(folders, first, side, is_exact=size is None)
    if faults:
        raise data_error(str(folders.path), faults, _advice(faults))


def load(
    folders: ClassFolders,
    split: Split,
    progress: Progress | None = None,
    size: int | None = None,
) -> ImageSet:
    """Load a split's images, sorted by class and file name.

    `size`: height and width in pixels, to which images of other sizes are resized; None if they
    have one size already. Raises UserError, naming up to ten faults, if a file cannot be used, if
    the images differ in size, or would not fit into memory, or if a class is empty or exists in
    only one of the two splits.
    """
    listing = _listing(folders, split)
    present: list[Split] = [s for s in SPLITS if s == split or (folders.path / s).is_dir()]
    faults = [*_class_faults(folders, present), *listing.faults]
    if faults:
        raise data_error(str(folders.path), faults, ADVICE)
    paths = [path for files in listing.files for path in files]
    side = _first_side(paths) if size is None else size
    check_memory(f"{folders.path}/{split}", len(paths), side)
    key = _key(folders, paths, _ProgressReport(f"reading {split}", len(paths), progress))
    images = _cached(key, len(paths), side, may_be_resized=size is not None)
    if images is None:
        if size is None:
            side = _one_side(folders, paths)
        report = _ProgressReport(f"decoding {split}", len(paths), progress)
        images, decoded_key, is_resized = _decode(
            folders, paths, side, report, is_exact=size is None
        )
        name = _resized_key(decoded_key, side) if is_resized else decoded_key
        array_cache.save_verified(f"decoded/{name}", images)
    counts = [len(files) for files in listing.files]
    labels = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
    return ImageSet(images, labels, listing.class_names)


def _cached(key: str, n: int, side: int, *, may_be_resized: bool) -> NDArray[np.uint8] | None:
    """Return the cached images of `side` x `side` pixels; None if there are none.

    `key`: the digest of their files. Images that were not resized are cached under `key` itself.
    """
    keys = [key, _resized_key(key, side)] if may_be_resized else [key]
    shape = (n, CHANNELS, side, side)
    found = (array_cache.load_verified(f"decoded/{each}", shape, np.uint8) for each in keys)
    return next((images for images in found if images is not None), None)


def _resized_key(key: str, side: int) -> str:
    return f"{key}-{side}"


def _first_side(paths: Sequence[Path]) -> int:
    """Return the width of the first image, if it is in the allowed range; else the nearest one."""
    sizes = (pictures.size_of(_content_or_nothing(path)) for path in paths)
    width = next((size[0] for size in sizes if size is not None), LEAST_SIDE)
    return min(max(width, LEAST_SIDE), LARGEST_SIDE)


def _one_side(folders: ClassFolders, paths: Sequence[Path]) -> int:
    """Return the height and width, in pixels, of most images; the decoder refuses the others.

    Only headers are read. Raises UserError, naming each size and a file of it, if most images are
    not square or out of range.
    """
    files, first = Counter[tuple[int, int]](), dict[tuple[int, int], str]()
    for path in paths:
        size = pictures.size_of(_content_or_nothing(path))
        if size is not None:
            files[size] += 1
            first.setdefault(size, _relative_name(folders, path))
    common = files.most_common()
    if not common:  # the decoder says why
        return LEAST_SIDE
    (width, height), _ = common[0]
    if width == height and LEAST_SIDE <= width <= LARGEST_SIDE:
        return width
    faults = [
        f"{counted(n, 'image')} of {wide}x{high} pixels, such as {first[wide, high]}"
        for (wide, high), n in common
    ]
    side = min(max(min(width, height), LEAST_SIDE), LARGEST_SIDE)
    raise data_error(str(folders.path), faults, f"{ADVICE}\n{_resize_advice(side)}")


def _resize_advice(side: int) -> str:
    return f"Or type --set data.size={side} to resize all images, without cropping."


def _content_or_nothing(path: Path) -> bytes:
    try:
        return pictures.content(path)
    except ValueError:
        return b""


@dataclass(frozen=True)
class _ProgressReport:
    """Iterates over files and calls the progress callback at intervals."""

    what: str
    total: int
    progress: Progress | None

    def over(self, paths: Sequence[Path]) -> Iterator[tuple[int, Path]]:
        for done, path in enumerate(paths):
            yield done, path
            if self.progress and ((done + 1) % REPORT_EVERY == 0 or done + 1 == self.total):
                self.progress(self.what, done + 1, self.total)


def _visible_entries(folder: Path) -> list[Path]:
    """Return a folder's entries sorted by name, without hidden ones (.DS_Store)."""
    entries = (path for path in folder.iterdir() if not path.name.startswith("."))
    return sorted(entries, key=lambda path: path.name)


def _class_names(folders: ClassFolders, split: Split) -> tuple[str, ...]:
    folder = folders.path / split
    return tuple(p.name for p in _visible_entries(folder) if p.is_dir()) if folder.is_dir() else ()


def _class_faults(folders: ClassFolders, splits: Sequence[Split]) -> list[str]:
    """Return the faults of the class folders as messages.

    Faults are a split without classes, unusable class names, and a class that a split lacks.
    """
    names = {split: _class_names(folders, split) for split in splits}
    missing = [
        f"{split}/: missing, or without class folders" for split in splits if not names[split]
    ]
    unusable = [f"{split}/: {fault}" for split in splits if (fault := fault_of_names(names[split]))]
    if unusable:
        return unusable
    common = set.intersection(*(set(of_split) for of_split in names.values()))
    return missing or [
        f"{split}/{name}/: this class is only in {split}"
        for split in splits
        for name in names[split]
        if name not in common
    ]


def _listing(folders: ClassFolders, split: Split) -> _Listing:
    """List the classes and files of a split; files that cannot be images are faults."""
    class_names = _class_names(folders, split)
    files, faults = [], []
    for name in class_names:
        entries = _visible_entries(folders.path / split / name)
        images = tuple(path for path in entries if _is_image(path))
        others = [path for path in entries if not _is_image(path)]
        faults += [
            f"{_relative_name(folders, path)}: not one of {', '.join(SUFFIXES)}" for path in others
        ]
        if not images:
            faults.append(f"{split}/{name}/: the class has no image")
        files.append(images)
    outside = _visible_entries(folders.path / split) if class_names else []
    faults += [
        f"{_relative_name(folders, path)}: an image outside a class folder"
        for path in outside
        if _is_image(path)
    ]
    return _Listing(class_names, tuple(files), tuple(faults))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file()


def _relative_name(folders: ClassFolders, path: Path) -> str:
    return path.relative_to(folders.path).as_posix()


class _Digest:
    """Computes the sha256 of the decoder's version and of all files' relative paths and bytes."""

    def __init__(self) -> None:
        self._state = sha256(f"Pillow {PIL.__version__}, upright".encode())

    def add(self, name: str, content: bytes) -> None:
        self._state.update(b"\n%s\n%d\n" % (os.fsencode(name), len(content)))
        self._state.update(content)

    def __str__(self) -> str:
        return self._state.hexdigest()


def _key(folders: ClassFolders, paths: Sequence[Path], report: _ProgressReport) -> str:
    """Return the digest of all files, which is the cache key of their images."""
    digest = _Digest()
    _for_each_file(folders, report.over(paths), lambda _, name, content: digest.add(name, content))
    return str(digest)


def _decode(
    folders: ClassFolders,
    paths: Sequence[Path],
    side: int,
    report: _ProgressReport,
    *,
    is_exact: bool,
) -> tuple[NDArray[np.uint8], str, bool]:
    """Decode all files to `side` x `side` pixels; with `is_exact` other sizes are faults.

    Returns their images, the digest of the decoded bytes, and whether any was resized. The digest
    is computed again because a file may have changed since `_key` read it.
    """
    images, digest = np.empty((len(paths), CHANNELS, side, side), dtype=np.uint8), _Digest()
    sizes = set[tuple[int, int] | None]()

    def decode(i: int, name: str, content: bytes) -> None:
        digest.add(name, content)
        sizes.add(pictures.size_of(content))
        images[i] = _picture(content, side, is_exact)

    _for_each_file(folders, report.over(paths), decode)
    return images, str(digest), sizes != {(side, side)}


def _for_each_file(
    folders: ClassFolders,
    paths: Iterable[tuple[int, Path]],
    use: Callable[[int, str, bytes], None],
) -> None:
    """Call `use` with the number, relative name and bytes of each file.

    Raises UserError, naming up to ten files, if files cannot be read or `use` raises ValueError.
    """
    faults = []
    for i, path in paths:
        name = _relative_name(folders, path)
        try:
            use(i, name, pictures.content(path))
        except ValueError as error:
            faults.append(f"{name}: {error}")
    if faults:
        raise data_error(str(folders.path), faults, _advice(faults))


def _advice(faults: Sequence[str]) -> str:
    """Return what to do about faulty files; images may also be resized if sizes are faults."""
    sides = [found[1] for fault in faults if (found := WRONG_SIZE.search(fault))]
    return f"{ADVICE}\n{_resize_advice(int(sides[0]))}" if sides else ADVICE


def _decoding_faults(
    folders: ClassFolders, paths: Sequence[Path], side: int, *, is_exact: bool
) -> list[str]:
    faults = []
    for path in paths:
        try:
            _picture(pictures.content(path), side, is_exact)
        except ValueError as error:
            faults.append(f"{_relative_name(folders, path)}: {error}")
    return faults


def _picture(content: bytes, side: int, is_exact: bool) -> NDArray[np.uint8]:
    """Decode a file's bytes to uint8 [3, side, side]; raise ValueError if they cannot be used.

    `is_exact`: whether an image of another size cannot be used; otherwise it is resized.
    """
    image = pictures.decode(content, _rgb, side if is_exact else None)
    return pictures.planes(image, side)


def _rgb(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        raise pictures.UnusablePicture("has transparency, which RGB cannot represent")
    if image.mode not in MODES:
        raise pictures.UnusablePicture(
            f"has the colour mode {image.mode}, not RGB, greyscale or palette"
        )
    return image.convert("RGB")
