"""Apply Pillow's colour operations to a batch, with a strength for each sample.

An operation on single pixel values is a lookup table of 256 entries per sample and channel, applied
by one gather. Values that Pillow computes in float32 are float32 here too, with the same rounding
and truncation; all others are integers. All functions take pixels uint8 [B, 3, H, W] and factors
float32 [B]. A factor of 1 leaves an image unchanged. Tests compare every operation with Pillow's,
bit for bit.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from distill.data import rng
from distill.data.augment.crop_flip import quotient
from distill.data.rng import Stream

LEVELS = 256


@dataclass(frozen=True)
class ColourJitter:
    """Change brightness, contrast, saturation and hue, in this order, by random factors.

    torchvision draws the order at random. A strength v means a factor that is uniform in
    [max(0, 1 - v), 1 + v]. The hue is rotated by a fraction of a full turn, uniform in [-hue, hue).
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    before_crop: ClassVar[bool] = False

    def draw(self, seed: int, view: int, n: int, size: int) -> dict[str, Tensor]:
        words = rng.words(seed, view, Stream.JITTER, n)
        strengths = {
            "brightness": self.brightness,
            "contrast": self.contrast,
            "saturation": self.saturation,
        }
        drawn = {
            name: torch.from_numpy(
                rng.between(words[:, i], max(0.0, 1 - v), 1 + v).astype(np.float32)
            )
            for i, (name, v) in enumerate(strengths.items())
        }
        turn = np.trunc(rng.between(words[:, 3], -self.hue, self.hue) * 255)
        return drawn | {"hue": torch.from_numpy(turn.astype(np.int64) % LEVELS)}

    def __call__(self, pixels: Tensor, drawn: dict[str, Tensor]) -> Tensor:
        if self.brightness:
            pixels = look_up(pixels, brightness_table(drawn["brightness"]))
        if self.contrast:
            pixels = look_up(pixels, contrast_table(pixels, drawn["contrast"]))
        if self.saturation:
            pixels = saturation(pixels, drawn["saturation"])
        return turn_hue(pixels, drawn["hue"]) if self.hue else pixels


def look_up(pixels: Tensor, table: Tensor) -> Tensor:
    """Replace every pixel value by its entry in the lookup table [B, 3, 256]."""
    replaced = table.gather(2, pixels.flatten(2).long()).reshape(pixels.shape)
    return replaced.contiguous(memory_format=torch.channels_last)


def levels(pixels: Tensor) -> Tensor:
    """Return the lookup table of the identity: uint8 [B, 3, 256]."""
    ramp = torch.arange(LEVELS, dtype=torch.uint8, device=pixels.device)
    return ramp.expand(len(pixels), 3, LEVELS)


def blend(first: Tensor, second: Tensor, factor: Tensor) -> Tensor:
    """Return first + factor (second - first) in float32, clipped to 0..255, truncated to uint8."""
    a, b = first.float(), second.float()
    return (a + factor * (b - a)).clamp(0, 255).to(torch.uint8)


