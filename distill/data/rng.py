"""Counter-based random numbers: every draw is a function of (data seed, view, sample).

The generator is numpy's Philox-4x64-10 (Salmon et al., SC 2011, "Parallel random numbers: as easy
as 1, 2, 3", DOI 10.1145/2063384.2063405). Its key is (seed, view); the high word of its counter is
the stream, the low word the sample. Each operation has its own stream, so adding an operation does
not change the draws of the others. Sample i draws the same four words whatever the size of the set,
the batch, the number of processes, the device or what ran before. Only the raw 64-bit words of
`random_raw` are used: numpy guarantees its bits, but not those of its distributions.
"""

from collections.abc import Callable, Sequence
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]
Draw = Callable[[int], Words]  # n words for each sample: [N, n]


class Stream(IntEnum):
    """The number of each operation's random stream; fixed, since cached logits depend on it."""

    ORDER = 0
    CROP = 1
    FLIP = 2
    PARTNER = 3
    MIX = 4
    FORWARD = 5
    CUTOUT = 6
    ERASE = 7
    TRANSLATE = 8
    AFFINE = 9
    SHEAR = 10
    ROTATE = 11
    RICAP = 12
    RICAP_CORNER = 13
    RICAP_PARTNER_1 = 14
    RICAP_PARTNER_2 = 15
    RICAP_PARTNER_3 = 16
    JITTER = 17
    TRIVIAL = 18
    RAND_1 = 19  # RandAugment's operations, up to four
    RAND_2 = 20
    RAND_3 = 21
    RAND_4 = 22
    CORRUPTION = 23
    TEACHER = 24


def words(seed: int, view: int, stream: Stream, n: int) -> Words:
    """Return four raw words for each of the samples 0..n-1: uint64 [n, 4]."""
    generator = np.random.Philox(
        key=np.array([seed, view], dtype=np.uint64),
        counter=np.array([0, 0, 0, stream], dtype=np.uint64),
    )
    raw: Words = generator.random_raw(4 * n)
    return raw.reshape(n, 4)


def sample_words(key: tuple[int, int], stream: Stream, samples: NDArray[np.int64], n: int) -> Words:
    """Return `n` raw words for each sample: uint64 [len(samples), n].

    A sample's words do not depend on the other samples: its number is the second word of the
    counter, so that each sample has 2^64 blocks of its own.
    """
    drawn = np.empty((len(samples), n), dtype=np.uint64)
    for row, sample in enumerate(samples):
        counter = np.array([0, sample, 0, stream], dtype=np.uint64)
        generator = np.random.Philox(key=np.array(key, dtype=np.uint64), counter=counter)
        drawn[row] = generator.random_raw(n)
    return drawn


def integers(column: Words, bound: int) -> NDArray[np.int64]:
    """Return integers 0..bound-1 from words [n]; the modulo bias, bound / 2^64, is negligible."""
    return (column % np.uint64(bound)).astype(np.int64)


def uniform(column: Words) -> NDArray[np.float64]:
    """Return floats in [0, 1) from the top 53 bits of words [n], without rounding."""
    return (column >> np.uint64(11)).astype(np.float64) * 2.0**-53


def between(column: Words, low: float, high: float) -> NDArray[np.float64]:
    """Return floats in [low, high) from words [n]."""
    return low + (high - low) * uniform(column)


def halves(column: Words) -> tuple[Words, Words]:
    """Split words [n] into their upper and lower 32 bits."""
    return column >> np.uint64(32), column & np.uint64(0xFFFFFFFF)


def normal(words: Words) -> NDArray[np.float64]:
    """Return two standard normal values from each word: [N, n] to [N, 2n].

    The method is that of Box and Muller, Annals of Mathematical Statistics 29, 1958. Each of its
    two uniform numbers has 32 bits, so no value exceeds 6.7 standard deviations.
    """
    radius, angle = (half * 2.0**-32 for half in halves(words))
    radius, angle = np.sqrt(-2 * np.log(1 - radius)), 2 * np.pi * angle
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)


def permutation(seed: int, view: int, stream: Stream, n: int) -> NDArray[np.int64]:
    """Return a random permutation of 0..n-1, which sorts the samples' words; ties by index."""
    return np.argsort(words(seed, view, stream, n)[:, 0], kind="stable")


def choice(seed: int, view: int, stream: Stream, weights: Sequence[float]) -> int:
    """Draw an index 0..len(weights)-1 for a view, with probability w / sum w (weights above 0)."""
    ends = np.cumsum(np.array(weights, dtype=np.float64) / max(weights))
    drawn = uniform(words(seed, view, stream, 1)[0, :1]) * ends[-1]
    return min(int(np.searchsorted(ends, drawn[0], side="right")), len(weights) - 1)


def torch_seed(seed: int, step: int, micro_batch: int, rank: int) -> int:
    """Return the seed of torch for one forward pass (dropout), a function of the arguments."""
    key = np.array([seed, step], dtype=np.uint64)
    counter = np.array([0, micro_batch, rank, Stream.FORWARD], dtype=np.uint64)
    return int(np.random.Philox(key=key, counter=counter).random_raw()) >> 1
