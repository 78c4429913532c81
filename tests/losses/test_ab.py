"""Activation boundaries against the paper's cases written out."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from distill.losses.ab import AB
from distill.recipe import recipes
from tests.losses.loss_inputs import STUDENT, TEACHER, B, loss_inputs

TAPS = ("stages.0", "stages.1")


def made(*taps: str) -> AB:
    torch.manual_seed(0)
    taps = taps or TAPS
    return AB(taps, taps, student_shapes=STUDENT, teacher_shapes=TEACHER).double()


def with_positive_maps(seed: int = 0):
    """Inputs whose maps come from a ReLU, so that half of the neurons are 0."""
    given = loss_inputs(seed=seed)
    relu = {tap: maps.relu() for tap, maps in given.teacher_taps.items()}
    return replace(given, teacher_taps=relu)


def squared_distances(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """RepDistiller's four cases, neuron by neuron."""
    total = 0.0
    for s, t in zip(ours.flatten().tolist(), theirs.flatten().tolist(), strict=True):
        if t <= 0 and s > -1:
            total += (s + 1) ** 2
        if t > 0 and s <= 1:
            total += (s - 1) ** 2
    return total


def test_equals_the_cases_written_out() -> None:
    term, given = made(), with_positive_maps()
    total = 0.0
    for tap, factor in zip(TAPS, (0.5, 1.0), strict=True):
        s = term.connectors[TAPS.index(tap)](given.student_taps[tap])
        total += factor * squared_distances(s, given.teacher_taps[tap]) / B / 1000 * 3
    assert term(given).item() == pytest.approx(total, rel=1e-9)


def test_maps_have_factors_of_powers_of_two() -> None:
    given, three = with_positive_maps(), ("stages.0", "stages.1", "stages.2")
    whole = made(*three)
    total = 0.0
    for i, tap in enumerate(three):
        one = made(tap)
        one.connectors[0] = whole.connectors[i]
        total += 2.0 ** (i - 2) * one(given).item()
    assert whole(given).item() == pytest.approx(total, rel=1e-9)


def test_a_connector_is_a_convolution_and_batch_norm() -> None:
    for connector, tap in zip(made().connectors, TAPS, strict=True):
        convolution, norm = connector
        assert isinstance(norm, nn.BatchNorm2d) and convolution.bias is None
        assert tuple(convolution.weight.shape) == (TEACHER[tap][0], STUDENT[tap][0], 1, 1)


def test_only_the_sign_of_the_teacher_matters() -> None:
    """A ReLU's output has the sign of its input, if 0 counts as negative."""
    term, given = made(), loss_inputs()
    after = {tap: 7 * maps.relu() for tap, maps in given.teacher_taps.items()}
    assert torch.equal(term(replace(given, teacher_taps=after)), term(given))


def test_neurons_beyond_the_margin_have_no_gradient() -> None:
    given = loss_inputs()
    tap = "stages.2"
    term = AB((tap,), (tap,), student_shapes=TEACHER, teacher_shapes=TEACHER)
    term.connectors[0] = nn.Identity()
    theirs = given.teacher_taps[tap]
    beyond = (1.5 * theirs.sign()).requires_grad_()
    loss = term(replace(given, student_taps={tap: beyond}))
    loss.backward()
    assert loss.item() == 0 and not beyond.grad.any()
    within = term(replace(given, student_taps={tap: 0.75 * theirs.sign()}))
    assert within.item() == pytest.approx(0.003 * theirs[0].numel() * 0.25**2, rel=1e-9)


def test_the_student_is_resized_and_not_the_teacher() -> None:
    given = loss_inputs()
    tap, shape = "stages.1", (B, TEACHER["stages.1"][0])
    large = torch.randn(*shape, 8, 8, dtype=torch.float64)
    small = torch.randn(*shape, 2, 2, dtype=torch.float64)
    term = made(tap)
    maps = given.student_taps[tap]
    repeated = maps.repeat_interleave(2, -1).repeat_interleave(2, -2)
    for theirs, resized in ((large, repeated), (small, nn.functional.avg_pool2d(maps, 2))):
        now = replace(given, teacher_taps={tap: theirs})
        same = replace(now, student_taps={tap: resized})
        assert torch.isclose(term(now), term(same), rtol=1e-9)


def test_the_recipe_has_the_two_stages() -> None:
    """30 of 270 epochs with AB alone, then the labels alone."""
    loss = recipes.load("ab").recipe.loss
    assert loss.ab is not None and loss.hard is not None and loss.kd is None
    assert loss.ab.when.end == loss.hard.when.begin == pytest.approx(30 / 270, abs=1e-4)
