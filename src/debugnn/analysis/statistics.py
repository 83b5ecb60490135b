"""Intervals and tests for a few seeds: proportions, means, paired differences."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95  # confidence level of every interval
ALPHA = 1 - LEVEL


@dataclass(frozen=True)
class Estimate:
    """An estimate with its 95 % interval.

    Attributes:
        value: the estimate.
        low: lower end of the interval.
        high: upper end of the interval.
        n: number of values that it rests on.
    """

    value: float
    low: float
    high: float
    n: int


def proportion(successes: int, n: int) -> Estimate:
    """Return a proportion with its Wilson score interval.

    The interval keeps its coverage for small n and for proportions near 0 and 1 (Wilson 1927,
    doi:10.1080/01621459.1927.10502953; Brown, Cai and DasGupta 2001, doi:10.1214/ss/1009213286).

    Args:
        successes: number of successes, 0 to n.
        n: number of trials, at least 1.
    """
    result = stats.binomtest(successes, n).proportion_ci(LEVEL, method="wilson")
    return Estimate(successes / n, float(result.low), float(result.high), n)


def mean(values: Sequence[float]) -> Estimate:
    """Return a mean with its interval by Student's t.

    For paired samples, pass their differences. The interval of a single
    value is infinite.
    """
    array = np.asarray(values, float)
    n = len(array)
    if n < 2:
        return Estimate(float(array.mean()), -math.inf, math.inf, n)
    reach = stats.t.ppf((1 + LEVEL) / 2, n - 1) * array.std(ddof=1) / math.sqrt(n)
    return Estimate(
        float(array.mean()), float(array.mean() - reach), float(array.mean() + reach), n
    )


def difference(first: Sequence[float], second: Sequence[float]) -> Estimate:
    """Return the difference of two samples' means, second − first, with its interval.

    By Welch's t, for samples that are not paired and may differ in variance (Welch 1947,
    doi:10.1093/biomet/34.1-2.28). If one of them is a single value, the interval is infinite.
    """
    value = float(np.mean(second) - np.mean(first))
    n = min(len(first), len(second))
    if n < 2:
        return Estimate(value, -math.inf, math.inf, n)
    if np.ptp(first) == np.ptp(second) == 0:  # Welch's degrees of freedom are 0 / 0
        return Estimate(value, value, value, n)
    found = stats.ttest_ind(second, first, equal_var=False).confidence_interval(LEVEL)
    return Estimate(value, float(found.low), float(found.high), n)


def p_above(values: Sequence[float], threshold: float) -> float:
    """Return the p-value of the two-sided t test that the mean equals a threshold.

    Args:
        values: at least two values; for paired samples, their differences.
        threshold: the mean under the null hypothesis.
    """
    array = np.asarray(values, float)
    if array.std(ddof=1) == 0:  # the test statistic is infinite, or 0 / 0
        return 1.0 if array.mean() == threshold else 0.0
    return float(stats.ttest_1samp(array, threshold).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values adjusted for the number of comparisons (Holm 1979).

    An adjusted value below 0.05 keeps the chance of a single false rejection among all
    comparisons below 5 %. The order of the values is kept.
    """
    count = len(p_values)
    adjusted, largest = [0.0] * count, 0.0
    for rank, place in enumerate(sorted(range(count), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (count - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted
