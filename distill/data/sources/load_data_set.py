"""Load a data set by name or path into an `ImageSet`.

- `synthetic`: drawn by code.
- `cifar10`, `cifar100`: looked for in ./data and in the user's cache folder.
- a path: the official batches (their folder, its parent or the archive) or class folders.
"""

import os
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from distill.data.array_cache import cache_folder
from distill.data.image_set import ImageSet, Progress, Split, count_shared_images, subset
from distill.data.sources import cifar, class_folders, synthetic
from distill.data.sources.cifar import Batches, Layout
from distill.data.sources.class_folders import ClassFolders
from distill.errors import UserError

# Re-exported from image_set.py.
__all__ = ["ImageSet", "Progress", "Split", "count_shared_images", "subset"]

SYNTHETIC = "synthetic"
LONGEST = 200  # characters of a source in a message
SPLITS: tuple[Split, ...] = ("train", "test")
NAMED: dict[str, Layout] = {"cifar10": cifar.CIFAR10, "cifar100": cifar.CIFAR100}

# Fingerprints of the published images, independent of their order and file format.
GENUINE = {
    "d59acf989e068e709ce686cda292672c7b212c08d29d3d3e6d8c3aa99eba6a85": "CIFAR-10, train split",
    "899683d46c3a8c66fd56e1af12202e69fe5a4517be10b0f68e04c78fe585c57c": "CIFAR-10, test split",
}
CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
CLASSES = dict.fromkeys(GENUINE.values(), CIFAR10_CLASSES)  # of each published split, by label


def load(source: str, split: Split, *, progress: Progress | None = None) -> ImageSet:
    """Load all images of a split into memory.

    Raises UserError, naming all faulty files, if the source is unknown or missing or a file of the
    split is faulty. `progress` is called while class folders are read and decoded.
    """
    if source == SYNTHETIC:
        return synthetic.draw(split)
    location = _locate(source)
    if isinstance(location, Batches):
        return cifar.load(location, split)
    return class_folders.load(location, split, progress)


def check(source: str) -> None:
    """Raise UserError unless both splits exist and are of plausible size; decodes few images."""
    if source == SYNTHETIC:
        return
    location = _locate(source)
    if isinstance(location, Batches):
        cifar.check(location)
    else:
        class_folders.check(location)


def describe(images: ImageSet) -> str | None:
    """Return the name of the published split with exactly these images, in any order, or None."""
    return GENUINE.get(images.fingerprint)


def info(source: str, *, progress: Progress | None = None) -> dict[str, Any]:
    """Describe a data source, for display or as JSON.

    `faults`: the errors of a missing or damaged split. `genuine`: the name of the published split
    that has exactly the images of each split, in any order, and the first class whose name differs
    from the published one; "no" if neither split is a published one. `test_images_in_train`: how
    many test images have the pixels of a training image. `is_genuine`: whether both are published
    splits whose class names are the published ones or the labels. Raises UserError if neither split
    can be read.
    """
    splits: dict[Split, ImageSet] = {}
    faults: list[str] = []
    for split in SPLITS:
        try:
            splits[split] = load(source, split, progress=progress)
        except UserError as fault:
            faults.append(str(fault))
    if not splits:
        raise UserError("\n".join(dict.fromkeys(faults)))
    facts: dict[str, Any] = {"source": source}
    for split, images in splits.items():
        facts[f"{split}_images"] = len(images.labels)
        facts[f"{split}_fingerprint"] = images.fingerprint
    if len(splits) == len(SPLITS):
        facts["test_images_in_train"] = count_shared_images(splits["test"], splits["train"])
    class_names = next(iter(splits.values())).class_names
    facts |= {"classes": len(class_names), "class_names": list(class_names)}
    facts["genuine"] = _published_name(splits)
    facts["is_genuine"] = len(splits) == len(SPLITS) and all(
        describe(images) and not _misnamed(images) for images in splits.values()
    )
    return facts | {"faults": faults}


def _published_name(splits: Mapping[Split, ImageSet]) -> str:
    known = {split: describe(images) for split, images in splits.items()}
    if not any(known.values()):
        return "no"
    return "; ".join(
        f"{name}{_misnamed(splits[split])}" if name else f"{split}: no"
        for split, name in known.items()
    )


def _misnamed(images: ImageSet) -> str:
    """Return a note on the first class that does not have its published name; empty if all do."""
    for label, (name, published) in enumerate(
        zip(images.class_names, CLASSES.get(describe(images) or "", ()), strict=False)
    ):
        if name not in (published, str(label)):
            return f", but class {label} is called {name!r}, not {published!r}"
    return ""


def _locate(source: str) -> Batches | ClassFolders:
    if source in NAMED:
        return _locate_named(source, NAMED[source])
    path = Path(os.path.expanduser(source))
    if os.path.isdir(path):  # false, without OSError, for a name that is too long for a file
        return _locate_in_folder(path)
    if os.path.isfile(path):
        return cifar.open_archive(path)
    names = [SYNTHETIC, *NAMED]
    near = get_close_matches(source, names, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise UserError(
        f"data source {source[:LONGEST]!r} is neither {', '.join(names)} "
        f"nor a path that exists.{hint}\nType --data NAME or --data PATH."
    )


def _locate_named(source: str, layout: Layout) -> Batches | ClassFolders:
    folders = (Path("data"), cache_folder())
    for folder in folders:
        found = cifar.find(folder, layout) or class_folders.find(folder / source)
        if found:
            return found
    candidates = [
        f"{folder}/{name}"
        for folder in folders
        for name in (f"{layout.folder}/", layout.archive, f"{source}/")
    ]
    raise UserError(
        "\n".join(
            [
                f"{layout.title} is in none of these locations:",
                *(f"  {name}" for name in candidates),
            ]
        )
        + f"\nType python cli.py data fetch {source}, put the official archive {layout.archive} in "
        "./data by hand, or type --data PATH."
    )


def _locate_in_folder(path: Path) -> Batches | ClassFolders:
    found = [one for layout in cifar.LAYOUTS if (one := cifar.find(path, layout))]
    if len(found) > 1:
        raise UserError(
            f"{path} holds {' and '.join(one.layout.title for one in found)}.\n"
            f"Pass one of them: {' or '.join(f'--data {one.path}' for one in found)}."
        )
    location: Batches | ClassFolders | None = found[0] if found else class_folders.find(path)
    if location is None:
        wanted = " or ".join(f"{layout.folder}/, {layout.archive}" for layout in cifar.LAYOUTS)
        raise UserError(
            f"{path} holds no images: neither {wanted} nor train/ and test/.\n"
            f"{class_folders.ADVICE}"
        )
    return location
