"""Does Frequency Entropy foretell importance? What selections hold of it, and how well a score finds the best."""

from __future__ import annotations

import numpy as np
import xarray as xr

from ropescope.analysis.importance_scores import SCORES, SHUFFLES, TOP, Finding, highest, scores_of
from ropescope.base.axes import HEAD_AXIS, LAYER, PAIR, SEQUENCE, STREAMS
from ropescope.base.selections import PAPER
from ropescope.base.statistics import ESTIMATE, ESTIMATES, LEAST_WINDOWS, jackknife
from ropescope.measurement.joining import joined
from ropescope.measurement.results import mean_over_sequences, stream_data
from ropescope.measurement.worth_in_words import lesser_half

STREAM, SELECTION, SCORE = "stream", "selection", "score"


def importance_shares(result: xr.DataTree, importance: xr.DataTree) -> xr.Dataset:
    """Share of the importance that each of the paper's selections holds, and which score finds the top tenth.

    A score is judged by how often a pair of the top tenth by `fisher` has a higher one than another pair (AUC, 0.5
    being chance), and by the same after its values were shuffled among the pairs of each head: what is left then comes
    from telling heads apart, the difference from telling pairs of one head apart.

    Parameters
    ----------
    result
        What :func:`ropescope.measure` gave.
    importance
        What :func:`ropescope.importance` gave for the same model.

    Returns
    -------
    xarray.Dataset
        `pairs` (stream, selection) and `importance` (stream, selection, estimate), shares of the pairs and of the sum
        of `fisher`; `lesser_half` (stream, estimate), the share that the half of the pairs of lowest `fisher` holds;
        `auc`, `shuffled_auc` (the mean over all shuffles, exact) and `beyond_heads`, their difference, over (stream,
        score, estimate); `p` (stream, score), two-sided, of that difference against 1000 shuffles. Estimates are the
        value with a 95 % jackknife interval over the windows of the importance, NaN with fewer than five of them.
        Scores are low SpectrumFE, low SequenceFE, the mean norm, and the norm product: the mean norm of a pair's
        queries times that of its keys. A pair without a value of the score has the lowest.

    Raises
    ------
    InputError
        If the two are of other models or pairs.

    References
    ----------
    The norm product: Xu et al., ThinK: Thinner Key Cache by Query-Driven Pruning, ICLR 2025.

    Examples
    --------
    >>> found = importance_shares(rs.load("qwen3.nc"), rs.load("qwen3-worth.nc"))  # doctest: +SKIP
    >>> found.importance.sel(stream="query", selection="bands", estimate="value").item()  # doctest: +SKIP
    """
    joined(result, importance)
    streams = [_of_stream(result, importance, stream) for stream in STREAMS]
    attributes = {"top": TOP, "windows": stream_data(importance, STREAMS[0]).sizes[SEQUENCE], "shuffles": SHUFFLES}
    return xr.concat(streams, xr.Variable(STREAM, list(STREAMS))).assign_attrs(attributes)


def _of_stream(result: xr.DataTree, importance: xr.DataTree, stream: str) -> xr.Dataset:
    place = (LAYER, HEAD_AXIS[stream], PAIR)
    mean = mean_over_sequences(stream_data(result, stream)).transpose(*place)
    present = mean["mean_norm"].notnull().values
    fisher = stream_data(importance, stream)["fisher"].transpose(SEQUENCE, *place).values[:, present].astype(np.float64)
    heads = np.unique(np.argwhere(present)[:, :2], axis=0, return_inverse=True)[1].ravel()
    finding = Finding(np.stack([score[present] for score in scores_of(result, stream).values()]), heads)
    chosen = np.stack([each.holds(mean[each.variable].values)[present] for each in PAPER.values()])
    areas = jackknife(lambda rows: finding.areas(highest(rows.mean(0))), fisher, least=LEAST_WINDOWS)
    held = jackknife(lambda rows: _shares(rows, chosen), fisher, least=LEAST_WINDOWS)
    lesser = jackknife(lambda rows: lesser_half(rows.mean(0)), fisher, least=LEAST_WINDOWS)
    variables = {
        "pairs": (SELECTION, chosen.mean(1)),
        # Intervals end where shares, and differences of shares, do.
        "importance": ((SELECTION, ESTIMATE), held.clip(0, 1)),
        "lesser_half": (ESTIMATE, lesser.clip(0, 1)),
        "auc": ((SCORE, ESTIMATE), areas[0].clip(0, 1)),
        "shuffled_auc": ((SCORE, ESTIMATE), areas[1].clip(0, 1)),
        "beyond_heads": ((SCORE, ESTIMATE), areas[2].clip(-1, 1)),
        "p": (SCORE, finding.p(highest(fisher.mean(0)))),
    }
    return xr.Dataset(variables, {SELECTION: list(PAPER), SCORE: list(SCORES), ESTIMATE: list(ESTIMATES)})


def _shares(rows: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Share of the sum that the pairs of each selection hold, of rows (window, pair)."""
    values = rows.sum(0)
    share: np.ndarray = (chosen * values).sum(1) / values.sum()
    return share
