"""WKD-L against Sinkhorn's algorithm written out and against exact optimal transport."""

import math
from dataclasses import replace

import pytest
import torch
from scipy.optimize import linprog
from torch import nn
from torch.nn.functional import cosine_similarity

from distill.losses.objective import LossInputs
from distill.losses.wkd import WKD, class_distances, transport_distance
from distill.recipe import recipes
from distill.teacher.linear_classifier import class_weights
from teachers.ensemble import Ensemble
from teachers.wrn import WideResNet
from tests.losses.loss_inputs import B, C, loss_inputs

WEIGHTS = torch.randn(C, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def distances(k: float = 1.0) -> list[list[float]]:
    rows = WEIGHTS.tolist()
    norms = [math.hypot(*row) for row in rows]
    cosines = [
        [
            sum(a * b for a, b in zip(x, y, strict=True)) / (m * n)
            for y, n in zip(rows, norms, strict=True)
        ]
        for x, m in zip(rows, norms, strict=True)
    ]
    return [[1 - math.exp(-k * (1 - cosine)) for cosine in row] for row in cosines]


def softmax(row: list[float], t: float = 1.0) -> list[float]:
    exps = [math.exp(z / t) for z in row]
    return [e / sum(exps) for e in exps]


def sinkhorn(a: list[float], b: list[float], cost: list[list[float]], e: float, n: int) -> float:
    """Sinkhorn's algorithm with products instead of logarithms."""
    size = range(len(a))
    kernel = [[math.exp(-cost[i][j] / e) for j in size] for i in size]
    u = [1 / len(a)] * len(a)
    for _ in range(n):
        v = [b[j] / sum(kernel[i][j] * u[i] for i in size) for j in size]
        u = [a[i] / sum(kernel[i][j] * v[j] for j in size) for i in size]
    return sum(u[i] * kernel[i][j] * v[j] * cost[i][j] for i in size for j in size)


def test_equals_the_sums_written_out() -> None:
    given, total = loss_inputs(), 0.0
    cost = distances()
    rows = zip(given.student.tolist(), given.teacher.tolist(), given.targets.tolist(), strict=True)
    for z_s, z_t, target in rows:
        y = target.index(1)
        rest = [c for c in range(C) if c != y]
        a, b = (softmax([z[c] for c in rest], 8.0) for z in (z_s, z_t))
        moved = sinkhorn(a, b, [[cost[i][j] for j in rest] for i in rest], 0.05, 10)
        total += (800 * moved - softmax(z_t)[y] * math.log(softmax(z_s)[y])) / B
    term = WKD(teacher_class_weights=WEIGHTS)
    assert term(given).item() == pytest.approx(total, rel=1e-9)


@pytest.mark.long
def test_approaches_exact_optimal_transport() -> None:
    given, n = loss_inputs(batch=1), C
    a, b = given.student.softmax(-1), given.teacher.softmax(-1)
    cost = class_distances(WEIGHTS, 1.0)
    rows = [[float(k // n == i) for k in range(n * n)] for i in range(n)]
    columns = [[float(k % n == j) for k in range(n * n)] for j in range(n)]
    exact = linprog(
        cost.flatten().tolist(),
        A_eq=rows + columns,
        b_eq=torch.cat([a, b], 1)[0].tolist(),
        bounds=(0, None),
    ).fun
    found = transport_distance(a.log(), b.log(), cost[None], 0.002, 3000)
    assert found.item() == pytest.approx(exact, rel=1e-3)


def test_distances_are_those_of_the_classifiers_rows() -> None:
    expected = torch.tensor(distances(2.0), dtype=torch.float64)
    assert torch.allclose(class_distances(WEIGHTS, 2.0), expected, atol=1e-12)
    assert class_distances(WEIGHTS, 2.0).diagonal().abs().max() < 1e-12


def test_the_distance_fades_along_a_half_cosine() -> None:
    term = WKD(gamma=8.0, decay_from=0.6, teacher_class_weights=WEIGHTS)
    shown = [term.current_gamma(at) for at in (0.0, 0.6, 0.7, 0.8, 0.9)]
    expected = [8, 8, 4 + 4 * math.cos(math.pi / 4), 4, 4 - 4 * math.cos(math.pi / 4)]
    assert shown == pytest.approx(expected)
    assert WKD(decay_from=1.0, teacher_class_weights=WEIGHTS).current_gamma(0.999) == 800


def test_classes_reordered_with_their_weights_change_nothing() -> None:
    order, given = torch.tensor([3, 0, 4, 1, 2]), loss_inputs()
    moved = replace(
        given,
        student=given.student[:, order],
        teacher=given.teacher[:, order],
        targets=given.targets[:, order],
    )
    term, other = (WKD(teacher_class_weights=rows) for rows in (WEIGHTS, WEIGHTS[order]))
    assert torch.isclose(other(moved), term(given), rtol=1e-12)


def test_confusion_of_similar_classes_costs_less() -> None:
    rows = torch.tensor([[1.0, 0.0], [0.9, 0.1], [-1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    term = WKD(temperature=1.0, teacher_class_weights=rows)
    teacher, targets = torch.tensor([[0.0, -9.0, -9.0, 3.0]]), torch.eye(4)[3:]
    losses = [
        term(LossInputs(torch.tensor([row]), targets, teacher)).item()
        for row in ([-9.0, 0.0, -9.0, 3.0], [-9.0, -9.0, 0.0, 3.0])
    ]
    assert losses[0] < 0.5 * losses[1]


def test_several_teachers_have_their_mean_cosine() -> None:
    nets = [WideResNet(10, 1, classes=4), WideResNet(10, 2, classes=4)]
    cosines = [cosine_similarity(n.head.weight[:, None], n.head.weight[None], -1) for n in nets]
    rows = class_weights(Ensemble(nets))
    together = cosine_similarity(rows[:, None], rows[None], -1)
    assert torch.allclose(together, sum(cosines) / 2, atol=1e-6)
    assert class_weights(Ensemble([nets[0], nn.Conv2d(3, 4, 1)])) is None


def test_a_teacher_without_linear_classifier_is_refused() -> None:
    with pytest.raises(ValueError, match="this teacher has no linear classifier"):
        WKD(teacher_class_weights=None)


@pytest.mark.parametrize(
    "setting", ["entropy=0", "iterations=0", "sharpness=-1", "decay_from=1.5", "temperature=0"]
)
def test_settings_outside_their_range_are_refused(setting: str) -> None:
    with pytest.raises(recipes.RecipeError, match=f"loss.wkd.{setting.split('=')[0]}"):
        recipes.load("wkd", [f"loss.wkd.{setting}"])
