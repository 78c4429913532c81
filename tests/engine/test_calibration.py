"""The temperature against the law that it was drawn from, and against its neighbours."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from distill.engine.calibration import COLDEST, calibrated, fit_temperature


def drawn(n: int, scale: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels of the law softmax(z), and logits that are too sure of it by `scale`."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, 5, generator=generator)
    labels = torch.multinomial(z.softmax(-1), 1, generator=generator).flatten()
    return scale * z, labels


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_what_was_multiplied_is_divided_again(scale: float) -> None:
    assert fit_temperature(*drawn(20_000, scale)) == pytest.approx(scale, rel=0.05)


def test_no_other_temperature_is_likelier() -> None:
    logits, labels = drawn(100, 2.0)
    best = fit_temperature(logits, labels)
    nll = [cross_entropy(logits.double() / (best * by), labels) for by in (0.999, 1.0, 1.001)]
    assert nll[1] < min(nll[0], nll[2])


def test_where_all_is_right_the_temperature_ends_at_its_bound() -> None:
    labels = torch.arange(5)
    assert fit_temperature(torch.eye(5), labels) == pytest.approx(COLDEST)


def test_a_calibrated_network_is_likelier_and_its_confidence_means_more() -> None:
    logits, labels = drawn(4000, 3.0, seed=1)
    found = calibrated(drawn(4000, 3.0), logits, labels)
    assert found["nll_calibrated"] < cross_entropy(logits, labels) - 0.3
    assert found["ece_calibrated"] < 0.03
