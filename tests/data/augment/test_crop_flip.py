"""Crop and flip against torchvision's operations on the same parameters, image by image."""

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from distill.data import rng
from distill.data.augment import crop_flip
from distill.data.augment.crop_flip import Crop, CropFlipParams, Flip

SIZE = 32


@pytest.fixture
def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (50, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)


def interleaved(images: torch.Tensor) -> torch.Tensor:
    """[N, 3, H, W] as the loader keeps them: [N, H, W, 3]."""
    return images.permute(0, 2, 3, 1).contiguous()


@pytest.mark.parametrize("padding", [0, 1, 4, 16])
def test_pixels_outside_are_numpys_reflection(images: torch.Tensor, padding: int) -> None:
    border = (padding, padding)
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), border, border), "reflect")
    for top in {0, padding, 2 * padding}:
        for left in {0, 1 * (padding > 0), 2 * padding}:
            corner = (torch.full((len(images),), at) for at in (top, left))
            placement = CropFlipParams(*corner, torch.zeros(len(images), dtype=torch.bool))
            cut = crop_flip.crop_and_flip(
                interleaved(images), torch.arange(len(images)), placement, padding
            )
            assert np.array_equal(cut, padded[..., top : top + SIZE, left : left + SIZE])


def test_crop_and_flip_equal_torchvision(images: torch.Tensor) -> None:
    placement = crop_flip.draw_crop_flip(0, 3, len(images), Crop(4), Flip(0.5))
    indices = torch.tensor([7, 3, 3, 49, 0, 21])
    ours = crop_flip.crop_and_flip(interleaved(images), indices, placement, 4)
    for row, i in zip(ours, indices.tolist(), strict=True):
        padded = tv.pad(images[i], [4], padding_mode="reflect")
        theirs = tv.crop(padded, int(placement.top[i]), int(placement.left[i]), SIZE, SIZE)
        if placement.mirrored[i]:
            theirs = tv.horizontal_flip(theirs)
        assert torch.equal(row, theirs)


def test_the_draws_cover_every_offset_and_both_sides() -> None:
    placement = crop_flip.draw_crop_flip(0, 0, 5000, Crop(4), Flip(0.5))
    assert set(placement.top.tolist()) == set(placement.left.tolist()) == set(range(9))
    assert 0.45 < placement.mirrored.float().mean() < 0.55


def test_what_is_off_leaves_the_image_alone(images: torch.Tensor) -> None:
    placement = crop_flip.draw_crop_flip(0, 0, len(images), None, None)
    everything = torch.arange(len(images))
    cut = crop_flip.crop_and_flip(interleaved(images), everything, placement, 0)
    assert torch.equal(cut, images)


def test_flip_probability_is_the_share_that_is_mirrored() -> None:
    assert crop_flip.draw_crop_flip(0, 0, 100, None, Flip(1.0)).mirrored.all()
    assert not crop_flip.draw_crop_flip(0, 0, 100, None, Flip(0.0)).mirrored.any()
    assert (
        0.17 < crop_flip.draw_crop_flip(0, 0, 5000, None, Flip(0.2)).mirrored.float().mean() < 0.23
    )


def test_without_alternation_each_view_draws_its_own_sides() -> None:
    sides = [crop_flip.draw_crop_flip(0, view, 2000, None, Flip(0.5)).mirrored for view in (0, 1)]
    for view, side in enumerate(sides):
        word = rng.words(0, view, rng.Stream.FLIP, 2000)[:, 0]
        assert side.tolist() == (rng.uniform(word) < 0.5).tolist()
    assert 0.45 < (sides[0] != sides[1]).float().mean() < 0.55


@pytest.mark.parametrize("prob", [0.0, 0.2, 0.5])
def test_alternating_sides_change_every_view(prob: float) -> None:
    first = crop_flip.draw_crop_flip(4, 0, 2000, None, Flip(prob)).mirrored
    for view in range(5):
        side = crop_flip.draw_crop_flip(4, view, 2000, None, Flip(prob, alternate=True)).mirrored
        assert torch.equal(side, first if view % 2 == 0 else ~first)


def test_the_batch_is_channels_last_in_memory(images: torch.Tensor) -> None:
    placement = crop_flip.draw_crop_flip(0, 0, len(images), Crop(4), None)
    cut = crop_flip.crop_and_flip(interleaved(images), torch.arange(8), placement, 4)
    assert crop_flip.to_float(cut).is_contiguous(memory_format=torch.channels_last)


def test_pixels_become_exact_shares() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(crop_flip.to_float(values), torch.arange(256).float() / 255)
    assert crop_flip.to_float(values).max() == 1


def test_a_placement_moves_whole() -> None:
    placement = crop_flip.draw_crop_flip(0, 0, 4, Crop(2), Flip()).to(torch.device("cpu"))
    assert isinstance(placement, CropFlipParams)
    assert placement.top.dtype == torch.int64


@pytest.mark.parametrize("side", [8, 20, 26])
def test_resizing_is_the_antialiased_triangle_filter(side: int) -> None:
    """Pixel o of a row is the mean of pixels j, weighted by the triangle of half-width 32 / side
    around (o + 1/2) * 32 / side, cut at the border.
    """
    scale = 32 / side
    out, j = np.arange(side)[:, None], np.arange(32)[None, :]
    weight = np.clip(1 - np.abs((j + 0.5 - (out + 0.5) * scale) / scale), 0, None)
    weight = torch.from_numpy(weight / weight.sum(axis=1, keepdims=True))
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = weight @ images.double() @ weight.T
    assert torch.allclose(crop_flip.resize(images, side).double(), expected, atol=1e-6)


def test_resizing_leaves_no_pattern_of_single_pixels() -> None:
    """A chequerboard becomes grey; without antialiasing it would become another pattern."""
    board = (torch.arange(32)[:, None] + torch.arange(32)).remainder(2).float().expand(1, 3, 32, 32)
    inner = crop_flip.resize(board, 16)[..., 1:-1, 1:-1]
    assert torch.allclose(inner, torch.full_like(inner, 0.5), atol=1e-6)
