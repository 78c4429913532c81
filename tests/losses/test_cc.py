"""CC against RepDistiller's sum over consecutive samples, written out."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from distill.losses.cc import CC
from tests.losses.loss_inputs import STUDENT, TEACHER, B, loss_inputs


def made(dims: int = 4) -> CC:
    torch.manual_seed(0)
    return CC(dims=dims, student_shapes=STUDENT, teacher_shapes=TEACHER).double()


def embedded(layer: nn.Linear, features: torch.Tensor) -> np.ndarray:
    weight, bias = (p.detach().numpy() for p in (layer.weight, layer.bias))
    return np.array(
        [[row @ w + b for w, b in zip(weight, bias, strict=True)] for row in features.numpy()]
    )


def test_equals_the_sum_over_neighbours_written_out() -> None:
    term, given = made(), loss_inputs()
    ours = embedded(term.student_embed, given.student_taps["features"])
    theirs = embedded(term.teacher_embed, given.teacher_taps["features"])
    total = 0.0
    for b in range(B - 1):
        for k in range(4):
            total += abs(ours[b][k] - theirs[b][k]) * abs(ours[b + 1][k] - theirs[b + 1][k])
    assert term(given).item() == pytest.approx(total / (B - 1), rel=1e-9)


def test_embeds_128_numbers_of_each_network() -> None:
    term = CC(student_shapes=STUDENT, teacher_shapes=TEACHER)
    assert tuple(term.student_embed.weight.shape) == (128, 6)
    assert tuple(term.teacher_embed.weight.shape) == (128, 7)


def test_equal_embeddings_are_the_minimum_zero() -> None:
    term, given = made(), loss_inputs(like_teacher=True)
    term.student_embed = term.teacher_embed
    same = replace(given, student_taps=given.teacher_taps)
    assert term(same).item() == 0 < term(given)


def test_order_of_the_samples_matters() -> None:
    """A departure from the paper that the released form has."""
    term, given = made(), loss_inputs()
    order = torch.tensor([0, 2, 4, 1, 3, 5])
    features = given.student_taps["features"][order], given.teacher_taps["features"][order]
    other = replace(
        given, student_taps={"features": features[0]}, teacher_taps={"features": features[1]}
    )
    assert not torch.isclose(term(other), term(given))


def test_a_single_sample_has_the_loss_zero() -> None:
    given = loss_inputs(batch=1)
    features = given.student_taps["features"].requires_grad_()
    loss = made()(replace(given, student_taps={"features": features}))
    loss.backward()
    assert loss.item() == 0 and not features.grad.any()


def test_a_map_is_flattened() -> None:
    term = CC("stages.2", "stages.2", dims=4, student_shapes=STUDENT, teacher_shapes=TEACHER)
    assert term.student_embed.in_features == 24
    given = loss_inputs()
    maps = [taps["stages.2"].flatten(1) for taps in (given.student_taps, given.teacher_taps)]
    layers = term.double().student_embed, term.teacher_embed
    delta = (layers[0](maps[0]) - layers[1](maps[1])).abs()
    assert torch.isclose(term(given), (delta[1:] * delta[:-1]).sum(1).mean(), rtol=1e-9)
