"""Measure accuracy on corrupted test images."""

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import numpy as np
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import nn

from distill.data import rng
from distill.data.corruptions.catalogue import CORRUPTIONS, LEFT_OUT, SEVERITIES, corrupt
from distill.data.rng import Stream
from distill.data.sources import load_data_set
from distill.data.sources.load_data_set import ImageSet, Progress
from distill.evaluation.predict_split import Pixels, evaluate_network

Rows = NDArray[np.int64]
SEED = 0


def robustness(
    net: nn.Module,
    test: ImageSet,
    accelerator: Accelerator,
    n_images: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Return the `accuracy` under each corruption at severities 1 to 5, the `mean_error` over all
    of them, and the accuracy on the `clean` images.

    `n_images`: number of random images of the test split to use; None for all. The mean error is
    not normalised, unlike the paper's, which divides each error by AlexNet's.
    """
    indices = _random_indices(len(test.labels), n_images)
    images = load_data_set.subset(test, indices)

    def top1(name: str, severity: int) -> float:
        change = partial(_corrupt, indices, name, severity)
        return evaluate_network(net, images, accelerator, change=change)["top1"]

    accuracy = _by_corruption(top1, progress)
    return {
        "n": len(indices),
        "clean": evaluate_network(net, images, accelerator)["top1"],
        "severities": list(SEVERITIES),
        "accuracy": accuracy,
        "mean_error": 1 - float(np.mean(list(accuracy.values()))),
        "left_out": list(LEFT_OUT),
        "seed": SEED,
    }


def _by_corruption(
    measure: Callable[[str, int], float], progress: Progress | None
) -> dict[str, list[float]]:
    """Return `measure(name, severity)` of each corruption, by name, at ascending severities."""
    measured: dict[str, list[float]] = {name: [] for name in CORRUPTIONS}
    every = list(product(CORRUPTIONS, SEVERITIES))
    for done, (name, severity) in enumerate(every):
        if progress:
            progress("corruptions", done, len(every))
        measured[name].append(measure(name, severity))
    if progress:
        progress("corruptions", len(every), len(every))
    return measured


def _random_indices(n: int, n_images: int | None) -> Rows:
    """Return `n_images` random indices below `n` in ascending order; all if `n_images` is None.

    The first images of a split would not represent it if it is sorted by class.
    """
    if n_images is None or n_images >= n:
        return np.arange(n)
    return np.sort(rng.permutation(SEED, 0, Stream.CORRUPTION, n)[:n_images])


def _corrupt(indices: Rows, name: str, severity: int, images: Pixels, rows: Rows) -> Pixels:
    """Return the corrupted images.

    `indices`: of the evaluated images in the whole split; the noise depends on them, so that an
    image is corrupted equally in every subset. `rows`: positions of `images` in `indices`.
    """
    return corrupt(images, name, severity, samples=indices[rows], seed=SEED)
