"""Intervals and tests that take layers as the sample: what other layers like these would have given."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from math import comb

import numpy as np
from scipy.stats import t as student

ESTIMATE = "estimate"
ESTIMATES = ("value", "low", "high")
DRAWS = 10_000
_LEAST_UNITS = 3
_TIES = 1e-9


def jackknife(statistic: Callable[..., np.ndarray], *arrays: np.ndarray) -> np.ndarray:
    r"""A statistic with its 95 % jackknife interval over the first axis, which leaves no unit twice in a sample.

    .. math:: \hat\theta \pm t_{n-1} \sqrt{\tfrac{n-1}{n} \sum_i (\hat\theta_{(i)} - \bar\theta_{(\cdot)})^2}

    A bootstrap would draw a layer twice and take it for two layers that agree.

    Parameters
    ----------
    statistic
        Takes the arrays, gives an array of any shape.
    arrays
        Of one length n along the first axis.

    Returns
    -------
    array (..., estimate)
        Value, low and high; the ends are NaN with fewer than three units.

    References
    ----------
    Efron and Stein, The Jackknife Estimate of Variance, Annals of Statistics 9 (1981).

    Examples
    --------
    >>> jackknife(np.mean, np.array([1.0, 2.0, 3.0])).round(2).tolist()
    [2.0, -0.48, 4.48]
    """
    value = np.asarray(statistic(*arrays), dtype=np.float64)
    count = len(arrays[0])
    if count < _LEAST_UNITS:
        return np.stack((value, np.full_like(value, np.nan), np.full_like(value, np.nan)), axis=-1)
    others = np.stack([statistic(*(np.delete(array, unit, axis=0) for array in arrays)) for unit in range(count)])
    margin = student.ppf(0.975, count - 1) * np.sqrt((count - 1) * others.var(axis=0))
    return np.stack((value, value - margin, value + margin), axis=-1)


def permutation_p(values: np.ndarray, group: np.ndarray, *, draws: int = DRAWS, seed: int = 0) -> float:
    """Two-sided p of a difference of means against shuffled group labels.

    Exact where there are at most `draws` ways to give the labels; else (1 + extreme draws) / (1 + draws).

    Parameters
    ----------
    values
        One number for each unit.
    group
        Boolean, of the same shape; units on either side.
    draws
        Shuffles, at least 1.
    seed
        Seed of NumPy's default generator.

    Examples
    --------
    >>> permutation_p(np.array([0.0, 0.0, 1.0, 1.0]), np.array([False, False, True, True])).__round__(3)
    0.333
    """
    count, members = len(values), int(group.sum())
    exact = comb(count, members) <= draws
    chosen = np.array(list(combinations(range(count), members))) if exact else _drawn(count, members, draws, seed)
    sums = values[chosen].sum(axis=1)
    differences = abs(sums / members - (values.sum() - sums) / (count - members))
    observed = abs(values[group].mean() - values[~group].mean())
    extreme = int((differences >= observed - _TIES * np.ptp(values)).sum())
    return extreme / len(chosen) if exact else (1 + extreme) / (1 + draws)


def _drawn(count: int, members: int, draws: int, seed: int) -> np.ndarray:
    places: np.ndarray = np.random.default_rng(seed).random((draws, count)).argsort(axis=1)[:, :members]
    return places
