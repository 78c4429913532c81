"""Calibrate confidences by temperature scaling."""

from torch import Tensor

from distill import statistics
from distill.evaluation.metrics import measures


def calibrate(held_out: tuple[Tensor, Tensor], logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Fit `temperature` on held-out logits [V, C] and labels [V]; return it with `nll_calibrated`
    and `ece_calibrated` of `logits` divided by it. Training images are unsuitable for the fit.
    """
    temperature = statistics.fit_temperature(*(tensor.numpy() for tensor in held_out))
    calibrated = measures(logits.double() / temperature, labels)
    return {
        "temperature": temperature,
        "nll_calibrated": calibrated["nll"],
        "ece_calibrated": calibrated["ece"],
    }
