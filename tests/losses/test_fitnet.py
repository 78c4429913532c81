"""Hints: the regressed map against the teacher's."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from distill.losses.fitnet import FitNet
from distill.losses.objective import LossInputs
from tests.losses.loss_inputs import STUDENT, TEACHER, loss_inputs


def made(student_tap: str = "stages.1", teacher_tap: str = "stages.1") -> FitNet:
    torch.manual_seed(0)
    shapes = {"student_shapes": STUDENT, "teacher_shapes": TEACHER}
    return FitNet(student_tap, teacher_tap, **shapes).double()


def test_equals_the_mean_square_of_the_regressed_map() -> None:
    term, given = made(), loss_inputs()
    maps, theirs = given.student_taps["stages.1"], given.teacher_taps["stages.1"]
    weight = term.regressor[0].weight[:, :, 0, 0]
    regressed = torch.zeros_like(theirs)
    for b in range(len(maps)):
        for i in range(4):
            for j in range(4):
                regressed[b, :, i, j] = weight @ maps[b, :, i, j]
    mean = regressed.mean((0, 2, 3), keepdim=True)
    spread = (regressed.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
    expected = (((regressed - mean) / spread - theirs) ** 2).sum() / theirs.numel()
    assert torch.isclose(term(given), expected, rtol=1e-9)


def test_a_larger_map_is_pooled() -> None:
    term, given = made("stages.0", "stages.1"), loss_inputs()
    pooled = nn.functional.avg_pool2d(given.student_taps["stages.0"], 2)
    expected = (term.regressor(pooled) - given.teacher_taps["stages.1"]).square().mean()
    assert torch.isclose(term(given), expected)


def test_negative_values_of_the_teacher_can_be_met() -> None:
    """A ReLU at the regressor's end would stop at 0."""
    term = made()
    reached = term.regressor(loss_inputs().student_taps["stages.1"])
    assert reached.min() < -0.5
    assert not any(isinstance(module, nn.ReLU) for module in term.modules())


def released(student: tuple[int, ...], teacher: tuple[int, ...]) -> FitNet:
    torch.manual_seed(0)
    shapes = {"student_shapes": {"stages.1": student}, "teacher_shapes": {"stages.1": teacher}}
    return FitNet(layout="released", **shapes).double()


def hints(student: tuple[int, ...], teacher: tuple[int, ...]) -> LossInputs:
    """Six random maps of these shapes."""
    generator = torch.Generator().manual_seed(3)
    maps = [
        torch.randn(6, *shape, generator=generator, dtype=torch.float64)
        for shape in (student, teacher)
    ]
    empty = torch.zeros(6, 0)
    return LossInputs(
        empty, empty, student_taps={"stages.1": maps[0]}, teacher_taps={"stages.1": maps[1]}
    )


def convolved(maps: np.ndarray, layer: nn.Module, size: int) -> np.ndarray:
    """A convolution, or a transposed one, written out; both to `size` x `size` pixels."""
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    stride, padding, kernel = layer.stride[0], layer.padding[0], layer.kernel_size[0]
    out = np.zeros((len(maps), len(bias), size, size)) + bias[:, None, None]
    for y, x, i, j in itertools.product(range(size), range(size), range(kernel), range(kernel)):
        if isinstance(layer, nn.ConvTranspose2d):
            (down, rest_y), (across, rest_x) = (
                divmod(at + padding - k, stride) for at, k in ((y, i), (x, j))
            )
            part = weight[:, :, i, j]  # [inputs, outputs]
        else:
            down, across = y * stride - padding + i, x * stride - padding + j
            rest_y = rest_x = 0
            part = weight[:, :, i, j].T
        inside = 0 <= down < maps.shape[2] and 0 <= across < maps.shape[3]
        if inside and not rest_y and not rest_x:
            out[:, :, y, x] += maps[:, :, down, across] @ part
    return out


@pytest.mark.parametrize(
    ("student", "teacher", "kind", "kernel"),
    [
        ((4, 5, 5), (3, 5, 5), nn.Conv2d, 1),
        ((4, 6, 6), (3, 3, 3), nn.Conv2d, 3),
        ((4, 3, 3), (3, 6, 6), nn.ConvTranspose2d, 4),
        ((4, 7, 7), (3, 5, 5), nn.Conv2d, 3),
        ((4, 8, 8), (3, 3, 3), nn.Conv2d, 6),
    ],
    ids=["equal", "twice", "half", "two_more", "five_more"],
)
def test_released_layout_is_repdistillers(student, teacher, kind, kernel) -> None:  # type: ignore[no-untyped-def]
    """Convolution with bias, batch norm of the batch, ReLU, mean square; by loops in numpy."""
    term, given = released(student, teacher), hints(student, teacher)
    layer, norm, end = term.regressor
    assert type(layer) is kind and layer.kernel_size == (kernel, kernel)
    assert isinstance(norm, nn.BatchNorm2d) and isinstance(end, nn.ReLU)
    with torch.no_grad():  # other scales and shifts than 1 and 0
        norm.weight.uniform_(0.5, 2)
        norm.bias.uniform_(-1, 1)
    made = convolved(given.student_taps["stages.1"].numpy(), layer, teacher[1])
    mean = made.mean((0, 2, 3), keepdims=True)
    spread = np.sqrt(made.var((0, 2, 3), keepdims=True) + 1e-5)
    scale, shift = (t.detach().numpy()[:, None, None] for t in (norm.weight, norm.bias))
    regressed = np.maximum((made - mean) / spread * scale + shift, 0)
    expected = ((regressed - given.teacher_taps["stages.1"].numpy()) ** 2).mean()
    assert term(given).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.long
def test_released_layout_has_right_gradients() -> None:
    term = released((4, 6, 6), (3, 3, 3))
    given = hints((4, 6, 6), (3, 3, 3))
    maps = given.student_taps["stages.1"].requires_grad_()

    def loss(x: torch.Tensor) -> torch.Tensor:
        return term(replace(given, student_taps={"stages.1": x}))

    assert torch.autograd.gradcheck(loss, maps)


def test_released_layout_refuses_sizes_it_cannot_map() -> None:
    with pytest.raises(ValueError, match="student's 4x4 pixels to the teacher's 5x5; layout = po"):
        released((4, 4, 4), (3, 5, 5))


def test_what_is_regressed_fits_the_widths() -> None:
    assert made().regressor[0].weight.shape == (5, 4, 1, 1)
    with pytest.raises(KeyError, match="stages.7"):
        made("stages.7")
