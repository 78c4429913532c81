"""RICAP against the paper's algorithm, and its place beside mixup and cutmix."""

import numpy as np
import pytest
import torch

from distill.data.augment.mixup_cutmix import Mixup, draw_mix
from distill.data.augment.ricap import Ricap, combine_four, draw_ricap

N, SIZE = 200, 32
RANDOM = np.random.default_rng(0)


def patchwork(**changes: float):  # type: ignore[no-untyped-def]
    return draw_ricap(3, 7, N, SIZE, Ricap(**{"prob": 1.0, "beta": 0.3, **changes}), low=0.0)


def test_a_patched_image_is_the_papers_loop() -> None:
    drawn = patchwork()
    images = torch.from_numpy(RANDOM.random((4, N, 3, SIZE, SIZE), dtype=np.float32))
    ours = combine_four(images, drawn.boundary, drawn.corner)
    for b in range(N):
        h, w = drawn.boundary[b].tolist()
        expected = torch.empty(3, SIZE, SIZE)
        heights, widths = [h, h, SIZE - h, SIZE - h], [w, SIZE - w, w, SIZE - w]
        begins = [(0, 0), (0, w), (h, 0), (h, w)]
        for k in range(4):
            (y, x), (top, left) = drawn.corner[b, k].tolist(), begins[k]
            expected[:, top : top + heights[k], left : left + widths[k]] = images[
                k, b, :, y : y + heights[k], x : x + widths[k]
            ]
            assert 0 <= y <= SIZE - heights[k] and 0 <= x <= SIZE - widths[k]
            share = heights[k] * widths[k] / SIZE**2
            assert drawn.share[b, k].item() == pytest.approx(share)
        assert torch.equal(ours[b], expected)


def test_shares_add_up_and_boundaries_follow_beta() -> None:
    drawn = draw_ricap(0, 0, 20_000, SIZE, Ricap(1.0, 0.3), low=0.0)
    assert torch.allclose(drawn.share.sum(1), torch.ones(20_000))
    place = drawn.boundary.double() / SIZE
    assert place.mean().item() == pytest.approx(0.5, abs=0.01)
    variance = 1 / (4 * (2 * 0.3 + 1))  # of Beta(0.3, 0.3)
    assert place.var().item() == pytest.approx(variance, rel=0.03)


def test_partners_are_three_permutations() -> None:
    drawn = patchwork()
    for column in drawn.partner.T:
        assert sorted(column.tolist()) == list(range(N))
    assert len({tuple(column.tolist()) for column in drawn.partner.T}) == 3


def test_no_sample_is_mixed_twice() -> None:
    drawn = draw_ricap(3, 7, N, SIZE, Ricap(0.3), low=0.4)
    mixed = draw_mix(3, 7, N, SIZE, Mixup(prob=0.4), None).lam < 1
    assert not (drawn.used & mixed).any()
    assert drawn.used.float().mean().item() == pytest.approx(0.3, abs=0.08)


def test_a_function_of_seed_view_and_sample() -> None:
    drawn, longer = patchwork(), draw_ricap(3, 7, 2 * N, SIZE, Ricap(1.0, 0.3), low=0.0)
    for name in ("used", "boundary", "corner", "share"):
        assert torch.equal(getattr(longer, name)[:N], getattr(drawn, name))
    assert not torch.equal(draw_ricap(3, 8, N, SIZE, Ricap(), low=0.0).corner, drawn.corner)


def test_batch_of_some_is_those_of_whole() -> None:
    drawn = patchwork()
    images = torch.from_numpy(RANDOM.random((4, N, 3, SIZE, SIZE), dtype=np.float32))
    some = torch.tensor([17, 0, 150])
    whole = combine_four(images, drawn.boundary, drawn.corner)
    picked = combine_four(images[:, some], drawn.boundary[some], drawn.corner[some])
    assert torch.equal(picked, whole[some])
    assert whole.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("axis", [0, 1], ids=["rows", "columns"])
def test_a_crop_begins_anywhere_it_fits(axis: int) -> None:
    drawn = draw_ricap(0, 0, 20_000, SIZE, Ricap(), low=0.0)
    begins = drawn.corner[drawn.boundary[:, axis] == 8][:, :, axis]
    first, last = begins[:, 0], begins[:, 3]  # 8 and 24 of the 32 pixels
    assert set(first.tolist()) == set(range(25)) and set(last.tolist()) == set(range(9))


@pytest.mark.gpu
def test_the_same_bits_on_a_gpu() -> None:
    drawn = patchwork()
    images = torch.from_numpy(RANDOM.random((4, N, 3, SIZE, SIZE), dtype=np.float32))
    on_gpu = combine_four(images.cuda(), drawn.boundary.cuda(), drawn.corner.cuda())
    assert torch.equal(on_gpu.cpu(), combine_four(images, drawn.boundary, drawn.corner))
