"""Colour operations against Pillow's, image by image and level by level."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torchvision.transforms.v2 import functional as F

from distill.data.augment import color
from distill.data.augment.color import ColourJitter

N, SIZE = 24, 32
RANDOM = np.random.default_rng(0)
# From flat to full range, so that histograms are of every kind.
SPAN = RANDOM.integers(1, 257, (N, 3, 1, 1))
LOW = RANDOM.integers(0, 257 - SPAN)
PIXELS = torch.from_numpy((LOW + RANDOM.integers(0, SPAN, (N, 3, SIZE, SIZE))).astype(np.uint8))
FACTORS = torch.linspace(0.0, 2.3, N)


def picture(row: int) -> Image.Image:
    return Image.fromarray(PIXELS[row].permute(1, 2, 0).numpy())


def pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


ENHANCERS = {
    "Brightness": lambda p, f: color.look_up(p, color.brightness_table(f)),
    "Contrast": lambda p, f: color.look_up(p, color.contrast_table(p, f)),
    "Color": color.saturation,
    "Sharpness": color.sharpness,
}


@pytest.mark.parametrize("name", ENHANCERS)
@pytest.mark.parametrize("shift", [0.0, 0.0371, 0.5])
def test_an_enhancement_is_pillow_s(name: str, shift: float) -> None:
    factors = FACTORS + shift
    ours = ENHANCERS[name](PIXELS, factors)
    for row in range(N):
        theirs = getattr(ImageEnhance, name)(picture(row)).enhance(factors[row].item())
        assert torch.equal(ours[row], pixels(theirs)), row


def test_every_level_at_many_factors_is_pillow_s() -> None:
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    factors = torch.linspace(0, 2.5, 400)
    table = color.brightness_table(factors)[:, 0]
    for row, factor in enumerate(factors.tolist()):
        theirs = np.array(ImageEnhance.Brightness(ramp).enhance(factor)).flatten()
        assert np.array_equal(table[row].numpy(), theirs)


def test_grey_is_pillow_s() -> None:
    for row, ours in enumerate(color.grey(PIXELS)):
        assert np.array_equal(ours[0].numpy(), np.array(picture(row).convert("L")))


@pytest.mark.parametrize("bits", range(1, 9))
def test_posterize_is_pillow_s(bits: int) -> None:
    ours = color.look_up(PIXELS, color.posterize_table(torch.full((N,), bits)))
    for row in range(N):
        assert torch.equal(ours[row], pixels(ImageOps.posterize(picture(row), bits)))


@pytest.mark.parametrize("threshold", [0.0, 17.0, 127.5, 128.0, 255.0, 256.0])
def test_solarize_is_pillow_s(threshold: float) -> None:
    ours = color.look_up(PIXELS, color.solarize_table(torch.full((N,), threshold)))
    for row in range(N):
        assert torch.equal(ours[row], pixels(ImageOps.solarize(picture(row), threshold)))


def test_autocontrast_and_equalize_are_pillow_s() -> None:
    counts = color.histogram(PIXELS)
    assert torch.equal(counts.sum(2), torch.full((N, 3), SIZE**2))
    stretched = color.look_up(PIXELS, color.autocontrast_table(counts))
    flat = color.look_up(PIXELS, color.equalize_table(counts))
    for row in range(N):
        assert torch.equal(stretched[row], pixels(ImageOps.autocontrast(picture(row))))
        assert torch.equal(flat[row], pixels(ImageOps.equalize(picture(row))))


@pytest.mark.parametrize("share", [-0.5, -0.21, 0.0, 0.1, 0.37, 0.5])
def test_hue_is_torchvision_s(share: float) -> None:
    turn = torch.full((N,), int(share * 255) % 256)
    ours = color.turn_hue(PIXELS, turn)
    for row in range(N):
        theirs = pixels(F.adjust_hue(picture(row), share))
        assert torch.equal(ours[row], theirs)


def test_jitter_is_the_four_in_their_order() -> None:
    jitter = ColourJitter(0.4, 0.3, 0.2, 0.1)
    drawn = jitter.draw(0, 0, N, SIZE)
    ours = jitter(PIXELS, drawn)
    for row in range(N):
        image = picture(row)
        for name, key in (
            ("Brightness", "brightness"), ("Contrast", "contrast"), ("Color", "saturation"),
        ):  # fmt: skip
            image = getattr(ImageEnhance, name)(image).enhance(drawn[key][row].item())
        hue = np.array(image.convert("HSV"))
        hue[..., 0] += np.uint8(drawn["hue"][row].item())
        theirs = pixels(Image.fromarray(hue, "HSV").convert("RGB"))
        assert torch.equal(ours[row], theirs)


def test_factors_are_uniform_within_their_bounds() -> None:
    drawn = ColourJitter(0.4, 1.5, 0.0, 0.25).draw(0, 0, 5000, SIZE)
    assert 0.6 <= drawn["brightness"].min() < 0.61 and 1.39 < drawn["brightness"].max() <= 1.4
    assert 0.0 <= drawn["contrast"].min() < 0.01 and 2.49 < drawn["contrast"].max() <= 2.5
    assert (drawn["saturation"] == 1).all()
    turns = torch.where(drawn["hue"] > 127, drawn["hue"] - 256, drawn["hue"])
    assert turns.min() == -63 and turns.max() == 63


def test_jitter_is_function_of_seed_view_and_sample() -> None:
    jitter = ColourJitter(0.4, 0.4, 0.4, 0.1)
    drawn = jitter.draw(3, 7, N, SIZE)
    longer, other = jitter.draw(3, 7, 2 * N, SIZE), jitter.draw(3, 8, N, SIZE)
    some = torch.tensor([5, 0, 9])
    for name, rows in drawn.items():
        assert torch.equal(longer[name][:N], rows) and not torch.equal(other[name], rows)
    picked = {name: rows[some] for name, rows in drawn.items()}
    assert torch.equal(jitter(PIXELS[some], picked), jitter(PIXELS, drawn)[some])


@pytest.mark.gpu
def test_the_same_bits_on_a_gpu() -> None:
    for name, enhance in ENHANCERS.items():
        assert torch.equal(
            enhance(PIXELS.cuda(), FACTORS.cuda()).cpu(), enhance(PIXELS, FACTORS)
        ), name
    jitter = ColourJitter(0.4, 1.5, 0.3, 0.5)
    drawn = jitter.draw(0, 0, N, SIZE)
    on_gpu = jitter(PIXELS.cuda(), {name: rows.cuda() for name, rows in drawn.items()})
    assert torch.equal(on_gpu.cpu(), jitter(PIXELS, drawn))
    for table in (color.autocontrast_table, color.equalize_table):
        on_gpu = table(color.histogram(PIXELS.cuda()))
        assert torch.equal(on_gpu.cpu(), table(color.histogram(PIXELS)))
