"""Intervals and tests over layers, against SciPy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from ropescope.base.statistics import jackknife, permutation_p


def test_the_jackknife_of_a_mean_is_students_interval():
    values = np.random.default_rng(0).normal(size=12)
    interval = stats.ttest_1samp(values, 0).confidence_interval()
    np.testing.assert_allclose(jackknife(np.mean, values), [values.mean(), interval.low, interval.high])


def test_two_units_have_no_interval():
    value, low, high = jackknife(np.mean, np.array([1.0, 3.0]))
    assert value == 2 and np.isnan(low) and np.isnan(high)


def difference(first: np.ndarray, other: np.ndarray, axis: int) -> np.ndarray:
    return abs(first.mean(axis) - other.mean(axis))


def test_few_labellings_are_all_tried():
    values = np.random.default_rng(1).normal(size=9)
    group = np.arange(9) % 3 == 0
    exact = stats.permutation_test((values[group], values[~group]), difference, vectorized=True, alternative="greater")
    assert permutation_p(values, group) == pytest.approx(exact.pvalue)


def test_many_labellings_are_drawn_and_never_give_zero():
    group = np.arange(40) < 20
    assert permutation_p(group.astype(float), group, draws=500) == pytest.approx(1 / 501)


def test_values_without_a_difference_are_never_rare():
    assert permutation_p(np.full(10, 0.1), np.arange(10) < 3) == 1


@pytest.mark.parametrize("few", [True, False])
def test_one_unit_on_a_side_is_ranked_among_all(few):
    values, group = np.array([5.0, 1.0, 2.0, 9.0, 2.5]), np.arange(5) == 2
    alone = [abs(value - np.delete(values, place).mean()) for place, value in enumerate(values)]
    expected = np.mean([each >= alone[2] for each in alone])
    assert permutation_p(values, group if few else ~group) == pytest.approx(expected) == 0.6
