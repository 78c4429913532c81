"""Compute whitening filters for a stem: eigenvectors of image patches and their negatives.

D. Page, "How to train your ResNet 8: bag of tricks" (davidcpage/cifar10-fast), and K. Jordan,
"94% on CIFAR-10 in 3.29 seconds on a single A100", arXiv 2404.00498. Patches x of k x k pixels,
normalised like the network's images, have the covariance C = V diag(l) V^T. The 6 k² filters are

    +- v_i / sqrt(l_i + eps),   l_1 >= l_2 >= ...,

so that the outputs of the first half are uncorrelated, with variances l_i / (l_i + eps). eps is
5e-4, as in airbench; Page's is 1e-2, and he has no negatives. Both do not subtract the mean of the
patches, which is near 0 in normalised CIFAR-10; here it is subtracted, as in a covariance.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import unfold

N_IMAGES = 5_000  # the first training images, as many as in airbench
EPS = 5e-4
# At a time: 100 images of 32x32, whose patches take 100 MB in float64 if k is 2.
CHUNK_PIXELS = 102_400


def whiten(stem: nn.Conv2d, images: Tensor, std: Tensor) -> None:
    """Set a stem's filters from the first 5,000 of `images`, uint8 [N, 3, H, W].

    `std`: the 3 standard deviations of the network's normalisation. The stem must have 6 k² filters
    of k x k pixels. Its bias, if it has one, is unchanged.
    """
    filters = whitening_filters(images[:N_IMAGES], std, stem.kernel_size[0])
    with torch.no_grad():
        stem.weight.copy_(filters)


def whitening_filters(images: Tensor, std: Tensor, kernel: int) -> Tensor:
    """Return the filters, float64 [6 k², 3, k, k], for uint8 images [N, 3, H, W], on the CPU.

    `std`: the 3 standard deviations of the network's normalisation; `kernel`: k. The filters are
    the same bit for bit with any number of threads: the sums over pixels are integers below 2^53,
    which float64 adds without rounding in any order.
    """
    covariance = _covariance(images, kernel) / 255**2
    scale = std.double().flatten().cpu().repeat_interleave(kernel**2)  # one per value of a patch
    values, vectors = torch.linalg.eigh(covariance / torch.outer(scale, scale))
    rows = (_with_fixed_signs(vectors) / (values.clamp(min=0) + EPS).sqrt()).T.flip(0)
    half = rows.reshape(-1, images.shape[1], kernel, kernel)
    return torch.cat([half, -half])


def _covariance(images: Tensor, kernel: int) -> Tensor:
    """Return the covariance of all k x k patches, in squared pixel values: float64 [3 k², 3 k²]."""
    side = images.shape[1] * kernel**2
    total, products = torch.zeros(side).double(), torch.zeros(side, side).double()
    n = 0
    at_once = max(1, CHUNK_PIXELS // images[0, 0].numel())
    for chunk in images.split(at_once):
        patches = unfold(chunk.double(), kernel).transpose(0, 1).flatten(1)  # [3 k², patches]
        total += patches.sum(1)
        products += patches @ patches.T
        n += patches.shape[1]
    mean = total / n
    return products / n - torch.outer(mean, mean)


def _with_fixed_signs(vectors: Tensor) -> Tensor:
    """Multiply columns by -1 if necessary so that each column's largest entry is positive.

    This makes the result unique: the sign of an eigenvector is arbitrary.
    """
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return vectors * largest.sign()
