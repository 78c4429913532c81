"""Split the training set: choose held-out images by their content alone.

Within each class the images are ranked by their digest; the first are held out. No seed, no order
of files: every run on the same data, by whatever container, holds out the same images, so a teacher
never saw those by which its student is chosen. A smaller share is contained in a larger one.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from distill.data.images import ImageSet
from distill.data.problems import data_error
from distill.errors import UserError
from distill.format import counted

Indices = NDArray[np.int64]


def split(
    images: ImageSet, *, holdout: float, train_images: int | None = None
) -> tuple[Indices, Indices]:
    """(training indices, held-out indices), both in the order of the digests over all classes.

    `holdout` is a share in [0, 1): of a class of n images the nearest integer to holdout * n is
    held out, and what equals the last of them. Of the rest `train_images` are kept, class by class
    in the order of the digests; where they cannot be shared evenly the first classes get one more.
    All are kept where it is None.

    Raises UserError where `holdout` is out of range, or where a class would be left without a
    training image, without a held-out one (`holdout` > 0), or with fewer than its part of
    `train_images`.
    """
    if not 0 <= holdout < 1:
        raise UserError(
            f"data.holdout = {holdout} is not a share in [0, 1); 0.1 holds out a tenth."
        )
    digests = images.digests
    order = np.array(sorted(range(len(digests)), key=digests.__getitem__), dtype=np.int64)
    labels = images.labels[order]
    ranks = [np.flatnonzero(labels == c) for c in range(images.n_classes)]  # rising: digest order
    ordered = [digests[i] for i in order]
    held = [_past_twins(int(holdout * len(r) + 0.5), [ordered[i] for i in r]) for r in ranks]
    left = [len(of_class) - n for of_class, n in zip(ranks, held, strict=True)]
    kept = left if train_images is None else _shares(train_images, images.n_classes)
    _check(images.class_names, holdout, held, left, kept)
    chosen = [r[n : n + k] for r, n, k in zip(ranks, held, kept, strict=True)]
    withheld = [r[:n] for r, n in zip(ranks, held, strict=True)]
    return order[np.sort(np.concatenate(chosen))], order[np.sort(np.concatenate(withheld))]


def _past_twins(n: int, digests: Sequence[bytes]) -> int:
    """`n`, or more where equal images would stand on both sides of the border."""
    while 0 < n < len(digests) and digests[n] == digests[n - 1]:
        n += 1
    return n


def _shares(total: int, n_classes: int) -> list[int]:
    each, more = divmod(total, n_classes)
    return [each + (c < more) for c in range(n_classes)]


def _check(
    class_names: Sequence[str],
    holdout: float,
    held: Sequence[int],
    left: Sequence[int],
    kept: Sequence[int],
) -> None:
    faults = []
    for name, n_held, n_left, n_kept in zip(class_names, held, left, kept, strict=True):
        every = counted(n_held + n_left, "image")
        counts = f"of {every} {n_held:,} held out, {n_left:,} left to train on"
        if n_left == 0 or n_kept <= 0:
            faults.append(
                f"class {name!r} has no training image: {counts}, {max(n_kept, 0):,} asked for"
            )
        elif n_kept > n_left:
            faults.append(
                f"class {name!r} has too few training images: {counts}, {n_kept:,} asked for"
            )
        if holdout > 0 and n_held == 0:
            faults.append(f"class {name!r} has no held-out image: {counts}")
    if faults:
        share = f"data.holdout = {holdout} of {sum(held) + sum(left):,} images"
        raise data_error(
            share, faults, "Choose another share, fewer training images, or bring more images."
        )
