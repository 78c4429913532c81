"""Compute accuracy, NLL, confusion, KL divergence and calibration of logits, without torch.

Arrays are numpy arrays: `logits` [N, C] are floats, `labels` [N] integers.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill import statistics
from distill.events import MEASURES
from distill.statistics import LEVEL, RESAMPLES, Interval

BINS = 15  # of the calibration curve, as in Guo et al. (2017)
AT_ONCE = 1 << 22  # logits that `measures` converts to float64 at once
MOST_ORDERED = 300  # classes whose leaves are ordered optimally: for 1,000 it takes minutes

Array = NDArray[Any]
Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class CalibrationCurve:
    """Mean confidence and accuracy of predictions in 15 bins of their confidence.

    The bins divide (0, 1] into equal widths. In an empty bin both means are nan.

    Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", ICML 2017, arXiv
    1706.04599, equations 1 to 5.
    """

    confidence: Floats  # [BINS], means
    accuracy: Floats  # [BINS]
    counts: Counts  # [BINS], predictions in each bin

    @property
    def ece(self) -> float:
        """The expected calibration error, 0..1."""
        some = self.counts > 0
        gaps = np.abs(self.accuracy[some] - self.confidence[some])
        return float((gaps * self.counts[some]).sum() / self.counts.sum())


def measures(logits: Array, labels: Array) -> dict[str, float]:
    """Return `top1`, `nll` (nats) and `ece` of logits, given the labels."""
    step = max(1, AT_ONCE // logits.shape[1])
    parts = [slice(start, start + step) for start in range(0, len(logits), step)]
    correct = np.concatenate([is_correct(logits[part], labels[part]) for part in parts])
    confidence = np.concatenate([probabilities(logits[part]).max(axis=1) for part in parts])
    losses = np.concatenate([nll(logits[part], labels[part]) for part in parts])
    values = float(correct.mean()), float(losses.mean()), ece(confidence, correct)
    return dict(zip(MEASURES, values, strict=True))


def probabilities(logits: Array, temperature: float = 1.0) -> Floats:
    """Return softmax(logits / temperature) of each row of logits [N, C]."""
    scaled = logits.astype(np.float64) / temperature
    with np.errstate(invalid="ignore"):  # a NaN stays NaN
        powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    shares: Floats = powers / powers.sum(axis=1, keepdims=True)
    return shares


def _log_probabilities(logits: Array) -> Floats:
    with np.errstate(invalid="ignore"):  # a NaN stays NaN
        z = logits - logits.max(axis=1, keepdims=True).astype(np.float64)
        log_shares: Floats = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    return log_shares


def is_correct(logits: Array, labels: Array) -> NDArray[np.bool_]:
    """Return for each row [N] whether the largest logit is the label's.

    A row with a NaN is not correct.
    """
    correct: NDArray[np.bool_] = (logits.argmax(axis=1) == labels) & ~np.isnan(logits).any(axis=1)
    return correct


def confusion(logits: Array, labels: Array) -> Counts:
    """Return the confusion matrix [C, C]; entry i, j counts images of class i predicted as j."""
    n_classes = logits.shape[1]
    pairs = labels.astype(np.int64) * n_classes + logits.argmax(axis=1)
    counts: Counts = np.bincount(pairs, minlength=n_classes**2).reshape(n_classes, n_classes)
    return counts


def most_confused(counts: Counts, most: int) -> list[tuple[int, int, int]]:
    """Return up to `most` pairs of classes confused most often: (label, prediction, count).

    `counts` is a confusion matrix. Pairs that are never confused are left out.
    """
    wrong = counts * (1 - np.eye(len(counts), dtype=np.int64))
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    rows, columns = np.unravel_index(order, wrong.shape)
    pairs = zip(rows.tolist(), columns.tolist(), wrong[rows, columns].tolist(), strict=True)
    return [(i, j, n) for i, j, n in pairs if n]


def order_by_confusion(counts: Counts) -> list[int]:
    """Return an order of the classes in which those that are confused are neighbours.

    `counts` [C, C] is a confusion matrix. The order is that of the leaves of a tree of average
    linkage, in which two classes are the closer, the larger the share of their images that is
    predicted as the other one is; neighbouring leaves are as close as possible (Bar-Joseph et al.,
    "Fast optimal leaf ordering for hierarchical clustering", Bioinformatics 17, 2001).
    """
    if len(counts) < 3:
        return list(range(len(counts)))
    from scipy.cluster import hierarchy
    from scipy.spatial.distance import squareform

    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    distances = 1 - (shares + shares.T) / 2
    np.fill_diagonal(distances, 0)
    is_optimal = len(counts) <= MOST_ORDERED
    tree = hierarchy.linkage(squareform(distances), "average", optimal_ordering=is_optimal)
    order: list[int] = hierarchy.leaves_list(tree).tolist()
    return order


def nll(logits: Array, labels: Array) -> Floats:
    """Return the negative log-probability of each label [N], in nats."""
    values: Floats = -np.take_along_axis(_log_probabilities(logits), labels[:, None], axis=1)[:, 0]
    return values


def is_same_prediction(a: Array, b: Array) -> NDArray[np.bool_]:
    """Return for each row [N] whether two networks' logits [N, C] predict the same class."""
    same: NDArray[np.bool_] = a.argmax(axis=1) == b.argmax(axis=1)
    return same


