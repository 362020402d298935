"""Scores that may foretell importance: what each gives every pair, and how well it finds the pairs that matter most."""

from __future__ import annotations

import numpy as np
import xarray as xr

from ropescope.base.axes import HEAD_AXIS, LAYER, PAIR
from ropescope.base.selections import VARIABLE_LABELS
from ropescope.measurement.norm_products import norm_products
from ropescope.measurement.results import mean_over_sequences, stream_data

NORM_PRODUCT = "norm_product"
SPECTRUM = "-spectrum_fe"
# A score by what to call it; one with a minus is high where its variable is low.
SCORES = {
    SPECTRUM: f"low {VARIABLE_LABELS['spectrum_fe']}",
    "-sequence_fe": f"low {VARIABLE_LABELS['sequence_fe']}",
    "mean_norm": "mean norm",
    NORM_PRODUCT: "norm product",
}
TOP = 0.1
SHUFFLES = 1000


def scores_of(result: xr.DataTree, stream: str) -> dict[str, np.ndarray]:
    """Every score of every pair, (layer, head, pair); NaN where it is not defined."""
    mean = mean_over_sequences(stream_data(result, stream)).transpose(LAYER, HEAD_AXIS[stream], PAIR)
    signs = {name: (name.removeprefix("-"), -1.0 if name.startswith("-") else 1.0) for name in SCORES}
    found = {name: sign * mean[variable].values for name, (variable, sign) in signs.items() if variable in mean}
    return found | {NORM_PRODUCT: norm_products(result)[stream]}


def highest(values: np.ndarray) -> np.ndarray:
    """Which places hold the highest tenth, at least one; of equal values the first."""
    top = np.zeros(len(values), dtype=bool)
    top[np.argsort(-values, kind="stable")[: max(1, round(TOP * len(values)))]] = True
    return top


class Finding:
    """How well scores find pairs: areas under their curves, as they are and shuffled among the pairs of each head.

    Parameters
    ----------
    scores
        (score, pair); a pair without a value has the lowest.
    heads
        A number for the head of each pair from 0, rising, (pair).
    """

    def __init__(self, scores: np.ndarray, heads: np.ndarray) -> None:
        from scipy.stats import rankdata

        self.ranks = rankdata(np.nan_to_num(scores, nan=-np.inf), axis=-1)
        self.heads = heads
        # The mean over all shuffles: each place then has the mean rank of its head.
        sums = np.stack([np.bincount(heads, rank) for rank in self.ranks])
        self.head_means = (sums / np.bincount(heads))[:, heads]

    def areas(self, top: np.ndarray) -> np.ndarray:
        """Of each score as it is, shuffled, and the difference: (kind, score), for the pairs to find."""
        whole, shuffled = _area(self.ranks, top), _area(self.head_means, top)
        return np.stack((whole, shuffled, whole - shuffled))

    def p(self, top: np.ndarray, seed: int = 0) -> np.ndarray:
        """Two-sided p of each score's difference from its shuffles, (score), at least 1 / (1 + SHUFFLES)."""
        random = np.random.default_rng(seed)
        middle = _area(self.head_means, top)
        extent = abs(_area(self.ranks, top) - middle)
        extreme = np.zeros(len(self.ranks))
        for _ in range(SHUFFLES):
            shuffled = np.argsort(self.heads + random.random(len(self.heads)))
            # Sums in another order differ in their last bits, which would break ties.
            extreme += abs(_area(self.ranks[:, shuffled], top) - middle) >= extent - 1e-12
        p: np.ndarray = (1 + extreme) / (1 + SHUFFLES)
        return p


def _area(rank: np.ndarray, top: np.ndarray) -> np.ndarray:
    """Area under the curve of finding the top pairs by ranks, (score, pair); equal ranks count half."""
    count = int(top.sum())
    area: np.ndarray = (rank[:, top].sum(1) - count * (count + 1) / 2) / (count * (len(top) - count))
    return area
