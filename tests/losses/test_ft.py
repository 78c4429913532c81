"""Factor transfer against RepDistiller's formula written out; what each of its parts trains."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from distill.losses.ft import FT
from tests.losses.loss_inputs import STUDENT, TEACHER, B, loss_inputs

TAP = "stages.1"  # 4 channels of the student, 5 of the teacher, 4x4 pixels


def made(**changes: Any) -> FT:
    torch.manual_seed(0)
    shapes = {"student_shapes": STUDENT, "teacher_shapes": TEACHER}
    return FT(**{"student_tap": TAP, "teacher_tap": TAP} | changes, **shapes).double()


def energies(factors: torch.Tensor) -> list[np.ndarray]:
    """The mean square of each pixel, of norm 1, sample by sample."""
    squares = [(sample.detach().numpy() ** 2).mean(0).ravel() for sample in factors]
    return [energy / np.sqrt((energy**2).sum()) for energy in squares]


def test_equals_the_formula_written_out() -> None:
    term, given = made(reconstruction=0.3), loss_inputs()
    factors = term.encoder(given.teacher_taps[TAP])
    translated = term.translator(given.student_taps[TAP])
    transfer = 0.0
    for ours, theirs in zip(energies(translated), energies(factors), strict=True):
        transfer += np.abs(ours - theirs).mean() / B
    error = (term.decoder(factors) - given.teacher_taps[TAP]).detach().numpy()
    expected = transfer + 0.3 * (error**2).mean()
    assert term(given).item() == pytest.approx(expected, rel=1e-9)


def test_factors_have_half_of_the_teachers_channels() -> None:
    term, given = made(), loss_inputs()
    assert term.encoder(given.teacher_taps[TAP]).shape == (B, 2, 4, 4)
    assert term.translator(given.student_taps[TAP]).shape == (B, 2, 4, 4)
    assert made(rate=0.01).encoder(given.teacher_taps[TAP]).shape == (B, 1, 4, 4)


def test_paraphraser_is_trained_by_its_reconstruction_alone() -> None:
    given, parameters = loss_inputs(), []
    for reconstruction in (0.0, 0.001):
        term = made(reconstruction=reconstruction)
        term(given).backward()
        parameters.append([*term.encoder.parameters(), *term.decoder.parameters()])
        assert all(p.grad.abs().sum() > 0 for p in term.translator.parameters())
    assert all(not p.grad.any() for p in parameters[0])
    assert all(p.grad.abs().sum() > 0 for p in parameters[1])


def test_reconstruction_leaves_the_students_gradient_unchanged() -> None:
    given, found = loss_inputs(), []
    for reconstruction in (0.0, 10.0):
        maps = given.student_taps[TAP].clone().requires_grad_()
        made(reconstruction=reconstruction)(replace(given, student_taps={TAP: maps})).backward()
        found.append(maps.grad)
    assert torch.equal(*found) and found[0].abs().sum() > 0


def test_layers_are_those_of_the_authors() -> None:
    term = made()
    assert [type(layer) for layer in term.translator] == 3 * [
        nn.Conv2d, nn.BatchNorm2d, nn.LeakyReLU,
    ]  # fmt: skip
    assert [type(layer) for layer in term.encoder] == 3 * [nn.Conv2d, nn.LeakyReLU]
    assert [type(layer) for layer in term.decoder] == 3 * [nn.ConvTranspose2d, nn.LeakyReLU]
    widths = [layer.out_channels for layer in term.decoder if hasattr(layer, "out_channels")]
    assert widths == [2, 5, 5]
    assert term.encoder[1](torch.tensor(-1.0)).item() == pytest.approx(-0.1)


def test_the_larger_factors_are_pooled() -> None:
    """Of a teacher's map of twice the size."""
    given, term = loss_inputs(), made(teacher_tap="stages.0", reconstruction=0.0)
    factors = nn.functional.avg_pool2d(term.encoder(given.teacher_taps["stages.0"]), 2)
    translated = term.translator(given.student_taps[TAP])
    pairs = zip(energies(translated), energies(factors), strict=True)
    expected = np.mean([np.abs(ours - theirs).mean() for ours, theirs in pairs])
    assert term(given).item() == pytest.approx(expected, rel=1e-9)
