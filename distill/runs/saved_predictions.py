"""Read evaluation.npz; compute confusion, calibration and likelihood without torch."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill import statistics
from distill.errors import UserError
from distill.files import json_files
from distill.files.arrays import LARGEST, open_npz
from distill.runs.run_folder import RunFolder
from distill.statistics import LEVEL, RESAMPLES, Interval

BINS = 15  # of the calibration curve, as in the paper

ADVICE = "Restore it, or move it away: most commands work without it."
UNREADABLE = (OSError, ValueError, TypeError, MemoryError)

Array = NDArray[Any]
Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Predictions:
    """The arrays of evaluation.npz; None for those that a run does not have."""

    logits: Array  # [N, C], on the test split in its order
    labels: Array  # [N]
    mistakes: Array | None = None  # [M], the most confident ones first
    mistake_pixels: Array | None = None  # uint8 [M, 3, H, W]
    teacher_logits: Array | None = None  # [N, C]
    val_logits: Array | None = None  # [V, C], on the held-out part
    val_labels: Array | None = None  # [V]

    @property
    def is_right(self) -> NDArray[np.bool_]:
        """[N]: whether the prediction is the label."""
        return is_right(self.logits, self.labels)


@dataclass(frozen=True)
class CalibrationCurve:
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


def read(path: Path) -> Predictions | None:
    """Read evaluation.npz; None if the file is absent.

    Raises UserError if it is damaged, or if an array has another shape, type or range than
    `Predictions` states.
    """
    if not path.exists():
        return None
    fields = Predictions.__dataclass_fields__
    try:
        with open_npz(path) as arrays:
            predictions = Predictions(**{name: arrays[name] for name in arrays if name in fields})
        _check(predictions)
        return predictions
    except UNREADABLE as fault:
        raise _unreadable(path, fault) from fault


def _check(predictions: Predictions) -> None:
    """Raise ValueError, naming the array, if shapes, types or ranges do not fit each other."""
    n, n_classes = _check_logits("logits", predictions.logits)
    _check_integers("labels", predictions.labels, n, n_classes)
    if predictions.teacher_logits is not None:
        _check_logits("teacher_logits", predictions.teacher_logits, (n, n_classes))
    if (predictions.val_logits is None) != (predictions.val_labels is None):
        raise ValueError("val_logits without val_labels, or the reverse")
    if predictions.val_logits is not None:
        n_val, _ = _check_logits("val_logits", predictions.val_logits, (None, n_classes))
        _check_integers("val_labels", predictions.val_labels, n_val, n_classes)
    if predictions.mistakes is not None and len(predictions.mistakes):
        _check_integers("mistakes", predictions.mistakes, len(predictions.mistakes), n)
        _check_pixels(predictions.mistake_pixels, len(predictions.mistakes))


def _check_logits(
    name: str, array: Array, wanted: tuple[int | None, int] | None = None
) -> tuple[int, int]:
    """Return the shape of floats [N, C], neither of them 0; None in `wanted` allows any N."""
    rows, columns = wanted or (None, None)
    if array.ndim != 2 or not array.size:
        raise ValueError(f"{name} has the shape {list(array.shape)} instead of [images, classes]")
    if rows not in (None, array.shape[0]) or columns not in (None, array.shape[1]):
        raise ValueError(f"{name} has the shape {list(array.shape)}, which the others do not have")
    if array.dtype.kind != "f":
        raise ValueError(f"{name} holds {array.dtype} instead of floats")
    return array.shape[0], array.shape[1]


def _check_integers(name: str, array: Array | None, n: int, end: int) -> None:
    """Integers [n], 0..end-1."""
    if array is None or array.shape != (n,):
        found = None if array is None else list(array.shape)
        raise ValueError(f"{name} has the shape {found} instead of [{n}]")
    if array.dtype.kind not in "iu":
        raise ValueError(f"{name} holds {array.dtype} instead of integers")
    if array.min() < 0 or array.max() >= end:
        raise ValueError(f"{name} has a value outside 0..{end - 1}")


def _check_pixels(array: Array | None, n: int) -> None:
    """Raise ValueError unless the array is uint8 [n, 3, H, W] or None."""
    if array is None:
        return
    if array.ndim != 4 or array.shape[:2] != (n, 3) or not array.size:
        shape = list(array.shape)
        raise ValueError(f"mistake_pixels has the shape {shape} instead of [{n}, 3, H, W]")
    if array.dtype != np.uint8:
        raise ValueError(f"mistake_pixels holds {array.dtype} instead of uint8")


def _unreadable(path: Path, fault: object) -> UserError:
    return UserError(f"{path} cannot be read as predictions: {fault}.\n{ADVICE}")


def read_run(run: RunFolder) -> Predictions | None:
    """Read a run's evaluation.npz; None if the file is absent.

    Raises UserError if it is damaged, has another number of classes than the run, or is not the
    file whose sha256 result.json has. A result of an earlier version has no sha256: the file is not
    checked.
    """
    path = run.evaluation
    result = run.result() if run.is_finished else {}
    expected = result.get("evaluation")
    if expected is not None and path.exists() and _sha256(path) != expected:
        raise UserError(
            f"{path} is not the file that its run wrote: its sha256 is not the one in "
            f"{run.result_file.name}.\n{ADVICE}"
        )
    predictions, names = read(path), result.get("class_names")
    if predictions is not None and names is not None and predictions.logits.shape[1] != len(names):
        found = f"logits of {predictions.logits.shape[1]} classes; {run.result_file.name} has"
        raise _unreadable(path, f"{found} {len(names)}")
    return predictions


def _sha256(path: Path) -> str:
    """The digest of a file, hex. Raises UserError if it cannot be read."""
    try:
        return hashlib.sha256(json_files.content_of(path, LARGEST)).hexdigest()
    except UNREADABLE as fault:
        raise _unreadable(path, fault) from fault


def probabilities(logits: Array, temperature: float = 1.0) -> Floats:
    """Softmax of logits [N, C] divided by the temperature."""
    scaled = logits.astype(np.float64) / temperature
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    shares: Floats = powers / powers.sum(axis=1, keepdims=True)
    return shares


def is_right(logits: Array, labels: Array) -> NDArray[np.bool_]:
    """[N]: whether the largest logit is that of the label; false for a row with a NaN."""
    right: NDArray[np.bool_] = (logits.argmax(axis=1) == labels) & ~np.isnan(logits).any(axis=1)
    return right


def confusion(logits: Array, labels: Array) -> Counts:
    """[C, C]: how many images of class i (the row) were predicted as class j."""
    n_classes = logits.shape[1]
    pairs = labels.astype(np.int64) * n_classes + logits.argmax(axis=1)
    counts: Counts = np.bincount(pairs, minlength=n_classes**2).reshape(n_classes, n_classes)
    return counts


def most_confused(counts: Counts, most: int) -> list[tuple[int, int, int]]:
    """(label, prediction, count) of the at most `most` pairs that are confused most often."""
    wrong = counts * (1 - np.eye(len(counts), dtype=np.int64))
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    rows, columns = np.unravel_index(order, wrong.shape)
    pairs = zip(rows.tolist(), columns.tolist(), wrong[rows, columns].tolist(), strict=True)
    return [(i, j, n) for i, j, n in pairs if n]


def nll(logits: Array, labels: Array) -> Floats:
    """[N]: minus the logarithm of the probability of each label, in nats."""
    z = logits.astype(np.float64)
    of_labels = np.take_along_axis(z, labels[:, None], axis=1)[:, 0]
    with np.errstate(invalid="ignore"):  # a NaN stays one
        values: Floats = np.logaddexp.reduce(z, axis=1) - of_labels
    return values


def kl_divergence(p: Array, q: Array) -> Floats:
    """[N]: KL(softmax(p) || softmax(q)) of logits [N, C], in nats."""
    with np.errstate(invalid="ignore"):  # a NaN stays one
        log_p, log_q = (
            z.astype(np.float64) - np.logaddexp.reduce(z.astype(np.float64), axis=1, keepdims=True)
            for z in (p, q)
        )
        values: Floats = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    return values


def is_in_top(k: int, logits: Array, labels: Array) -> NDArray[np.bool_]:
    """[N]: whether the label is among the k largest logits."""
    largest = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    hits: NDArray[np.bool_] = (largest == labels[:, None]).any(axis=1)
    return hits


def calibration_curve(shares: Array, labels: Array) -> CalibrationCurve:
    """The calibration curve of probabilities [N, C], in bins open below and closed above."""
    confidence, right = shares.max(axis=1), is_right(shares, labels)
    bins = _bins(confidence)
    counts = np.bincount(bins, minlength=BINS)
    with np.errstate(invalid="ignore"):
        mean, accuracy = (
            np.bincount(bins, weights=values, minlength=BINS) / counts
            for values in (confidence, right)
        )
    return CalibrationCurve(mean, accuracy, counts)


def ece(confidence: Array, right: Array) -> float:
    """The expected calibration error, 0..1, of confidences [N] and whether each is right [N]."""
    return float(np.abs(np.bincount(_bins(confidence), right - confidence)).sum() / len(right))


def ece_interval(confidence: Array, right: Array) -> Interval:
    """The 95 % interval of the expected calibration error, which is never negative and so biased
    upward, by the basic bootstrap.

    It begins at zero if a perfectly calibrated network would have such an error on so many images:
    that is simulated by 1,000 draws of `right` with the confidences as probabilities.
    """
    measured = ece(confidence, right)
    low, high = statistics.bootstrap(ece, confidence, right, basic=True)
    draws = np.random.default_rng(0)
    calibrated = [ece(confidence, draws.random(len(right)) < confidence) for _ in range(RESAMPLES)]
    is_within = measured <= np.quantile(calibrated, (1 + LEVEL) / 2)
    return (0.0 if is_within else max(0.0, low)), max(high, measured)


def _bins(confidence: Array) -> NDArray[np.int64]:
    """Bins of equal width, open below and closed above: a confidence of one is in the last."""
    bins: NDArray[np.int64] = np.ceil(np.nan_to_num(confidence) * BINS).astype(np.int64) - 1
    return bins.clip(0, BINS - 1)
