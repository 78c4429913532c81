"""CTKD against KD at its temperature; the direction and the size of the reversed gradient."""

import math
from dataclasses import replace

import pytest
import torch

from distill.losses.ctkd import CTKD
from distill.losses.kd import KD
from distill.losses.objective import LossTerm, Objective
from distill.recipe import recipes
from tests.losses.loss_inputs import loss_inputs

FIRST = 1 + 20 / (1 + math.exp(-1))  # 15.62


def made(raw: float = 1.0) -> CTKD:
    term = CTKD().double()
    term.raw.data.fill_(raw)
    return term


@pytest.mark.parametrize("raw", [-3.0, 0.0, 1.0])
def test_equals_kd_at_its_temperature(raw: float) -> None:
    given = loss_inputs()
    temperature = 1 + 20 / (1 + math.exp(-raw))
    assert torch.isclose(made(raw)(given), KD(temperature)(given), rtol=1e-9)


def test_the_temperature_begins_at_15_point_6() -> None:
    given = loss_inputs()
    assert torch.isclose(CTKD().double()(given), KD(FIRST)(given), rtol=1e-6)


@pytest.mark.parametrize("progress", [0.0, 0.01, 0.5 / 24, 0.0417, 0.9])
def test_the_gradient_is_reversed_and_grows(progress: float) -> None:
    """Against the slope of the value, by finite differences."""
    given, term, step = loss_inputs(), made(), 1e-5
    term(replace(given, progress=progress)).backward()
    slope = (made(1 + step)(given) - made(1 - step)(given)).item() / (2 * step)
    share = min(1.0, progress / 0.0417)
    strength = 0.5 - 0.5 * math.cos(math.pi * share)
    assert abs(slope) > 1e-3
    assert term.raw.grad.item() == pytest.approx(-strength * slope, rel=1e-6, abs=1e-12)


def test_descent_on_the_parameter_raises_the_loss() -> None:
    given, term = replace(loss_inputs(), progress=0.5), made()
    sgd = torch.optim.SGD(term.parameters(), lr=0.1)
    first = term(given).item()
    for _ in range(5):
        sgd.zero_grad()
        term(given).backward()
        sgd.step()
    assert term(given).item() > first


def test_the_objective_gives_the_progress() -> None:
    given = loss_inputs()
    gradients = []
    for progress in (0.0, 0.5):
        term = made()
        objective = Objective({"ctkd": LossTerm(1.0, term)})
        objective(given, progress)["total"].backward()
        gradients.append(term.raw.grad.item())
    assert gradients[0] == 0 != gradients[1]


def test_without_curriculum_the_strength_is_one() -> None:
    assert CTKD(curriculum=0.0).strength(0.0) == 1.0


def test_the_student_has_the_gradient_of_kd() -> None:
    given = loss_inputs()
    found = []
    for term in (made(), KD(FIRST)):
        student = given.student.clone().requires_grad_()
        term(replace(given, student=student, progress=0.5)).backward()
        found.append(student.grad)
    assert torch.allclose(*found, rtol=1e-9)


def test_a_share_of_one_is_refused() -> None:
    with pytest.raises(recipes.RecipeError, match="loss.ctkd.curriculum"):
        recipes.load("ctkd", ["loss.ctkd.curriculum=1.0"])
