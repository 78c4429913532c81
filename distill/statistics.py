"""Confidence intervals, significance tests and temperature fitting, without torch.

All intervals are at 95 %.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

LEVEL = 0.95
SIGNIFICANT = 0.05  # a difference is called significant below this p
RESAMPLES = 1000
COLDEST, HOTTEST = 0.01, 100.0  # if all predictions are correct, lower is always better

Interval = tuple[float, float]


def wilson(n_correct: int, total: int) -> Interval:
    """Return Wilson's interval of the share `n_correct` of `total` (JASA 22, 1927, p. 209)."""
    interval = scipy.stats.binomtest(n_correct, total).proportion_ci(LEVEL, method="wilson")
    return float(interval.low), float(interval.high)


def bootstrap(
    statistic: Callable[..., float], *samples: NDArray[Any], basic: bool = False
) -> Interval:
    """Return the interval of a statistic of arrays [N, …]: percentiles of its value on N samples
    drawn with replacement, the same ones from each array (Efron, Annals of Statistics 7, 1979).

    `basic`: the percentiles mirrored at the statistic itself, for a biased statistic: resampled
    values deviate from it as it deviates from the truth (Davison and Hinkley, 1997, section 5.2.1).
    The seed is fixed: the same arrays give the same interval. Costs 1,000 calls of `statistic`.
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
    """Return the two-sided p-value of the null hypothesis that two classifiers are correct equally
    often, from the numbers of samples that only one of them classifies correctly.

    Exact, by the binomial distribution (McNemar, Psychometrika 12, 1947); 1 if both numbers are 0.
    """
    differ = only_a + only_b
    return float(scipy.stats.binomtest(only_a, differ).pvalue) if differ else 1.0


@dataclass(frozen=True)
class PairedCounts:
    """The numbers of images that only a, only b, both or neither of two classifiers predicts
    correctly.
    """

    only_a: int
    only_b: int
    both: int
    neither: int

    @property
    def p(self) -> float:
        """McNemar's p-value of the null hypothesis that both are correct equally often."""
        return mcnemar(self.only_a, self.only_b)


def count_pairs(correct_a: NDArray[np.bool_], correct_b: NDArray[np.bool_]) -> PairedCounts:
    """Count the images that one, both or neither of two classifiers predicts correctly, from two
    boolean arrays [N].
    """
    kinds = (
        correct_a & ~correct_b,
        correct_b & ~correct_a,
        correct_a & correct_b,
        ~correct_a & ~correct_b,
    )
    return PairedCounts(*(int(kind.sum()) for kind in kinds))


@dataclass(frozen=True)
class MeanAndInterval:
    """Mean, sample standard deviation, and Student's t interval of the mean, of `n` values.

    With one value `std` and `interval` are None.
    """

    n: int
    mean: float
    std: float | None
    interval: Interval | None


def mean_and_interval(values: Sequence[float]) -> MeanAndInterval:
    """Compute mean, spread and interval of values, one per seed for instance.

    Raises ValueError if there is no value.
    """
    if not values:
        raise ValueError("the mean of no values is not defined")
    mean = float(np.mean(values))
    if len(values) == 1:
        return MeanAndInterval(1, mean, None, None)
    std = float(np.std(values, ddof=1))
    half = float(scipy.stats.t.ppf((1 + LEVEL) / 2, len(values) - 1)) * std / len(values) ** 0.5
    return MeanAndInterval(len(values), mean, std, (mean - half, mean + half))


def paired_difference(
    a: Sequence[float], b: Sequence[float]
) -> tuple[MeanAndInterval, float | None]:
    """Return mean and interval of a − b over pairs, and the two-sided p-value of the null
    hypothesis of no difference (Student's t).

    The p-value is None if there is only one pair or all differences are equal. Raises ValueError if
    the lengths differ.
    """
    differences = [x - y for x, y in zip(a, b, strict=True)]
    difference = mean_and_interval(differences)
    p = float(scipy.stats.ttest_rel(a, b).pvalue) if difference.std else None
    return difference, p


def fit_temperature(logits: NDArray[Any], labels: NDArray[np.int64]) -> float:
    """Return the temperature, between 0.01 and 100, that minimises the negative log-likelihood of
    the labels [N] under logits [N, C] / T. Predicted classes stay the same.

    Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks", ICML 2017, arXiv
    1706.04599, section 4.2. The NLL is convex in b = 1 / T, so it is minimal where its slope, the
    mean of E_p[z] - z_label with p = softmax(b z), is zero.
    """
    z = logits.astype(np.float64)
    mean_label_logit = float(z[np.arange(len(z)), labels].mean())

    def slope(log_b: float) -> float:
        return (
            float((scipy.special.softmax(z * np.exp(log_b), axis=1) * z).sum(axis=1).mean())
            - mean_label_logit
        )

    hot, cold = -np.log(HOTTEST), -np.log(COLDEST)
    if slope(hot) >= 0:
        return HOTTEST
    if slope(cold) <= 0:
        return COLDEST
    return float(np.exp(-scipy.optimize.brentq(slope, hot, cold)))
