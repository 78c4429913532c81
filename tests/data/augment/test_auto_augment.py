"""TrivialAugment and RandAugment against torchvision's operations on PIL images, and the standard
space of TrivialAugment against its authors' definition of each operation.
"""

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torchvision.transforms import InterpolationMode
from torchvision.transforms.autoaugment import RandAugment as TorchvisionRand
from torchvision.transforms.autoaugment import TrivialAugmentWide, _apply_op

from distill.data import rng
from distill.data.augment import auto_augment
from distill.data.augment.auto_augment import OPERATIONS, SIGNED, STEPS, RandAugment, TrivialAugment

N, SIZE = 8, 32
RANDOM = np.random.default_rng(0)
PIXELS = torch.from_numpy(RANDOM.integers(20, 220, (N, 3, SIZE, SIZE), dtype=np.uint8))
THEIRS = {
    "identity": "Identity", "shear_x": "ShearX", "shear_y": "ShearY", "translate_x": "TranslateX",
    "translate_y": "TranslateY", "rotate": "Rotate", "brightness": "Brightness", "color": "Color",
    "contrast": "Contrast", "sharpness": "Sharpness", "posterize": "Posterize",
    "solarize": "Solarize", "autocontrast": "AutoContrast", "equalize": "Equalize",
}  # fmt: skip


def theirs(row: int, name: str, strength: float) -> torch.Tensor:
    image = Image.fromarray(PIXELS[row].permute(1, 2, 0).numpy())
    done = _apply_op(image, THEIRS[name], strength, InterpolationMode.NEAREST, None)
    return torch.from_numpy(np.array(done)).permute(2, 0, 1)


