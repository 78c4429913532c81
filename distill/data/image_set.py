"""Hold images in memory; compute image digests and data set fingerprints."""

import math
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distill.data.free_memory import free_memory
from distill.errors import UserError
from distill.files.run_json_schemas import MOST_CLASSES, fingerprint_of_names

SIDE = 32  # pixels, height and width of CIFAR's images and of the synthetic ones
LEAST_SIDE, LARGEST_SIDE = 16, 128  # of square images that are trained on, in pixels
COPIES = 2  # of a split in memory, while it is divided into training and held-out images
CHANNELS = 3
NAMED = 80  # characters of a class name in a message

Split = Literal["train", "test"]
Progress = Callable[[str, int, int], None]  # activity, done, total


@dataclass(frozen=True, eq=False)  # == of arrays returns an array, not one truth value
class ImageSet:
    """One split of a data set: images, labels and class names."""

    images: NDArray[np.uint8]  # [N, 3, S, S], RGB; channels are last in memory after `subset`
    labels: NDArray[np.int64]  # [N], each in 0..n_classes-1
    class_names: tuple[str, ...]
    # The data set whose published mean and std normalise the images; None if unknown.
    normalised_as: Literal["cifar10", "cifar100"] | None = None

    @property
    def n_classes(self) -> int:
        return len(self.class_names)

    @property
    def size(self) -> int:
        """Height and width of the images in pixels."""
        return int(self.images.shape[-1])

    @cached_property
    def digests(self) -> list[bytes]:
        """Return one sha256 per image, of its label and pixels.

        The hashed bytes are the label in one byte (two little-endian bytes above 255), then the
        pixel values (3,072 for 32x32 pixels) row by row, with red, green and blue interleaved.
        """
        heads = [n.to_bytes(1 if n < 256 else 2, "little") for n in self.labels.tolist()]
        return [
            sha256(h + row).digest()
            for h, row in zip(heads, _pixel_bytes(self.images), strict=True)
        ]

    @cached_property
    def fingerprint(self) -> str:
        """Return the hex sha256 of the sorted digests of all images and labels.

        It does not depend on the order of the images or on the format of their files.
        """
        return sha256(b"".join(sorted(self.digests))).hexdigest()

    @property
    def class_names_fingerprint(self) -> str:
        """Return the hex sha256 of the class names in the order of their labels."""
        return fingerprint_of_names(self.class_names)


def fault_of_names(class_names: Sequence[str]) -> str:
    """Return why these cannot be the names of classes; empty if they can.

    Names must not contain lone surrogates, which cannot be written to JSON; the surrogates by which
    Python represents bytes that are not UTF-8 are allowed. No two names may be equal, since tables
    count by name.
    """
    if len(class_names) > MOST_CLASSES:
        return f"{len(class_names):,} classes; the maximum is {MOST_CLASSES:,}"
    seen: dict[str, str] = {}
    for name in class_names:
        try:
            name.encode("utf-8", "surrogateescape")
        except UnicodeError:
            return f"the class name {name[:NAMED]!r} is not text: it has a lone surrogate"
        form = unicodedata.normalize("NFC", name)
        if form in seen:
            return (
                f"the class names {seen[form][:NAMED]!a} and {name[:NAMED]!a} are equal, or "
                "differ in their Unicode form only"
            )
        seen[form] = name
    return ""


def check_memory(what: str, n: int, side: int) -> None:
    """Raise UserError if `n` images of `side` x `side` pixels do not fit into free memory.

    Twice their bytes must be free, since a run copies a split while it divides it. `what` names the
    images in the message. Does nothing on a system that does not report its free memory.
    """
    free, n_bytes = free_memory(), COPIES * n * CHANNELS * side**2
    if free is None or n_bytes <= free:
        return
    fitting = math.isqrt(free // (COPIES * n * CHANNELS)) // 8 * 8
    advice = f"Type --set data.size={fitting}" if fitting >= LEAST_SIDE else "Use fewer images"
    raise UserError(
        f"{what}: {n:,} images of {side}x{side} pixels need {n_bytes / 1e9:,.1f} GB of memory "
        f"({COPIES} x {n:,} x {CHANNELS} x {side} x {side} bytes), and {free / 1e9:,.1f} GB are "
        f"free.\n{advice}, or a machine with more memory."
    )


def count_shared_images(test: ImageSet, train: ImageSet) -> int:
    """Count the test images whose pixels equal a training image's; labels are ignored.

    Costs a copy of the test images in memory and a pass over the training images.
    """
    test_rows = set(_pixel_bytes(test.images))
    shared = {row for row in _pixel_bytes(train.images) if row in test_rows}
    return sum(row in shared for row in _pixel_bytes(test.images)) if shared else 0


def _pixel_bytes(images: NDArray[np.uint8]) -> Iterator[bytes]:
    """Yield each image's pixels as bytes, row by row, with red, green and blue interleaved."""
    for start in range(0, len(images), 1000):  # of 32x32 pixels, 3 MB fit in the processor's cache
        red, green, blue = images[start : start + 1000].swapaxes(0, 1)
        yield from map(bytes, np.stack([red, green, blue], axis=-1))


def subset(images: ImageSet, indices: ArrayLike) -> ImageSet:
    """Return an ImageSet of the images at `indices`, in that order, with all class names.

    Channels are last in memory. This is the order in which networks read images, so that the loader
    need not copy them again.
    """
    chosen = np.asarray(indices, dtype=np.int64)
    interleaved = images.images.transpose(0, 2, 3, 1)
    pixels = np.empty((len(chosen), *interleaved.shape[1:]), dtype=np.uint8)
    for start in range(0, len(chosen), 1000):  # temporary copies of a part, not of the whole set
        pixels[start : start + 1000] = interleaved[chosen[start : start + 1000]]
    part = replace(images, images=pixels.transpose(0, 3, 1, 2), labels=images.labels[chosen])
    if "digests" in vars(images):  # hashing again would take a third of the start-up time
        vars(part)["digests"] = [images.digests[i] for i in chosen]
    return part
