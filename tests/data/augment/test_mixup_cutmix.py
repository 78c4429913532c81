"""Mixup and cutmix by hand, on pinned draws."""

import numpy as np
import pytest
import torch
from scipy.stats import beta

from distill.data.augment import mixup_cutmix
from distill.data.augment.mixup_cutmix import Cutmix, Mixup

N, SIZE = 4000, 32


def test_mixup_is_the_convex_combination() -> None:
    first, second = torch.full((1, 3, SIZE, SIZE), 0.2), torch.full((1, 3, SIZE, SIZE), 0.8)
    weight = mixup_cutmix.weight_map(
        torch.tensor([0.3]), torch.zeros(1, 4, dtype=torch.int64), SIZE
    )
    assert weight.shape == (1, 1, SIZE, SIZE)
    assert torch.allclose(
        mixup_cutmix.mix(first, second, weight), torch.tensor(0.3 * 0.2 + 0.7 * 0.8)
    )


def test_cutmix_pastes_the_partners_pixels_exactly() -> None:
    first, second = torch.rand(1, 3, SIZE, SIZE), torch.rand(1, 3, SIZE, SIZE)
    weight = mixup_cutmix.weight_map(torch.ones(1), torch.tensor([[2, 5, 0, 7]]), SIZE)
    expected = first.clone()
    expected[:, :, 2:5, 0:7] = second[:, :, 2:5, 0:7]
    assert torch.equal(mixup_cutmix.mix(first, second, weight), expected)


def test_lam_is_the_area_that_is_really_left() -> None:
    drawn = mixup_cutmix.draw_mix(0, 0, N, SIZE, None, Cutmix())
    weight = mixup_cutmix.weight_map(drawn.blend, drawn.box, SIZE)
    assert torch.allclose(weight.mean(dim=(1, 2, 3)), drawn.lam, atol=1e-6)


def test_a_clipped_box_gives_back_its_weight() -> None:
    # A box of side 16 about the corner keeps a quarter of its area; lam must not be the drawn 3/4.
    box = mixup_cutmix.clipped_box(np.array([0.75]), np.array([[0, 0]]), SIZE)
    assert box.tolist() == [[0, 8, 0, 8]]


def test_an_unclipped_box_has_the_drawn_area() -> None:
    box = mixup_cutmix.clipped_box(np.array([0.75]), np.array([[16, 16]]), SIZE)
    assert box.tolist() == [[8, 24, 8, 24]]


def test_boxes_stay_inside_and_some_are_clipped() -> None:
    drawn = mixup_cutmix.draw_mix(0, 0, N, SIZE, None, Cutmix())
    top, bottom, left, right = drawn.box.T
    assert drawn.box.min() >= 0 and drawn.box.max() <= SIZE
    assert (bottom >= top).all() and (right >= left).all()
    assert ((bottom - top) != (right - left)).float().mean() > 0.2


def test_lam_of_mixup_is_uniform_for_alpha_1() -> None:
    lam = mixup_cutmix.draw_mix(0, 0, N, SIZE, Mixup(), None).lam
    assert abs(lam.mean() - 1 / 2) < 0.02
    assert abs(lam.var() - 1 / 12) < 0.005


@pytest.mark.parametrize(
    ("alpha", "quantile"),
    [
        (0.5, lambda u: np.sin(np.pi * u / 2) ** 2),  # the arcsine law
        (1.0, lambda u: u),
        # Beta(2, 2): 3x^2 - 2x^3 = u, by the trigonometric root
        (2.0, lambda u: 0.5 - np.sin(np.arcsin(1 - 2 * u) / 3)),
    ],
)
def test_beta_quantile_equals_the_closed_form(alpha: float, quantile) -> None:  # type: ignore[no-untyped-def]
    u = np.linspace(0, 1, 1001)[:-1]
    assert np.allclose(mixup_cutmix.beta_quantile(alpha, u), quantile(u), atol=2e-6)


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.4, 8.0])
def test_beta_quantile_has_the_variance_of_the_law(alpha: float) -> None:
    x = mixup_cutmix.beta_quantile(alpha, (np.arange(200_000) + 0.5) / 200_000)
    assert np.isclose(x.mean(), 0.5, atol=1e-6)
    assert np.isclose(x.var(), 1 / (4 * (2 * alpha + 1)), rtol=1e-3)


def test_mixup_and_cutmix_have_their_shares() -> None:
    drawn = mixup_cutmix.draw_mix(0, 0, N, SIZE, Mixup(prob=0.3), Cutmix(prob=0.5))
    blended = drawn.blend < 1
    boxed = (drawn.box != 0).any(dim=1)
    assert 0.27 < blended.float().mean() < 0.33
    assert 0.45 < boxed.float().mean() < 0.53  # a box of side 0 is none
    assert not (blended & boxed).any()
    untouched = ~blended & ~boxed
    assert (drawn.lam[untouched] == 1).all()


def test_partners_are_a_permutation_per_view() -> None:
    one, other = (mixup_cutmix.draw_mix(0, view, N, SIZE, Mixup(), None).partner for view in (0, 1))
    assert sorted(one.tolist()) == list(range(N))
    assert not torch.equal(one, other)


def test_mixture_does_not_depend_on_set_size() -> None:
    few, many = (mixup_cutmix.draw_mix(0, 0, n, SIZE, None, Cutmix()) for n in (100, N))
    assert torch.equal(few.box, many.box[:100])
    assert torch.equal(few.lam, many.lam[:100])


@pytest.mark.parametrize("alpha", [0.01, 0.1, 2.0, 100.0])
def test_quantiles_at_the_bounds_of_a_recipe(alpha: float) -> None:
    """Against scipy; at 1e-300 and 1e300, which a recipe refuses, all are nan."""
    u = np.linspace(0.001, 0.999, 999)
    assert np.allclose(mixup_cutmix.beta_quantile(alpha, u), beta.ppf(u, alpha, alpha), atol=2e-3)
