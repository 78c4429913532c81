"""Decode picture files of any size to upright, resized RGB images.

Class folders (`class_folders.py`) use `decode` and `planes` too, so that the pixels of a file are
the same in training and in prediction. Class folders accept only the usual colour modes, and images
of other sizes only if `data.size` requests that they are resized. In prediction any photograph is
accepted, and every change is reported in a note.
"""

import io
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from distill.data.image_set import CHANNELS, Progress
from distill.files.regular_file import content_of

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
FORMATS = ("PNG", "JPEG", "WEBP")
MODES = ("RGB", "L", "P", "1")  # RGB, greyscale, palette, black and white: all convert to RGB
LARGEST = 1 << 28  # bytes of a file
SCAN, MOST_SCANS = b"\xff\xda", 100  # the marker of a scan; progressive JPEGs have about 10
MOST_PIXELS = 50_000_000  # of a picture; conversion takes up to 16 bytes of memory per pixel
LONGEST_SIDE = 65_535  # pixels, as in JPEG; resizing a longer side takes memory for its weights
# Above so many pixels a picture needs a byte per 300 of them; photographs have ten times as many.
# Decoding a file then takes time in proportion to its bytes.
FREE_PIXELS, MOST_PER_BYTE = 4_000_000, 300
FILTER = Image.Resampling.BICUBIC  # to shrink, Pillow widens it, so that no pixel is skipped
ALPHA = ("RGBA", "LA", "PA")  # colour modes with transparency
NAMED = 3  # sizes or files that a note names; further ones are only counted


@dataclass(frozen=True, eq=False)
class DecodedPictures:
    """Decoded pictures with their ids, notes on changes and faults of files.

    Notes and faults have one line each. The image of a faulty file is black.
    """

    images: NDArray[np.uint8]  # [N, 3, S, S], RGB
    ids: tuple[str, ...]
    notes: list[str]
    faults: list[str]


def read(path: Path, side: int, progress: Progress | None = None) -> DecodedPictures:
    """Read one picture, or all pictures directly in a folder, as `side` x `side` pixels.

    An id is a file name without its suffix. A folder's pictures are sorted by number if all ids are
    numbers (1.png … 10.png), otherwise by name.
    """
    files, notes, faults = _list_pictures(path) if path.is_dir() else ([path], [], [])
    images = np.zeros((len(files), CHANNELS, side, side), np.uint8)
    changes = _Changes(Counter(), Counter())
    for i, file in enumerate(files):
        try:
            images[i] = _picture(file, side, changes)
        except ValueError as error:
            faults.append(f"{file.name}: {error}")
        if progress:
            progress("reading", i + 1, len(files))
    notes += [*resized_notes(changes.sizes, side), *changes.notes()]
    return DecodedPictures(images, tuple(file.stem for file in files), notes, faults)


def decode(
    content: bytes, as_rgb: Callable[[Image.Image], Image.Image], side: int | None = None
) -> Image.Image:
    """Decode the bytes of a picture file, rotate it by its EXIF orientation, and apply `as_rgb`.

    `as_rgb` converts a Pillow image to RGB or raises UnusablePicture. `side`: the required width
    and height in pixels, checked before the picture is decoded; None allows any size. Raises
    ValueError if the picture is damaged, animated or of another size, or if `as_rgb` raises.
    """
    try:
        with (
            warnings.catch_warnings(action="ignore"),  # Pillow warns of each damaged EXIF entry
            Image.open(io.BytesIO(content), formats=FORMATS) as image,
        ):
            _check_before_decoding(image, content, side)
            return as_rgb(ImageOps.exif_transpose(image))
    except UnusablePicture:
        raise
    except Exception as error:  # Pillow's decoders fail in many ways: OSError, SyntaxError, …
        is_unknown = isinstance(error, UnidentifiedImageError)
        reason = "its format is unknown" if is_unknown else str(error) or "damaged"
        raise ValueError(f"unreadable ({reason})") from error


def _check_before_decoding(image: Image.Image, content: bytes, side: int | None) -> None:
    """Raise UnusablePicture if the picture's header or number of bytes forbids decoding it."""
    if image.format == "JPEG" and content.count(SCAN) > MOST_SCANS:
        raise UnusablePicture(f"has more than {MOST_SCANS} scans: save it again")
    if getattr(image, "n_frames", 1) > 1:
        raise UnusablePicture("is an animation, not one picture")
    width, height = image.size
    if fault := size_fault(width, height):
        raise UnusablePicture(fault)
    if width * height > max(FREE_PIXELS, MOST_PER_BYTE * len(content)):
        raise UnusablePicture(
            f"{width}x{height} pixels in {len(content):,} bytes: it is almost empty, and "
            "decoding it takes long; make it smaller"
        )
    if side is not None and image.size != (side, side):
        raise UnusablePicture(f"{width}x{height} pixels, not {side}x{side}")


