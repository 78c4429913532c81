"""Read evaluation.npz, the saved predictions of a run."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, isnan, prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distill.errors import UserError
from distill.events import Split, measure_name
from distill.files import regular_file, run_json_schemas
from distill.files.untrusted_arrays import LARGEST, open_npz
from distill.format import counted, percent
from distill.metrics import Array, is_correct, measures
from distill.runs.run_folder import RunFolder, is_tested

ADVICE = "Restore it, or move it away: most commands work without it."
# Beside an accuracy of result.json that no predictions confirm.
NOT_VERIFIED = "not verified: evaluation.npz is missing or damaged"
VAL_TOLERANCE = 0.02  # of an accuracy, 0..1
VAL_NLL_TOLERANCE = 0.1  # relative
VAL_ECE_TOLERANCE = 0.05
NLL_TOLERANCE = 1e-3  # relative
ECE_TOLERANCE = 1e-3  # of a calibration error, 0..1; rounding may move two images to other bins
# Limits of what is read, checked before memory is reserved.
MOST_LOGITS = 50_000_000  # logits of a split, as many as ImageNet's 50,000 images of 1,000 classes
MOST_IMAGES = 200_000  # images of a split
MOST_MISTAKES = 1_000  # images; a run saves 64
LARGEST_SIDE = 128  # pixels of an image that is trained on
UNREADABLE = (OSError, ValueError, TypeError, MemoryError)


class ContradictsPredictions(UserError):
    """result.json contradicts the saved predictions: it names another file, none, or other
    measures.
    """


@dataclass(frozen=True)
class Predictions:
    """The arrays of a run's evaluation.npz; None for an array that the run does not have.

    N test images, M mistakes, V held-out images, C classes.
    """

    logits: Array  # [N, C], on the test split in its order
    labels: Array  # [N]
    mistakes: Array | None = None  # [M], indices of test images, the most confident mistakes first
    mistake_pixels: Array | None = None  # uint8 [M, 3, H, W]
    teacher_logits: Array | None = None  # [N, C]
    val_logits: Array | None = None  # [V, C], on the held-out images
    val_labels: Array | None = None  # [V]

    @property
    def is_correct(self) -> NDArray[np.bool_]:
        """Whether each test image is predicted correctly, [N]."""
        return is_correct(self.logits, self.labels)


def read_if_present(path: Path, n_images: int | None = None) -> Predictions | None:
    """Read the file `path` (an evaluation.npz); None if it is absent.

    `n_images`: the recorded number of test images; None if it is unknown. Raises UserError if the
    file is damaged, or if an array is too large or has a wrong shape, type or range.
    """
    if not path.exists():
        return None
    fields = Predictions.__dataclass_fields__
    try:
        with open_npz(path) as arrays:
            names = [name for name in arrays if name in fields]
            for name in names:
                _check_size(name, arrays.shape(name), n_images)
            predictions = Predictions(**{name: arrays[name] for name in names})
        _check(predictions)
        return predictions
    except UNREADABLE as fault:
        raise _unreadable(path, fault) from fault


def _check_size(name: str, shape: tuple[int, ...], n_images: int | None) -> None:
    """Raise ValueError if an array of this shape is too large, or not of `n_images` test images."""
    rows = shape[0] if shape else 0
    is_of_test_images = name in ("logits", "labels", "teacher_logits")
    if is_of_test_images and n_images is not None and rows != n_images:
        known = counted(n_images, "image")
        raise ValueError(f"{name} has the shape {list(shape)}; the run was tested on {known}")
    if name.endswith("logits") and max(shape[1:], default=0) > run_json_schemas.MOST_CLASSES:
        raise ValueError(
            f"{name} has the shape {list(shape)}; at most {run_json_schemas.MOST_CLASSES:,} "
            "classes are read"
        )
    if name.startswith("mistake"):
        most_rows, most = MOST_MISTAKES, MOST_MISTAKES * 3 * LARGEST_SIDE**2
    else:
        most_rows, most = MOST_IMAGES, MOST_LOGITS
    if rows > most_rows or prod(shape) > most or max(shape[2:], default=0) > LARGEST_SIDE:
        side = f" of at most {LARGEST_SIDE}x{LARGEST_SIDE} pixels" if len(shape) == 4 else ""
        raise ValueError(
            f"{name} has the shape {list(shape)}; at most {most_rows:,} images{side} and {most:,} "
            "numbers are read"
        )


def _check(predictions: Predictions) -> None:
    """Raise ValueError, naming the array, if an array has a wrong shape, type or range."""
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
    name: str, array: Array, expected_shape: tuple[int | None, int] | None = None
) -> tuple[int, int]:
    """Check that `array` contains floats [N, C] and is not empty; return its shape.

    Raises ValueError otherwise, or if it does not have the `expected_shape`, in which None allows
    any N.
    """
    rows, columns = expected_shape or (None, None)
    if array.ndim != 2 or not array.size:
        raise ValueError(f"{name} has the shape {list(array.shape)} instead of [images, classes]")
    if rows not in (None, array.shape[0]) or columns not in (None, array.shape[1]):
        raise ValueError(f"{name} has the shape {list(array.shape)}, which the others do not have")
    if array.dtype.kind != "f":
        raise ValueError(f"{name} contains {array.dtype} instead of floats")
    return array.shape[0], array.shape[1]


def _check_integers(name: str, array: Array | None, n: int, end: int) -> None:
    """Raise ValueError unless the array contains n integers in 0..end-1."""
    if array is None or array.shape != (n,):
        found = None if array is None else list(array.shape)
        raise ValueError(f"{name} has the shape {found} instead of [{n}]")
    if array.dtype.kind not in "iu":
        raise ValueError(f"{name} contains {array.dtype} instead of integers")
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
        raise ValueError(f"mistake_pixels contains {array.dtype} instead of uint8")


def _unreadable(path: Path, fault: object) -> UserError:
    return UserError(f"{path} cannot be read as predictions: {fault}.\n{ADVICE}")


def verified_top1(run: RunFolder) -> float:
    """Return the accuracy on the test split. Raises UserError if the predictions have another."""
    read_run(run)
    return float(run.result()["metrics"][measure_name("top1", "test")])


def read_run(run: RunFolder) -> Predictions | None:
    """Read a run's evaluation.npz; None if the file is absent or the run is not finished.

    Raises UserError if it is damaged or if its number of classes differs from the run's. Raises
    ContradictsPredictions if its sha256 differs from the one in result.json (earlier versions
    recorded none), or if accuracies or NLL in result.json are not those of the predictions.
    """
    if not run.is_finished:
        return None
    path, result = run.evaluation, run.result()
    expected = result.get("evaluation")
    n_images = result.get("data", {}).get("test_images")
    if expected is None and n_images is not None and is_tested(result):
        raise ContradictsPredictions(
            f"{run.result_file} has no sha256 of {path.name}, which every version wrote that also "
            f"wrote test_images: it was changed.\n{run_json_schemas.RETRAIN}"
        )
    if expected is not None and path.exists() and _sha256(path) != expected:
        raise ContradictsPredictions(
            f"{path} is not the file that its run wrote: its sha256 is not the one in "
            f"{run.result_file.name}.\n{ADVICE}"
        )
    predictions, names = read_if_present(path, n_images), result.get("class_names")
    if predictions is None:
        return None
    if names is not None and predictions.logits.shape[1] != len(names):
        found = f"logits of {predictions.logits.shape[1]} classes; {run.result_file.name} has"
        raise _unreadable(path, f"{found} {len(names)}")
    if expected is not None:
        _check_held_out(run, predictions, result["data"].get("val_images"))
    check_measures(run.result_file, predictions, result.get("metrics", {}))
    return predictions


def _check_held_out(run: RunFolder, predictions: Predictions, n_images: int | None) -> None:
    """Raise ContradictsPredictions unless the predictions have those of `n_images` held-out images.

    Every version that wrote the sha256 of evaluation.npz wrote them too. Without them the accuracy
    on held-out images, by which a teacher is chosen, could not be compared.
    """
    found = 0 if predictions.val_labels is None else len(predictions.val_labels)
    if n_images is not None and found != n_images:
        raise ContradictsPredictions(
            f"{run.evaluation} has predictions of {counted(found, 'held-out image')}; "
            f"{run.result_file.name} has {n_images:,}: one of them was changed.\n{ADVICE}"
        )


def check_measures(path: Path, predictions: Predictions, recorded: Mapping[str, float]) -> None:
    """Raise ContradictsPredictions if the predictions have other measures than the recorded ones.

    `path`: the file with the recorded ones, for the message.

    The measures on held-out images were taken in the precision of the training, so they may differ
    more, and those of few images by more again.
    """
    logits, labels = predictions.logits, predictions.labels
    tolerances = {
        "top1": 0.5 / len(labels),
        "nll": NLL_TOLERANCE,
        "ece": ECE_TOLERANCE + 2 / len(labels),
    }
    _compare(path, "test", (logits, labels), recorded, tolerances)
    if predictions.val_logits is not None and predictions.val_labels is not None:
        is_averaged = measure_name("top1", "val_ema") in recorded
        few = 2 / len(predictions.val_labels)
        tolerances = {
            "top1": VAL_TOLERANCE + few,
            "nll": VAL_NLL_TOLERANCE + few,
            "ece": VAL_ECE_TOLERANCE + 2 * few,
        }
        pair = predictions.val_logits, predictions.val_labels
        _compare(path, "val_ema" if is_averaged else "val", pair, recorded, tolerances)


def _compare(
    path: Path,
    split: Split,
    predicted: tuple[Array, Array],
    recorded: Mapping[str, float],
    tolerances: Mapping[str, float],
) -> None:
    """Raise ContradictsPredictions if logits and labels have other measures than those recorded.

    `tolerances`: by measure; that of the NLL is relative.
    """
    with np.errstate(all="ignore"):
        found = measures(*predicted)
    for measure, tolerance in tolerances.items():
        name, value = measure_name(measure, split), found[measure]
        most = tolerance * (1 + value) if measure == "nll" else tolerance
        if name in recorded and not _is_close(recorded[name], value, most):
            shown = [
                f"{v:.4f}" if measure == "nll" else percent(v) for v in (recorded[name], value)
            ]
            raise ContradictsPredictions(
                f"{path} has {name} = {shown[0]}, but the predictions in evaluation.npz have "
                f"{shown[1]}.\n{run_json_schemas.RETRAIN}"
            )


def _is_close(recorded: float, found: float, tolerance: float) -> bool:
    """Whether two numbers differ by at most `tolerance`, or both are NaN or the same infinity."""
    if isfinite(recorded) and isfinite(found):
        return abs(recorded - found) <= tolerance
    return recorded == found or (isnan(recorded) and isnan(found))


def n_test_images(run: RunFolder) -> int | None:
    """Return the number of test images; None if the saved predictions are missing or damaged.

    Raises ContradictsPredictions, see `read_run`.
    """
    try:
        predictions = read_run(run)
    except ContradictsPredictions:
        raise
    except UserError:
        return None
    return None if predictions is None else len(predictions.labels)


def _sha256(path: Path) -> str:
    """Return the sha256 of a file, hex. Raises UserError if it cannot be read."""
    try:
        return regular_file.sha256_of(path, LARGEST)
    except UNREADABLE as fault:
        raise _unreadable(path, fault) from fault
