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
RESAMPLES = 1000  # bootstrap samples of an interval
# Bounds of a fitted temperature: if all predictions are correct, the best temperature is 0.
COLDEST, HOTTEST = 0.01, 100.0

Interval = tuple[float, float]


def wilson(n_correct: int, total: int) -> Interval:
    """Return Wilson's interval of the fraction n_correct / total (JASA 22, 1927, p. 209)."""
    interval = scipy.stats.binomtest(n_correct, total).proportion_ci(LEVEL, method="wilson")
    return float(interval.low), float(interval.high)


def bootstrap(
    statistic: Callable[..., float], *samples: NDArray[Any], basic: bool = False
) -> Interval:
    """Return the bootstrap interval of a statistic of arrays `samples`, [N, …] each.

    The statistic is computed 1,000 times, each time on N rows drawn with replacement, the same rows
    of every array; the interval is given by percentiles of these values (Efron, Annals of
    Statistics 7, 1979). `basic` mirrors the percentiles at the statistic of the original arrays:
    this corrects a biased statistic, if the resampled values deviate from it as it deviates from
    the true value (Davison and Hinkley, 1997, section 5.2.1). The seed is fixed: the same arrays
    give the same interval.
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
    """Return McNemar's two-sided p-value for two classifiers tested on the same samples.

    The null hypothesis is that both are correct equally often. `only_a`, `only_b`: how many samples
    only the first or only the second classifies correctly. The test is the exact one, by the
    binomial distribution (McNemar, Psychometrika 12, 1947). The p-value is 1 if both numbers are 0.
    """
    differ = only_a + only_b
    return float(scipy.stats.binomtest(only_a, differ).pvalue) if differ else 1.0


@dataclass(frozen=True)
class PairedCounts:
    """How many images are classified correctly by only a, only b, both or neither of a and b.

    a and b are two classifiers tested on the same images.
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
    """Count the images that one, both or neither of two classifiers classifies correctly.

    `correct_a`, `correct_b`: bool [N], whether each image's prediction is correct.
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
    """Compute mean, standard deviation and interval of values, for instance one value per seed.

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
    """Return (mean and interval of the differences a − b of pairs, p-value).

    The p-value is two-sided, by Student's paired t-test of no difference; it is None if there is
    only one pair or all differences are equal. Raises ValueError if the lengths differ.
    """
    differences = [x - y for x, y in zip(a, b, strict=True)]
    difference = mean_and_interval(differences)
    p = float(scipy.stats.ttest_rel(a, b).pvalue) if difference.std else None
    return difference, p


def fit_temperature(logits: NDArray[Any], labels: NDArray[np.int64]) -> float:
    """Return the temperature T, 0.01..100, that calibrates logits [N, C] by division.

    T minimises the negative log-likelihood of the labels [N] under softmax(logits / T). The
    predicted classes do not change.

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
