"""The labels' term against the formula, and smoothing against mixing."""

import pytest
import torch
from torch.nn.functional import one_hot

from distill.losses.hard import Hard
from distill.losses.objective import LossInputs

B, C = 6, 10


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(B, C, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def targets(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return one_hot(torch.randint(0, C, (B,), generator=generator), C).float()


def test_equals_the_sum_written_out(logits: torch.Tensor) -> None:
    y = targets(1)
    by_hand = 0.0
    for z, row in zip(logits, y, strict=True):
        p = z.exp() / z.exp().sum()
        by_hand -= sum(t * p_c.log() for t, p_c in zip(row.double(), p, strict=True)) / B
    assert torch.isclose(Hard()(LossInputs(logits, y)).double(), by_hand, atol=1e-6)


def test_smoothing_moves_eps_to_the_uniform_distribution(logits: torch.Tensor) -> None:
    y, eps = targets(1), 0.1
    smoothed = (1 - eps) * y + eps / C
    assert torch.isclose(Hard(eps)(LossInputs(logits, y)), Hard()(LossInputs(logits, smoothed)))


def test_smoothing_commutes_with_mixing(logits: torch.Tensor) -> None:
    a, b, lam, eps = targets(1), targets(2), 0.3, 0.1
    mixed_first = Hard(eps)(LossInputs(logits, lam * a + (1 - lam) * b))
    smoothed_first = lam * Hard(eps)(LossInputs(logits, a)) + (1 - lam) * Hard(eps)(
        LossInputs(logits, b)
    )
    assert torch.isclose(mixed_first, smoothed_first)


def test_gradient_is_softmax_minus_targets(logits: torch.Tensor) -> None:
    y = targets(1)
    z = logits.float().requires_grad_()
    Hard()(LossInputs(z, y)).backward()
    assert torch.allclose(z.grad, (z.softmax(-1) - y) / B, atol=1e-6)


def test_finite_where_the_student_is_sure_and_wrong() -> None:
    z = torch.zeros(1, C, dtype=torch.bfloat16)
    z[0, 0] = 100
    assert Hard()(LossInputs(z, one_hot(torch.tensor([1]), C).float())) == 100
