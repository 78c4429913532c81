"""Figures of predictions: how good, how sure that is, where the mistakes are, who says the same.

All take logits [N, C] and labels int64 [N] on the host. Intervals are at 95 %, [low, high].
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div
from torchmetrics.functional.classification import multiclass_confusion_matrix

from distill import statistics
from distill.engine.metrics import ECE_BINS, measures

SIGNIFICANT = 0.05  # p below which a difference is called shown


def headline(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """`top1`, `top5`, `nll`, `ece`, each with its interval.

    `top5` is None where there are five classes or fewer: nobody could be wrong. A calibration error
    is biased upward, in a sample drawn from the sample twice: its interval may lie above it.
    """
    nll = cross_entropy(logits.double(), labels, reduction="none").numpy()
    return measures(logits, labels) | {
        "top1_interval": _share(_hits(logits, labels, 1))[1],
        "top5": None,
        "top5_interval": None,
        **_top5(logits, labels),
        "nll_interval": list(statistics.bootstrap(lambda each: float(each.mean()), nll)),
        "ece_interval": list(statistics.bootstrap(binned_ece, *_gaps(logits, labels))),
    }


def _top5(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    if logits.shape[-1] <= 5:
        return {}
    top5, interval = _share(_hits(logits, labels, 5))
    return {"top5": top5, "top5_interval": interval}


def _hits(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """Whether the label is among the k largest: bool [N]."""
    return (logits.topk(k, dim=-1).indices == labels[:, None]).any(dim=-1)


def _share(hits: Tensor) -> tuple[float | None, list[float] | None]:
    """The share and its interval; of nothing, nothing."""
    right, total = int(hits.sum()), len(hits)
    return (right / total, list(statistics.wilson(right, total))) if total else (None, None)


def _gaps(logits: Tensor, labels: Tensor) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Each sample's bin by its confidence, and how much it was right beyond that: [N] both."""
    confidence, answer = logits.float().softmax(dim=-1).max(dim=-1)
    edges = torch.linspace(0, 1, ECE_BINS + 1)
    bins = (torch.bucketize(confidence, edges, right=True) - 1).clamp(max=ECE_BINS - 1)
    return bins.numpy(), ((answer == labels).double() - confidence.double()).numpy()


def binned_ece(bins: NDArray[np.int64], gaps: NDArray[np.float64]) -> float:
    """The expected calibration error of samples [N] sorted into bins."""
    return float(np.abs(np.bincount(bins, gaps)).sum() / len(gaps))


def per_class(logits: Tensor, labels: Tensor, names: Sequence[str]) -> list[dict[str, Any]]:
    """`name`, `n`, `accuracy` and `interval` of each class; None where there is no image of it."""
    hits = _hits(logits, labels, 1)
    rows = []
    for label, name in enumerate(names):
        accuracy, interval = _share(hits[labels == label])
        n = int((labels == label).sum())
        rows.append({"name": name, "n": n, "accuracy": accuracy, "interval": interval})
    return rows


def confusion(logits: Tensor, labels: Tensor) -> list[list[int]]:
    """How many of each class (row) were called what (column): [C][C]."""
    n_classes = logits.shape[-1]
    counted = multiclass_confusion_matrix(logits.argmax(dim=-1), labels, num_classes=n_classes)
    rows: list[list[int]] = counted.tolist()
    return rows


def beside_teacher(logits: Tensor, teacher_logits: Tensor) -> dict[str, float]:
    """The share of images on which both answer the same, and the mean KL(teacher || student), nats.

    Stanton et al., NeurIPS 2021, arXiv 2106.05945: the fidelity of a student, which is not its
    accuracy.
    """
    student, teacher = (each.double().log_softmax(dim=-1) for each in (logits, teacher_logits))
    kl = kl_div(student, teacher, reduction="none", log_target=True).sum(dim=-1).mean()
    agreement = (student.argmax(dim=-1) == teacher.argmax(dim=-1)).double().mean()
    return {"teacher_agreement": agreement.item(), "teacher_kl": kl.item()}


def compared(a: Tensor, b: Tensor, labels: Tensor) -> dict[str, Any]:
    """Two networks on the same images: who alone is right how often, McNemar's p, and which of them
    is `better`, "a" or "b"; None where nothing is shown.
    """
    right_a, right_b = _hits(a, labels, 1), _hits(b, labels, 1)
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    p = statistics.mcnemar(only_a, only_b)
    better = ("a" if only_a > only_b else "b") if p < SIGNIFICANT else None
    both = int((right_a & right_b).sum())
    return {"only_a": only_a, "only_b": only_b, "both": both, "p": p, "better": better}