def kl_of_logits(p: Array, q: Array) -> Floats:
    """Return KL(softmax(p) || softmax(q)) for each row [N] of logits [N, C], in nats."""
    log_p, log_q = _log_probabilities(p), _log_probabilities(q)
    values: Floats = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    return values


def is_in_top(k: int, logits: Array, labels: Array) -> NDArray[np.bool_]:
    """Return for each row [N] whether the label is among the k largest logits."""
    largest = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    hits: NDArray[np.bool_] = (largest == labels[:, None]).any(axis=1)
    return hits


def calibration_curve(shares: Array, labels: Array) -> CalibrationCurve:
    """Return the calibration curve of predicted probabilities [N, C] (the argument `shares`)."""
    confidence, correct = shares.max(axis=1), is_correct(shares, labels)
    bins = _bin_indices(confidence)
    counts = np.bincount(bins, minlength=BINS)
    with np.errstate(invalid="ignore"):
        mean, accuracy = (
            np.bincount(bins, weights=values, minlength=BINS) / counts
            for values in (confidence, correct)
        )
    return CalibrationCurve(mean, accuracy, counts)


def ece(confidence: Array, correct: Array) -> float:
    """Return the expected calibration error, 0..1.

    `confidence` [N]: the probability of each predicted class; `correct` bool [N].
    """
    return float(
        np.abs(np.bincount(_bin_indices(confidence), correct - confidence)).sum() / len(correct)
    )


def ece_interval(confidence: Array, correct: Array) -> Interval:
    """Return the 95 % interval of the expected calibration error.

    The error is never negative, so its estimate is biased upward; the basic bootstrap corrects for
    that. The interval begins at zero if the error is no larger than a perfectly calibrated network
    would have on as many images. Such a network is simulated by 1,000 draws of `correct`, with the
    confidences as probabilities.
    """
    measured = ece(confidence, correct)
    low, high = statistics.bootstrap(ece, confidence, correct, basic=True)
    draws = np.random.default_rng(0)
    calibrated = [
        ece(confidence, draws.random(len(correct)) < confidence) for _ in range(RESAMPLES)
    ]
    is_within = measured <= np.quantile(calibrated, (1 + LEVEL) / 2)
    return (0.0 if is_within else max(0.0, low)), max(high, measured)


def _bin_indices(confidence: Array) -> NDArray[np.int64]:
    """Return the index of each confidence's bin.

    A bin includes its upper bound but not its lower bound, so a confidence of 1 is in the last bin.
    """
    bins: NDArray[np.int64] = np.ceil(np.nan_to_num(confidence) * BINS).astype(np.int64) - 1
    return bins.clip(0, BINS - 1)
