"""Accuracy with intervals, confusion, agreement and McNemar's test, from logits.

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

    `top5` is None where there are five classes or fewer: nobody could be wrong.
    """
    nll = cross_entropy(logits.double(), labels, reduction="none").numpy()
    return measures(logits, labels) | {
        "top1_interval": _share_with_interval(_hits(logits, labels, 1))[1],
        "top5": None,
        "top5_interval": None,
        **_top5(logits, labels),
        "nll_interval": list(statistics.bootstrap(lambda each: float(each.mean()), nll)),
        "ece_interval": _ece_interval(logits, labels),
    }


def _ece_interval(logits: Tensor, labels: Tensor) -> list[float]:
    confidence, answer = logits.double().softmax(dim=-1).max(dim=-1)
    return list(saved_predictions.ece_interval(confidence.numpy(), (answer == labels).numpy()))


def _top5(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    if logits.shape[-1] <= 5:
        return {}
    top5, interval = _share_with_interval(_hits(logits, labels, 5))
    return {"top5": top5, "top5_interval": interval}


def _hits(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """Whether the label is among the k largest: bool [N]."""
    return (logits.topk(k, dim=-1).indices == labels[:, None]).any(dim=-1)


def _share_with_interval(hits: Tensor) -> tuple[float | None, list[float] | None]:
    """The share and its interval; of nothing, nothing."""
    right, total = int(hits.sum()), len(hits)
    return (right / total, list(statistics.wilson(right, total))) if total else (None, None)


def per_class(logits: Tensor, labels: Tensor, names: Sequence[str]) -> list[dict[str, Any]]:
    """`name`, `n`, `accuracy` and `interval` of each class; None where there is no image of it."""
    hits = _hits(logits, labels, 1)
    rows = []
    for label, name in enumerate(names):
        accuracy, interval = _share_with_interval(hits[labels == label])
        n = int((labels == label).sum())
        rows.append({"name": name, "n": n, "accuracy": accuracy, "interval": interval})
    return rows


def confusion(logits: Tensor, labels: Tensor) -> list[list[int]]:
    """How many of each class (row) were called what (column): [C][C]."""
    n_classes = logits.shape[-1]
    counted = multiclass_confusion_matrix(logits.argmax(dim=-1), labels, num_classes=n_classes)
    rows: list[list[int]] = counted.tolist()
    return rows


def compare_with_teacher(logits: Tensor, teacher_logits: Tensor) -> dict[str, float]:
    """The share of images on which both answer the same, and the mean KL(teacher || student), nats.

    Stanton et al., NeurIPS 2021, arXiv 2106.05945: the fidelity of a student, which is not its
    accuracy.
    """
    student, teacher = (each.double().log_softmax(dim=-1) for each in (logits, teacher_logits))
    kl = kl_div(student, teacher, reduction="none", log_target=True).sum(dim=-1).mean()
    agreement = (student.argmax(dim=-1) == teacher.argmax(dim=-1)).double().mean()
    return {"teacher_agreement": agreement.item(), "teacher_kl": kl.item()}


def compare_networks(a: Tensor, b: Tensor, labels: Tensor) -> dict[str, Any]:
    """Two networks on the same images: who alone is right how often, McNemar's p, and which of them
    is `better`, "a" or "b"; None where nothing is shown.
    """
    pairs = statistics.count_pairs(*(_hits(each, labels, 1).numpy() for each in (a, b)))
    leader = "a" if pairs.only_a > pairs.only_b else "b"
    return {
        "only_a": pairs.only_a,
        "only_b": pairs.only_b,
        "both": pairs.both,
        "p": pairs.p,
        "better": leader if pairs.p < statistics.SIGNIFICANT else None,
    }
