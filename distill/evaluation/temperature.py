"""Calibrate confidences by temperature scaling."""

from torch import Tensor

from distill import statistics
from distill.evaluation.metrics import measures


def calibrate(held_out: tuple[Tensor, Tensor], logits: Tensor, labels: Tensor) -> dict[str, float]:
    """`temperature` of the held-out logits [V, C] and labels [V]; `nll_calibrated` and
    `ece_calibrated` of others divided by it. Images that were trained on would not do.
    """
    fitted = statistics.fit_temperature(*(each.numpy() for each in held_out))
    after = measures(logits.double() / fitted, labels)
    return {
        "temperature": fitted,
        "nll_calibrated": after["nll"],
        "ece_calibrated": after["ece"],
    }
