"""Cutout and random erasing: the boxes, and what is hidden."""

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as F

from distill.data.augment.erase import MEAN_COLOUR, Cutout, Erase, hide
from students.normalize_images import Normalize

N, SIZE = 4000, 32
PIXELS = torch.from_numpy(
    np.random.default_rng(0).integers(0, 256, (12, 3, SIZE, SIZE), dtype=np.uint8)
)


def test_inside_box_is_mean_colour_and_outside_image() -> None:
    boxes = torch.tensor([[0, 5, 0, 7], [10, 32, 20, 21], [4, 4, 0, 9]])
    hidden = hide(PIXELS[:3], boxes)
    for row, (top, bottom, left, right) in enumerate(boxes.tolist()):
        expected = PIXELS[row].clone()
        expected[:, top:bottom, left:right] = torch.tensor(MEAN_COLOUR).byte()[:, None, None]
        assert torch.equal(hidden[row], expected)


@pytest.mark.parametrize("operation", [Cutout(12), Erase(0.7)], ids=["cutout", "erase"])
def test_each_image_equals_torchvisions_erase(operation) -> None:
    drawn = operation.draw(0, 0, len(PIXELS), SIZE)
    colour = torch.tensor(MEAN_COLOUR, dtype=torch.uint8)[:, None, None]
    hidden = operation(PIXELS, drawn)
    for row, (top, bottom, left, right) in enumerate(drawn["box"].tolist()):
        theirs = F.erase(PIXELS[row], top, left, bottom - top, right - left, colour)
        assert torch.equal(hidden[row], theirs)


def test_channels_stay_last_in_memory() -> None:
    last = PIXELS.contiguous(memory_format=torch.channels_last)
    hidden = hide(last, torch.tensor([[0, 5, 0, 7]]).expand(len(last), 4))
    assert hidden.is_contiguous(memory_format=torch.channels_last)


def test_what_is_hidden_is_nothing_to_a_network() -> None:
    image = torch.tensor(MEAN_COLOUR)[None, :, None, None] / 255
    assert Normalize()(image).abs().max() < 0.01


def test_square_about_any_pixel_clipped_at_border() -> None:
    top, bottom, left, right = Cutout(16).draw(0, 0, N, SIZE)["box"].T
    assert (top == 0).any() and (bottom == SIZE).any() and (left == 0).any()
    whole = (bottom - top == 16) & (right - left == 16)
    assert 0.2 < whole.float().mean() < 0.35  # 17 of 32 centres on each axis
    assert (bottom - top).min() == 8 and (right - left).max() == 16
    middle = top[whole] + 8
    assert set(middle.tolist()) == set(range(8, 25))


def test_for_a_share_of_the_samples() -> None:
    for operation, share in ((Cutout(8, 0.3), 0.3), (Erase(0.25), 0.25)):
        box = operation.draw(0, 0, N, SIZE)["box"]
        used = (box[:, 1] > box[:, 0]).float().mean().item()
        assert used == pytest.approx(share, abs=0.03)


def test_rectangles_are_inside_and_have_requested_areas() -> None:
    top, bottom, left, right = Erase(1.0, (0.1, 0.2), (0.5, 2.0)).draw(0, 0, N, SIZE)["box"].T
    assert top.min() == 0 and bottom.max() == SIZE and left.min() == 0 and right.max() == SIZE
    share = (bottom - top) * (right - left) / SIZE**2
    assert 0.08 < share.min() < 0.11 and 0.19 < share.max() < 0.23
    ratio = ((bottom - top) / (right - left)).log()
    assert abs(ratio.mean()) < 0.05 and ratio.max() < np.log(2.4)


def test_one_too_long_is_cut() -> None:
    top, bottom, left, right = Erase(1.0, (0.9, 0.9), (0.1, 0.1)).draw(0, 0, 50, SIZE)["box"].T
    assert (left == 0).all() and (right == SIZE).all() and (bottom - top == 10).all()


@pytest.mark.parametrize("operation", [Cutout(), Erase(1.0)], ids=["cutout", "erase"])
def test_operation_is_function_of_seed_view_and_sample(operation) -> None:
    box = operation.draw(3, 7, 12, SIZE)["box"]
    assert torch.equal(operation.draw(3, 7, 40, SIZE)["box"][:12], box)
    assert not torch.equal(operation.draw(3, 8, 12, SIZE)["box"], box)
    some = torch.tensor([5, 0, 9])
    picked = operation(PIXELS[some], {"box": box[some]})
    assert torch.equal(picked, operation(PIXELS, {"box": box})[some])


@pytest.mark.gpu
def test_the_same_bits_on_a_gpu() -> None:
    box = Erase(1.0).draw(0, 0, len(PIXELS), SIZE)["box"]
    assert torch.equal(hide(PIXELS.cuda(), box.cuda()).cpu(), hide(PIXELS, box))
