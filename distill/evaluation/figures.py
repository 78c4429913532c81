"""Compute accuracy with intervals, confusion, agreement and McNemar's test from logits.

All take logits [N, C] and labels int64 [N] on the host. Intervals are at 95 %, [low, high].
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div
from torchmetrics.functional.classification import multiclass_confusion_matrix

from distill import statistics
from distill.evaluation.metrics import measures
from distill.runs import saved_predictions


def headline_measures(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """`top1`, `top5`, `nll`, `ece`, each with its interval.

    `top5` is None with five classes or fewer: no prediction could be wrong.
    """
    nll = cross_entropy(logits.double(), labels, reduction="none").numpy()
    return measures(logits, labels) | {
        "top1_interval": _share_with_interval(_hits(logits, labels, 1))[1],
        "top5": None,
        "top5_interval": None,
        **_top5(logits, labels),
        "nll_interval": list(statistics.bootstrap(lambda sample: float(sample.mean()), nll)),
        "ece_interval": _ece_interval(logits, labels),
    }


def _ece_interval(logits: Tensor, labels: Tensor) -> list[float]:
    confidence, predicted = logits.double().softmax(dim=-1).max(dim=-1)
    return list(saved_predictions.ece_interval(confidence.numpy(), (predicted == labels).numpy()))


def _top5(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    if logits.shape[-1] <= 5:
        return {}
    top5, interval = _share_with_interval(_hits(logits, labels, 5))
    return {"top5": top5, "top5_interval": interval}


def _hits(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """Whether the label is among the k largest logits: bool [N]."""
    return (logits.topk(k, dim=-1).indices == labels[:, None]).any(dim=-1)


def _share_with_interval(hits: Tensor) -> tuple[float | None, list[float] | None]:
    """The share of hits and its interval; None without images."""
    right, total = int(hits.sum()), len(hits)
    return (right / total, list(statistics.wilson(right, total))) if total else (None, None)


def per_class(logits: Tensor, labels: Tensor, names: Sequence[str]) -> list[dict[str, Any]]:
    """`name`, `n`, `accuracy` and `interval` of each class; None if it has no image."""
    hits = _hits(logits, labels, 1)
    rows = []
    for label, name in enumerate(names):
        accuracy, interval = _share_with_interval(hits[labels == label])
        n = int((labels == label).sum())
        rows.append({"name": name, "n": n, "accuracy": accuracy, "interval": interval})
    return rows


def confusion(logits: Tensor, labels: Tensor) -> list[list[int]]:
    """The confusion matrix [C][C]: rows are the labels, columns the predictions."""
    n_classes = logits.shape[-1]
    matrix = multiclass_confusion_matrix(logits.argmax(dim=-1), labels, num_classes=n_classes)
    rows: list[list[int]] = matrix.tolist()
    return rows


def compare_with_teacher(logits: Tensor, teacher_logits: Tensor) -> dict[str, float]:
    """The share of images with the same prediction, and the mean KL(teacher || student) in nats.

    Stanton et al., NeurIPS 2021, arXiv 2106.05945: the fidelity of a student, which is not its
    accuracy.
    """
    student, teacher = (z.double().log_softmax(dim=-1) for z in (logits, teacher_logits))
    kl = kl_div(student, teacher, reduction="none", log_target=True).sum(dim=-1).mean()
    agreement = (student.argmax(dim=-1) == teacher.argmax(dim=-1)).double().mean()
    return {"teacher_agreement": agreement.item(), "teacher_kl": kl.item()}


def compare_networks(a: Tensor, b: Tensor, labels: Tensor) -> dict[str, Any]:
    """Compare two networks on the same images: on how many only one is right, McNemar's p, and
    which is `better`, "a" or "b"; None if the difference is not significant.
    """
    pairs = statistics.count_pairs(*(_hits(logits, labels, 1).numpy() for logits in (a, b)))
    leader = "a" if pairs.only_a > pairs.only_b else "b"
    return {
        "only_a": pairs.only_a,
        "only_b": pairs.only_b,
        "both": pairs.both,
        "p": pairs.p,
        "better": leader if pairs.p < statistics.SIGNIFICANT else None,
    }