def grey(pixels: Tensor) -> Tensor:
    """Convert images to grey with Pillow's 16-bit weights of the channels: uint8 [B, 1, H, W]."""
    r, g, b = (channel.int() for channel in pixels.unbind(1))
    return ((r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16).to(torch.uint8)[:, None]


def brightness_table(factor: Tensor) -> Tensor:
    """Return the lookup table that blends with black, uint8 [B, 3, 256]; factor 0 is black."""
    ramp = torch.arange(LEVELS, device=factor.device)
    table = blend(torch.zeros_like(ramp), ramp, factor[:, None])
    return table[:, None].expand(-1, 3, -1)


def contrast_table(pixels: Tensor, factor: Tensor) -> Tensor:
    """Return the lookup table that blends with the image's mean grey level, uint8 [B, 3, 256].

    The mean is rounded to an integer. A factor of 0 gives a uniform grey image.
    """
    total = grey(pixels).flatten(1).long().sum(1)
    n = pixels.shape[-2] * pixels.shape[-1]
    mean = ((2 * total + n) // (2 * n))[:, None]
    ramp = torch.arange(LEVELS, device=pixels.device)
    return blend(mean, ramp, factor[:, None])[:, None].expand(-1, 3, -1)


def saturation(pixels: Tensor, factor: Tensor) -> Tensor:
    """Blend each image with its grey version; a factor of 0 gives the grey version."""
    return blend(grey(pixels), pixels, factor[:, None, None, None])


def sharpness(pixels: Tensor, factor: Tensor) -> Tensor:
    """Blend each image with its smoothed version; a factor of 0 gives the smoothed version.

    The smoothing filter is (1 1 1; 1 5 1; 1 1 1) / 13. Border pixels are not smoothed.
    """
    whole = pixels.int()
    sides = (slice(None, -2), slice(1, -1), slice(2, None))
    around = sum(
        (whole[..., y, x] for y in sides for x in sides),
        start=torch.zeros_like(whole[..., 1:-1, 1:-1]),
    )
    inner = (2 * (around + 4 * whole[..., 1:-1, 1:-1]) + 13) // 26  # rounded to the nearest integer
    smooth = pixels.clone()
    smooth[..., 1:-1, 1:-1] = inner.to(torch.uint8)
    return blend(smooth, pixels, factor[:, None, None, None])


def posterize_table(bits: Tensor) -> Tensor:
    """Return the lookup table that sets all but the highest `bits` [B] of the 8 bits to 0."""
    ramp = torch.arange(LEVELS, device=bits.device)
    dropped = (8 - bits)[:, None]
    return ((ramp >> dropped) << dropped).to(torch.uint8)[:, None].expand(-1, 3, -1)


def solarize_table(threshold: Tensor) -> Tensor:
    """Return the lookup table that inverts pixel values of at least `threshold` [B]."""
    ramp = torch.arange(LEVELS, device=threshold.device)
    table = torch.where(ramp < threshold[:, None], ramp, 255 - ramp)
    return table.to(torch.uint8)[:, None].expand(-1, 3, -1)


def histogram(pixels: Tensor) -> Tensor:
    """Count how often each pixel value occurs in each channel: int64 [B, 3, 256]."""
    counts = torch.zeros(len(pixels), 3, LEVELS, dtype=torch.int64, device=pixels.device)
    flat = pixels.flatten(2).long()
    return counts.scatter_add_(2, flat, torch.ones_like(flat))


def autocontrast_table(counts: Tensor) -> Tensor:
    """Return the lookup table that stretches each channel to 0..255, uint8 [B, 3, 256].

    `counts`: the channels' histograms, int64 [B, 3, 256].
    """
    occurs = counts > 0
    ramp = torch.arange(LEVELS, device=counts.device)
    low = torch.where(occurs, ramp, LEVELS).amin(2, keepdim=True)
    high = torch.where(occurs, ramp, -1).amax(2, keepdim=True)
    # In float64, with the operations in Pillow's order: if an exact result is an integer, rounding
    # errors decide whether it is truncated to that integer or to the one below.
    scale = quotient(255.0, (high - low).clamp_min(1).double())
    table = (ramp * scale + -low * scale).clamp(0, 255).to(torch.uint8)
    return torch.where(high <= low, ramp.to(torch.uint8), table)


def equalize_table(counts: Tensor) -> Tensor:
    """Return the lookup table that equalizes each channel's histogram, uint8 [B, 3, 256].

    `counts`: the channels' histograms, int64 [B, 3, 256].
    """
    ramp = torch.arange(LEVELS, device=counts.device)
    last = torch.where(counts > 0, ramp, -1).amax(2, keepdim=True)
    total = counts.sum(2, keepdim=True)
    step = (total - counts.gather(2, last.clamp_min(0))) // 255
    below = counts.cumsum(2) - counts
    table = ((step // 2 + below) // step.clamp_min(1)).clamp_max(255).to(torch.uint8)
    return torch.where(step == 0, ramp.to(torch.uint8), table)


def turn_hue(pixels: Tensor, turn: Tensor) -> Tensor:
    """Rotate the hue of each image by `turn` [B], in steps of 1/256 of a full turn.

    Hues are the levels 0..255 of Pillow's 8-bit HSV.
    """
    hue, saturated, value = _hsv(pixels)
    return _rgb((hue + turn[:, None, None]) % LEVELS, saturated, value)


def _hsv(pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return hue, saturation and value, each int64 [B, H, W] in 0..255."""
    r, g, b = (channel.long() for channel in pixels.unbind(1))
    value, least = pixels.amax(1).long(), pixels.amin(1).long()
    spread = (value - least).clamp_min(1).float()
    rc, gc, bc = ((value - channel).float() / spread for channel in (r, g, b))
    # As in Pillow, quotients are float32, and operations with a constant are float64.
    rd, gd, bd = rc.double(), gc.double(), bc.double()
    side = torch.where(g == value, 2.0 + rd - bd, 4.0 + gd - rd).float()
    side = torch.where(r == value, bc - gc, side)
    around = ((quotient(side.double(), 6.0) + 1.0) % 1.0).float()
    hue = (around.double() * 255.0).long().clamp(0, 255)
    share = (value - least).float() / value.clamp_min(1).float()
    saturated = (share.double() * 255.0).long()
    flat = value == least
    return hue.masked_fill(flat, 0), saturated.masked_fill(flat, 0), value


def _rgb(hue: Tensor, saturated: Tensor, value: Tensor) -> Tensor:
    """Return RGB images uint8 [B, 3, H, W] from hue, saturation and value, [B, H, W] in 0..255."""
    sector = quotient(hue.float() * 6.0, 255.0)
    index = sector.floor()
    rest, share, full = sector - index, quotient(saturated.float(), 255.0), value.float()
    p, q, t = (
        (full * (1.0 - share * by) + 0.5).floor().long()
        for by in (torch.ones_like(rest), rest, 1.0 - rest)
    )
    order = [
        (value, t, p),
        (q, value, p),
        (p, value, t),
        (p, q, value),
        (t, p, value),
        (value, p, q),
    ]
    sectors = torch.stack([torch.stack(each, dim=1) for each in order])
    which = (index.long() % 6)[None, :, None].expand(1, -1, 3, -1, -1)
    return sectors.gather(0, which)[0].clamp(0, 255).to(torch.uint8)
