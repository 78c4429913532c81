"""The mean of KD at several temperatures."""

import pytest
import torch

from distill.losses.logit_std import LogitStd
from distill.losses.multi_temperature import MultiTemperature
from tests.losses.loss_inputs import B, loss_inputs


def test_equals_the_mean_written_out() -> None:
    given, temperatures = loss_inputs(), (1.0, 3.0, 6.0)
    total = 0.0
    for t in temperatures:
        for z_s, z_t in zip(given.student / t, given.teacher / t, strict=True):
            p_s, p_t = z_s.exp() / z_s.exp().sum(), z_t.exp() / z_t.exp().sum()
            total += (t**2 * (p_t * (p_t / p_s).log()).sum() / B / len(temperatures)).item()
    assert MultiTemperature(temperatures)(given).item() == pytest.approx(total, rel=1e-9)


def test_one_temperature_twice_is_that_one() -> None:
    given = loss_inputs()
    assert torch.isclose(MultiTemperature((2.0, 2.0))(given), MultiTemperature((2.0,))(given))


def test_standardised_it_is_the_mean_of_logit_std() -> None:
    given, temperatures = loss_inputs(), (1.0, 3.0)
    terms = [LogitStd(t)(given) for t in temperatures]
    found = MultiTemperature(temperatures, standardise=True)(given)
    assert torch.isclose(found, sum(terms) / 2, rtol=1e-12)
    assert not torch.isclose(found, MultiTemperature(temperatures)(given))
