"""Confidence intervals, significance tests and temperature fitting, without torch.

All intervals are at 95 %.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

LEVEL = 0.95
SIGNIFICANT = 0.05  # p below which a difference is called shown
RESAMPLES = 1000
COLDEST, HOTTEST = 0.01, 100.0  # where all is right, the colder the likelier, without an end

Interval = tuple[float, float]


def wilson(right: int, total: int) -> Interval:
    """The interval of a share, `right` of `total` (Wilson, JASA 22, 1927, p. 209)."""
    interval = stats.binomtest(right, total).proportion_ci(LEVEL, method="wilson")
    return float(interval.low), float(interval.high)


def bootstrap(
    statistic: Callable[..., float], *samples: NDArray[Any], basic: bool = False
) -> Interval:
    """The interval of a statistic of arrays [N, …], by percentiles of its value on N samples drawn
    with replacement, the same ones of each array (Efron, Annals of Statistics 7, 1979).

    `basic`: those percentiles mirrored at the statistic itself, for one that is biased: what the
    draws are off from it, it is off from the truth (Davison and Hinkley, 1997, section 5.2.1).
    Drawn from a fixed seed: the same arrays give the same interval. Costs 1,000 calls.
    """
    draws = np.random.default_rng(0)
    n = len(samples[0])
    values = []
    for _ in range(RESAMPLES):
        drawn = draws.integers(n, size=n)
        values.append(statistic(*(sample[drawn] for sample in samples)))
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    if basic:
        twice = 2 * statistic(*samples)
        low, high = twice - high, twice - low
    return float(low), float(high)


def mcnemar(only_a: int, only_b: int) -> float:
    """The two-sided p of "both are right equally often", from the samples that only one has right.

    Exact, by the binomial distribution (McNemar, Psychometrika 12, 1947); 1 where none differs.
    """
    differ = only_a + only_b
    return float(stats.binomtest(only_a, differ).pvalue) if differ else 1.0


@dataclass(frozen=True)
class PairedCounts:
    """Two answerers on the same images: how many each alone has right, and both, and neither."""

    only_a: int
    only_b: int
    both: int
    neither: int

    @property
    def p(self) -> float:
        """McNemar's, of "both are right equally often"."""
        return mcnemar(self.only_a, self.only_b)


def count_pairs(right_a: NDArray[np.bool_], right_b: NDArray[np.bool_]) -> PairedCounts:
    """Counted from whether each is right [N]."""
    kinds = (right_a & ~right_b, right_b & ~right_a, right_a & right_b, ~right_a & ~right_b)
    return PairedCounts(*(int(kind.sum()) for kind in kinds))


@dataclass(frozen=True)
class MeanAndInterval:
    """Mean, sample standard deviation and the interval of the mean, by Student's t, of `n` values.

    With one value nothing is known of the spread: `std` and `interval` are None.
    """

    n: int
    mean: float
    std: float | None
    interval: Interval | None


def mean_and_interval(values: Sequence[float]) -> MeanAndInterval:
    """Over seeds, say. Raises ValueError where there is no value."""
    if not values:
        raise ValueError("no values: nothing has a mean")
    mean = float(np.mean(values))
    if len(values) == 1:
        return MeanAndInterval(1, mean, None, None)
    std = float(np.std(values, ddof=1))
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1)) * std / len(values) ** 0.5
    return MeanAndInterval(len(values), mean, std, (mean - half, mean + half))


def paired_difference(
    a: Sequence[float], b: Sequence[float]
) -> tuple[MeanAndInterval, float | None]:
    """Of a − b, pair by pair: its spread, and the two-sided p of "no difference" (Student's t).

    p is None where there is one pair, or all differences are the same. Raises ValueError where the
    lengths differ.
    """
    differences = [x - y for x, y in zip(a, b, strict=True)]
    known = mean_and_interval(differences)
    p = float(stats.ttest_rel(a, b).pvalue) if known.std else None
    return known, p


def fit_temperature(logits: NDArray[Any], labels: NDArray[np.int64]) -> float:
    """The number, between 0.01 and 100, by which logits [N, C] are divided for the least negative
    log-likelihood of the labels [N]: no answer changes, only how sure it is.

    Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks", ICML 2017, arXiv
    1706.04599, section 4.2. The NLL is convex in b = 1 / T, so it is least where its slope, the
    mean of E_p[z] - z_label with p = softmax(b z), is zero.
    """
    z = logits.astype(np.float64)
    of_label = float(z[np.arange(len(z)), labels].mean())

    def slope(log_b: float) -> float:
        return float((special.softmax(z * np.exp(log_b), axis=1) * z).sum(axis=1).mean()) - of_label

    hot, cold = -np.log(HOTTEST), -np.log(COLDEST)
    if slope(hot) >= 0:
        return HOTTEST
    if slope(cold) <= 0:
        return COLDEST
    return float(np.exp(-optimize.brentq(slope, hot, cold)))
