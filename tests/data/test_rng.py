"""Draws are functions of (seed, view, sample), by the published generator."""

import numpy as np
import pytest

from distill.data import rng
from distill.data.rng import Stream


def test_generator_is_philox_4x64_10_of_paper() -> None:
    # Known answer of Random123's kat_vectors: key 0, counter 0. numpy counts up before it draws.
    before_zero = np.array([2**64 - 1] * 4, dtype=np.uint64)
    generator = np.random.Philox(key=np.zeros(2, dtype=np.uint64), counter=before_zero)
    assert [f"{word:016x}" for word in generator.random_raw(4)] == [
        "16554d9eca36314c",
        "db20fe9d672d0fdc",
        "d7e772cee186176b",
        "7e68b68aec7ba23b",
    ]


def test_sample_draws_same_whatever_size_of_set() -> None:
    few, many = (rng.words(3, 7, Stream.CROP, n) for n in (10, 1000))
    assert np.array_equal(few, many[:10])


@pytest.mark.parametrize("other", [(4, 7, Stream.CROP), (3, 8, Stream.CROP), (3, 7, Stream.FLIP)])
def test_seed_view_and_stream_each_change_every_draw(other: tuple[int, int, Stream]) -> None:
    assert not (rng.words(3, 7, Stream.CROP, 100) == rng.words(*other, 100)).any()


def test_streams_are_numbered_once() -> None:
    assert len({int(stream) for stream in Stream}) == len(Stream.__members__)


def test_uniform_fills_the_unit_interval_evenly() -> None:
    u = rng.uniform(rng.words(0, 0, Stream.MIX, 100_000)[:, 0])
    assert u.min() >= 0 and u.max() < 1
    counts = np.histogram(u, bins=20, range=(0, 1))[0]
    # chi-square with 19 degrees of freedom: 43.8 is its 99.9 % point
    assert ((counts - 5000) ** 2 / 5000).sum() < 43.8


def test_uniform_is_exact_at_the_ends() -> None:
    ends = np.array([0, 2**64 - 1], dtype=np.uint64)
    assert rng.uniform(ends).tolist() == [0.0, 1 - 2.0**-53]


def test_integers_cover_the_range() -> None:
    drawn = rng.integers(rng.words(0, 0, Stream.CROP, 20_000)[:, 1], 9)
    counts = np.bincount(drawn, minlength=9)
    assert len(counts) == 9
    assert ((counts - 20_000 / 9) ** 2 / (20_000 / 9)).sum() < 26.1  # 8 degrees, 99.9 %


def test_permutation_is_one_and_differs_by_view() -> None:
    first, second = (rng.permutation(0, view, Stream.ORDER, 500) for view in (0, 1))
    assert sorted(first) == list(range(500))
    assert not np.array_equal(first, second)


def test_torch_seed_depends_on_step_and_rank() -> None:
    seeds = {rng.torch_seed(*key) for key in np.ndindex(3, 3, 3, 3)}
    assert len(seeds) == 81
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.long
def test_a_choice_has_the_shares_of_its_weights() -> None:
    weights = [1.0, 2.0, 5.0]
    drawn = [rng.choice(3, view, Stream.TEACHER, weights) for view in range(4000)]
    counts = np.bincount(drawn, minlength=3)
    expected = 4000 * np.array(weights) / 8
    assert ((counts - expected) ** 2 / expected).sum() < 13.8  # 2 degrees, 99.9 %
    assert drawn == [rng.choice(3, view, Stream.TEACHER, [2.0, 4.0, 10.0]) for view in range(4000)]
    assert drawn[:50] != [rng.choice(4, view, Stream.TEACHER, weights) for view in range(50)]


def test_choice_is_first_draw_of_its_view() -> None:
    """The share of the unit interval that it falls into; other runs have these teachers stored."""
    for view in range(50):
        u = rng.uniform(rng.words(3, view, Stream.TEACHER, 1)[:, 0])[0]
        assert rng.choice(3, view, Stream.TEACHER, [1.0, 3.0]) == (0 if u < 0.25 else 1)
        assert rng.choice(3, view, Stream.TEACHER, [1e308, 1e308]) == (0 if u < 0.5 else 1)


def test_a_choice_of_one_is_that_one() -> None:
    assert {rng.choice(0, view, Stream.TEACHER, [0.3]) for view in range(20)} == {0}
