"""Jaccard overlap of two selections, and what chance would give."""

from __future__ import annotations

import numpy as np
from scipy.stats import hypergeom

from ropescope.base.statistics import TAILS

DRAWS = 2000


def jaccard(first: np.ndarray, other: np.ndarray) -> float:
    r"""Overlap of two sets of places, :math:`|A \cap B| / |A \cup B|`, 0 to 1; NaN where both are empty.

    Parameters
    ----------
    first, other
        Boolean, of one shape.
    """
    return float(_index(int((first & other).sum()), int(first.sum() + other.sum())))


def chance_anywhere(places: int, first: int, other: int) -> np.ndarray:
    """Jaccard of two sets placed at random: expectation and central 95 % range, from the hypergeometric distribution.

    Parameters
    ----------
    places
        Number of places to choose from.
    first, other
        Sizes of the sets.

    Returns
    -------
    array (estimate)
        Expectation, low, high; NaN where both sets are empty.

    Examples
    --------
    >>> chance_anywhere(2, 1, 1).tolist()
    [0.5, 0.0, 1.0]
    """
    spread = hypergeom(places, first, other)
    common = np.arange(max(0, first + other - places), min(first, other) + 1)
    mean = np.sum(spread.pmf(common) * _index(common, first + other))
    return np.array([mean, *(_index(spread.ppf(tail), first + other) for tail in TAILS)])


def chance_per_head(present: np.ndarray, first: np.ndarray, other: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Jaccard of two sets placed at random that keep how many each head has: mean and central 95 % range of draws.

    Parameters
    ----------
    present, first, other
        Places there are, and the two sets: boolean, (..., pair); each head draws among its own pairs.
    seed
        Seed of NumPy's default generator.

    Returns
    -------
    array (estimate)
        Mean, low, high; NaN where both sets are empty.
    """
    places, ours, theirs = (flags.reshape(-1, flags.shape[-1]).sum(1) for flags in (present, first, other))
    drawing = (ours > 0) & (theirs > 0)
    random = np.random.default_rng(seed)
    common = np.zeros(DRAWS, dtype=np.int64)
    for place, a, b in zip(places[drawing], ours[drawing], theirs[drawing], strict=True):
        common += random.hypergeometric(a, place - a, b, DRAWS)
    drawn = _index(common, int(ours.sum() + theirs.sum()))
    return np.array([drawn.mean(), *np.quantile(drawn, TAILS)])


def _index(common: np.ndarray | int, sizes: int) -> np.ndarray:
    return np.asarray(common) / (sizes - np.asarray(common)) if sizes else np.full(np.shape(common), np.nan)
