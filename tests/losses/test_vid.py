"""VID against the likelihood written out; its variances are learnt."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from distill.losses.vid import VID
from tests.losses.loss_inputs import STUDENT, TEACHER, loss_inputs

TAPS = ("stages.0", "stages.1")


def made() -> VID:
    torch.manual_seed(0)
    return VID(TAPS, TAPS, student_shapes=STUDENT, teacher_shapes=TEACHER).double()


def test_equals_the_log_likelihood_written_out() -> None:
    term, given, total = made(), loss_inputs(), 0.0
    for level, tap in enumerate(TAPS):
        mean, theirs = term.means[level](given.student_taps[tap]), given.teacher_taps[tap]
        term.alphas[level].data += torch.linspace(-1, 1, theirs.shape[1])
        for c in range(theirs.shape[1]):
            variance = math.log1p(math.exp(term.alphas[level][c].item())) + 1e-5
            squares = (theirs[:, c] - mean[:, c]).square() / variance
            total += (squares + math.log(variance)).mean().item() / 2 / theirs.shape[1]
    assert term(given).item() == pytest.approx(total, rel=1e-6)


def test_the_variance_begins_at_5_and_is_learnt() -> None:
    term = made()
    assert [name for name, _ in term.named_parameters() if "alpha" in name] == [
        "alphas.0",
        "alphas.1",
    ]
    variance = nn.functional.softplus(term.alphas[0]) + 1e-5
    assert torch.allclose(variance, torch.full((4,), 5.0).double())
    term(loss_inputs()).backward()
    assert all(alpha.grad.abs().min() > 0 for alpha in term.alphas)


def test_the_term_is_that_of_the_authors_code() -> None:
    """ssahn0215's code, also in RepDistiller and mdistiller: three 1x1 convolutions without bias,
    ReLU between them, none at the end, and a variance that begins at 5 (here 1e-5 above it).
    """
    term, given = made(), loss_inputs()
    for regressor in term.means:
        first, _, second, _, third = regressor
        assert all(
            layer.kernel_size == (1, 1) and layer.bias is None for layer in (first, second, third)
        )
        assert second.in_channels == second.out_channels == third.in_channels == first.out_channels
    total = 0.0
    for level, tap in enumerate(TAPS):
        x, theirs = given.student_taps[tap].numpy(), given.teacher_taps[tap].numpy()
        for i, layer in enumerate(term.means[level][::2]):
            x = np.einsum("oi,bihw->bohw", layer.weight.detach().numpy()[:, :, 0, 0], x)
            x = np.maximum(x, 0) if i < 2 else x
        scale = np.log(np.exp(5.0 - 1e-5) - 1.0) * np.ones(theirs.shape[1])
        variance = (np.log(1.0 + np.exp(scale)) + 1e-5)[None, :, None, None]
        total += (0.5 * ((x - theirs) ** 2 / variance + np.log(variance))).mean()
    assert term(given).item() == pytest.approx(total, rel=1e-5)


def test_it_may_be_negative() -> None:
    term, given = made(), loss_inputs()
    for alpha in term.alphas:
        alpha.data.fill_(-4.0)
    close = {tap: term.means[i](given.student_taps[tap]).detach() for i, tap in enumerate(TAPS)}
    assert term(type(given)(given.student, given.targets, None, given.student_taps, close)) < 0


def test_the_mean_can_be_negative() -> None:
    for regressor in made().means:
        assert isinstance(regressor[-1], nn.Conv2d) and len(regressor) == 5


def test_a_larger_map_of_the_teacher_is_pooled() -> None:
    term, given = made(), loss_inputs()
    large = {tap: torch.randn(6, TEACHER[tap][0], 16, 16, dtype=torch.float64) for tap in TAPS}
    pooled = {"stages.0": nn.functional.avg_pool2d(large["stages.0"], 2)}
    pooled["stages.1"] = nn.functional.avg_pool2d(large["stages.1"], 4)
    whole, small = (replace(given, teacher_taps=taps) for taps in (large, pooled))
    assert torch.isclose(term(whole), term(small), rtol=1e-9)
