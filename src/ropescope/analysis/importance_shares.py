"""Does Frequency Entropy foretell importance? What selections hold of it, and how well a score finds the best."""

from __future__ import annotations

import numpy as np
import xarray as xr

from ropescope.base.axes import STREAMS
from ropescope.base.selections import PAPER
from ropescope.base.statistics import ESTIMATE, ESTIMATES, bootstrapped, ranks
from ropescope.measurement.results import joined, mean_over_sequences, stream_data

SCORES = {"-spectrum_fe": ("spectrum_fe", -1), "-sequence_fe": ("sequence_fe", -1), "mean_norm": ("mean_norm", 1)}
_TOP = 0.1


def importance_shares(result: xr.DataTree, importance: xr.DataTree) -> xr.Dataset:
    """Share of the importance that each of the paper's selections holds, and which score finds the top tenth.

    Parameters
    ----------
    result
        What :func:`ropescope.measure` gave.
    importance
        What :func:`ropescope.importance` gave for the same model.

    Returns
    -------
    xarray.Dataset
        `pairs` and `importance` (stream, selection, estimate), shares of the pairs and of the sum of `fisher`, the
        latter with a 95 % bootstrap interval over the windows of the importance; `auc` (stream, score, estimate), how
        often a pair of the top tenth by `fisher` has a higher score than another one, 0.5 being chance. A pair without
        a value of the score has the lowest.

    Raises
    ------
    InputError
        If the two are of other models or pairs.

    Examples
    --------
    >>> found = importance_shares(rs.load("qwen3.nc"), rs.load("qwen3-worth.nc"))  # doctest: +SKIP
    >>> found.importance.sel(stream="query", selection="bands", estimate="value").item()  # doctest: +SKIP
    """
    joined(result, importance)
    shape = (len(STREAMS), len(PAPER), len(ESTIMATES))
    pairs, held = np.empty(shape[:2]), np.empty(shape)
    found = np.empty((len(STREAMS), len(SCORES), len(ESTIMATES)))
    for row, stream in enumerate(STREAMS):
        mean = mean_over_sequences(stream_data(result, stream))
        present = mean["mean_norm"].notnull().values
        fisher = stream_data(importance, stream)["fisher"].values[:, present].astype(np.float64)
        for column, selection in enumerate(PAPER.values()):
            chosen = selection.holds(mean[selection.variable].values)[present]
            pairs[row, column] = chosen.mean()
            held[row, column] = bootstrapped(lambda rows, chosen=chosen: rows[:, chosen].sum() / rows.sum(), fisher)
        for column, (variable, sign) in enumerate(SCORES.values()):
            score = np.nan_to_num(sign * mean[variable].values[present], nan=-np.inf)
            found[row, column] = bootstrapped(lambda rows, score=score: _auc(rows.mean(0), score), fisher)
    coords = {"stream": list(STREAMS), "selection": list(PAPER), "score": list(SCORES), ESTIMATE: list(ESTIMATES)}
    variables = {
        "pairs": (("stream", "selection"), pairs),
        "importance": (("stream", "selection", ESTIMATE), held),
        "auc": (("stream", "score", ESTIMATE), found),
    }
    return xr.Dataset(variables, coords, {"top": _TOP, "windows": int(fisher.shape[0])})


def _auc(fisher: np.ndarray, score: np.ndarray) -> float:
    """Area under the curve of finding the top tenth by a score; equal scores count half."""
    top = np.zeros(len(fisher), dtype=bool)
    top[np.argsort(-fisher, kind="stable")[: max(1, round(_TOP * len(fisher)))]] = True
    wins = ranks(score)[top].sum() - top.sum() * (top.sum() + 1) / 2
    return float(wins / (top.sum() * (~top).sum()))
