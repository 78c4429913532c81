"""A network whose confidences are scaled on images held out."""

import torch
from torch.nn.functional import cross_entropy

from distill.evaluation.temperature import calibrate


def drawn(n: int, scale: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels of the law softmax(z), and logits that are too sure of it by `scale`."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, 5, generator=generator)
    labels = torch.multinomial(z.softmax(-1), 1, generator=generator).flatten()
    return scale * z, labels


def test_temperature_improves_nll_and_calibration() -> None:
    logits, labels = drawn(4000, 3.0, seed=1)
    found = calibrate(drawn(4000, 3.0), logits, labels)
    assert found["nll_calibrated"] < cross_entropy(logits, labels) - 0.3
    assert found["ece_calibrated"] < 0.03
