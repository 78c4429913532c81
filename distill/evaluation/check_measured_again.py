"""Check that a run's files have the predictions of its network, computed again."""

from distill.errors import UserError
from distill.events import measure_name
from distill.files import run_json_schemas
from distill.format import percent
from distill.metrics import Array, is_correct, is_same_prediction
from distill.runs.read_predictions import Predictions
from distill.runs.run_folder import RunFolder

# Other hardware rounds otherwise, which changes the prediction of an image with two logits that are
# almost equal. Two images more are allowed, for small test splits.
TOP1_TOLERANCE = 1e-3  # of the accuracy, 0..1
CHANGED_TOLERANCE = 1e-2  # of the images, with other predictions than the saved ones
IMAGES = 2


def check_measured_again(
    folder: RunFolder, saved: Predictions | None, logits: Array, labels: Array
) -> None:
    """Raise UserError if a run's files have other predictions than its network.

    `saved`: those in evaluation.npz; None without it. `logits` [N, C], `labels` [N]: just computed
    on the run's own test split. Compared are the accuracy in result.json and, if the labels are in
    the same order, the predictions.
    """
    n, name = len(labels), measure_name("top1", "test")
    found = float(is_correct(logits, labels).mean())
    recorded = folder.result()["metrics"].get(name)
    if recorded is not None and abs(recorded - found) > TOP1_TOLERANCE + IMAGES / n:
        raise UserError(
            f"{folder.result_file} has {name} = {percent(recorded)}, but its network, measured "
            f"again, has {percent(found)}: the files are not of one run.\n"
            f"{run_json_schemas.RETRAIN}"
        )
    if saved is None or saved.logits.shape != logits.shape or (saved.labels != labels).any():
        return
    n_changed = int((~is_same_prediction(saved.logits, logits)).sum())
    if n_changed > CHANGED_TOLERANCE * n + IMAGES:
        raise UserError(
            f"{folder.evaluation} has other predictions than its network, computed again, for "
            f"{n_changed:,} of {n:,} images: the files are not of one run.\n"
            f"{run_json_schemas.RETRAIN}"
        )
