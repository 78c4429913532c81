"""A whitened stem: what its filters make of the patches they were made from."""

import pytest
import torch
from torch import nn

from students.design import Design
from students.normalize_images import STD
from students.resnet import ResNet
from students.whitened_stem import EPS, N_IMAGES, whiten, whitening_filters


def pictures(n: int = 40) -> torch.Tensor:
    """Smooth ones, as photographs are: neighbours and colours are alike."""
    noise = torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    smooth = nn.functional.avg_pool2d(noise, 5, stride=1, padding=2)
    mixed = 0.98 * smooth + 0.02 * noise + 0.3 * smooth.mean(1, keepdim=True)
    return (255 * (mixed - mixed.min()) / (mixed.max() - mixed.min())).to(torch.uint8)


def patches(images: torch.Tensor, kernel: int) -> torch.Tensor:
    """By loops, not as the module takes them: float64 [patches, 3 k²] of normalised images."""
    normalised = (images.double() / 255) / torch.tensor(STD).double().view(3, 1, 1)
    size = images.shape[-1] - kernel + 1
    return torch.stack(
        [
            normalised[:, :, y : y + kernel, x : x + kernel].flatten(1)
            for y in range(size)
            for x in range(size)
        ]
    ).flatten(0, 1)


@pytest.mark.parametrize("kernel", [2, 3])
def test_first_half_whitens_the_covariance(kernel: int) -> None:
    images = pictures()
    filters = whitening_filters(images, torch.tensor(STD), kernel)
    half = filters[: 3 * kernel**2].flatten(1)
    eigenvalues = torch.linalg.eigvalsh(patches(images, kernel).T.cov(correction=0)).flip(0)

    assert filters.shape == (6 * kernel**2, 3, kernel, kernel)
    found = (patches(images, kernel) @ half.T).T.cov(correction=0)
    torch.testing.assert_close(found, torch.diag(eigenvalues / (eigenvalues + EPS)))
    assert found[0, 0] > 0.99 > found[-1, -1], "eps must count at one end alone"


def test_second_half_is_negative_of_first() -> None:
    first, second = whitening_filters(pictures(), torch.tensor(STD), 2).chunk(2)

    assert torch.equal(second, -first)


def test_largest_entry_of_first_filters_is_positive() -> None:
    first = whitening_filters(pictures(), torch.tensor(STD), 3)[:27].flatten(1)

    assert (first.gather(1, first.abs().argmax(1, keepdim=True)) > 0).all()


@pytest.mark.long
def test_filters_do_not_depend_on_threads_or_order() -> None:
    images, std, threads = pictures(300), torch.tensor(STD), torch.get_num_threads()
    found = []
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            found.append(whitening_filters(images, std, 3))
    finally:
        torch.set_num_threads(threads)
    found.append(whitening_filters(images.flip(0), std, 3))

    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_whiten_reads_first_images_and_preserves_bias() -> None:
    few = torch.randint(0, 256, (N_IMAGES + 9, 3, 4, 4), dtype=torch.uint8)
    net = ResNet(
        Design.of(
            stages=1, blocks=1, width=4, stem_kernel=2, stem_init="whiten", stem_norm=False,
            stem_frozen=True,
        )
    )  # fmt: skip
    nn.init.ones_(net.stem_conv.bias)
    whiten(net.stem_conv, few, net.normalize.std)
    expected = whitening_filters(few[:N_IMAGES], torch.tensor(STD), 2)

    assert torch.equal(net.stem_conv.weight, expected.float())
    assert net.stem_conv.bias.eq(1).all()


def test_images_of_one_colour_give_finite_filters() -> None:
    grey = torch.full((2, 3, 8, 8), 128, dtype=torch.uint8)

    assert whitening_filters(grey, torch.tensor(STD), 2).isfinite().all()
