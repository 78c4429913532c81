"""Measure accuracy on corrupted test images."""

from functools import partial
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
    """Return the `accuracy` of each corruption at severities 1 to 5, and `mean_error` over all of
    them.

    The mean error is not normalised: the paper first divides each by AlexNet's. `n_images`: use
    that many random images of the test split; None uses all. `clean` is the accuracy on the same
    images without corruption.
    """
    indices = _random_indices(len(test.labels), n_images)
    images = load_data_set.subset(test, indices)

    def top1(name: str, severity: int) -> float:
        change = partial(_corrupt, indices, name, severity)
        return evaluate_network(net, images, accelerator, change=change)["top1"]

    accuracy: dict[str, list[float]] = {}
    for done, name in enumerate(CORRUPTIONS, start=1):
        accuracy[name] = [top1(name, severity) for severity in SEVERITIES]
        if progress:
            progress("corruptions", done, len(CORRUPTIONS))
    return {
        "n": len(indices),
        "clean": evaluate_network(net, images, accelerator)["top1"],
        "severities": list(SEVERITIES),
        "accuracy": accuracy,
        "mean_error": 1 - float(np.mean(list(accuracy.values()))),
        "left_out": list(LEFT_OUT),
        "seed": SEED,
    }


def _random_indices(n: int, n_images: int | None) -> Rows:
    """Return random indices in ascending order: a split may be sorted by class, so the first images
    would not represent it.
    """
    if n_images is None or n_images >= n:
        return np.arange(n)
    return np.sort(rng.permutation(SEED, 0, Stream.CORRUPTION, n)[:n_images])


def _corrupt(indices: Rows, name: str, severity: int, images: Pixels, rows: Rows) -> Pixels:
    """Corrupt images by their indices in the whole split, so that a subset has the same corrupted
    images.
    """
    return corrupt(images, name, severity, samples=indices[rows], seed=SEED)
