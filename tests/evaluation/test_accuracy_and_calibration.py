"""Figures of predictions against counting by hand."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from distill import statistics
from distill.evaluation import accuracy_and_calibration
from distill.metrics import nll

DRAWS = np.random.default_rng(0)
LOGITS = 2 * DRAWS.normal(size=(300, 8))
LABELS = np.where(DRAWS.random(300) < 0.5, LOGITS.argmax(1), DRAWS.integers(8, size=300))


def test_headline_is_counted_and_its_intervals_hold_it() -> None:
    found = accuracy_and_calibration.headline_measures(LOGITS, LABELS)
    ranks = (-LOGITS).argsort(axis=1)
    for k, name in ((1, "top1"), (5, "top5")):
        right = int((ranks[:, :k] == LABELS[:, None]).any(axis=1).sum())
        assert found[name] == right / 300
        assert found[f"{name}_interval"] == list(statistics.wilson(right, 300))
    nlls = cross_entropy(torch.tensor(LOGITS), torch.tensor(LABELS), reduction="none")
    assert found["nll"] == pytest.approx(nlls.mean().item())
    low, high = found["nll_interval"]
    assert high - low == pytest.approx(2 * 1.96 * nlls.std().item() / math.sqrt(300), rel=0.15)
    assert low < found["nll"] < high
    assert found["ece_interval"][0] < found["ece_interval"][1]


def test_top5_of_five_classes_is_omitted() -> None:
    found = accuracy_and_calibration.headline_measures(LOGITS[:, :5], LABELS % 5)
    assert (found["top5"], found["top5_interval"]) == (None, None)


def test_classes_are_counted() -> None:
    logits = np.eye(4)[[0, 0, 1, 2, 2]]
    labels = np.array([0, 0, 0, 2, 1])
    rows = accuracy_and_calibration.per_class(logits, labels, ("a", "b", "c", "d"))
    assert [(row["name"], row["n"], row["accuracy"]) for row in rows] == [
        ("a", 3, 2 / 3), ("b", 1, 0.0), ("c", 1, 1.0), ("d", 0, None),
    ]  # fmt: skip
    assert rows[0]["interval"] == list(statistics.wilson(2, 3))
    assert rows[3]["interval"] is None


def test_divergence_is_teacher_s_from_student() -> None:
    teacher, student = (
        np.array([[0.9, 0.1], [0.4, 0.6]]),
        np.array([[0.3, 0.7], [0.2, 0.8]]),
    )
    by_hand = [
        sum(t * math.log(t / s) for t, s in zip(*pair, strict=True))
        for pair in ([(0.9, 0.1), (0.3, 0.7)], [(0.4, 0.6), (0.2, 0.8)])
    ]
    # Logits are known up to a constant each.
    student_logits = np.log(student) + np.array([[3.0], [-1.0]])
    found = accuracy_and_calibration.compare_with_teacher(student_logits, np.log(teacher))
    assert found["teacher_kl"] == pytest.approx(np.mean(by_hand), rel=1e-6)
    assert found["teacher_agreement"] == 0.5  # on the second image alone
    same = accuracy_and_calibration.compare_with_teacher(LOGITS, LOGITS + 1)
    assert same == pytest.approx({"teacher_agreement": 1.0, "teacher_kl": 0.0}, abs=1e-6)


def test_mcnemar_counts_images_only_one_gets_right() -> None:
    labels = np.zeros(40, dtype=np.int64)
    right, wrong = [1.0, 0.0], [0.0, 1.0]
    a = np.array([right] * 30 + [wrong] * 10)
    b = np.array([right] * 18 + [wrong] * 19 + [right] * 3)
    found = accuracy_and_calibration.compare_networks(a, b, labels)
    assert found == {
        "only_a": 12, "only_b": 3, "both": 18, "p": statistics.mcnemar(12, 3), "better": "a",
    }  # fmt: skip
    assert found["p"] < 0.05
    assert accuracy_and_calibration.compare_networks(b, a, labels)["better"] == "b"
    assert accuracy_and_calibration.compare_networks(a, a, labels) == {
        "only_a": 0, "only_b": 0, "both": 30, "p": 1.0, "better": None,
    }  # fmt: skip


def drawn(n: int, scale: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels of the law softmax(z), and logits that are too sure of it by `scale`."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, 5, generator=generator)
    labels = torch.multinomial(z.softmax(-1), 1, generator=generator).flatten()
    return (scale * z).numpy(), labels.numpy()


def test_calibration_lowers_nll_and_ece() -> None:
    logits, labels = drawn(4000, 3.0, seed=1)
    found = accuracy_and_calibration.calibrate(drawn(4000, 3.0), logits, labels)
    assert found["nll_calibrated"] < nll(logits, labels).mean() - 0.3
    assert found["ece_calibrated"] < 0.03