@pytest.mark.parametrize("space", ["standard", "wide"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_torchvision_s_at_every_strength(name: str, space: str) -> None:
    number = OPERATIONS.index(name)
    for sign in (1, -1) if name in SIGNED else (1,):
        for strength in sign * auto_augment.strengths(space, SIZE)[name][::6]:
            drawn = auto_augment.of_strength(np.full(N, number), np.full(N, float(strength)), SIZE)
            ours = auto_augment.operate(PIXELS, drawn)
            for row in range(N):
                assert torch.equal(ours[row], theirs(row, name, float(strength))), strength


@pytest.mark.parametrize(
    ("space", "reference"),
    [
        ("wide", TrivialAugmentWide()._augmentation_space(STEPS)),
        ("standard", TorchvisionRand()._augmentation_space(STEPS, (SIZE, SIZE))),
    ],
)
def test_the_strengths_are_torchvision_s(space: str, reference) -> None:
    ours = auto_augment.strengths(space, SIZE)
    assert set(THEIRS.values()) == set(reference)
    for name, other in THEIRS.items():
        magnitudes, signed = reference[other]
        assert signed == (name in SIGNED)
        expected = magnitudes.numpy() if magnitudes.ndim else np.zeros(STEPS)
        assert np.allclose(ours[name], expected, atol=1e-5), name


def test_wide_shifts_are_whole_pixels() -> None:
    shift = auto_augment.strengths("wide", SIZE)["translate_x"]
    assert np.trunc(shift).tolist() == [32 * step // 30 for step in range(STEPS)]


def test_samples_of_a_batch_have_own_operations() -> None:
    trivial = TrivialAugment("wide")
    drawn = trivial.draw(1, 2, N, SIZE)
    ours = trivial(PIXELS, drawn)
    assert len(set(drawn["operation"].tolist())) > 2
    for row in range(N):
        one = {name: rows[row : row + 1] for name, rows in drawn.items()}
        assert torch.equal(trivial(PIXELS[row : row + 1], one)[0], ours[row])


def by_its_authors(image: Image.Image, name: str, level: int, sign: int) -> Image.Image:
    """The operation at level 0..30 in the `fixed_standard` space of aug_lib.py."""
    share = level / 30
    lean, shift = sign * level * 0.3 / 30, sign * int(level * 10 / 30)
    maps = {
        "shear_x": (1, lean, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, lean, 1, 0),
        "translate_x": (1, 0, shift, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, shift),
    }
    enhancers = {
        "brightness": ImageEnhance.Brightness,
        "color": ImageEnhance.Color,
        "contrast": ImageEnhance.Contrast,
        "sharpness": ImageEnhance.Sharpness,
    }
    if name in maps:
        return image.transform(image.size, Image.Transform.AFFINE, maps[name])
    if name in enhancers:
        return enhancers[name](image).enhance(0.1 + share * 1.8)
    return {
        "identity": lambda: image,
        "rotate": lambda: image.rotate(sign * level),
        "posterize": lambda: ImageOps.posterize(image, 8 - int(level * 4 / 30)),
        "solarize": lambda: ImageOps.solarize(image, 256 - int(level * 256 / 30)),
        "autocontrast": lambda: ImageOps.autocontrast(image),
        "equalize": lambda: ImageOps.equalize(image),
    }[name]()


@pytest.mark.long
def test_trivial_standard_space_is_its_authors() -> None:
    """Bit for bit, every operation, level and sign; a sample's words say which."""
    n, trivial = 3000, TrivialAugment()
    pixels = PIXELS[torch.arange(n) % N]
    ours = trivial(pixels, trivial.draw(5, 0, n, SIZE))
    which, step, sign, _ = rng.words(5, 0, rng.Stream.TRIVIAL, n).T
    seen = set()
    for row in range(n):
        name, level = OPERATIONS[int(which[row]) % 14], int(step[row]) % 31
        # Either sign is as likely; a positive shift is to the right here and to the left there.
        side = (-1) ** int(sign[row] % 2) * (-1 if name.startswith("translate") else 1)
        image = Image.fromarray(pixels[row].permute(1, 2, 0).numpy())
        theirs = by_its_authors(image, name, level, side)
        expected = torch.from_numpy(np.array(theirs)).permute(2, 0, 1)
        assert torch.equal(ours[row], expected), (name, level, side)
        seen.add((name, level))
    assert len(seen) == 14 * 31


def test_largest_shift_of_each_space() -> None:
    """The map's constant terms, 16 bits after the point and of the first pixel's centre."""

    def furthest(drawn: dict[str, torch.Tensor], ending: str = "") -> int:
        shifted = drawn[f"operation{ending}"] == OPERATIONS.index("translate_x")
        return int((drawn[f"map{ending}"][shifted, 2] >> 16).max())

    assert furthest(TrivialAugment().draw(0, 0, 5000, SIZE)) == 10
    assert furthest(RandAugment(1, 30).draw(0, 0, 5000, SIZE), "_0") == 14
    assert furthest(TrivialAugment("wide").draw(0, 0, 5000, SIZE)) == 32


def test_every_operation_and_both_signs_are_as_likely() -> None:
    n = 28_000
    drawn = TrivialAugment("wide").draw(0, 0, n, SIZE)
    counts = drawn["operation"].bincount(minlength=len(OPERATIONS))
    assert (counts - n / 14).abs().max() < 5 * (n / 14) ** 0.5
    bright = drawn["brightness"][drawn["operation"] == OPERATIONS.index("brightness")]
    assert abs((bright < 1).float().mean() - (bright > 1).float().mean()) < 0.1
    assert len(bright.unique()) == 2 * STEPS - 1
    drawn = TrivialAugment().draw(0, 0, n, SIZE)
    bright = drawn["brightness"][drawn["operation"] == OPERATIONS.index("brightness")]
    assert bright.unique().tolist() == pytest.approx([0.1 + 0.06 * step for step in range(STEPS)])


def test_rand_augment_is_its_operations_in_a_row() -> None:
    rand = RandAugment(ops=3, magnitude=9)
    drawn = rand.draw(5, 1, N, SIZE)
    ours = rand(PIXELS, drawn)
    for row in range(N):
        image = PIXELS[row : row + 1]
        for number in range(3):
            ending = f"_{number}"
            own = {
                k.removesuffix(ending): v[row : row + 1]
                for k, v in drawn.items()
                if k.endswith(ending)
            }
            image = auto_augment.operate(image, own)
        assert torch.equal(image[0], ours[row])
    first, second = (drawn[f"operation_{number}"] for number in (0, 1))
    assert not torch.equal(first, second)


def test_one_magnitude_for_all() -> None:
    drawn = RandAugment(ops=1, magnitude=30).draw(0, 0, 2000, SIZE)
    factors = drawn["contrast_0"][drawn["operation_0"] == OPERATIONS.index("contrast")]
    assert factors.unique().tolist() == pytest.approx([0.1, 1.9])


@pytest.mark.parametrize("policy", [TrivialAugment(), RandAugment()], ids=["trivial", "rand"])
def test_policy_is_function_of_seed_view_and_sample(policy) -> None:
    drawn, longer = policy.draw(3, 7, N, SIZE), policy.draw(3, 7, 3 * N, SIZE)
    assert all(torch.equal(longer[name][:N], rows) for name, rows in drawn.items())
    other = policy.draw(3, 8, N, SIZE)
    assert any(not torch.equal(other[name], rows) for name, rows in drawn.items())
    some = torch.tensor([5, 0, 6])
    picked = {name: rows[some] for name, rows in drawn.items()}
    assert torch.equal(policy(PIXELS[some], picked), policy(PIXELS, drawn)[some])


@pytest.mark.gpu
def test_the_same_bits_on_a_gpu() -> None:
    for policy in (TrivialAugment("wide"), RandAugment(3)):
        drawn = policy.draw(0, 0, N, SIZE)
        on_gpu = policy(PIXELS.cuda(), {name: rows.cuda() for name, rows in drawn.items()})
        assert torch.equal(on_gpu.cpu(), policy(PIXELS, drawn))
