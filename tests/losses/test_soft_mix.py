"""The mixture of two images' logits, which differs from the logits of the mixed image."""

from dataclasses import replace

import pytest
import torch

from distill.losses.kd import KD
from distill.losses.objective import UnmixedTeacherLogits
from distill.losses.soft_mix import SoftMix
from tests.losses.loss_inputs import B, loss_inputs


@pytest.mark.parametrize("t", [1.0, 4.0])
def test_equals_the_sum_written_out(t: float) -> None:
    given, total = loss_inputs(), 0.0
    rows = zip(
        given.student, given.unmixed.own, given.unmixed.partner, given.unmixed.lam, strict=True
    )
    for z_s, z_i, z_j, lam in rows:
        p_s, p_i, p_j = ((z / t).exp() / (z / t).exp().sum() for z in (z_s, z_i, z_j))
        mixed = lam * p_i + (1 - lam) * p_j
        total += (t**2 * (mixed * (mixed / p_s).log()).sum() / B).item()
    assert SoftMix(t)(given).item() == pytest.approx(total, rel=1e-9)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_is_kd_where_one_of_two_is_left(share: float) -> None:
    given = loss_inputs()
    pair = UnmixedTeacherLogits(
        given.unmixed.own, given.unmixed.partner, torch.full((B, 1), share, dtype=torch.float64)
    )
    left = pair.own if share else pair.partner
    student = given.student.clone().requires_grad_()
    loss = SoftMix()(replace(given, student=student, unmixed=pair))
    loss.backward()
    assert torch.isclose(loss, KD()(replace(given, teacher=left)), rtol=1e-9)
    assert student.grad.isfinite().all()


def test_own_and_partner_are_not_the_same() -> None:
    given = loss_inputs()
    swapped = UnmixedTeacherLogits(given.unmixed.partner, given.unmixed.own, given.unmixed.lam)
    assert not torch.isclose(
        SoftMix()(replace(given, unmixed=swapped)), SoftMix()(given), rtol=1e-3
    )
    back = UnmixedTeacherLogits(given.unmixed.partner, given.unmixed.own, 1 - given.unmixed.lam)
    assert torch.isclose(SoftMix()(replace(given, unmixed=back)), SoftMix()(given), rtol=1e-9)


def test_missing_unmixed_logits_are_reported() -> None:
    with pytest.raises(ValueError, match="soft_mix term needs the teacher's logits before mixing"):
        SoftMix()(replace(loss_inputs(), unmixed=None))
