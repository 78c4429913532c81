"""Neuron selectivity transfer against the squared MMD, channel by channel."""

from dataclasses import replace

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from distill.components.build_loss_terms import build_objective
from distill.losses.nst import NST
from distill.recipe import recipes
from distill.recipe.loss_schema import taps
from tests.losses.loss_inputs import B, loss_inputs

FEW_PIXELS, MANY_PIXELS = "stages.2", "stages.0"  # 4 for 13 channels, 64 for 7


TEACHER_TAPS = "loss.nst.teacher_taps=['stages.1']"


def kernel_mean(a: torch.Tensor, b: torch.Tensor) -> float:
    """The mean of (f_i . g_j)^2 over all pairs of channels of two maps [C, H, W], of norm 1."""
    f, g = ([c.flatten() / c.norm() for c in maps] for maps in (a, b))
    return sum(float(x @ y) ** 2 for x in f for y in g) / (len(f) * len(g))


@pytest.mark.parametrize("tap", [FEW_PIXELS, MANY_PIXELS])
def test_equals_the_mmd_written_out(tap: str) -> None:
    given = loss_inputs()
    ours, theirs = given.student_taps[tap], given.teacher_taps[tap]
    total = sum(
        kernel_mean(s, s) + kernel_mean(t, t) - 2 * kernel_mean(s, t)
        for s, t in zip(ours, theirs, strict=True)
    )
    assert NST(tap, tap)(given).item() == pytest.approx(total / B, rel=1e-9)


@pytest.mark.long
def test_the_gradient_on_many_pixels() -> None:
    given, term = loss_inputs(batch=2), NST(MANY_PIXELS, MANY_PIXELS)
    maps = given.student_taps[MANY_PIXELS].clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda ours: term(replace(given, student_taps={MANY_PIXELS: ours})), maps
    )


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_agreement_on_many_pixels_is_zero_and_finite(scale: float) -> None:
    given = loss_inputs(dtype=torch.float32)
    maps = scale * given.teacher_taps[MANY_PIXELS]
    ours = maps.clone().requires_grad_()
    same = replace(given, student_taps={MANY_PIXELS: ours}, teacher_taps={MANY_PIXELS: maps})
    value = NST(MANY_PIXELS, MANY_PIXELS)(same)
    value.backward()
    assert value.abs() < 1e-6 and ours.grad.isfinite().all()


@pytest.mark.parametrize(("side", "channels"), [(32, 8), (4, 128)])
def test_nothing_larger_than_the_maps_is_saved(side: int, channels: int) -> None:
    """The other form's matrix, of all pixels or of all channels, is 64 or 16 times the two maps."""
    ours, theirs = torch.rand(2, B, channels, side, side)
    given = replace(
        loss_inputs(),
        student_taps={"maps": ours.requires_grad_()},
        teacher_taps={"maps": theirs},
    )
    sizes = []
    with saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        NST("maps", "maps")(given)
    assert 0 < max(sizes) <= 2 * ours.numel()


@pytest.mark.parametrize("tap", [FEW_PIXELS, MANY_PIXELS])
def test_bfloat16_maps_are_compared_in_float32(tap: str) -> None:
    rough = loss_inputs(dtype=torch.bfloat16)
    ours, theirs = rough.student_taps[tap], rough.teacher_taps[tap]
    fine = replace(rough, student_taps={tap: ours.float()}, teacher_taps={tap: theirs.float()})
    assert torch.equal(NST(tap, tap)(rough), NST(tap, tap)(fine))


def test_channels_have_no_order_and_no_size() -> None:
    given = loss_inputs()
    maps = given.student_taps["stages.2"]
    scale = torch.linspace(0.5, 4, maps.shape[1], dtype=torch.float64)[None, :, None, None]
    other = replace(given, student_taps={"stages.2": (scale * maps).flip(1)})
    assert torch.isclose(NST()(other), NST()(given), rtol=1e-9)


def test_a_larger_map_is_pooled() -> None:
    given = loss_inputs()
    pooled = torch.nn.functional.avg_pool2d(given.student_taps["stages.1"], 2)
    small = replace(given, student_taps={"stages.2": pooled})
    assert torch.isclose(NST("stages.1", "stages.2")(given), NST()(small), rtol=1e-9)


def test_several_maps_are_summed() -> None:
    given, three = loss_inputs(), ("stages.0", "stages.1", "stages.2")
    total = sum(NST(tap, tap)(given) for tap in three)
    assert torch.isclose(NST(student_taps=three, teacher_taps=three)(given), total, rtol=1e-12)
    crossed = NST(student_taps=three[:2], teacher_taps=three[1:])(given)
    pairs = NST("stages.0", "stages.1")(given) + NST("stages.1", "stages.2")(given)
    assert torch.isclose(crossed, pairs, rtol=1e-12)


def test_a_list_of_maps_replaces_the_default_map() -> None:
    recipe = recipes.load("nst", ["loss.nst.student_taps=['stages.0']", TEACHER_TAPS]).recipe
    term = recipe.loss.nst
    assert term is not None
    assert [*taps(term, "student")] == [("student_taps", "stages.0")]
    assert [*taps(term, "teacher")] == [("teacher_taps", "stages.1")]
    found = build_objective(recipe, student_shapes={}, teacher_shapes={}).terms["nst"].loss
    given = loss_inputs()
    assert torch.equal(found(given), NST("stages.0", "stages.1")(given))


def test_absent_lists_leave_the_fingerprint_unchanged() -> None:
    recipe = recipes.load("nst").recipe
    assert "student_taps" not in recipe.model_dump(exclude_none=True)["loss"]["nst"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["loss.nst.student_taps=['stages.0','stages.1']", TEACHER_TAPS],
            "has 2 maps, and loss.nst.teacher_taps has 1; allowed: the same number in both",
        ),
        (
            ["loss.nst.student_taps=['stages.9']", TEACHER_TAPS],
            'loss.nst.student_taps = "stages.9" .*is not a feature map of the student',
        ),
        (
            ["loss.nst.student_taps=['features']", TEACHER_TAPS],
            'loss.nst.student_taps = "features" .*is pooled',
        ),
        (
            [
                "loss.nst.student_taps=['stages.0']",
                TEACHER_TAPS,
                "loss.nst.student_tap=stages.1",
            ],
            'loss.nst.student_tap = "stages.1" .*has no effect beside loss.nst.student_taps',
        ),
    ],
)
def test_unfit_lists_of_maps_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(recipes.RecipeError, match=message):
        recipes.load("nst", overrides)
