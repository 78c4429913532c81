"""Apply TrivialAugment or RandAugment to a batch.

TrivialAugment: Müller, Hutter, ICCV 2021, arXiv 2103.10158; code: automl/trivialaugment.
RandAugment: Cubuk, Zoph, Shlens, Le, NeurIPS 2020, arXiv 1909.13719. The operations are Pillow's,
each with 31 strengths. There are three sets of strengths:

- TrivialAugment's "standard": its authors' `fixed_standard` (aug_lib.py), which they recommend for
  networks as small as WRN-40-2. Shifts are at most 10 pixels.
- RandAugment's "standard": torchvision's RandAugment. Shifts are at most 150 / 331 of the image
  size, 14 pixels of 32 (TrivialAugment's authors use 14.4 for RandAugment too). Posterize rounds
  the number of bits, which TrivialAugment truncates. Solarize starts at 255 instead of 256.
  Brightness, colour, contrast and sharpness have 31 factors from 1 down and 31 from 1 up;
  TrivialAugment's standard has 31 in total.
- "wide", for both: torchvision's TrivialAugmentWide, whose shifts may move a 32x32 image out
  completely. TrivialAugment's authors recommend wide strengths for all larger networks. The
  authors' wide set differs from torchvision's in two ways: it truncates bits and starts solarize at
  256, as above, and its factors range from 0.01 to 2.0.

Each batch goes through four steps: a resampling, a lookup table, a blend with the grey images and a
blend with the smoothed images. A sample has only one operation; the parameters of the other steps
are such that they leave the sample unchanged. So every step runs on the whole batch, and the host
need not know which sample has which operation. This takes 174 kernels per batch, and on one CPU
core about 0.1 ms per image, a little less than torchvision takes with Pillow.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill.data import rng
from distill.data.augment import affine, color
from distill.data.rng import Stream, Words

Space = Literal["standard", "wide"]
Floats = NDArray[np.float64]
STEPS = 31
OPERATIONS = (
    "identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "color",
    "contrast", "sharpness", "posterize", "solarize", "autocontrast", "equalize",
)  # fmt: skip
SIGNED = frozenset(OPERATIONS[1:10])  # operations with a random sign in torchvision
GEOMETRIC = frozenset(OPERATIONS[1:6])  # operations with a random sign in `fixed_standard`
ROUNDS = (Stream.RAND_1, Stream.RAND_2, Stream.RAND_3, Stream.RAND_4)


class Ranges(NamedTuple):
    """The 31 strengths of each operation, and the operations whose strength has a random sign.

    Strengths are in the units of the operation: pixels, degrees, bits, ...
    """

    strengths: dict[str, Floats]
    signed: frozenset[str]


@dataclass(frozen=True)
class TrivialAugment:
    """Apply one operation at one of 31 strengths, all equally likely.

    With `before_crop` it is applied to uncropped images, as in the authors' code
    (TrivialAugment/data.py, where crop, flip and a cutout of 16 pixels follow); otherwise after
    crop and flip, as in torchvision's training scripts.
    """

    space: Space = "standard"
    before_crop: bool = True

    def draw(self, seed: int, view: int, n: int, size: int) -> dict[str, Tensor]:
        which, step, sign, _ = rng.words(seed, view, Stream.TRIVIAL, n).T
        wide = self.space == "wide"
        ranges = Ranges(strengths("wide", size), SIGNED) if wide else fixed_standard()
        return draw_operations(which, rng.integers(step, STEPS), sign, ranges, size)

    def __call__(self, pixels: Tensor, drawn: dict[str, Tensor]) -> Tensor:
        return operate(pixels, drawn)


@dataclass(frozen=True)
class RandAugment:
    """Apply `ops` random operations in sequence, at most four, with the strength of one step.

    `magnitude` is that step, 0..30. The paper's magnitudes M are 0..10, so step 3 M corresponds to
    M. The paper's best setting on CIFAR-10 is three operations at M = 5 for WRN-28-10 (step 15) and
    three at M = 4 for WRN-28-2 (step 12). One difference remains: the authors' code
    (tensorflow/tpu, autoaugment.py) blends by the factor 0.1 + 0.18 M without a random sign, so
    that brightness, colour, contrast and sharpness change nothing at M = 5; in torchvision and here
    they change nothing at step 0.
    """

    ops: int = 3
    magnitude: int = 15
    space: Space = "standard"
    before_crop: ClassVar[bool] = False

    def draw(self, seed: int, view: int, n: int, size: int) -> dict[str, Tensor]:
        rounds: dict[str, Tensor] = {}
        ranges = Ranges(strengths(self.space, size), SIGNED)
        for number, stream in enumerate(ROUNDS[: self.ops]):
            which, _, sign, _ = rng.words(seed, view, stream, n).T
            steps = np.full(n, self.magnitude)
            each = draw_operations(which, steps, sign, ranges, size)
            rounds |= {f"{name}_{number}": rows for name, rows in each.items()}
        return rounds

    def __call__(self, pixels: Tensor, drawn: dict[str, Tensor]) -> Tensor:
        for number in range(self.ops):
            ending = f"_{number}"
            own = {k.removesuffix(ending): v for k, v in drawn.items() if k.endswith(ending)}
            pixels = operate(pixels, own)
        return pixels


def strengths(space: Space, size: int) -> dict[str, Floats]:
    """Return torchvision's 31 strengths of each operation, in that operation's units.

    `size`: the image size in pixels. The values are computed in float64 and rounded once.
    torch.linspace also rounds intermediate values: step 15 of the wide set would be a shift of
    15.999999 pixels instead of 16, which is then truncated to 15.
    """
    wide = space == "wide"
    shear, blend = (0.99, 0.99) if wide else (0.3, 0.9)
    shift = 32.0 if wide else 150.0 / 331.0 * size  # pixels
    turn = 135.0 if wide else 30.0  # degrees
    bits = 6 if wide else 4  # that posterize drops at the last step
    ranges = {
        "shear_x": shear, "shear_y": shear, "translate_x": shift, "translate_y": shift,
        "rotate": turn, "brightness": blend, "color": blend, "contrast": blend, "sharpness": blend,
    }  # fmt: skip
    none = np.zeros(STEPS)
    return {
        "identity": none,
        **{name: np.linspace(0, most, STEPS, dtype=np.float32) for name, most in ranges.items()},
        "posterize": 8 - np.round(np.arange(STEPS) / ((STEPS - 1) / bits)),
        "solarize": np.linspace(255, 0, STEPS, dtype=np.float32),
        "autocontrast": none,
        "equalize": none,
    }


def fixed_standard() -> Ranges:
    """Return TrivialAugment's standard strengths, for images of 32x32 pixels.

    Shifts are whole pixels, rotations whole degrees. The factors of brightness, colour, contrast
    and sharpness range from 0.1 to 1.9, without a sign; their strength is the factor minus 1.
    """
    step = np.arange(STEPS)
    last = STEPS - 1
    lean, factor = step * 0.3 / last, 0.1 + step * 1.8 / last
    shift = step * 10 // last
    none = np.zeros(STEPS)
    table = {
        "identity": none,
        "shear_x": lean, "shear_y": lean, "translate_x": shift, "translate_y": shift,
        "rotate": step, "brightness": factor - 1, "color": factor - 1, "contrast": factor - 1,
        "sharpness": factor - 1, "posterize": 8 - step * 4 // last,
        "solarize": 256 - step * 256 // last, "autocontrast": none, "equalize": none,
    }  # fmt: skip
    return Ranges({name: each.astype(np.float64) for name, each in table.items()}, GEOMETRIC)


def draw_operations(
    which: Words, step: NDArray[np.int64], sign: Words, ranges: Ranges, size: int
) -> dict[str, Tensor]:
    """Draw one operation per sample and return its parameters for `operate`.

    The random words `which` [n] choose the operation, `sign` [n] the sign of its strength.
    `step` [n], 0..30, is the index of its strength in `ranges`.
    """
    operation = rng.integers(which, len(OPERATIONS))
    table = np.stack([ranges.strengths[name] for name in OPERATIONS]).astype(np.float64)
    signed = np.isin(operation, [OPERATIONS.index(name) for name in ranges.signed])
    minus = signed & (rng.integers(sign, 2) == 1)
    return of_strength(operation, np.where(minus, -1, 1) * table[operation, step], size)


def of_strength(operation: NDArray[np.int64], strength: Floats, size: int) -> dict[str, Tensor]:
    """Return the parameters for `operate` of the given operations and signed strengths, [n] each.

    `operation`: indices in OPERATIONS; `size`: the image size in pixels.
    """
    is_on = {name: operation == number for number, name in enumerate(OPERATIONS)}

    def own(name: str, otherwise: float = 0.0) -> Floats:
        return np.where(is_on[name], strength, otherwise)

    lean = {axis: np.tan(np.radians(np.degrees(np.arctan(own(f"shear_{axis}"))))) for axis in "xy"}
    maps = np.where(
        is_on["rotate"][:, None],
        affine.rotation(own("rotate"), size),
        affine.shear(lean["x"], lean["y"]),
    ) + (
        affine.translation(np.trunc(own("translate_x")), np.trunc(own("translate_y")))
        - affine.translation(np.zeros(len(strength)), np.zeros(len(strength)))
    )
    factors = {
        name: torch.from_numpy((1 + own(name)).astype(np.float32))
        for name in ("brightness", "color", "contrast", "sharpness")
    }
    return factors | {
        "operation": torch.from_numpy(operation),
        "map": affine.fixed_point(maps),
        "bits": torch.from_numpy(own("posterize", 8).astype(np.int64)),
        "threshold": torch.from_numpy(own("solarize", 256)),
    }


def operate(pixels: Tensor, drawn: Mapping[str, Tensor]) -> Tensor:
    """Apply to each sample of pixels uint8 [B, 3, H, W] the operation in its parameters `drawn`."""
    pixels = affine.affine(pixels, drawn["map"])
    pixels = color.look_up(pixels, _lookup_table(pixels, drawn))
    pixels = color.saturation(pixels, drawn["color"])
    return color.sharpness(pixels, drawn["sharpness"])


def _lookup_table(pixels: Tensor, drawn: Mapping[str, Tensor]) -> Tensor:
    """Return each sample's lookup table, uint8 [B, 3, 256].

    It is the identity if the sample's operation does not use a table.
    """
    counts = color.histogram(pixels)
    tables = {
        "brightness": color.brightness_table(drawn["brightness"]),
        "contrast": color.contrast_table(pixels, drawn["contrast"]),
        "posterize": color.posterize_table(drawn["bits"]),
        "solarize": color.solarize_table(drawn["threshold"]),
        "autocontrast": color.autocontrast_table(counts),
        "equalize": color.equalize_table(counts),
    }
    chosen = color.levels(pixels)
    for name, table in tables.items():
        is_on = drawn["operation"] == OPERATIONS.index(name)
        chosen = torch.where(is_on[:, None, None], table, chosen)
    return chosen
