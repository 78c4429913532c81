"""What the predictions on a set tell: confusion, calibration, the mistakes."""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.errors import UserError

BINS = 15  # of the calibration, as the program's own `ece` has them

Array = NDArray[Any]
Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Answers:
    """The arrays of evaluation.npz; None for what a run does not have."""

    logits: Array  # [N, C], on the test split in its order
    labels: Array  # [N]
    mistakes: Array  # [M], the most confident ones first
    mistake_pixels: Array  # uint8 [M, 3, H, W]
    teacher_logits: Array | None = None  # [N, C]
    val_logits: Array | None = None  # [V, C], on the held-out part
    val_labels: Array | None = None  # [V]


@dataclass(frozen=True)
class Calibration:
    """Confidence against accuracy in equal bins of (0, 1]; nan in both where a bin is empty.

    Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", ICML 2017, arXiv
    1706.04599, equations 1 to 5.
    """

    confidence: Floats  # [BINS], means
    accuracy: Floats  # [BINS]
    counts: Counts  # [BINS]

    @property
    def ece(self) -> float:
        """The expected calibration error, 0..1."""
        some = self.counts > 0
        gaps = np.abs(self.accuracy[some] - self.confidence[some])
        return float((gaps * self.counts[some]).sum() / self.counts.sum())


def read(path: Path) -> Answers | None:
    """The predictions of a run; None where there are none. Raises UserError for a damaged file."""
    if not path.exists():
        return None
    known = Answers.__dataclass_fields__
    try:
        with np.load(path) as file:
            return Answers(**{name: file[name] for name in file.files if name in known})
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile) as fault:
        raise UserError(
            f"{path} cannot be read as predictions: {fault}.\n"
            "Move it away: the report is made without it."
        ) from fault


def probabilities(logits: Array, temperature: float = 1.0) -> Floats:
    """Softmax of logits [N, C] divided by the temperature."""
    scaled = logits.astype(np.float64) / temperature
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    shares: Floats = powers / powers.sum(axis=1, keepdims=True)
    return shares


def is_right(logits: Array, labels: Array) -> NDArray[np.bool_]:
    """[N]: whether the largest logit is that of the label."""
    right: NDArray[np.bool_] = logits.argmax(axis=1) == labels
    return right


def confusion(logits: Array, labels: Array) -> Counts:
    """[C, C]: how many of class i (the row) were taken for class j."""
    n_classes = logits.shape[1]
    pairs = labels.astype(np.int64) * n_classes + logits.argmax(axis=1)
    counts: Counts = np.bincount(pairs, minlength=n_classes**2).reshape(n_classes, n_classes)
    return counts


def confused(counts: Counts, most: int) -> list[tuple[int, int, int]]:
    """(class, taken for, how many) of the pairs that are confused most often, at least once."""
    wrong = counts * (1 - np.eye(len(counts), dtype=np.int64))
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    rows, columns = np.unravel_index(order, wrong.shape)
    found = zip(rows.tolist(), columns.tolist(), wrong[rows, columns].tolist(), strict=True)
    return [(i, j, n) for i, j, n in found if n]


def calibration(shares: Array, labels: Array) -> Calibration:
    """Of probabilities [N, C]. The bins are open below and closed above."""
    confidence, right = shares.max(axis=1), is_right(shares, labels)
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    with np.errstate(invalid="ignore"):
        mean, accuracy = (
            np.bincount(bins, weights=values, minlength=BINS) / counts
            for values in (confidence, right)
        )
    return Calibration(mean, accuracy, counts)
