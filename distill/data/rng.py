"""Counter-based random numbers: every draw is a function of (data seed, view, sample).

The generator is numpy's Philox-4x64-10 (Salmon et al., SC 2011, "Parallel random numbers: as easy
as 1, 2, 3", DOI 10.1145/2063384.2063405). Its key is (seed, view). The high word of its counter is
the number of the stream, the low word the number of the sample. Each operation has a stream of its
own, so adding an operation does not change the draws of the others. The random words of a sample
depend neither on the size of the set or of the batch, nor on the number of processes, the device
or earlier draws. Only the raw 64-bit words of `random_raw` are used: numpy guarantees that they
stay the same in later versions, but not the values of its distributions.
"""

from collections.abc import Callable, Sequence
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]
Draw = Callable[[int], Words]  # a function that returns n random words per sample, [N, n]


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
    """Return four random 64-bit words for each of the samples 0..n-1: uint64 [n, 4]."""
    generator = np.random.Philox(
        key=np.array([seed, view], dtype=np.uint64),
        counter=np.array([0, 0, 0, stream], dtype=np.uint64),
    )
    raw: Words = generator.random_raw(4 * n)
    return raw.reshape(n, 4)


def sample_words(key: tuple[int, int], stream: Stream, samples: NDArray[np.int64], n: int) -> Words:
    """Return `n` random 64-bit words for each sample: uint64 [len(samples), n].

    `key`: (seed, view). A sample's words do not depend on the other samples: its number is the
    second word of the counter, so that each sample has 2^64 blocks of random words.
    """
    drawn = np.empty((len(samples), n), dtype=np.uint64)
    for row, sample in enumerate(samples):
        counter = np.array([0, sample, 0, stream], dtype=np.uint64)
        generator = np.random.Philox(key=np.array(key, dtype=np.uint64), counter=counter)
        drawn[row] = generator.random_raw(n)
    return drawn


def integers(column: Words, bound: int) -> NDArray[np.int64]:
    """Return integers 0..bound-1, int64 [n], from random words [n].

    The bias of the modulo operation, bound / 2^64, is negligible.
    """
    return (column % np.uint64(bound)).astype(np.int64)


def uniform(column: Words) -> NDArray[np.float64]:
    """Return floats in [0, 1) from random words [n]: their top 53 bits, without rounding."""
    return (column >> np.uint64(11)).astype(np.float64) * 2.0**-53


def between(column: Words, low: float, high: float) -> NDArray[np.float64]:
    """Return floats in [low, high) from random words [n]."""
    return low + (high - low) * uniform(column)


def halves(column: Words) -> tuple[Words, Words]:
    """Split random words [n] into their upper and lower 32 bits."""
    return column >> np.uint64(32), column & np.uint64(0xFFFFFFFF)


def normal(words: Words) -> NDArray[np.float64]:
    """Return two standard normal values per random word: words [N, n] to values [N, 2n].

    Uses the transform of Box and Muller, Annals of Mathematical Statistics 29, 1958. Its two
    uniform numbers have 32 bits each, so no value exceeds 6.7 standard deviations.
    """
    radius, angle = (half * 2.0**-32 for half in halves(words))
    radius, angle = np.sqrt(-2 * np.log(1 - radius)), 2 * np.pi * angle
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)


def permutation(seed: int, view: int, stream: Stream, n: int) -> NDArray[np.int64]:
    """Return a random permutation of 0..n-1.

    It is the order that sorts the samples by one random 64-bit word each, ties by index.
    """
    return np.argsort(words(seed, view, stream, n)[:, 0], kind="stable")


def choice(seed: int, view: int, stream: Stream, weights: Sequence[float]) -> int:
    """Draw an index 0..len(weights)-1 for a view, i with probability weights[i] / sum(weights).

    All weights must be above 0.
    """
    ends = np.cumsum(np.array(weights, dtype=np.float64) / max(weights))
    drawn = uniform(words(seed, view, stream, 1)[0, :1]) * ends[-1]
    return min(int(np.searchsorted(ends, drawn[0], side="right")), len(weights) - 1)


def torch_seed(seed: int, step: int, micro_batch: int, rank: int) -> int:
    """Return torch's seed for one forward pass, which draws dropout masks.

    It is a function of the data seed, the optimizer step, the micro-batch and the process.
    """
    key = np.array([seed, step], dtype=np.uint64)
    counter = np.array([0, micro_batch, rank, Stream.FORWARD], dtype=np.uint64)
    return int(np.random.Philox(key=key, counter=counter).random_raw()) >> 1
