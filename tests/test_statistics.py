"""Intervals and tests against formulas written out here, and against published examples."""

from math import comb, sqrt
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from distill.statistics import (
    COLDEST,
    HOTTEST,
    bootstrap,
    fit_temperature,
    mcnemar,
    mean_and_interval,
    paired_difference,
    wilson,
)

Z = 1.959963984540054  # the 97.5 % quantile of the normal distribution


@pytest.mark.parametrize(("right", "total"), [(721, 1000), (0, 10), (10, 10), (1, 3)])
def test_wilson_is_the_formula_of_the_paper(right: int, total: int) -> None:
    share, z2 = right / total, Z**2
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = Z / (1 + z2 / total) * sqrt(share * (1 - share) / total + z2 / (4 * total**2))
    assert wilson(right, total) == pytest.approx((centre - half, centre + half), abs=1e-12)


def test_mcnemar_counts_the_tails_of_a_coin() -> None:
    both_tails = 2 * sum(comb(15, k) for k in range(4)) / 2**15  # 3 of 15, or less likely
    assert mcnemar(3, 12) == mcnemar(12, 3) == pytest.approx(both_tails)
    assert mcnemar(0, 0) == mcnemar(7, 7) == 1.0


def test_bootstrapped_mean_has_interval_of_normal_law() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, 2000)
    low, high = bootstrap(lambda v: float(v.mean()), values)
    half = Z * values.std() / sqrt(2000)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)


def test_bootstrap_draws_same_samples_of_each_array() -> None:
    values = np.arange(100.0)
    assert bootstrap(lambda a, b: float((a - b).sum()), values, values) == (0.0, 0.0)


def test_the_interval_over_seeds_is_student_s() -> None:
    known = mean_and_interval([71.0, 72.0, 73.0])
    half = 4.302652729911275 / sqrt(3)  # t of 2 degrees of freedom, standard deviation 1
    assert (known.n, known.mean, known.std) == (3, 72.0, 1.0)
    assert known.interval == pytest.approx((72 - half, 72 + half))


def test_one_seed_has_no_spread() -> None:
    assert (mean_and_interval([70.0]).std, mean_and_interval([70.0]).interval) == (None, None)
    with pytest.raises(ValueError, match="no values"):
        mean_and_interval([])


def test_pairs_are_compared_pair_by_pair() -> None:
    known, p = paired_difference([2.0, 4.0, 7.0], [1.0, 2.0, 4.0])
    assert (known.mean, known.std) == (2.0, 1.0)
    # t = mean / (std / sqrt n) = 2 sqrt 3; with 2 degrees of freedom p = 1 - t / sqrt(t² + 2)
    assert p == pytest.approx(1 - sqrt(12) / sqrt(14))
    assert paired_difference([1.0, 2.0], [0.0, 1.0])[1] is None
    with pytest.raises(ValueError, match="shorter|longer"):
        paired_difference([1.0], [])


def sure(n: int, scale: float) -> tuple[NDArray[Any], NDArray[Any]]:
    """Logits that are too sure, by `scale`, of the law that their labels are drawn from."""
    draws = np.random.default_rng(0)
    z = draws.normal(size=(n, 5))
    labels = (z + draws.gumbel(size=z.shape)).argmax(axis=1)  # distributed as softmax(z)
    return scale * z, labels


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_what_was_multiplied_is_divided_again(scale: float) -> None:
    assert fit_temperature(*sure(20_000, scale)) == pytest.approx(scale, rel=0.05)


@pytest.mark.parametrize("share", [0.6, 0.8, 0.99])
def test_the_temperature_of_two_classes_in_closed_form(share: float) -> None:
    """All logits (z, 0), right in a share s: the best T has sigmoid(z / T) = s."""
    z, n = 3.0, 1000
    labels = (np.arange(n) >= share * n).astype(int)
    found = fit_temperature(np.tile([z, 0.0], (n, 1)), labels)
    assert found == pytest.approx(z / np.log(share / (1 - share)), rel=1e-6)


def test_no_other_temperature_is_likelier() -> None:
    logits, labels = sure(100, 2.0)

    def nll(t: float) -> float:
        shares = np.exp(logits / t) / np.exp(logits / t).sum(axis=1, keepdims=True)
        return float(-np.log(shares[np.arange(len(labels)), labels]).mean())

    best = fit_temperature(logits, labels)
    assert nll(best) < min(nll(0.99 * best), nll(1.01 * best))


def test_interval_of_extreme_share_ends_at_bound() -> None:
    assert fit_temperature(np.eye(5), np.arange(5)) == COLDEST
    assert fit_temperature(np.eye(2), np.array([1, 0])) == HOTTEST
