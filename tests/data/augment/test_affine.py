"""Geometry against Pillow's and torchvision's, pixel by pixel."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import chisquare
from torchvision.transforms.v2 import RandomCrop
from torchvision.transforms.v2 import functional as F

from distill.data.augment import affine
from distill.data.augment.affine import Affine, Rotate, Translate
from distill.data.augment.crop_flip import Flip, draw_crop_flip

N, SIZE = 12, 32
RANDOM = np.random.default_rng(0)
PIXELS = torch.from_numpy(RANDOM.integers(0, 256, (N, 3, SIZE, SIZE), dtype=np.uint8))


def picture(row: int) -> Image.Image:
    return Image.fromarray(PIXELS[row].permute(1, 2, 0).numpy())


def pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def moved(coefficients: np.ndarray) -> torch.Tensor:
    return affine.affine(PIXELS, affine.fixed_point(coefficients))


def test_any_affine_map_is_pillow_s() -> None:
    coefficients = np.eye(2, 3).flatten() + RANDOM.normal(0, 0.3, (N, 6)) * [1, 1, 9, 1, 1, 9]
    ours = moved(coefficients)
    for row in range(N):
        data = tuple(coefficients[row])
        theirs = picture(row).transform((SIZE, SIZE), Image.Transform.AFFINE, data)
        assert torch.equal(ours[row], pixels(theirs))


@pytest.mark.parametrize("degrees", [0, 15.3, -30, 90, 135, 180, 270, 359.5])
def test_a_rotation_is_torchvision_s(degrees: float) -> None:
    ours = moved(affine.rotation(np.full(N, degrees), SIZE))
    for row in range(N):
        assert torch.equal(ours[row], pixels(F.rotate(picture(row), degrees)))


@pytest.mark.parametrize(("x", "y"), [(3, 0), (0, -5), (-7, 2), (32, 0)])
def test_a_translation_is_torchvision_s(x: int, y: int) -> None:
    ours = moved(affine.translation(np.full(N, float(x)), np.full(N, float(y))))
    for row in range(N):
        theirs = F.affine(picture(row), angle=0, translate=[x, y], scale=1, shear=[0, 0])
        assert torch.equal(ours[row], pixels(theirs))


@pytest.mark.parametrize(
    ("degrees", "x", "y", "scale", "shear"),
    [(10, 0, 0, 1, 0), (-25, 3, -2, 1.2, 8), (1, 0, 0, 0.7, 0), (170, 5, 5, 0.9, -15)],
)
def test_a_similarity_is_torchvision_s(degrees, x, y, scale, shear) -> None:
    every = (np.full(N, float(v)) for v in (degrees, x, y, scale, shear))
    ours = moved(affine.affine_maps(*every, SIZE))
    for row in range(N):
        theirs = F.affine(
            picture(row), angle=degrees, translate=[x, y], scale=scale, shear=[shear, 0]
        )
        assert torch.equal(ours[row], pixels(theirs))


def test_translate_is_torchvisions_random_crop() -> None:
    """RandomCrop(32, padding=4): a corner in 0..8 on each axis of the image with a black border.

    Every shift by x to the right and y down is the crop whose corner is at (4 - y, 4 - x).
    """
    for y, x in itertools.product(range(-4, 5), repeat=2):
        ours = moved(affine.translation(np.full(N, float(x)), np.full(N, float(y))))
        for row in (0, N - 1):
            padded = F.pad(picture(row), [4])
            assert torch.equal(ours[row], pixels(F.crop(padded, 4 - y, 4 - x, SIZE, SIZE)))


def test_translate_draws_as_torchvisions_random_crop() -> None:
    """All 81 corners, equally often, and not those of the flips: chi-square at 0.1 %."""
    n = 81_000
    drawn = Translate(4).draw(0, 3, n, SIZE)["map"].numpy() >> affine.BITS
    ours = np.unique(drawn[:, [5, 2]], axis=0, return_counts=True)
    torch.manual_seed(0)
    crop, empty = RandomCrop(SIZE, padding=4), torch.zeros(3, SIZE, SIZE, dtype=torch.uint8)
    theirs = {tuple(corner_of(crop, empty)) for _ in range(3_000)}
    assert {(-4 + top, -4 + left) for top, left in theirs} == set(map(tuple, ours[0].tolist()))
    assert len(ours[1]) == 81 and chisquare(ours[1]).pvalue > 0.001
    mirrored = draw_crop_flip(0, 3, n, None, Flip()).mirrored.numpy()
    assert (
        chisquare(np.unique(drawn[mirrored][:, [5, 2]], axis=0, return_counts=True)[1]).pvalue
        > 0.001
    )


def corner_of(crop: RandomCrop, image: torch.Tensor) -> list[int]:
    """Return (top, left) of a random crop, of the padded image."""
    params = crop.make_params([image])
    return [params["top"], params["left"]]


@pytest.mark.parametrize(
    "operation",
    [Translate(4), Rotate(20.0), Affine(15.0, 0.1, (0.8, 1.2), 10.0)],
    ids=["translate", "rotate", "affine"],
)
def test_operation_is_function_of_seed_view_and_sample(operation) -> None:
    drawn = operation.draw(3, 7, N, SIZE)
    assert torch.equal(operation.draw(3, 7, 2 * N, SIZE)["map"][:N], drawn["map"])
    for seed, view in ((4, 7), (3, 8)):
        assert not torch.equal(operation.draw(seed, view, N, SIZE)["map"], drawn["map"])
    whole = operation(PIXELS, drawn)
    some = torch.tensor([5, 0, 9])
    assert torch.equal(operation(PIXELS[some], {"map": drawn["map"][some]}), whole[some])
    assert whole.dtype == torch.uint8 and not torch.equal(whole, PIXELS)


def test_draws_fill_their_bounds() -> None:
    fixed = Translate(2).draw(0, 0, 4000, SIZE)["map"].double() / 2**16
    assert (
        set((fixed[:, 2] - 0.5).tolist()) == {-2, -1, 0, 1, 2} == set((fixed[:, 5] - 0.5).tolist())
    )
    cos = Rotate(20.0).draw(0, 0, 4000, SIZE)["map"][:, 0].double() / 2**16
    degrees = torch.rad2deg(torch.arccos(cos))
    assert degrees.max() < 20.01 and degrees.max() > 19.9 and degrees.min() < 0.5


def turn_scale_lean(fixed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Degrees, scale and degrees of shear of maps without a shift, from their inverse R L scale."""
    linear = torch.linalg.inv(fixed[:, [0, 1, 3, 4]].double().reshape(-1, 2, 2) / 2**16)
    turn = torch.atan2(linear[:, 1, 0], linear[:, 0, 0])
    scale = linear[:, :, 0].norm(dim=1)
    along = turn.cos() * linear[:, 0, 1] + turn.sin() * linear[:, 1, 1]
    return turn.rad2deg(), scale, torch.atan(-along / scale).rad2deg()


