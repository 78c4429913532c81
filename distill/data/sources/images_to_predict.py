"""Read unlabelled images to predict: Kaggle's pickle, arrays or pictures.

- Kaggle's pickle: a dictionary with the keys `data` and `ids`, as text or bytes
- `.npy`: the array of images; `.npz`: `data` or `images`, with or without `ids`
- a folder of pictures, or one picture (`pictures.py`)

Arrays are uint8: [N, H, W, 3], [N, 3, H, W], or [N, 3072] with one row per image: the red plane,
then green, then blue. No image is dropped or changed silently: `notes` lists all changes.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.data.image_set import CHANNELS, SIDE, Progress
from distill.data.sources import pictures, unpickle
from distill.data.sources.cifar import IMAGE_BYTES
from distill.data.sources.pictures import DecodedPictures
from distill.errors import UserError, data_error
from distill.files.pickle_machine import text, type_name
from distill.files.regular_file import InvalidFile, open_regular
from distill.files.tar_archives import content_of
from distill.files.untrusted_arrays import (
    LARGEST_FILE,
    MAGIC,
    InvalidArray,
    Npz,
    open_npz,
    read_npy,
)
from distill.format import counted

ADVICE = (
    "Give --input Kaggle's pickle of data and ids, a .npy or .npz of uint8 images, a folder of "
    f"pictures, or one picture ({', '.join(pictures.SUFFIXES)})."
)
PIXELS = ("data", "images")  # allowed names of the array of images
NAMES = (int, str, bytes, np.integer)  # allowed types of ids
ZIP = b"PK\x03\x04"  # the first bytes of an .npz file
LONGEST_ID = 1000  # characters
LARGEST = 1 << 32  # bytes of a pickle
MOST_IMAGES = 1_000_000  # of a file; Kaggle's has 300,000
NAMED = 80  # characters of a name in a message


@dataclass(frozen=True, eq=False)  # == of arrays returns an array, not one truth value
class Unlabelled:
    """Images and their ids, in the order of the file.

    The images are resized in pieces, when they are read: all of them could take much more memory
    than the file.
    """

    planes: NDArray[np.uint8]  # [N, 3, H, W], RGB, of any size
    ids: tuple[str, ...]  # unique
    notes: tuple[str, ...] = ()  # changes to images, and ignored files
    side: int = SIDE  # the height and width to which images are resized

    def images(self, start: int = 0, end: int | None = None) -> NDArray[np.uint8]:
        """Return the images from `start` up to `end`, None for the last one: [n, 3, S, S]."""
        planes = self.planes[start:end]
        if planes.shape[2:] == (self.side, self.side):
            return np.require(planes, requirements=["C", "W"])  # a pickle's arrays are read-only
        resized = np.empty((len(planes), CHANNELS, self.side, self.side), np.uint8)
        for i, image in enumerate(planes):
            resized[i] = pictures.resize(image.transpose(1, 2, 0), self.side)
        return resized

    @property
    def fingerprint(self) -> str:
        """Return the hex sha256 of the images and their ids, in their order."""
        digest = sha256(repr((self.ids, self.side)).encode(errors="surrogateescape"))
        for image in self.planes:
            digest.update(np.ascontiguousarray(image).data)
        return digest.hexdigest()


def load(path: Path, side: int = SIDE, *, progress: Progress | None = None) -> Unlabelled:
    """Load all images at `path`, to be resized to `side` x `side` pixels.

    `progress` is called while pictures are decoded. Raises UserError, naming up to ten faults, if
    any image cannot be used or an id occurs twice.
    """
    if not path.exists():
        raise UserError(f"input {path} does not exist.\n{ADVICE}")
    is_picture = path.is_dir() or path.suffix.lower() in pictures.SUFFIXES
    found = pictures.read(path, side, progress) if is_picture else _from_arrays(path, side)
    faults = [*found.faults, *_repeated_ids(found.ids)]
    if faults:
        raise data_error(str(path), faults, ADVICE)
    return Unlabelled(found.images, found.ids, tuple(found.notes), side)


def _from_arrays(path: Path, side: int) -> DecodedPictures:
    notes: list[str] = []
    nothing = np.empty((0, CHANNELS, side, side), np.uint8)
    try:
        with _open_arrays(path) as arrays:
            planes = _planes(_image_array(arrays), notes)
            if fault := pictures.size_fault(planes.shape[3], planes.shape[2]):
                raise ValueError(f"its images have {fault}")
            ids = _ids(arrays, len(planes), notes)
        if (size := (planes.shape[3], planes.shape[2])) != (side, side):
            notes += pictures.resized_notes(Counter({size: len(planes)}), side)
        return DecodedPictures(planes, ids, notes, [])
    except MemoryError:
        return DecodedPictures(nothing, (), notes, ["its images do not fit into memory"])
    except (InvalidArray, OSError) as error:
        return DecodedPictures(nothing, (), notes, [f"unreadable ({error})"])
    except ValueError as error:
        return DecodedPictures(nothing, (), notes, [str(error)])


@contextmanager
def _open_arrays(path: Path) -> Iterator[Mapping[str, Any]]:
    """Open a file as a mapping of names to arrays, without running code.

    Arrays of an .npz are read when they are accessed. Raises InvalidArray or OSError if the file
    cannot be read, ValueError if it is not a readable pickle.
    """
    try:
        with open_regular(path, LARGEST_FILE) as file:
            begin = file.read(len(MAGIC))
    except InvalidFile as error:
        raise InvalidArray(str(error)) from None
    if begin == MAGIC:
        yield {PIXELS[0]: read_npy(path)}
    elif begin.startswith(ZIP):
        with open_npz(path) as arrays:
            yield arrays
    else:
        yield _unpickle(content_of(path, LARGEST))


def _unpickle(content: bytes) -> dict[str, object]:
    try:
        return unpickle.loads(content)
    except ValueError as error:
        raise ValueError(f"cannot be read as a pickle: {error}") from error


def _image_array(arrays: Mapping[str, Any]) -> NDArray[np.uint8]:
    """Return the array named `data` or `images`, or else the only array that is not `ids`.

    Raises ValueError if there is no such array or it is not uint8.
    """
    names = [name for name in PIXELS if name in arrays] or [n for n in arrays if n != "ids"]
    if len(names) != 1:
        found = pictures.some([repr(name[:NAMED]) for name in arrays]) or "nothing"
        raise ValueError(f"contains {found}; the images must be called {' or '.join(PIXELS)}")
    if isinstance(arrays, Npz):
        _check_number(arrays.shape(names[0]))
    array = arrays[names[0]]
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{names[0]} is {type_name(array)}, not an array")
    if array.dtype.kind == "f":
        raise ValueError(
            f"{names[0]} is {array.dtype}: whether it is scaled or normalised is unknown. "
            "Save the pixels, 0..255: (255 * images).round().astype('uint8') if they are in 0..1"
        )
    if array.dtype != np.uint8:
        raise ValueError(f"{names[0]} is {array.dtype}, not uint8")
    return array


def _check_number(shape: tuple[int, ...]) -> None:
    """Raise ValueError if an array of this shape has too many images."""
    if shape and shape[0] > MOST_IMAGES:
        raise ValueError(f"{shape[0]:,} images; at most {MOST_IMAGES:,} are read. Split the file")


def _planes(array: NDArray[np.uint8], notes: list[str]) -> NDArray[np.uint8]:
    """Convert an array in any of the three layouts to [N, 3, H, W]; raise ValueError for others."""
    _check_number(array.shape)
    if array.size == 0:
        raise ValueError(f"contains no image: the shape is {list(array.shape)}")
    if array.ndim == 4 and array.shape[3] == CHANNELS:
        return array.transpose(0, 3, 1, 2)
    if array.ndim == 4 and array.shape[1] == CHANNELS:
        return array
    if array.ndim == 2 and array.shape[1] == IMAGE_BYTES:
        notes.append("the images are flat: read like CIFAR-10's, all red, then green, then blue")
        return array.reshape(-1, CHANNELS, SIDE, SIDE)
    layouts = f"[N, H, W, {CHANNELS}], [N, {CHANNELS}, H, W] or [N, {IMAGE_BYTES}]"
    raise ValueError(f"the images have the shape {list(array.shape)}, not {layouts}")


def _ids(arrays: Mapping[str, Any], n: int, notes: list[str]) -> tuple[str, ...]:
    """Return one id per image as text; without ids in the file they are 0, 1, …"""
    if "ids" not in arrays:
        notes.append(f"the file has no ids: the images are numbered 0..{n - 1:,}")
        return tuple(map(str, range(n)))
    ids = arrays["ids"]
    values = ids.tolist() if isinstance(ids, np.ndarray) else ids
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        raise ValueError(f"ids is {type_name(ids)}, not a list of [{n}]")
    if len(values) != n:
        raise ValueError(f"{counted(n, 'image')} but {counted(len(values), 'id')}")
    invalid = [v for v in values if isinstance(v, bool) or not isinstance(v, NAMES)]
    if invalid:
        raise ValueError(f"an id is {_format_value(invalid[0])}; ids are whole numbers or text")
    names = tuple(map(text, values))
    if (longest := max(map(len, names), default=0)) > LONGEST_ID:
        raise ValueError(f"an id has {longest:,} characters; the maximum is {LONGEST_ID:,}")
    return names


def _format_value(value: object) -> str:
    """Format a value for a message; of a list, which may be long, only the type."""
    return type_name(value) if isinstance(value, list | dict | tuple) else repr(value)


def _repeated_ids(ids: Sequence[str]) -> list[str]:
    return [f"id {name} occurs {k} times" for name, k in Counter(ids).items() if k > 1]
