"""Ensembles of teachers: weights and outputs."""

import pytest
import torch
from torch import nn

from distill.errors import UserError
from distill.losses.kd import KD
from distill.losses.objective import LossInputs
from teachers.ensemble import Ensemble

IMAGES = torch.zeros(2, 3, 1, 1)


class Constant(nn.Module):
    """A network that gives the same logits whatever it sees."""

    def __init__(self, *logits, dtype=torch.float32):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits, dtype=dtype))

    def forward(self, images):
        return self.logits.expand(len(images), -1)


def test_probabilities_are_averaged_not_logits():
    first, second = [0.0, 0.0, 9.0], [1.0, 2.0, 3.0]
    logits = torch.tensor([first, second])
    combined = Ensemble([Constant(*first), Constant(*second)])(IMAGES)

    torch.testing.assert_close(combined.exp(), logits.softmax(-1).mean(0).expand(2, -1))
    assert not torch.allclose(combined.softmax(-1)[0], logits.mean(0).softmax(-1), atol=1e-3)


def test_a_temperature_softens_the_mean_of_probabilities():
    """softmax(log(p) / T) is p^(1/T), normalised, of the mean p at T = 1: neither the mean of the
    members' softened probabilities (arithmetic) nor softmax(mean logits / T) (geometric)."""
    T = 4.0
    members = torch.tensor([[0.0, 0.0, 9.0], [1.0, 2.0, 3.0]])
    seen = (Ensemble(Constant(*logits) for logits in members.tolist())(IMAGES)[0] / T).softmax(-1)

    power = members.softmax(-1).mean(0) ** (1 / T)
    torch.testing.assert_close(seen, power / power.sum())
    # 0.2295, 0.2947, 0.4758 beside 0.1707, 0.2068, 0.6226 and 0.1643, 0.1861, 0.6496
    arithmetic = (members / T).softmax(-1).mean(0)
    geometric = (members.mean(0) / T).softmax(-1)
    for other in (arithmetic, geometric):
        assert (seen - other).abs().max() > 0.1
    softened = ((members / T).softmax(-1).log().mean(0)).softmax(-1)
    torch.testing.assert_close(geometric, softened)  # the geometric mean at T


def test_the_kd_term_sees_the_softened_mean():
    T, z = 4.0, torch.tensor([[0.5, -1.0, 2.0]]).expand(2, -1)
    members = torch.tensor([[0.0, 0.0, 9.0], [1.0, 2.0, 3.0]])
    teacher = Ensemble(Constant(*logits) for logits in members.tolist())(IMAGES)
    power = members.softmax(-1).mean(0) ** (1 / T)
    p, log_q = power / power.sum(), (z[0] / T).log_softmax(-1)

    inputs = LossInputs(z, torch.eye(3)[:2], teacher)
    expected = T**2 * (p * (p.log() - log_q)).sum().item()
    assert KD(T)(inputs).item() == pytest.approx(expected, rel=1e-5)


def test_softmax_of_output_is_mean_probability():
    combined = Ensemble([Constant(0.0, 3.0), Constant(5.0, -1.0), Constant(1.0, 1.0)])(IMAGES)

    torch.testing.assert_close(combined.log_softmax(-1), combined)


def test_ensemble_of_one_equals_its_member():
    combined = Ensemble([Constant(0.0, 3.0, -2.0)])(IMAGES)

    torch.testing.assert_close(combined[0], torch.tensor([0.0, 3.0, -2.0]).log_softmax(-1))


def test_extreme_logits_stay_finite():
    combined = Ensemble([Constant(-300.0, 300.0), Constant(-400.0, 400.0)])(IMAGES)

    assert combined.isfinite().all()
    # log((e^-600 + e^-800) / 2), whose second term vanishes
    assert combined[0, 0].item() == pytest.approx(-600 - torch.tensor(2.0).log().item())


def test_output_is_float32_for_any_precision():
    combined = Ensemble([Constant(0.0, 1.0, dtype=torch.bfloat16), Constant(2.0, 0.0)])(IMAGES)

    assert combined.dtype == torch.float32


def test_members_are_saved_and_moved_with_the_ensemble():
    ensemble = Ensemble(iter([Constant(0.0, 1.0), Constant(1.0, 0.0)]))

    assert list(ensemble.state_dict()) == ["members.0.logits", "members.1.logits"]


def test_empty_ensemble_is_refused():
    with pytest.raises(UserError, match="an ensemble needs at least one network"):
        Ensemble([])


class Pixels(nn.Module):
    """Logits that are the pixels of the first row: a mirror image has them in reverse."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))
        self.n_images = 0

    def forward(self, images):
        self.n_images += len(images)
        return self.scale * images[:, 0, 0]


def test_weights_are_those_of_the_mean_of_probabilities():
    members = torch.tensor([[0.0, 0.0, 9.0], [1.0, 2.0, 3.0], [4.0, -1.0, 0.0]])
    combined = Ensemble([Constant(*logits) for logits in members.tolist()], [1.0, 2.0, 5.0])(IMAGES)

    mean = (torch.tensor([[1 / 8], [2 / 8], [5 / 8]]) * members.softmax(-1)).sum(0)
    torch.testing.assert_close(combined.exp(), mean.expand(2, -1))


def test_equal_weights_are_plain_mean_bit_for_bit():
    members = [Constant(0.0, 0.3, 9.1), Constant(1.0, -2.7, 3.3), Constant(0.1, 0.2, 0.3)]
    plain = Ensemble(members)(IMAGES)

    assert torch.equal(Ensemble(members, [2.0, 2.0, 2.0])(IMAGES), plain)


def test_weights_are_normalised():
    members = [Constant(0.0, 0.3, 9.1), Constant(1.0, -2.7, 3.3)]

    assert torch.equal(Ensemble(members, [1.0, 3.0])(IMAGES), Ensemble(members, [2.0, 6.0])(IMAGES))


@pytest.mark.parametrize("weights", [[1e308, 1.7e308], [1e-320, 1.0]])
def test_weights_of_any_size_are_finite(weights):
    assert Ensemble([Constant(0.0, 3.0), Constant(1.0, -2.0)], weights)(IMAGES).isfinite().all()


def test_mirror_averages_the_probabilities_of_both_images():
    images = torch.tensor([[0.0, 1.0, 5.0], [2.0, -1.0, 0.5]])[:, None, None]
    members = [Pixels(), Pixels(-0.5)]
    combined = Ensemble(members, [1.0, 3.0], mirror=True)(images)

    def mean(scale):
        rows = scale * images[:, 0, 0]
        return (rows.softmax(-1) + rows.flip(-1).softmax(-1)) / 2

    torch.testing.assert_close(combined.exp(), 0.25 * mean(1.0) + 0.75 * mean(-0.5))
    torch.testing.assert_close(combined, combined.flip(-1))  # no side is preferred
    assert [member.n_images for member in members] == [4, 4]


def test_single_teachers_returns_each_member():
    images = torch.rand(2, 1, 1, 3)
    members = [Pixels(), Pixels(-0.5)]

    assert Ensemble(members, [1.0, 3.0]).single_teachers() == members
    mirrored = Ensemble(members, [1.0, 3.0], mirror=True).single_teachers()
    for alone, member in zip(mirrored, members, strict=True):
        assert torch.equal(alone(images), Ensemble([member], mirror=True)(images))
