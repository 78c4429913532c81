"""Read the official Python archives of CIFAR-10 and CIFAR-100, packed or unpacked.

Layout: https://www.cs.toronto.edu/~kriz/cifar.html. Each batch is a pickled dictionary whose `data`
is uint8 [N, 3072]: the red plane of each image, then green, then blue. An archive is read in
memory, never extracted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from distill.data.image_set import CHANNELS, SIDE, ImageSet, Split, fault_of_names
from distill.data.sources import unpickle
from distill.errors import UserError, data_error
from distill.files.pickle_machine import text, type_name
from distill.files.run_json_schemas import MOST_CLASSES
from distill.files.tar_archives import InvalidArray, Member, content_of, open_tar
from distill.format import counted

IMAGE_BYTES = CHANNELS * SIDE * SIDE
LONGEST_NAME = 1000  # characters of a class name


@dataclass(frozen=True)
class Layout:
    """The names of files and keys in one of the two official archives."""

    title: str
    folder: str
    archive: str
    files: Mapping[Split, tuple[str, ...]]
    meta: str
    names_key: str  # key of the class names in the meta file
    labels_key: str  # key of the labels in each batch file
    normalised_as: Literal["cifar10", "cifar100"]  # see ImageSet


CIFAR10 = Layout(
    title="CIFAR-10",
    folder="cifar-10-batches-py",
    archive="cifar-10-python.tar.gz",
    files={"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
    meta="batches.meta",
    names_key="label_names",
    labels_key="labels",
    normalised_as="cifar10",
)
CIFAR100 = Layout(
    title="CIFAR-100",
    folder="cifar-100-python",
    archive="cifar-100-python.tar.gz",
    files={"train": ("train",), "test": ("test",)},
    meta="meta",
    names_key="fine_label_names",
    labels_key="fine_labels",
    normalised_as="cifar100",
)
LAYOUTS = (CIFAR10, CIFAR100)


@dataclass(frozen=True)
class Batches:
    """The location of the batch files of one data set."""

    path: Path  # the folder that contains the files, or the archive
    layout: Layout


@dataclass(frozen=True)
class _Meta:
    class_names: tuple[str, ...]
    batch_images: int | None  # images in each batch file, if the meta file has the number


def find(folder: Path, layout: Layout) -> Batches | None:
    """Find a layout's files in `folder`; None if they are not there.

    They may be directly in `folder`, in its official sub-folder, or in the official archive there.
    """
    members = (layout.meta, *layout.files["train"], *layout.files["test"])
    if any((folder / member).is_file() for member in members):
        return Batches(folder, layout)
    if (folder / layout.folder).is_dir():
        return Batches(folder / layout.folder, layout)
    if (folder / layout.archive).is_file():
        return Batches(folder / layout.archive, layout)
    return None


def identify_archive(path: Path) -> Batches:
    """Return the official archive at `path`, identified by its first member, not its file name.

    Raises UserError if it is neither the archive of CIFAR-10 nor that of CIFAR-100.
    """
    folders = " or ".join(f"{layout.folder}/" for layout in LAYOUTS)
    try:
        with open_tar(path) as archive:
            parts = next((m.path.parts for m in archive if m.path.parts), ("",))
    except InvalidArray as error:
        raise data_error(str(path), [f"not a readable tar archive ({error})"], _advice()) from error
    for layout in LAYOUTS:
        if parts[0] == layout.folder:
            return Batches(path, layout)
    raise data_error(str(path), [f"begins with {parts[0][:80]!r}, not with {folders}"], _advice())


def check(batches: Batches) -> None:
    """Raise UserError unless all files of both splits exist and are long enough for their images.

    Reads no image.
    """
    layout = batches.layout
    sizes = _found_file_sizes(batches)
    file_names = (*layout.files["train"], *layout.files["test"])
    faults = [f"{name}: missing" for name in (layout.meta, *file_names) if name not in sizes]
    least = IMAGE_BYTES
    if layout.meta in sizes:
        try:
            least *= _meta(_read(batches, [layout.meta]), layout).batch_images or 1
        except ValueError as error:
            faults.append(str(error))
    faults += [
        f"{name}: truncated, {sizes[name]:,} bytes, while its images need {least:,}"
        for name in file_names
        if sizes.get(name, least) < least
    ]
    if faults:
        raise data_error(str(batches.path), faults, _advice(layout))


def load(batches: Batches, split: Split) -> ImageSet:
    """Load a split's images in the order of the files.

    Raises UserError, naming every faulty file, if a file is missing or damaged, if its images have
    another shape, if its labels are out of range or not as many as its images, or if a class has no
    image.
    """
    layout = batches.layout
    contents = _read(batches, [layout.meta, *layout.files[split]])
    faults: list[str] = []
    meta: _Meta | None = None
    try:
        meta = _meta(contents, layout)
    except ValueError as error:
        faults.append(str(error))
    parts = []
    for name in layout.files[split]:
        try:
            parts.append(_batch(contents, name, layout, meta))
        except ValueError as error:
            faults.append(f"{name}: {error}")
    if meta is not None and not faults:
        images = np.concatenate([images for images, _ in parts])
        labels = np.concatenate([labels for _, labels in parts])
        faults += _empty_classes(labels, meta.class_names, split)
        if not faults:
            return ImageSet(images, labels, meta.class_names, layout.normalised_as)
    raise data_error(str(batches.path), faults, _advice(layout))


def _advice(*layouts: Layout) -> str:
    archives = " or ".join(layout.archive for layout in layouts or LAYOUTS)
    return (
        f"Type python cli.py data fetch, put the official archive {archives} in ./data, or pass "
        "--data PATH."
    )


def _found_file_sizes(batches: Batches) -> dict[str, int]:
    """Return the size in bytes of each file in the folder or archive, by name."""
    try:
        if batches.path.is_dir():
            files = (path for path in batches.path.iterdir() if path.is_file())
            return {path.name: path.stat().st_size for path in files}
        with open_tar(batches.path) as archive:
            sizes = ((_member_file_name(m, batches.layout), m.size) for m in archive)
            return {name: size for name, size in sizes if name is not None}
    except (InvalidArray, OSError) as error:
        raise _damaged_error(batches, error) from error


def _read(batches: Batches, names: Sequence[str]) -> dict[str, bytes]:
    """Return the contents of the files `names`, by name; missing files are left out."""
    contents: dict[str, bytes] = {}
    try:
        if batches.path.is_dir():
            paths = [batches.path / name for name in names]
            return {path.name: content_of(path) for path in paths if path.is_file()}
        with open_tar(batches.path) as archive:
            for member in archive:
                name = _member_file_name(member, batches.layout)
                if name is not None and name in contents:
                    raise InvalidArray(f"it contains {name} twice")
                if name in names and name is not None:
                    contents[name] = archive.read()
    except (InvalidArray, OSError) as error:
        raise _damaged_error(batches, error) from error
    return contents


def _member_file_name(member: Member, layout: Layout) -> str | None:
    """Return a member's file name if it is directly in the layout's folder, else None."""
    path = member.path
    is_inside = path.parent == PurePosixPath(layout.folder)
    return path.name if member.is_file and is_inside else None


def _damaged_error(batches: Batches, error: Exception) -> UserError:
    return data_error(
        str(batches.path),
        [f"unreadable, truncated or damaged ({error})"],
        _advice(batches.layout),
    )


def _meta(contents: Mapping[str, bytes], layout: Layout) -> _Meta:
    try:
        meta = _unpickle(contents, layout.meta)
        names = meta.get(layout.names_key)
        if not isinstance(names, list) or not names:
            raise ValueError(f"has no list {layout.names_key!r}")
        _check_names(names, layout)
        class_names = tuple(text(name) for name in names)
        if fault := fault_of_names(class_names):
            raise ValueError(fault)
        count = meta.get("num_cases_per_batch")
    except ValueError as error:
        raise ValueError(f"{layout.meta}: {error}") from error
    return _Meta(class_names, count if isinstance(count, int) else None)


def _check_names(names: Sequence[object], layout: Layout) -> None:
    """Raise ValueError if a class name is not text or too long, or if there are too many."""
    if len(names) > MOST_CLASSES:
        raise ValueError(
            f"{layout.names_key} has {len(names):,} names; the maximum is {MOST_CLASSES:,}"
        )
    for name in names:
        if not isinstance(name, str | bytes):
            raise ValueError(f"{layout.names_key} contains {type_name(name)}, not a name")
        if len(name) > LONGEST_NAME:
            raise ValueError(f"{layout.names_key} contains a name of {len(name):,} characters")


def _unpickle(contents: Mapping[str, bytes], name: str) -> dict[str, object]:
    if name not in contents:
        raise ValueError("missing")
    return unpickle.loads(contents[name])


def _batch(
    contents: Mapping[str, bytes], name: str, layout: Layout, meta: _Meta | None
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return images [n, 3, 32, 32] and labels [n] of a file; raises ValueError if it is faulty."""
    batch = _unpickle(contents, name)
    absent = [key for key in ("data", layout.labels_key) if key not in batch]
    if absent:
        raise ValueError(f"has no {' and no '.join(map(repr, absent))}")
    data, labels = batch["data"], _labels(batch[layout.labels_key], layout)
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8:
        raise ValueError(f"data is {getattr(data, 'dtype', type_name(data))}, not uint8")
    if data.ndim != 2 or data.shape[1] != IMAGE_BYTES:
        raise ValueError(f"data has the shape {list(data.shape)}, not [N, {IMAGE_BYTES}]")
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(
            f"{layout.labels_key} is {labels.dtype} {list(labels.shape)}, not integers [N]"
        )
    if len(labels) != len(data):
        raise ValueError(f"{counted(len(data), 'image')} but {counted(len(labels), 'label')}")
    if meta is not None:
        _check_labels(labels, layout, meta)
    images = np.ascontiguousarray(data).reshape(-1, CHANNELS, SIDE, SIDE)
    return images, labels.astype(np.int64)


