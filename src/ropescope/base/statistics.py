"""Intervals and tests over layers, windows or documents: what others like them would have given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

ESTIMATE = "estimate"
ESTIMATES = ("value", "low", "high")
DRAWS = 10_000
# Ends of a central 95 % interval.
TAILS = (0.025, 0.975)
# Fewer windows, documents or pairs say too little of others like them for an interval; of layers a model has no more.
LEAST_WINDOWS = 5
_LEAST_LAYERS = 3
# Multiplicities held at once.
_BLOCK = 2**22


def jackknife(
    statistic: Callable[..., np.ndarray | float], *arrays: np.ndarray, least: int = _LEAST_LAYERS
) -> np.ndarray:
    r"""A statistic with its 95 % jackknife interval over the first axis, which leaves no unit twice in a sample.

    .. math:: \hat\theta \pm t_{n-1} \sqrt{\tfrac{n-1}{n} \sum_i (\hat\theta_{(i)} - \bar\theta_{(\cdot)})^2}

    A bootstrap would draw a layer twice and take it for two layers that agree.

    Parameters
    ----------
    statistic
        Takes the arrays, gives an array of any shape.
    arrays
        Of one length n along the first axis.
    least
        Units that an interval needs, at least 2.

    Returns
    -------
    array (..., estimate)
        Value, low and high; the ends are NaN with fewer than `least` units.

    References
    ----------
    Efron and Stein, The Jackknife Estimate of Variance, Annals of Statistics 9 (1981).

    Examples
    --------
    >>> jackknife(np.mean, np.array([1.0, 2.0, 3.0, 4.0, 5.0])).round(2).tolist()
    [3.0, 1.04, 4.96]
    """
    from scipy.stats import t as student

    value = np.asarray(statistic(*arrays), dtype=np.float64)
    count = len(arrays[0])
    if count < least:
        return np.stack((value, np.full_like(value, np.nan), np.full_like(value, np.nan)), axis=-1)
    others = np.stack([statistic(*(np.delete(array, unit, axis=0) for array in arrays)) for unit in range(count)])
    margin = student.ppf(TAILS[1], count - 1) * np.sqrt((count - 1) * others.var(axis=0))
    return np.stack((value, value - margin, value + margin), axis=-1)


def nats_difference(first: np.ndarray, second: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    r"""Nats per token of one model less those of another on the same windows: the log ratio of their perplexities.

    .. math:: \frac{\sum_w (a_w - b_w)}{\sum_w N_w}

    Parameters
    ----------
    first, second
        Nats of every window, (..., window).
    tokens
        Scored tokens of every window, (window).

    Returns
    -------
    array (..., estimate)
        With a paired 95 % jackknife interval over windows, which is Student's t interval where windows have equally
        many tokens; the ends are NaN with fewer than five windows.

    Examples
    --------
    >>> nats_difference(np.full(5, 12.0), np.full(5, 10.0), np.full(5, 4)).tolist()
    [0.5, 0.5, 0.5]
    """
    windows = np.moveaxis(first - second, -1, 0)
    return jackknife(lambda rows, counts: rows.sum(0) / counts.sum(), windows, tokens, least=LEAST_WINDOWS)


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
    >>> round(permutation_p(np.array([0.0, 0.0, 1.0, 1.0]), np.array([False, False, True, True])), 3)
    0.333
    """
    from scipy.stats import permutation_test

    def difference(first: np.ndarray, other: np.ndarray, axis: int) -> np.ndarray:
        # Sums in another order differ in their last bits, which would break ties.
        rounded: np.ndarray = np.round(abs(first.mean(axis) - other.mean(axis)), 12)
        return rounded

    scaled = (values - values.min()) / max(float(np.ptp(values)), np.finfo(np.float64).tiny)
    if min(group.sum(), (~group).sum()) == 1:
        # SciPy wants two units on either side.
        alone = np.array([difference(unit, np.delete(scaled, place), 0) for place, unit in enumerate(scaled[:, None])])
        lone = group if group.sum() == 1 else ~group
        return float((alone >= alone[lone]).mean())
    random = np.random.default_rng(seed)
    sides = (scaled[group], scaled[~group])
    options = {"vectorized": True, "n_resamples": draws, "alternative": "greater", "rng": random}
    return float(permutation_test(sides, difference, **options).pvalue)


def resampled_sums(
    rows: np.ndarray, *, strata: np.ndarray | None = None, resamples: int = DRAWS, seed: int = 0
) -> np.ndarray:
    """Sums over units drawn with replacement, as often as there are units: one row for every draw of a bootstrap.

    Parameters
    ----------
    rows
        What each unit adds, (unit, column). Columns are drawn together, so differences between them are paired.
    strata
        Group of each unit; units are drawn within their group. None is one group.
    resamples
        Draws, at least 1.
    seed
        Seed of NumPy's default generator.

    Returns
    -------
    array (draw, column)

    References
    ----------
    Efron, Bootstrap methods: another look at the jackknife, Annals of Statistics 7 (1979).
    """
    random = np.random.default_rng(seed)
    groups = [rows] if strata is None else [rows[strata == stratum] for stratum in np.unique(strata)]
    total = np.zeros((resamples, rows.shape[1]))
    for members in groups:
        size = len(members)
        for start in range(0, resamples, block := max(1, _BLOCK // size)):
            stop = min(start + block, resamples)
            times = random.multinomial(size, np.full(size, 1 / size), size=stop - start)
            total[start:stop] += times.astype(np.float64) @ members
    return total


def bootstrapped(
    statistic: Callable[..., Any], *arrays: np.ndarray, resamples: int = 2000, seed: int = 0
) -> np.ndarray:
    """A statistic with its 95 % percentile bootstrap over units drawn with replacement, (estimate).

    Parameters
    ----------
    statistic
        Takes the arrays, or as many draws of them at once, (draw, unit), and gives a number, or one of each draw.
    arrays
        Of one length, (unit); they are drawn together.
    resamples
        Draws, at least 1.
    seed
        Seed of NumPy's default generator.

    Returns
    -------
    array (estimate)
        Value, low and high; the ends are NaN with fewer than five units, the value with none.

    Examples
    --------
    >>> values = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    >>> bootstrapped(lambda drawn: drawn.mean(-1), values, resamples=100).round(1).tolist()
    [3.0, 1.9, 4.2]
    """
    count = len(arrays[0])
    if count < LEAST_WINDOWS:
        return np.array([statistic(*arrays) if count else np.nan, np.nan, np.nan])
    random = np.random.default_rng(seed)
    places = random.integers(count, size=(resamples, count))
    draws = statistic(*(array[places] for array in arrays))
    return np.array([statistic(*arrays), *np.nanquantile(draws, TAILS)])


def rank_correlation(first: np.ndarray, other: np.ndarray) -> Any:
    """Spearman's rank correlation along the last axis, equal values at the mean of their ranks.

    NaN where either side does not vary.

    Examples
    --------
    >>> float(rank_correlation(np.array([1.0, 2.0, 3.0]), np.array([1.0, 4.0, 9.0])))
    1.0
    """
    from scipy.stats import rankdata

    ranks = (rankdata(values, axis=-1) for values in (first, other))
    centred = [rank - rank.mean(-1, keepdims=True) for rank in ranks]
    size = np.sqrt((centred[0] ** 2).sum(-1) * (centred[1] ** 2).sum(-1))
    return (centred[0] * centred[1]).sum(-1) / np.where(size > 0, size, np.nan)
