"""TTM and WTTM against the power transform written out."""

import math
from dataclasses import replace

import pytest
import torch

from distill.losses.kd import KD
from distill.losses.ttm import TTM
from distill.recipe import recipes
from tests.losses.loss_inputs import B, C, loss_inputs


def softmax(row: list[float]) -> list[float]:
    exps = [math.exp(z) for z in row]
    return [e / sum(exps) for e in exps]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("exponent", [0.1, 0.5, 1.0])
def test_equals_the_sums_written_out(exponent: float, weighted: bool) -> None:
    given, total = loss_inputs(), 0.0
    for z_s, z_t in zip(given.student.tolist(), given.teacher.tolist(), strict=True):
        p_s, powers = softmax(z_s), [p**exponent for p in softmax(z_t)]
        u = sum(powers)
        divergence = sum(p / u * math.log(p / u / q) for p, q in zip(powers, p_s, strict=True))
        total += (u if weighted else 1.0) * divergence / B
    assert TTM(exponent, weighted)(given).item() == pytest.approx(total, rel=1e-9)


def test_only_the_teacher_has_a_temperature() -> None:
    given = loss_inputs()
    softened = replace(given, teacher=given.teacher / 4)
    assert torch.isclose(TTM(0.25)(given), KD(1.0)(softened), rtol=1e-9)


def test_the_weight_is_that_of_uncertain_teachers() -> None:
    """U is 1 for a certain teacher and C^(1 - g) for one without a preference."""
    given = loss_inputs(batch=1)
    certain = torch.zeros(1, C, dtype=torch.float64)
    certain[0, 1] = 1000.0
    for teacher, u in ((certain, 1.0), (torch.zeros_like(certain), C**0.8)):
        now = replace(given, teacher=teacher)
        assert (TTM(0.2, weighted=True)(now) / TTM(0.2)(now)).item() == pytest.approx(u)


def test_exponent_one_is_kd_at_temperature_one() -> None:
    given = loss_inputs()
    assert torch.isclose(TTM(1.0)(given), KD(1.0)(given), rtol=1e-9)
    assert torch.isclose(TTM(1.0, weighted=True)(given), KD(1.0)(given), rtol=1e-9)


@pytest.mark.parametrize("exponent", [0.0, 1.5])
def test_an_exponent_outside_zero_to_one_is_refused(exponent: float) -> None:
    with pytest.raises(recipes.RecipeError, match="loss.ttm.exponent"):
        recipes.load("ttm", [f"loss.ttm.exponent={exponent}"])


@pytest.mark.parametrize(("name", "weighted"), [("ttm", False), ("wttm", True)])
def test_the_recipes_are_the_two_losses(name: str, weighted: bool) -> None:
    loss = recipes.load(name).recipe.loss
    assert loss.ttm is not None and loss.ttm.weighted == weighted and loss.kd is None


@pytest.mark.parametrize("weighted", [False, True])
def test_the_minimum_is_at_the_softened_teacher(weighted: bool) -> None:
    given, term = loss_inputs(), TTM(0.3, weighted)
    least = replace(given, student=0.3 * given.teacher + 1)
    assert term(least).abs() < 1e-12 < term(replace(given, student=given.teacher))