def _labels(values: object, layout: Layout) -> NDArray[Any]:
    """Return the labels as an array of numbers; raise ValueError if they are anything else."""
    if isinstance(values, np.ndarray):
        return values
    if not isinstance(values, list | tuple):
        raise ValueError(f"{layout.labels_key} is {type_name(values)}, not integers [N]")
    for value in values:
        if not isinstance(value, int | float):
            raise ValueError(f"{layout.labels_key} contains {type_name(value)}, not integers [N]")
    return np.asarray(values)


def _check_labels(labels: NDArray[np.integer], layout: Layout, meta: _Meta) -> None:
    """Raise ValueError if the labels' number or range differs from the meta file's."""
    n_classes = len(meta.class_names)
    if meta.batch_images not in (None, len(labels)):
        raise ValueError(
            f"{counted(len(labels), 'image')}, but {layout.meta} declares {meta.batch_images:,}"
        )
    outside = labels[(labels < 0) | (labels >= n_classes)]
    if len(outside):
        raise ValueError(f"label {outside[0]} is outside 0..{n_classes - 1} ({layout.meta})")


def _empty_classes(
    labels: NDArray[np.int64], class_names: Sequence[str], split: Split
) -> list[str]:
    counts = np.bincount(labels, minlength=len(class_names))
    return [
        f"class {class_names[c]!r} has no {split} image"
        for c in np.flatnonzero(counts == 0).tolist()
    ]
