"""Compute accuracy with intervals, agreement, McNemar's test and calibration from logits.

All functions take arrays of logits [N, C] and labels [N]. Intervals are [low, high] at a
confidence of 95 %.
"""

from collections.abc import Sequence
from typing import Any

from distill import statistics
from distill.metrics import (
    Array,
    ece_interval,
    is_correct,
    is_in_top,
    is_same_prediction,
    kl_of_logits,
    measures,
    nll,
    probabilities,
)


def headline_measures(logits: Array, labels: Array) -> dict[str, Any]:
    """Return `top1`, `top5`, `nll` and `ece`, each with an interval, such as `top1_interval`.

    `top5` and its interval are None with at most five classes, where top-5 is always 1.
    """
    correct, confidence = is_correct(logits, labels), probabilities(logits).max(axis=1)
    nlls = nll(logits, labels)
    return measures(logits, labels) | {
        "top1_interval": _share_with_interval(correct)[1],
        "top5": None,
        "top5_interval": None,
        **_top5(logits, labels),
        "nll_interval": list(statistics.bootstrap(lambda sample: float(sample.mean()), nlls)),
        "ece_interval": list(ece_interval(confidence, correct)),
    }


def _top5(logits: Array, labels: Array) -> dict[str, Any]:
    if logits.shape[1] <= 5:
        return {}
    top5, interval = _share_with_interval(is_in_top(5, logits, labels))
    return {"top5": top5, "top5_interval": interval}


def _share_with_interval(hits: Array) -> tuple[float | None, list[float] | None]:
    """Return the fraction of True in `hits` and its interval; (None, None) if `hits` is empty."""
    n_correct, total = int(hits.sum()), len(hits)
    return (n_correct / total, list(statistics.wilson(n_correct, total))) if total else (None, None)


def per_class(logits: Array, labels: Array, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return `name`, `n` (number of images), `accuracy` and `interval` of each class.

    The accuracy and its interval are None for a class without images.
    """
    hits = is_correct(logits, labels)
    rows = []
    for label, name in enumerate(names):
        accuracy, interval = _share_with_interval(hits[labels == label])
        n = int((labels == label).sum())
        rows.append({"name": name, "n": n, "accuracy": accuracy, "interval": interval})
    return rows


def compare_with_teacher(logits: Array, teacher_logits: Array) -> dict[str, float]:
    """Return how closely a student matches its teacher.

    `teacher_agreement` is the fraction of images with the same prediction, `teacher_kl` the mean
    KL(teacher || student) in nats.

    Stanton et al., NeurIPS 2021, arXiv 2106.05945, call this the fidelity of a student and show
    that it differs from its accuracy.
    """
    return {
        "teacher_agreement": float(is_same_prediction(logits, teacher_logits).mean()),
        "teacher_kl": float(kl_of_logits(teacher_logits, logits).mean()),
    }


def compare_networks(a: Array, b: Array, labels: Array) -> dict[str, Any]:
    """Compare the logits `a` and `b` of two networks on the same images.

    Returns the numbers of images that `only_a`, `only_b` or `both` predict correctly, McNemar's
    p-value `p`, and `better`: "a", "b", or None if the difference is not significant.
    """
    pairs = statistics.count_pairs(is_correct(a, labels), is_correct(b, labels))
    leader = "a" if pairs.only_a > pairs.only_b else "b"
    return {
        "only_a": pairs.only_a,
        "only_b": pairs.only_b,
        "both": pairs.both,
        "p": pairs.p,
        "better": leader if pairs.p < statistics.SIGNIFICANT else None,
    }


def calibrate(held_out: tuple[Array, Array], logits: Array, labels: Array) -> dict[str, float]:
    """Return `temperature`, fitted on `held_out`, and the measures of `logits` divided by it.

    `held_out`: logits [V, C] and labels [V] of images that were not trained on. The measures are
    `nll_calibrated` and `ece_calibrated`.
    """
    temperature = statistics.fit_temperature(*held_out)
    calibrated = measures(logits / temperature, labels)
    return {
        "temperature": temperature,
        "nll_calibrated": calibrated["nll"],
        "ece_calibrated": calibrated["ece"],
    }
