"""Compute accuracy, NLL, confusion, KL divergence and calibration of logits, without torch.

Arrays are of numpy: `logits` [N, C] are floats, `labels` [N] integers.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill import statistics
from distill.events import MEASURES
from distill.statistics import LEVEL, RESAMPLES, Interval

BINS = 15  # of the calibration curve, as in the paper

Array = NDArray[Any]
Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


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


def measures(logits: Array, labels: Array) -> dict[str, float]:
    """`top1`, `nll` (nats) and `ece` of logits against labels."""
    right = is_right(logits, labels)
    error = ece(probabilities(logits).max(axis=1), right)
    values = float(right.mean()), float(nll(logits, labels).mean()), error
    return dict(zip(MEASURES, values, strict=True))


def probabilities(logits: Array, temperature: float = 1.0) -> Floats:
    """Softmax of logits [N, C] divided by the temperature."""
    scaled = logits.astype(np.float64) / temperature
    with np.errstate(invalid="ignore"):  # a NaN stays one
        powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    shares: Floats = powers / powers.sum(axis=1, keepdims=True)
    return shares


def _log_probabilities(logits: Array) -> Floats:
    with np.errstate(invalid="ignore"):  # a NaN stays one
        z = logits - logits.max(axis=1, keepdims=True).astype(np.float64)
        log_shares: Floats = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    return log_shares


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
    values: Floats = -np.take_along_axis(_log_probabilities(logits), labels[:, None], axis=1)[:, 0]
    return values


def is_same_prediction(a: Array, b: Array) -> NDArray[np.bool_]:
    """[N]: whether the largest of both logits [N, C] is that of the same class."""
    same: NDArray[np.bool_] = a.argmax(axis=1) == b.argmax(axis=1)
    return same


def kl_divergence(p: Array, q: Array) -> Floats:
    """[N]: KL(softmax(p) || softmax(q)) of logits [N, C], in nats."""
    log_p, log_q = _log_probabilities(p), _log_probabilities(q)
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
