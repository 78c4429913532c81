"""DIST against the paper's correlations, and its invariances."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from distill.losses.dist import DIST, correlation
from distill.losses.objective import LossInputs
from distill.recipe.loss_schema import arguments
from distill.recipe.recipes import load
from tests.losses.loss_inputs import B, C, loss_inputs


@pytest.mark.parametrize(("beta", "gamma", "t"), [(1, 0, 1), (0, 1, 1), (2, 3, 4)])
def test_equals_the_correlations_written_out(beta: float, gamma: float, t: float) -> None:
    given = loss_inputs()
    y_s, y_t = ((z / t).softmax(1).numpy() for z in (given.student, given.teacher))
    inter = np.mean([1 - np.corrcoef(y_s[b], y_t[b])[0, 1] for b in range(B)])
    intra = np.mean([1 - np.corrcoef(y_s[:, c], y_t[:, c])[0, 1] for c in range(C)])
    expected = beta * inter + gamma * intra
    assert DIST(beta, gamma, t)(given).item() == pytest.approx(expected, rel=1e-6)


def test_the_recipe_has_the_authors_setting_for_cifar() -> None:
    """Weight 2 at T = 4, both parts times T^2, as their classification code has it."""
    term = load("dist").recipe.loss.dist
    assert term is not None
    given, t = loss_inputs(), 4.0
    y_s, y_t = ((z / t).softmax(1).numpy() for z in (given.student, given.teacher))
    inter = t**2 * np.mean([1 - np.corrcoef(y_s[b], y_t[b])[0, 1] for b in range(B)])
    intra = t**2 * np.mean([1 - np.corrcoef(y_s[:, c], y_t[:, c])[0, 1] for c in range(C)])
    ours = term.weight * DIST(**arguments(term))(given).item()
    assert ours == pytest.approx(2.0 * (inter + intra), rel=1e-6)


def test_scale_and_shift_change_no_correlation() -> None:
    a, b = torch.rand(4, 6, dtype=torch.float64), torch.rand(4, 6, dtype=torch.float64)
    scale, shift = torch.rand(4, 1) + 0.5, torch.randn(4, 1)
    assert torch.allclose(correlation(a * scale + shift, b), correlation(a, b), rtol=1e-6)
    assert torch.allclose(correlation(-a, b), -correlation(a, b))


def test_agreement_is_rewarded() -> None:
    """torchdistill's DISTPlusLoss adds the correlation where 1 - rho is meant."""
    given = loss_inputs()
    same = replace(given, student=given.teacher)
    opposite = replace(given, student=-given.teacher)
    assert DIST()(same) < DIST()(given) < DIST()(opposite)


def test_class_that_never_varies_is_zero_over_nothing() -> None:
    student = torch.zeros(B, C, requires_grad=True)
    loss = DIST(temperature=1)(LossInputs(student, torch.eye(C), torch.zeros(B, C)))
    loss.backward()
    assert loss.item() == pytest.approx(2) and student.grad.isfinite().all()


def test_the_gradient_does_not_fall_with_the_temperature() -> None:
    """Why there is no T^2, as in KD: softened ten times more, rho pulls as hard as before."""

    def pull(temperature: float) -> float:
        given = loss_inputs()
        student = given.student.clone().requires_grad_()
        DIST(temperature=temperature)(replace(given, student=student)).backward()
        return student.grad.norm().item()

    assert pull(80) == pytest.approx(pull(8), rel=0.2)
