"""Confusion and calibration: against hand, closed form and the program's own measures."""

import re
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div

from distill.data import image_set
from distill.errors import UserError
from distill.files.run_json_schemas import fingerprint_of_names
from distill.metrics import (
    calibration_curve,
    confusion,
    ece,
    ece_interval,
    is_correct,
    is_in_top,
    kl_of_logits,
    measures,
    most_confused,
    nll,
    probabilities,
)
from distill.runs import read_predictions
from distill.runs.read_predictions import (
    ContradictsPredictions,
    Predictions,
    n_test_images,
    read_if_present,
    read_run,
)
from distill.runs.run_folder import RunFolder, file_sha256, write_json
from tests.runs.test_compare_two_runs import ANSWERS_A, finished

CHANCE = np.random.default_rng(0)
LOGITS = 3 * CHANCE.normal(size=(400, 5)).astype(np.float32)
LABELS = CHANCE.integers(5, size=400)


def test_confusion_by_hand() -> None:
    logits = np.eye(3)[[0, 1, 1, 2]]  # taken for 0, 1, 1, 2
    counts = confusion(logits, np.array([0, 0, 0, 2]))
    assert counts.tolist() == [[1, 2, 0], [0, 0, 0], [0, 0, 1]]
    assert most_confused(counts, most=5) == [(0, 1, 2)]
    assert is_correct(logits, np.array([0, 0, 0, 2])).tolist() == [True, False, False, True]


def test_probabilities_equal_torch_without_overflow() -> None:
    expected = torch.from_numpy(LOGITS).double().div(2).softmax(-1).numpy()
    np.testing.assert_allclose(probabilities(LOGITS, 2), expected, atol=1e-12)
    assert np.isfinite(probabilities(np.array([[1e4, -1e4]]))).all()


def test_binned_error_is_the_measured_one() -> None:
    known = calibration_curve(probabilities(LOGITS), LABELS)
    expected = measures(LOGITS, LABELS)["ece"]
    assert known.ece == pytest.approx(expected, abs=1e-6)
    assert known.counts.sum() == 400


def test_a_bin_is_open_below_and_closed_above() -> None:
    shares = np.array([[0.6, 0.4], [0.61, 0.39], [1.0, 0.0]])
    counts = calibration_curve(shares, np.zeros(3, dtype=int)).counts
    assert np.flatnonzero(counts).tolist() == [8, 9, 14]  # 0.6 = 9/15 ends bin 8


def test_file_is_read_without_optional_arrays(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.npz"
    assert read_if_present(path) is None
    least = {"logits": LOGITS, "labels": LABELS, "mistakes": [], "mistake_pixels": []}
    np.savez(path, **least, of_a_later_version=np.zeros(1))
    known = read_if_present(path)
    assert (
        isinstance(known, Predictions) and known.val_logits is None and known.teacher_logits is None
    )
    np.savez(path, **least, val_logits=LOGITS, val_labels=LABELS)
    again = read_if_present(path)
    assert again is not None and again.val_labels is not None
    np.testing.assert_array_equal(again.val_labels, LABELS)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and no more", b"text"])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "evaluation.npz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"npz cannot be read as predictions.*\nRestore it, or"):
        read_if_present(path)


def test_arrays_that_are_missing_are_a_fault(tmp_path: Path) -> None:
    np.savez(tmp_path / "evaluation.npz", logits=LOGITS)
    with pytest.raises(UserError, match="cannot be read as predictions: .*labels"):
        read_if_present(tmp_path / "evaluation.npz")