def test_affine_draws_each_part_evenly_and_independently() -> None:
    drawn = Affine(20.0, 0.0, (0.8, 1.4), 10.0).draw(0, 0, 4000, SIZE)["map"]
    parts = torch.stack(turn_scale_lean(drawn))
    bounds = ((-20, 20), (0.8, 1.4), (-10, 10))
    for part, (low, high) in zip(parts, bounds, strict=True):
        near = 0.01 * (high - low)
        assert low - near < part.min() < low + near and high - near < part.max() < high + near
        assert part.mean().item() == pytest.approx((low + high) / 2, abs=3 * near)
    assert (torch.corrcoef(parts) - torch.eye(3)).abs().max() < 0.06
    still = torch.tensor([2**16, 0, 2**15, 0, 2**16, 2**15])
    assert torch.equal(Affine().draw(0, 0, 5, SIZE)["map"], still.expand(5, 6))


def test_affine_shifts_by_whole_pixels_within_bound() -> None:
    shifts = Affine(translate=0.1).draw(0, 0, 4000, SIZE)["map"][:, [2, 5]].double() / 2**16 - 0.5
    for axis in shifts.T:  # 3.2 pixels, rounded
        assert set(axis.tolist()) == set(range(-3, 4))
    assert abs(torch.corrcoef(shifts.T)[0, 1]) < 0.06


def test_affine_fills_black_and_keeps_channels_last() -> None:
    away = moved(affine.translation(np.full(N, 40.0), np.zeros(N)))
    assert not away.any() and away.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.gpu
def test_the_same_bits_on_a_gpu() -> None:
    drawn = Affine(30.0, 0.2, (0.5, 1.5), 20.0).draw(0, 0, N, SIZE)["map"]
    on_gpu = affine.affine(PIXELS.cuda(), drawn.cuda()).cpu()
    assert torch.equal(on_gpu, affine.affine(PIXELS, drawn))
