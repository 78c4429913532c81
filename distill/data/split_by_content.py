"""Split the training set: choose held-out images by their content alone.

Within each class the images are sorted by their digest, and the first ones are held out. Neither a
seed nor the file order matters: every run on the same data, in any file format, holds out the same
images. So a teacher was never trained on the images that select the best epoch of its student. The
images held out with a smaller fraction are also held out with a larger one.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from distill.data.image_set import ImageSet
from distill.errors import UserError, data_error
from distill.format import counted

Indices = NDArray[np.int64]


def split(
    images: ImageSet, *, holdout: float, train_images: int | None = None
) -> tuple[Indices, Indices]:
    """Return (training indices, held-out indices), both sorted by the images' digests.

    `holdout` is a fraction in [0, 1). Of a class of n images, the first holdout * n, rounded to the
    nearest integer, are held out; images equal to the last of these are held out too.
    `train_images` is the number of training images, the first of the remaining ones; None means
    all. It is divided equally between the classes, and a remainder goes to the first classes.

    Raises UserError if `holdout` is out of range, or if a class would have no training image, no
    held-out image (`holdout` > 0), or fewer images than its part of `train_images`.
    """
    if not 0 <= holdout < 1:
        raise UserError(
            f"data.holdout = {holdout} is not a share in [0, 1); 0.1 holds out a tenth."
        )
    digests = images.digests
    order = np.array(sorted(range(len(digests)), key=digests.__getitem__), dtype=np.int64)
    labels = images.labels[order]
    ranks = [np.flatnonzero(labels == c) for c in range(images.n_classes)]  # in digest order
    ordered = [digests[i] for i in order]
    held = [
        _include_duplicates(int(holdout * len(r) + 0.5), [ordered[i] for i in r]) for r in ranks
    ]
    left = [len(of_class) - n for of_class, n in zip(ranks, held, strict=True)]
    used = left if train_images is None else _divide_equally(train_images, images.n_classes)
    _check(images.class_names, holdout, held, left, used)
    chosen = [r[n : n + k] for r, n, k in zip(ranks, held, used, strict=True)]
    held_out = [r[:n] for r, n in zip(ranks, held, strict=True)]
    return order[np.sort(np.concatenate(chosen))], order[np.sort(np.concatenate(held_out))]


def _include_duplicates(n: int, digests: Sequence[bytes]) -> int:
    """Return `n`, increased so that no two equal images are divided between the two parts.

    `digests`: the sorted digests of a class, of which the first n are held out.
    """
    while 0 < n < len(digests) and digests[n] == digests[n - 1]:
        n += 1
    return n


def _divide_equally(total: int, n_classes: int) -> list[int]:
    each, more = divmod(total, n_classes)
    return [each + (c < more) for c in range(n_classes)]


def _check(
    class_names: Sequence[str],
    holdout: float,
    held: Sequence[int],
    left: Sequence[int],
    used: Sequence[int],
) -> None:
    if sum(used) > sum(left) > 0:
        raise UserError(
            f"data.train_images = {sum(used)} is more than the {sum(left):,} images that are left "
            f"to train on: of {sum(held) + sum(left):,} images {sum(held):,} are held out "
            f"(data.holdout = {holdout}).\n"
            f"Type --set data.train_images={sum(left)} or less, or leave it out for all."
        )
    faults = []
    for name, n_held, n_left, n_used in zip(class_names, held, left, used, strict=True):
        total = counted(n_held + n_left, "image")
        counts = f"of {total} {n_held:,} held out, {n_left:,} left to train on"
        if n_left == 0 or n_used <= 0:
            faults.append(
                f"class {name!r} has no training image: {counts}, {max(n_used, 0):,} requested"
            )
        elif n_used > n_left:
            faults.append(
                f"class {name!r} has too few training images: {counts}, {n_used:,} requested"
            )
        if holdout > 0 and n_held == 0:
            faults.append(f"class {name!r} has no held-out image: {counts}")
    if faults:
        share = f"data.holdout = {holdout} of {sum(held) + sum(left):,} images"
        raise data_error(
            share, faults, "Choose another share, fewer training images, or add more images."
        )