SOUND = {
    "logits": LOGITS, "labels": LABELS, "teacher_logits": LOGITS, "val_logits": LOGITS[:7],
    "val_labels": LABELS[:7], "mistakes": np.array([3, 1]),
    "mistake_pixels": np.zeros((2, 3, 8, 8), np.uint8),
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"logits": LOGITS[:, :0]}, "logits has the shape [400, 0]"),
        ({"logits": LOGITS[:0], "labels": LABELS[:0]}, "logits has the shape [0, 5]"),
        ({"logits": LOGITS[0]}, "logits has the shape [5]"),
        ({"logits": LOGITS.astype("U3")}, "logits contains <U3 instead of floats"),
        ({"labels": LABELS[:-1]}, "labels has the shape [399] instead of [400]"),
        ({"labels": LABELS[:, None]}, "labels has the shape [400, 1]"),
        ({"labels": LABELS.astype(float)}, "labels contains float64 instead of integers"),
        ({"labels": LABELS + 1}, "labels has a value outside 0..4"),
        ({"labels": LABELS - 1}, "labels has a value outside 0..4"),
        ({"teacher_logits": LOGITS[:, :4]}, "teacher_logits has the shape [400, 4]"),
        ({"val_logits": LOGITS[:7, :4]}, "val_logits has the shape [7, 4]"),
        ({"val_logits": LOGITS[:0], "val_labels": LABELS[:0]}, "val_logits has the shape [0, 5]"),
        ({"val_labels": None}, "val_logits without val_labels"),
        ({"val_labels": LABELS}, "val_labels has the shape [400] instead of [7]"),
        ({"val_labels": LABELS[:7] + 5}, "val_labels has a value outside 0..4"),
        ({"mistakes": np.array([3, 400])}, "mistakes has a value outside 0..399"),
        ({"mistakes": np.array([3])}, "mistake_pixels has the shape [2, 3, 8, 8]"),
        ({"mistake_pixels": np.zeros((2, 192), np.uint8)}, "mistake_pixels has the shape [2, 192]"),
        ({"mistake_pixels": np.zeros((2, 3, 8, 8))}, "mistake_pixels contains float64"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    changes: dict[str, np.ndarray | None], fault: str, tmp_path: Path
) -> None:
    path = tmp_path / "evaluation.npz"
    np.savez(path, **SOUND)
    assert read_if_present(path) is not None
    arrays = {name: array for name, array in (SOUND | changes).items() if array is not None}
    np.savez(path, **arrays)
    with pytest.raises(UserError, match=f"npz cannot be read as predictions: .*{re.escape(fault)}"):
        read_if_present(path)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "shape", "n_images", "fault"),
    [
        ("logits", (6_000_000, 10), None, "at most 200,000 images and 50,000,000 numbers"),
        ("logits", (6_000_000, 10), 400, "the run was tested on 400 images"),
        ("labels", (399,), 400, "the run was tested on 400 images"),
        ("val_logits", (30_000, 2_000), 400, "at most 200,000 images and 50,000,000 numbers"),
        ("logits", (400, 2_001), 400, "at most 2,000 classes are read"),
        ("mistakes", (60_000_000,), 400, "at most 1,000 images and"),
        ("mistake_pixels", (1, 3, 6000, 6000), 400, "at most 1,000 images of at most 128x128"),
    ],
)
def test_large_arrays_are_refused_before_they_are_read(
    name: str, shape: tuple[int, ...], n_images: int | None, fault: str, tmp_path: Path
) -> None:
    """Each file is small, because zeros compress well."""
    path = tmp_path / "evaluation.npz"
    np.savez_compressed(path, **SOUND | {name: np.zeros(shape, np.uint8)})
    fault = re.escape(f"{name} has the shape {list(shape)}; {fault}")
    tracemalloc.start()
    with pytest.raises(UserError, match=f"npz cannot be read as predictions: {fault}"):
        read_if_present(path, n_images)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size < 200_000 and peak < 2_000_000


def test_predictions_of_an_unfinished_run_are_not_read(tmp_path: Path) -> None:
    """Nothing says how many test images it would have; a small file may hold very many."""
    run = finished(tmp_path / "a", ANSWERS_A)
    assert read_run(run) is not None
    run.result_file.unlink()
    assert read_run(run) is None


