"""Decode picture files of any size: upright, RGB, resized.

`decoded` is the one reader of picture files, for class folders (`folders.py`) too: a network sees
the same pixels of a file whether it is trained on it or predicts it. Class folders are stricter in
size and colour: what is trained on should be in the data, not in a decoder. Here a photograph is
taken as it is, and what was done to it is said.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from distill.data.images import CHANNELS, SIDE, Progress

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
FORMATS = ("PNG", "JPEG", "WEBP")
MODES = ("RGB", "L", "P", "1")  # RGB, greyscale, palette, black and white: all say one RGB picture
LARGEST = 1 << 28  # bytes of a file
FILTER = Image.Resampling.BICUBIC  # Pillow widens it when it shrinks, so nothing is skipped
ALPHA = ("RGBA", "LA", "PA")
NAMED = 3  # sizes and files that a note names before it counts


@dataclass(frozen=True, eq=False)
class DecodedPictures:
    """What was read, and what is wrong with it, a line for each fault."""

    images: NDArray[np.uint8]  # [N, 3, 32, 32], RGB
    ids: tuple[str, ...]
    notes: list[str]
    faults: list[str]


def read(path: Path, progress: Progress | None = None) -> DecodedPictures:
    """The picture at `path`, or those directly in the folder, called by their names without suffix.

    In a folder whose pictures are all numbered (1.png … 10.png) they come by number, else by name.
    """
    files, notes, faults = _listed(path) if path.is_dir() else ([path], [], [])
    images = np.zeros((len(files), CHANNELS, SIDE, SIDE), np.uint8)
    seen = _Seen(Counter(), Counter())
    for i, file in enumerate(files):
        try:
            images[i] = _picture(file, seen)
        except ValueError as error:
            faults.append(f"{file.name}: {error}")
        if progress:
            progress("reading", i + 1, len(files))
    notes += [*resized_notes(seen.sizes), *seen.notes()]
    return DecodedPictures(images, tuple(file.stem for file in files), notes, faults)


def decode(
    path: Path, as_rgb: Callable[[Image.Image], Image.Image], side: int | None = None
) -> Image.Image:
    """The one picture in a file, turned as its EXIF orientation has it, then `as_rgb`.

    Raises ValueError with why it cannot be used: damaged, animated, `as_rgb`'s reasons; with a
    `side`, of another size, which is seen before it is decoded.
    """
    try:
        if (n_bytes := path.stat().st_size) > LARGEST:
            raise UnusablePicture(f"has {n_bytes:,} bytes; {LARGEST:,} are the most")
        with Image.open(path, formats=FORMATS) as image:
            if getattr(image, "n_frames", 1) > 1:
                raise UnusablePicture("is a film, not one picture")
            if side is not None and image.size != (side, side):
                width, height = image.size
                raise UnusablePicture(f"{width}x{height} pixels, not {side}x{side}")
            return as_rgb(ImageOps.exif_transpose(image))
    except UnusablePicture:
        raise
    except Exception as error:  # Pillow's decoders fail in many ways: OSError, SyntaxError, …
        raise ValueError(f"unreadable ({type(error).__name__}: {error})") from error


class UnusablePicture(ValueError):
    """A picture that can be read and not used."""


def resize(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[H, W, 3] as [3, 32, 32]: the whole picture, squeezed where it is not square."""
    return _planes(Image.fromarray(np.ascontiguousarray(image)))


def resized_notes(sizes: Counter[tuple[int, int]]) -> list[str]:
    """What is said of pictures of other sizes, (width, height); nothing where there are none."""
    if not sizes:
        return []
    common = [f"{width}x{height}" for (width, height), _ in sizes.most_common(NAMED)]
    more = f" and {len(sizes) - NAMED} more" if len(sizes) > NAMED else ""
    squeezed = sum(k for (width, height), k in sizes.items() if width != height)
    shape = f"; {squeezed:,} not square and squeezed" if squeezed else ""
    return [
        f"{_images(sizes.total())} resized to {SIDE}x{SIDE} from {', '.join(common)}{more} "
        f"(Pillow's {FILTER.name.lower()}){shape}"
    ]


@dataclass(frozen=True)
class _Seen:
    """How many pictures were not 32x32 RGB, and what they were."""

    sizes: Counter[tuple[int, int]]
    modes: Counter[str]

    def notes(self) -> list[str]:
        said = {"alpha": "laid over white where they are transparent", "grey": "made RGB"}
        names = {"alpha": "with an alpha channel", "grey": "of grey levels or a palette"}
        return [f"{_images(k)} {names[mode]}, {said[mode]}" for mode, k in self.modes.items()]


def _images(n: int) -> str:
    return "1 image" if n == 1 else f"{n:,} images"


def _listed(folder: Path) -> tuple[list[Path], list[str], list[str]]:
    """The pictures of a folder in order; a note on what is no picture, a fault where none is."""
    try:
        entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        return [], [], [f"unreadable ({error.strerror})"]
    files = [path for path in entries if path.is_file() and path.suffix.lower() in SUFFIXES]
    others = [f"{path.name}/" if path.is_dir() else path.name for path in entries]
    others = [name for name in others if name not in {file.name for file in files}]
    named = some(others)
    if not files:
        inside = f"; it holds {named}" if others else "; it is empty"
        return [], [], [f"no picture lies directly in this folder{inside}"]
    if all(file.stem.isdecimal() for file in files):
        files.sort(key=lambda file: int(file.stem))
    return files, [f"left out, being no picture: {named}"] if others else [], []


def some(names: Sequence[str]) -> str:
    """The first of them, and how many more."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _picture(path: Path, seen: _Seen) -> NDArray[np.uint8]:
    """One file as [3, 32, 32]; ValueError says why it cannot be used."""
    upright = decode(path, lambda image: _rgb(image, seen))
    if upright.size != (SIDE, SIDE):
        seen.sizes[upright.size] += 1
    return _planes(upright)


def _rgb(image: Image.Image, seen: _Seen) -> Image.Image:
    if image.mode in ALPHA or image.has_transparency_data:
        seen.modes["alpha"] += 1
        solid = image.convert("RGBA")
        white = Image.new("RGBA", solid.size, "white")
        return Image.alpha_composite(white, solid).convert("RGB")
    if image.mode not in MODES:
        raise UnusablePicture(f"has the colour mode {image.mode}; save it as RGB")
    if image.mode != "RGB":
        seen.modes["grey"] += 1
    return image.convert("RGB")


def _planes(image: Image.Image) -> NDArray[np.uint8]:
    if image.size != (SIDE, SIDE):
        image = image.resize((SIDE, SIDE), FILTER)
    return np.asarray(image).transpose(2, 0, 1)