def content(path: Path) -> bytes:
    """Return the bytes of a picture file.

    Raises ValueError if it is not a regular file, too large or unreadable.
    """
    try:
        return content_of(path, LARGEST)
    except OSError as error:
        raise ValueError(f"unreadable ({error.strerror})") from error


class UnusablePicture(ValueError):
    """The picture can be read but not used, for instance because of its size."""


def size_of(content: bytes) -> tuple[int, int] | None:
    """Return width and height of a picture file from its header; None if it cannot be read."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            return image.size
    except Exception:  # `decode` says why
        return None


def size_fault(width: int, height: int) -> str:
    """Return why an image of this size is too large to be resized; empty if it is not."""
    if width * height > MOST_PIXELS:
        return f"{width}x{height} pixels; at most {MOST_PIXELS:,} are read: make it smaller"
    if max(width, height) > LONGEST_SIDE:
        return f"{width}x{height} pixels; at most {LONGEST_SIDE:,} a side are read: make it smaller"
    return ""


def resize(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Resize a picture uint8 [H, W, 3] to [3, side, side].

    It is not cropped: a picture that is not square is squeezed.
    """
    return planes(Image.fromarray(np.ascontiguousarray(image)), side)


def resized_notes(sizes: Counter[tuple[int, int]], side: int) -> list[str]:
    """Return a note on resized pictures, as a list; an empty list if there are none.

    `sizes`: the number of pictures of each original (width, height).
    """
    if not sizes:
        return []
    common = [f"{width}x{height}" for (width, height), _ in sizes.most_common(NAMED)]
    more = f" and {len(sizes) - NAMED} more" if len(sizes) > NAMED else ""
    squeezed = sum(k for (width, height), k in sizes.items() if width != height)
    shape = f"; {squeezed:,} not square and squeezed" if squeezed else ""
    return [
        f"{_images(sizes.total())} resized to {side}x{side} from {', '.join(common)}{more} "
        f"(Pillow's {FILTER.name.lower()}){shape}"
    ]


@dataclass(frozen=True)
class _Changes:
    """Counts of pictures of another size or colour mode, by size and by kind of colours."""

    sizes: Counter[tuple[int, int]]
    modes: Counter[str]

    def notes(self) -> list[str]:
        changes = {"alpha": "transparency replaced by white", "grey": "converted to RGB"}
        names = {"alpha": "with an alpha channel", "grey": "of grey levels or a palette"}
        return [f"{_images(k)} {names[mode]}, {changes[mode]}" for mode, k in self.modes.items()]


def _images(n: int) -> str:
    return "1 image" if n == 1 else f"{n:,} images"


def _list_pictures(folder: Path) -> tuple[list[Path], list[str], list[str]]:
    """Return (picture files of a folder in order, notes, faults).

    A note names ignored files. A folder without pictures is a fault.
    """
    try:
        entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        return [], [], [f"unreadable ({error.strerror})"]
    files = [path for path in entries if path.is_file() and path.suffix.lower() in SUFFIXES]
    others = [f"{path.name}/" if path.is_dir() else path.name for path in entries]
    others = [name for name in others if name not in {file.name for file in files}]
    named = some(others)
    if not files:
        inside = f"; it contains {named}" if others else "; it is empty"
        return [], [], [f"no picture is directly in this folder{inside}"]
    if all(file.stem.isdecimal() for file in files):
        files.sort(key=lambda file: int(file.stem))
    return files, [f"ignored, not pictures: {named}"] if others else [], []


def some(names: Sequence[str]) -> str:
    """Join the first three names and the number of the others: `a, b, c and 7 more`."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _picture(path: Path, side: int, changes: _Changes) -> NDArray[np.uint8]:
    """Decode a file to uint8 [3, side, side] and count it in `changes` if it had to be changed.

    Raises ValueError if it cannot be used.
    """
    upright = decode(content(path), lambda image: _rgb(image, changes))
    if upright.size != (side, side):
        changes.sizes[upright.size] += 1
    return planes(upright, side)


def _rgb(image: Image.Image, changes: _Changes) -> Image.Image:
    if image.mode in ALPHA or image.has_transparency_data:
        changes.modes["alpha"] += 1
        solid = image.convert("RGBA")
        white = Image.new("RGBA", solid.size, "white")
        return Image.alpha_composite(white, solid).convert("RGB")
    if image.mode not in MODES:
        raise UnusablePicture(f"has the colour mode {image.mode}; save it as RGB")
    if image.mode != "RGB":
        changes.modes["grey"] += 1
    return image.convert("RGB")


def planes(image: Image.Image, side: int) -> NDArray[np.uint8]:
    """Return a picture as uint8 [3, side, side], resized if it has another size."""
    if image.size != (side, side):
        image = image.resize((side, side), FILTER)
    return np.asarray(image).transpose(2, 0, 1)
