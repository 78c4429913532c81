"""Read class folders: `train/<class>/*` and `test/<class>/*`, 32x32 png, jpg or webp.

The sorted names of the class folders number the classes. Every file is decoded once and kept in the
cache folder under a key made of all relative paths and all bytes.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from distill.data import array_cache
from distill.data.images import CHANNELS, SIDE, ImageSet, Progress, Split
from distill.data.problems import data_error
from distill.data.sources import pictures
from distill.data.sources.pictures import MODES, SUFFIXES
from distill.files.archives import InvalidArray, content_of

SPLITS: tuple[Split, ...] = ("train", "test")
REPORT_EVERY = 500  # images between two calls of the progress callback
ADVICE = (
    f"Lay the images out as train/<class>/* and test/<class>/*, {SIDE}x{SIDE} RGB, "
    f"as {', '.join(SUFFIXES)}."
)


@dataclass(frozen=True)
class ClassFolders:
    """Where class folders lie."""

    path: Path  # holds train/ and test/


@dataclass(frozen=True)
class _Listing:
    class_names: tuple[str, ...]
    files: tuple[tuple[Path, ...], ...]  # of each class, sorted by name
    faults: tuple[str, ...]


def find(folder: Path) -> ClassFolders | None:
    """Class folders in `folder`, where it holds at least one of the splits."""
    return ClassFolders(folder) if any((folder / split).is_dir() for split in SPLITS) else None


def check(place: ClassFolders) -> None:
    """Both splits have the same classes, each with images, the first of which can be used.

    Raises UserError otherwise; opens one image a class, not all.
    """
    faults = _class_faults(place, SPLITS)
    for split in SPLITS:
        listing = _listing(place, split)
        faults += listing.faults
        faults += _faulty(place, [files[0] for files in listing.files if files])
    if faults:
        raise data_error(str(place.path), faults, ADVICE)


def load(place: ClassFolders, split: Split, progress: Progress | None = None) -> ImageSet:
    """The split's images, class by class, sorted by name within a class.

    Raises UserError, naming up to ten faulty files, where one cannot be used; and where a class is
    empty or in one split only.
    """
    listing = _listing(place, split)
    present: list[Split] = [s for s in SPLITS if s == split or (place.path / s).is_dir()]
    faults = [*_class_faults(place, present), *listing.faults]
    if faults:
        raise data_error(str(place.path), faults, ADVICE)
    paths = [path for files in listing.files for path in files]
    key = f"decoded/{_key(place, paths, _Report(f'reading {split}', len(paths), progress))}"
    images = array_cache.load_cached(key, (len(paths), CHANNELS, SIDE, SIDE), np.uint8)
    if images is None:
        images = _decoded(place, paths, _Report(f"decoding {split}", len(paths), progress))
        array_cache.save_cached(key, images)
    counts = [len(files) for files in listing.files]
    labels = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
    return ImageSet(images, labels, listing.class_names)


@dataclass(frozen=True)
class _Report:
    """Counts the files that pass and calls back now and then."""

    what: str
    total: int
    progress: Progress | None

    def over(self, paths: Sequence[Path]) -> Iterator[tuple[int, Path]]:
        for done, path in enumerate(paths):
            yield done, path
            if self.progress and ((done + 1) % REPORT_EVERY == 0 or done + 1 == self.total):
                self.progress(self.what, done + 1, self.total)


def _visible(folder: Path) -> list[Path]:
    """The entries sorted by name, without what systems hide in folders (.DS_Store)."""
    entries = (path for path in folder.iterdir() if not path.name.startswith("."))
    return sorted(entries, key=lambda path: path.name)


def _class_names(place: ClassFolders, split: Split) -> tuple[str, ...]:
    folder = place.path / split
    return tuple(p.name for p in _visible(folder) if p.is_dir()) if folder.is_dir() else ()


def _class_faults(place: ClassFolders, splits: Sequence[Split]) -> list[str]:
    """A split without classes; a class that is not in all of the splits."""
    names = {split: _class_names(place, split) for split in splits}
    missing = [
        f"{split}/: missing, or without class folders" for split in splits if not names[split]
    ]
    common = set.intersection(*(set(of_split) for of_split in names.values()))
    return missing or [
        f"{split}/{name}/: a class of {split} alone"
        for split in splits
        for name in names[split]
        if name not in common
    ]


def _listing(place: ClassFolders, split: Split) -> _Listing:
    """The classes and files of a split; what would be left out in silence is a fault."""
    class_names = _class_names(place, split)
    files, faults = [], []
    for name in class_names:
        entries = _visible(place.path / split / name)
        images = tuple(path for path in entries if _is_image(path))
        strangers = [path for path in entries if not _is_image(path)]
        faults += [f"{_name(place, path)}: not one of {', '.join(SUFFIXES)}" for path in strangers]
        if not images:
            faults.append(f"{split}/{name}/: the class has no image")
        files.append(images)
    loose = _visible(place.path / split) if class_names else []
    faults += [
        f"{_name(place, path)}: an image outside a class folder"
        for path in loose
        if _is_image(path)
    ]
    return _Listing(class_names, tuple(files), tuple(faults))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file()


def _name(place: ClassFolders, path: Path) -> str:
    return path.relative_to(place.path).as_posix()


def _key(place: ClassFolders, paths: Sequence[Path], report: _Report) -> str:
    """sha256 over every file's relative path, size and bytes, and over how they are decoded."""
    state = sha256(f"Pillow {PIL.__version__}, upright".encode())
    faults = []
    for _, path in report.over(paths):
        try:
            content = content_of(path, pictures.LARGEST)
        except OSError as error:
            faults.append(f"{_name(place, path)}: unreadable ({error.strerror})")
        except InvalidArray as error:
            faults.append(f"{_name(place, path)}: {error}")
        else:
            state.update(b"\n%s\n%d\n" % (os.fsencode(_name(place, path)), len(content)))
            state.update(content)
    if faults:
        raise data_error(str(place.path), faults, ADVICE)
    return state.hexdigest()


def _decoded(place: ClassFolders, paths: Sequence[Path], report: _Report) -> NDArray[np.uint8]:
    images = np.empty((len(paths), CHANNELS, SIDE, SIDE), dtype=np.uint8)
    faults = []
    for i, path in report.over(paths):
        try:
            images[i] = _picture(path)
        except ValueError as error:
            faults.append(f"{_name(place, path)}: {error}")
    if faults:
        raise data_error(str(place.path), faults, ADVICE)
    return images


def _faulty(place: ClassFolders, paths: Sequence[Path]) -> list[str]:
    faults = []
    for path in paths:
        try:
            _picture(path)
        except ValueError as error:
            faults.append(f"{_name(place, path)}: {error}")
    return faults


def _picture(path: Path) -> NDArray[np.uint8]:
    """One file as [3, 32, 32]; ValueError says why it cannot be used."""
    return np.asarray(pictures.decode(path, _rgb, SIDE)).transpose(2, 0, 1)


def _rgb(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        raise pictures.UnusablePicture("has transparency, which RGB cannot keep")
    if image.mode not in MODES:
        raise pictures.UnusablePicture(
            f"has the colour mode {image.mode}, not RGB, greyscale or palette"
        )
    return image.convert("RGB")
