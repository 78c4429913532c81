"""Noise corruptions: sensor noise, photon noise, defective pixels.

Hendrycks & Dietterich, ICLR 2019, arXiv 1903.12261; the constants are those of CIFAR-10-C,
`make_cifar_c.py` in github.com/hendrycks/robustness. Each function takes images float32 [N, 3, S,
S] in [0, 1], a severity 1..5 and `draw`, the source of its random numbers (raw 64-bit words, see
distill/data/rng.py), and returns images that are not yet clipped to [0, 1].
"""

import numpy as np

from distill.data import rng
from distill.data.corruptions.filters import Floats
from distill.data.rng import Draw

# One entry per severity.
STD = (0.04, 0.06, 0.08, 0.09, 0.10)  # standard deviation of the noise; colour values are 0..1
PHOTONS = (500, 250, 100, 75, 50)  # mean number at full brightness
BROKEN = (0.01, 0.02, 0.03, 0.05, 0.07)  # fraction of defective values, half 0 and half 1


def gaussian_noise(images: Floats, severity: int, draw: Draw) -> Floats:
    """Add Gaussian noise to each colour value."""
    noise = rng.normal(draw(images[0].size // 2)).reshape(images.shape)
    noisy: Floats = images + (STD[severity - 1] * noise).astype(np.float32)
    return noisy


def shot_noise(images: Floats, severity: int, draw: Draw) -> Floats:
    """Replace each colour value by a count of photons, drawn from a Poisson distribution."""
    photons = PHOTONS[severity - 1]
    levels = np.rint(images * 255).astype(np.int64)
    # Inverse transform sampling with one search for all 256 levels: row i of the table is the
    # cumulative distribution of level i plus i, so that the flattened table is sorted. Near 255 a
    # float64 resolves probabilities to 2^-45.
    table = poisson_distribution(np.arange(256) / 255 * photons)
    uniforms = rng.uniform(draw(images[0].size)).reshape(images.shape)
    counts = np.searchsorted((table + np.arange(256)[:, None]).ravel(), levels + uniforms, "right")
    counted: Floats = ((counts - levels * table.shape[1]) / photons).astype(np.float32)
    return counted


def impulse_noise(images: Floats, severity: int, draw: Draw) -> Floats:
    """Apply salt-and-pepper noise to each colour value independently."""
    share = BROKEN[severity - 1]
    uniforms = rng.uniform(draw(images[0].size)).reshape(images.shape)
    salted = np.where(uniforms < share, np.float32(1), images)
    return np.where(uniforms < share / 2, np.float32(0), salted)


def poisson_distribution(means: Floats) -> Floats:
    """Return the Poisson probabilities P(count <= k), [M, K], for means [M] and k = 0..K-1.

    K is large enough for the largest mean. The last entry of each row is exactly 1.
    """
    highest = means.max()
    k = np.arange(int(highest + 10 * np.sqrt(highest) + 10))
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(k[1:]))])
    with np.errstate(divide="ignore", invalid="ignore"):  # for a mean of 0
        log_p = np.where(k > 0, k * np.log(means)[:, None], 0) - means[:, None] - log_factorial
    cumulated: Floats = np.minimum(np.exp(log_p).cumsum(axis=1), 1)
    cumulated[:, -1] = 1
    return cumulated
