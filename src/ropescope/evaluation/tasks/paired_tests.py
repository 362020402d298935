"""Two models on the same documents: is one better, and what difference could the sample have shown?"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ropescope.base.statistics import TAILS, resampled_sums

POWER = 0.8


@dataclass(frozen=True)
class Difference:
    """Second minus first, on the same documents.

    Parameters
    ----------
    value
        Difference of the two scores.
    low, high
        95 % interval; NaN with fewer than two documents.
    p
        Two-sided p-value of no difference.
    """

    value: float
    low: float
    high: float
    p: float

    @property
    def detectable(self) -> float:
        """The smallest difference that a sample like this one shows four times in five.

        Half the interval times (1.96 + 0.84) / 1.96: significant at 5 % with a power of 80 %, to first order.
        """
        from scipy.stats import norm

        two_sided, power = norm.ppf(TAILS[1]), norm.ppf(POWER)
        return float((self.high - self.low) / 2 * (two_sided + power) / two_sided)


def binary_difference(first: np.ndarray, second: np.ndarray) -> Difference:
    r"""Difference of two accuracies on the same documents.

    With b documents that only the first has right and c that only the second has right, of n:

    .. math:: \hat d = \frac{c - b}{n}, \quad p = \min\Big(1, 2 \sum_{k=0}^{\min(b,c)} \binom{b+c}{k} 2^{-(b+c)}\Big)

    Parameters
    ----------
    first, second
        1 where a document is right, 0 where it is wrong, (document).

    Returns
    -------
    Difference
        p from McNemar's exact test, the interval from Tango's score test, which stays honest where no document, or
        every one, changes sides.

    References
    ----------
    McNemar, Psychometrika 12 (1947) 153. Tango, Statistics in Medicine 17 (1998) 891.

    Examples
    --------
    >>> binary_difference(np.array([1, 1, 0, 0]), np.array([1, 0, 0, 0])).value
    -0.25
    """
    from scipy.stats import binomtest

    lost, gained, total = int((first > second).sum()), int((second > first).sum()), len(first)
    p = float(binomtest(lost, lost + gained, 0.5).pvalue) if lost + gained else 1.0
    low, high = _tango(gained, lost, total) if total > 1 else (math.nan, math.nan)
    return Difference((gained - lost) / total, low, high, p)


def bootstrap_difference(
    statistic: Callable[[np.ndarray], np.ndarray],
    first: np.ndarray,
    second: np.ndarray,
    weights: np.ndarray,
    strata: np.ndarray,
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> Difference:
    r"""Difference of two statistics of weighted means, by a paired bootstrap over documents.

    .. math:: f\Big(\frac{\sum_i w_i y_i}{\sum_i w_i}\Big) - f\Big(\frac{\sum_i w_i x_i}{\sum_i w_i}\Big)

    Parameters
    ----------
    statistic
        f, elementwise.
    first, second, weights
        x, y and w of each document, (document).
    strata
        Task of each document; documents are drawn within their task, the same ones for both sides.
    resamples
        Draws, at least 1.
    seed
        Seed of NumPy's default generator.

    Returns
    -------
    Difference
        Percentile interval, and twice the smaller share of draws on one side of zero, but never a p below that of
        the sign-flip test where all m documents that differ agree, :math:`2^{1-m}`: a few documents cannot show more,
        however alike.
    """
    sums = np.stack((weights * first, weights * second, weights), axis=-1)
    value = float(np.diff(statistic(sums[:, :2].sum(0) / weights.sum()))[0])
    if len(first) < 2:
        return Difference(value, math.nan, math.nan, math.nan)
    drawn = resampled_sums(sums, strata=strata, resamples=resamples, seed=seed)
    draws = np.diff(statistic(drawn[:, :2] / drawn[:, 2:]), axis=-1)[:, 0]
    low, high = np.quantile(draws, TAILS)
    tail = float(min((draws <= 0).sum(), (draws >= 0).sum()))
    least = 2.0 ** (1 - int((first != second).sum()))
    return Difference(value, float(low), float(high), min(1.0, max(least, 2 * (1 + tail) / (1 + resamples))))


def _tango(gained: int, lost: int, total: int) -> tuple[float, float]:
    """Differences that the score test does not reject."""
    from scipy.optimize import brentq
    from scipy.stats import norm

    limit = float(norm.ppf(TAILS[1]))
    middle = (gained - lost) / total

    def excess(difference: float, side: int) -> float:
        return side * _score(gained, lost, total, difference) - limit

    low = -1.0 if middle == -1 else brentq(excess, -1 + 1e-12, middle, args=(1,), xtol=1e-12)
    high = 1.0 if middle == 1 else brentq(excess, middle, 1 - 1e-12, args=(-1,), xtol=1e-12)
    return float(low), float(high)


def _score(gained: int, lost: int, total: int, difference: float) -> float:
    """Score statistic of a difference of paired proportions, standard normal if it is the true one."""
    a = 2.0 * total
    b = -gained - lost + (2 * total - gained + lost) * difference
    c = -lost * difference * (1 - difference)
    only_first = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
    variance = total * (2 * only_first + difference * (1 - difference))
    gap = float(gained - lost - total * difference)
    if gap == 0 or variance <= 0:
        return math.copysign(math.inf, gap) if gap else 0.0
    return gap / math.sqrt(variance)
