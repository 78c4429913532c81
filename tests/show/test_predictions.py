"""Confusion and calibration: against hand, closed form and the program's own measures."""

from pathlib import Path

import numpy as np
import pytest
import torch

from distill.engine.metrics import measures
from distill.errors import UserError
from distill.show.predictions import (
    Answers,
    calibration,
    confused,
    confusion,
    is_right,
    probabilities,
    read,
)

CHANCE = np.random.default_rng(0)
LOGITS = 3 * CHANCE.normal(size=(400, 5)).astype(np.float32)
LABELS = CHANCE.integers(5, size=400)


def test_confusion_by_hand() -> None:
    logits = np.eye(3)[[0, 1, 1, 2]]  # taken for 0, 1, 1, 2
    counts = confusion(logits, np.array([0, 0, 0, 2]))
    assert counts.tolist() == [[1, 2, 0], [0, 0, 0], [0, 0, 1]]
    assert confused(counts, most=5) == [(0, 1, 2)]
    assert is_right(logits, np.array([0, 0, 0, 2])).tolist() == [True, False, False, True]


def test_probabilities_are_those_of_torch_and_do_not_overflow() -> None:
    expected = torch.from_numpy(LOGITS).double().div(2).softmax(-1).numpy()
    np.testing.assert_allclose(probabilities(LOGITS, 2), expected, atol=1e-12)
    assert np.isfinite(probabilities(np.array([[1e4, -1e4]]))).all()


def test_the_error_of_the_bins_is_the_one_that_a_run_measures() -> None:
    known = calibration(probabilities(LOGITS), LABELS)
    expected = measures(torch.from_numpy(LOGITS), torch.from_numpy(LABELS))["ece"]
    assert known.ece == pytest.approx(expected, abs=1e-6)
    assert known.counts.sum() == 400


def test_a_bin_is_open_below_and_closed_above() -> None:
    shares = np.array([[0.6, 0.4], [0.61, 0.39], [1.0, 0.0]])
    counts = calibration(shares, np.zeros(3, dtype=int)).counts
    assert np.flatnonzero(counts).tolist() == [8, 9, 14]  # 0.6 = 9/15 ends bin 8


def test_a_file_is_read_with_and_without_what_a_run_may_lack(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.npz"
    assert read(path) is None
    least = {"logits": LOGITS, "labels": LABELS, "mistakes": [], "mistake_pixels": []}
    np.savez(path, **least, of_a_later_version=np.zeros(1))
    known = read(path)
    assert isinstance(known, Answers) and known.val_logits is None and known.teacher_logits is None
    np.savez(path, **least, val_logits=LOGITS, val_labels=LABELS)
    again = read(path)
    assert again is not None and again.val_labels is not None
    np.testing.assert_array_equal(again.val_labels, LABELS)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and no more", b"text"])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "evaluation.npz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"evaluation.npz cannot be read as predictions.*\nMove it"):
        read(path)


def test_arrays_that_are_missing_are_a_fault(tmp_path: Path) -> None:
    np.savez(tmp_path / "evaluation.npz", logits=LOGITS)
    with pytest.raises(UserError, match="cannot be read as predictions: .*labels"):
        read(tmp_path / "evaluation.npz")
