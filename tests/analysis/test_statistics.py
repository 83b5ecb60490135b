"""Intervals and tests against slow, obvious versions and published values."""

import itertools
import math

import numpy as np
import pytest
from scipy import optimize, stats

from debugnn.analysis import statistics


@pytest.mark.parametrize(("successes", "n"), [(0, 5), (5, 5), (1, 5), (10, 20), (19, 20), (7, 9)])
def test_a_proportions_interval_holds_what_a_score_test_does_not_reject(successes, n):
    """The ends are where the score statistic (p̂ − p) / √(p (1 − p) / n) reaches its quantile."""
    quantile = stats.norm.ppf(0.975)

    def excess(p):
        return abs(successes / n - p) - quantile * math.sqrt(p * (1 - p) / n)

    found = statistics.proportion(successes, n)
    share = successes / n
    assert found.value == share
    low = 0.0 if successes == 0 else optimize.brentq(excess, 1e-12, share - 1e-9)
    high = 1.0 if successes == n else optimize.brentq(excess, share + 1e-9, 1 - 1e-12)
    assert found.low == pytest.approx(low, abs=1e-9)
    assert found.high == pytest.approx(high, abs=1e-9)


def test_intervals_are_wilsons():
    for number, total in ((0, 10), (3, 7), (95, 100), (40, 40)):
        share, z = number / total, 1.959964
        centre = share + z**2 / (2 * total)
        spread = z * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
        found = statistics.proportion(number, total)
        low, high = found.low, found.high
        assert low == pytest.approx((centre - spread) / (1 + z**2 / total), abs=1e-6)
        assert high == pytest.approx((centre + spread) / (1 + z**2 / total), abs=1e-6)


def test_a_means_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    samples = rng.normal(3.0, 2.0, size=(4000, 5))
    covered = [(e := statistics.mean(row)).low <= 3.0 <= e.high for row in samples]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.012)  # 3.5 standard errors


def test_a_mean_of_one_value_is_known_to_nothing():
    found = statistics.mean([2.0])
    assert (found.value, found.low, found.high, found.n) == (2.0, -math.inf, math.inf, 1)


def test_unpaired_samples_differ_by_welchs_interval():
    first, second = [1.0, 2.0, 4.0, 3.5], [5.0, 9.0, 4.0]
    spreads = [np.var(side, ddof=1) / len(side) for side in (first, second)]
    degrees = sum(spreads) ** 2 / (spreads[0] ** 2 / 3 + spreads[1] ** 2 / 2)
    reach = stats.t.ppf(0.975, degrees) * math.sqrt(sum(spreads))
    found = statistics.difference(first, second)
    assert found.value == pytest.approx(6.0 - 2.625)
    assert (found.low, found.high) == pytest.approx((3.375 - reach, 3.375 + reach))
    assert statistics.difference([1.0, 1.0], [2.0, 2.0]).low == 1.0
    assert statistics.difference([1.0], [2.0, 3.0]).high == math.inf


def test_interval_and_test_agree():
    values = [0.2, 1.1, 0.7, 1.9, 0.4]
    found = statistics.mean(values)
    for end in (found.low, found.high):
        assert statistics.p_above(values, end) == pytest.approx(0.05)


@pytest.mark.parametrize(("threshold", "expected"), [(1.0, 1.0), (0.0, 0.0), (2.0, 0.0)])
def test_equal_values_decide(threshold, expected):
    assert statistics.p_above([1.0, 1.0, 1.0], threshold) == expected


def test_holms_adjustment_rejects_what_the_step_down_procedure_rejects():
    rng = np.random.default_rng(1)
    for values in rng.uniform(0, 0.08, size=(200, 6)):
        rejected = set()
        for rank, place in enumerate(np.argsort(values)):
            if values[place] > 0.05 / (len(values) - rank):
                break
            rejected.add(place)
        adjusted = statistics.holm(list(values))
        assert {i for i, p in enumerate(adjusted) if p <= 0.05} == rejected


def test_holms_adjustment_follows_the_order_of_the_values():
    values = [0.04, 0.001, 0.03]
    expected = dict(zip(values, statistics.holm(values), strict=True))
    for order in itertools.permutations(values):
        assert statistics.holm(order) == [expected[p] for p in order]
    assert statistics.holm([]) == []