def test_number_of_images_is_that_of_result(tmp_path: Path) -> None:
    run = finished(tmp_path / "a", ANSWERS_A)
    result = run.result()
    write_json(run.result_file, result | {"data": result["data"] | {"test_images": 9}})
    with pytest.raises(ContradictsPredictions, match="a/result.json has no sha256 of evaluation"):
        n_test_images(run)
    data = with_fingerprint_of_names(run)["data"] | {"test_images": 9}
    changes = {"data": data, "evaluation": file_sha256(run.evaluation)}
    write_json(run.result_file, result | changes)
    with pytest.raises(UserError, match=r"logits has the shape \[8, 3\]; .* tested on 9 images"):
        read_run(run)


def test_sides_of_mistakes_are_those_of_images() -> None:
    assert read_predictions.LARGEST_SIDE == image_set.LARGEST_SIDE


@pytest.mark.long
def test_measures_need_little_memory_for_many_images() -> None:
    logits, labels = np.zeros((1_000_000, 10), np.float16), np.zeros(1_000_000, np.uint8)
    logits[500_000:, 1] = 1
    tracemalloc.start()
    found = measures(logits, labels)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 250_000_000
    e = np.e
    assert found["top1"] == 0.5
    assert found["nll"] == pytest.approx((np.log(10) + np.log(e + 9)) / 2, rel=1e-6)
    assert found["ece"] == pytest.approx(0.9 / 2 + (e / (e + 9)) / 2, abs=1e-6)


def test_predictions_of_other_classes_are_refused(tmp_path: Path) -> None:
    run = finished(tmp_path / "a", ANSWERS_A)
    write_json(run.result_file, run.result() | {"class_names": ["cat", "dog"]})
    with pytest.raises(UserError, match=r"npz cannot .*: logits of 3 classes; result.json has 2"):
        read_run(run)


def test_accuracy_must_be_that_of_predictions(tmp_path: Path) -> None:
    run = finished(tmp_path / "a", ANSWERS_A)  # 3 of 8 are right
    right = with_fingerprint_of_names(run)
    assert read_run(run) is not None and n_test_images(run) == 8
    write_json(run.result_file, right | {"metrics": {"top1/test": 0.5}})
    for read in (read_run, n_test_images):
        with pytest.raises(UserError, match=r"top1/test = 50.00 %, .*evaluation.npz have 37.50 %"):
            read(run)
    write_json(run.result_file, right | {"evaluation": "0"})
    with pytest.raises(UserError, match="is not the file that its run wrote"):
        n_test_images(run)
    run.evaluation.unlink()
    assert n_test_images(run) is None


def with_fingerprint_of_names(run: RunFolder) -> dict[str, Any]:
    """The result as a version writes it that also writes the sha256 of evaluation.npz."""
    result = run.result()
    fingerprint = fingerprint_of_names(result["class_names"])
    return result | {"data": result["data"] | {"class_names_fingerprint": fingerprint}}


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("nll/test", 0.01, r"nll/test = 0.0100, but the predictions .* have \d"),
        ("top1/val", 0.99, r"top1/val = 99.00 %, but the predictions .* have 37.50 %"),
        ("top1/val_ema", 0.99, r"top1/val_ema = 99.00 %, but"),
        ("nll/val", 0.01, r"nll/val = 0.0100, but the predictions .* have 1\.\d"),
        ("ece/val", 0.99, r"ece/val = 99.00 %, but"),
        ("nll/test", np.nan, r"nll/test = nan, but the predictions .* have 1\.\d"),
        ("nll/test", np.inf, r"nll/test = inf, but the predictions .* have 1\.\d"),
    ],
)
def test_other_measures_must_be_of_predictions(
    name: str, wrong: float, message: str, tmp_path: Path
) -> None:
    run = finished(tmp_path / "a", ANSWERS_A)
    arrays = dict(np.load(run.evaluation))
    both = arrays | {"val_logits": arrays["logits"], "val_labels": arrays["labels"]}
    np.savez(run.evaluation, **both)
    result = with_fingerprint_of_names(run)
    result["evaluation"] = file_sha256(run.evaluation)
    right = float(measures(arrays["logits"], arrays["labels"])["nll"])
    known = {"top1/test": 0.375, "nll/test": right, "top1/val": 0.375 + 0.01}
    write_json(run.result_file, result | {"metrics": known})
    assert read_run(run) is not None
    write_json(run.result_file, result | {"metrics": known | {name: wrong}})
    with pytest.raises(UserError, match=message):
        read_run(run)


@pytest.mark.parametrize("logit", [-np.inf, np.nan])
def test_one_infinite_logit_hides_no_other_nll(logit: float, tmp_path: Path) -> None:
    run = finished(tmp_path / "a", ANSWERS_A)
    arrays = dict(np.load(run.evaluation))
    arrays["logits"][1, 0] = logit  # the logit of the label of an image that is not predicted right
    np.savez(run.evaluation, **arrays)
    result = with_fingerprint_of_names(run) | {"evaluation": file_sha256(run.evaluation)}
    nll = float(measures(arrays["logits"], arrays["labels"])["nll"])
    top1 = float(measures(arrays["logits"], arrays["labels"])["top1"])
    write_json(run.result_file, result | {"metrics": {"top1/test": top1, "nll/test": nll}})
    assert read_run(run) is not None
    write_json(run.result_file, result | {"metrics": {"top1/test": top1, "nll/test": 0.0123}})
    with pytest.raises(UserError, match=r"nll/test = 0.0123, but the predictions .* (inf|nan)"):
        read_run(run)


def test_missing_held_out_predictions_are_refused(tmp_path: Path) -> None:
    run = finished(tmp_path / "a", ANSWERS_A)
    result = with_fingerprint_of_names(run) | {"evaluation": file_sha256(run.evaluation)}
    write_json(run.result_file, result | {"data": result["data"] | {"val_images": 7}})
    fault = r"a/evaluation.npz has predictions of 0 held-out images; result.json has 7: one of them"
    with pytest.raises(ContradictsPredictions, match=fault):
        read_run(run)


def test_confidence_of_one_is_in_last_bin() -> None:
    """Nine predictions whose confidence float32 rounds to 1, five right, and one of 0.97."""
    shares = np.array([[1.0, 0.0]] * 9 + [[0.97, 0.03]])
    labels = np.array([0] * 5 + [1] * 4 + [0])
    right = is_correct(shares, labels)
    by_hand = abs(right.sum() - shares.max(axis=1).sum()) / 10  # one bin
    assert calibration_curve(shares, labels).ece == pytest.approx(by_hand)
    assert ece(shares.max(axis=1), right) == pytest.approx(by_hand)
    sure = measures(np.array([[40.0, 0.0]] * 9 + [[3.5, 0.0]]), labels)
    assert sure["ece"] == pytest.approx(by_hand, abs=1e-3)


def test_likelihood_ranks_and_divergence_are_torch_s() -> None:
    logits, other = (
        torch.from_numpy(LOGITS).double(),
        torch.from_numpy(LOGITS[::-1].copy()).double(),
    )
    labels = torch.from_numpy(LABELS)
    assert np.allclose(nll(LOGITS, LABELS), cross_entropy(logits, labels, reduction="none"))
    assert (
        is_in_top(2, LOGITS, LABELS) == (logits.topk(2).indices == labels[:, None]).any(1).numpy()
    ).all()
    kl = kl_div(other.log_softmax(1), logits.log_softmax(1), log_target=True, reduction="none")
    assert np.allclose(kl_of_logits(LOGITS, LOGITS[::-1]), kl.sum(1))


@pytest.mark.long
def test_interval_of_calibration_error_holds_truth() -> None:
    """Of networks that mean what they say, and of some that are right 0.2 less often."""
    draws = np.random.default_rng(0)
    honest, vain = 0, 0
    for _ in range(40):
        confidence = draws.uniform(0.3, 1.0, 500)
        low, high = ece_interval(confidence, draws.random(500) < confidence)
        honest += low == 0 < high
        low, high = ece_interval(confidence, draws.random(500) < confidence - 0.2)
        vain += low <= 0.2 <= high
    assert honest >= 37 and vain >= 36
