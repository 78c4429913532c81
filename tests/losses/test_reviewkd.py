"""Knowledge review: the hierarchical distance, the fusion, the order of the maps."""

from dataclasses import replace

import pytest
import torch

from distill.losses.reviewkd import Fusion, ReviewKD, hierarchical
from tests.losses.loss_inputs import STUDENT, TEACHER, loss_inputs


def pool(maps: torch.Tensor, side: int) -> torch.Tensor:
    step = maps.shape[-1] // side
    return maps.unfold(2, step, step).unfold(3, step, step).mean((-2, -1))


@pytest.mark.parametrize(
    ("side", "weights"), [(8, {4: 0.5, 2: 0.25, 1: 0.125}), (4, {2: 0.5, 1: 0.25}), (1, {})]
)
def test_the_distance_is_the_papers_pyramid(side: int, weights: dict[int, float]) -> None:
    a, b = (torch.randn(2, 3, side, side, dtype=torch.float64) for _ in range(2))
    total = (a - b).square().mean()
    for size, weight in weights.items():
        total = total + weight * (pool(a, size) - pool(b, size)).square().mean()
    assert torch.isclose(hierarchical(a, b), total / (1 + sum(weights.values())), rtol=1e-9)


def test_fusion_weighs_map_and_what_is_deeper() -> None:
    torch.manual_seed(0)
    fusion = Fusion(3, 2, 5, joins=True).double().eval()
    maps, deeper = torch.randn(1, 3, 4, 4).double(), torch.randn(1, 2, 2, 2).double()
    out, fused = fusion(maps, deeper)
    own = fusion.reduce(maps)
    up = deeper.repeat_interleave(2, 2).repeat_interleave(2, 3)
    a, b = fusion.attention(torch.cat([own, up], 1)).sigmoid().unbind(1)
    assert torch.allclose(fused, a[:, None] * own + b[:, None] * up)
    assert torch.allclose(out, fusion.expand(fused)) and out.shape == (1, 5, 4, 4)


def test_every_map_is_fused_with_deeper_ones() -> None:
    torch.manual_seed(0)
    taps = ("stages.0", "stages.2", "features")
    shapes = {"student_shapes": STUDENT, "teacher_shapes": TEACHER}
    term, given = ReviewKD(taps, taps, 3, **shapes).double(), loss_inputs()
    deeper, total = None, torch.zeros((), dtype=torch.float64)
    for level in (2, 1, 0):
        ours, theirs = given.student_taps[taps[level]], given.teacher_taps[taps[level]]
        if level == 2:
            ours, theirs = ours[:, :, None, None], theirs[:, :, None, None]
        out, deeper = term.fusions[level](ours, deeper)
        total = total + hierarchical(out, theirs)
    assert torch.isclose(term(given), total, rtol=1e-9)
    leaves = {tap: given.student_taps[tap].clone().requires_grad_() for tap in taps}
    shallow = ReviewKD(taps, taps, 3, **shapes).double()
    shallow(type(given)(given.student, given.targets, None, leaves, given.teacher_taps)).backward()
    assert all(leaf.grad.abs().sum() > 0 for leaf in leaves.values())


def test_the_deepest_has_nothing_to_join() -> None:
    shapes = {"student_shapes": STUDENT, "teacher_shapes": TEACHER}
    term = ReviewKD(student_shapes=STUDENT, teacher_shapes=TEACHER)
    assert [fusion.attention is None for fusion in term.fusions] == [False, False, False, True]
    one = ReviewKD(("stages.0",), ("stages.0",), **shapes)
    assert one.fusions[0].attention is None


def test_a_larger_map_of_the_teacher_is_pooled() -> None:
    tap, given = ("stages.1",), loss_inputs()
    term = ReviewKD(tap, tap, 3, student_shapes=STUDENT, teacher_shapes=TEACHER).double()
    large = torch.randn(6, TEACHER["stages.1"][0], 8, 8, dtype=torch.float64)
    whole, small = (replace(given, teacher_taps={"stages.1": t}) for t in (large, pool(large, 4)))
    assert torch.isclose(term(whole), term(small), rtol=1e-9)


def test_zero_if_fused_maps_equal_the_teachers() -> None:
    torch.manual_seed(0)
    taps, given = ("stages.0", "features"), loss_inputs()
    term = ReviewKD(taps, taps, 3, student_shapes=STUDENT, teacher_shapes=TEACHER).double().eval()
    deep, residual = term.fusions[1](given.student_taps["features"][:, :, None, None], None)
    shallow, _ = term.fusions[0](given.student_taps["stages.0"], residual)
    same = {"stages.0": shallow, "features": deep.flatten(1)}
    assert term(replace(given, teacher_taps=same)) == 0
    for tap in taps:
        other = same | {tap: same[tap] + 0.1}
        assert term(replace(given, teacher_taps=other)) > 0.001
