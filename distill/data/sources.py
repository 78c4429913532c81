"""Where images come from: a name or a path, in; an `ImageSet`, out.

- `synthetic`: drawn by code.
- `cifar10`, `cifar100`: looked for in ./data and in the user's cache folder.
- a path: the official batches (their folder, its parent or the archive) or class folders.
"""

from difflib import get_close_matches
from pathlib import Path

from distill.data import batches, folders, procedural
from distill.data.batches import Batches, Layout
from distill.data.cache import cache_folder
from distill.data.folders import Folders
from distill.data.images import ImageSet, Progress, Split, subset
from distill.errors import UserError

__all__ = ["GENUINE", "ImageSet", "Progress", "Split", "check", "describe", "load", "subset"]

SYNTHETIC = "synthetic"
NAMED: dict[str, Layout] = {"cifar10": batches.CIFAR10, "cifar100": batches.CIFAR100}

# Order-free fingerprints of the published images, whatever container they came in.
GENUINE = {
    "d59acf989e068e709ce686cda292672c7b212c08d29d3d3e6d8c3aa99eba6a85": "CIFAR-10, train split",
    "899683d46c3a8c66fd56e1af12202e69fe5a4517be10b0f68e04c78fe585c57c": "CIFAR-10, test split",
}


def load(source: str, split: Split, *, progress: Progress | None = None) -> ImageSet:
    """The split's images, whole and in memory.

    Raises UserError where the source is unknown or absent, or where any file of the split is
    faulty: one message that names them. `progress` is called while class folders are read and
    decoded.
    """
    if source == SYNTHETIC:
        return procedural.draw(split)
    place = _place(source)
    if isinstance(place, Batches):
        return batches.load(place, split)
    return folders.load(place, split, progress)


def check(source: str) -> None:
    """Both splits are there and of plausible size, or UserError; decodes next to nothing."""
    if source == SYNTHETIC:
        return
    place = _place(source)
    if isinstance(place, Batches):
        batches.check(place)
    else:
        folders.check(place)


def describe(images: ImageSet) -> str | None:
    """The name of the published set that these are, image by image, in any order; else None."""
    return GENUINE.get(images.fingerprint)


def _place(source: str) -> Batches | Folders:
    if source in NAMED:
        return _named(source, NAMED[source])
    path = Path(source).expanduser()
    if path.is_dir():
        return _in_folder(path)
    if path.is_file():
        return batches.open_archive(path)
    names = [SYNTHETIC, *NAMED]
    near = get_close_matches(source, names, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise UserError(
        f"data source {source!r} is neither {', '.join(names)} nor a path that exists.{hint}\n"
        "Pass --data NAME or --data PATH."
    )


def _named(source: str, layout: Layout) -> Batches | Folders:
    places = (Path("data"), cache_folder())
    for place in places:
        found = batches.find(place, layout) or folders.find(place / source)
        if found:
            return found
    looked = [
        str(place / name)
        for place in places
        for name in (f"{layout.folder}/", layout.archive, f"{source}/")
    ]
    raise UserError(
        "\n".join(
            [f"{layout.title} is in none of these places:", *(f"  {name}" for name in looked)]
        )
        + f"\nPut the official archive {layout.archive} in ./data, or pass --data PATH."
    )


def _in_folder(path: Path) -> Batches | Folders:
    found = [one for layout in batches.LAYOUTS if (one := batches.find(path, layout))]
    if len(found) > 1:
        raise UserError(
            f"{path} holds {' and '.join(one.layout.title for one in found)}.\n"
            f"Pass one of them: {' or '.join(f'--data {one.path}' for one in found)}."
        )
    place: Batches | Folders | None = found[0] if found else folders.find(path)
    if place is None:
        wanted = " or ".join(f"{layout.folder}/, {layout.archive}" for layout in batches.LAYOUTS)
        raise UserError(
            f"{path} holds no images: neither {wanted} nor train/ and test/.\n{folders.ADVICE}"
        )
    return place
