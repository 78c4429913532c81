"""Multi-level logit distillation against its three sums written out."""

import math

import pytest
import torch

from distill.losses.kd import KD
from distill.losses.mlkd import MLKD
from distill.losses.multi_temperature import MultiTemperature
from tests.losses.loss_inputs import B, C, loss_inputs


def softmax(row: list[float], t: float) -> list[float]:
    exps = [math.exp(z / t) for z in row]
    return [e / sum(exps) for e in exps]


def relations(t: float) -> tuple[float, float]:
    """The sums over pairs of samples and of classes, without the divisors."""
    given = loss_inputs()
    ours, theirs = (
        [softmax(row, t) for row in logits.tolist()] for logits in (given.student, given.teacher)
    )
    samples = classes = 0.0
    for a in range(B):
        for b in range(B):
            s, q = (sum(p[a][c] * p[b][c] for c in range(C)) for p in (ours, theirs))
            samples += (s - q) ** 2
    for c in range(C):
        for d in range(C):
            s, q = (sum(p[b][c] * p[b][d] for b in range(B)) for p in (ours, theirs))
            classes += (s - q) ** 2
    return samples, classes


@pytest.mark.parametrize(("batch", "classes"), [(3.0, 0.0), (0.0, 5.0), (64.0, 4096.0)])
def test_equals_the_sums_written_out(batch: float, classes: float) -> None:
    given, temperatures, total = loss_inputs(), (2.0, 5.0), 0.0
    for t in temperatures:
        of_samples, of_classes = relations(t)
        total += KD(t)(given).item() / 2
        total += (batch * of_samples + classes * of_classes / C) / B**2 / 2
    assert MLKD(temperatures, batch, classes)(given).item() == pytest.approx(total, rel=1e-9)


def test_weights_of_the_batch_give_the_papers_loss() -> None:
    """1/B and 1/C of the paper and of the authors' code."""
    of_samples, of_classes = relations(4.0)
    paper = KD(4.0)(loss_inputs()).item() + of_samples / B + of_classes / C
    assert MLKD((4.0,), B, B**2)(loss_inputs()).item() == pytest.approx(paper, rel=1e-9)


def test_without_relations_it_is_multi_temperature() -> None:
    given = loss_inputs()
    assert torch.isclose(MLKD((1.0, 3.0), 0, 0)(given), MultiTemperature((1.0, 3.0))(given))
