"""Which heads of a result are worth looking at first."""

from __future__ import annotations

import numpy as np
import xarray as xr

from ropescope.base.axes import HEAD_AXIS, LAYER, PAIR
from ropescope.measurement.results import kept_heads, mean_over_sequences, rotated_layers, stream_data
from ropescope.measurement.summary import bands


def default_heads(result: xr.DataTree, stream: str = "query") -> list[tuple[int, int]]:
    """Choose up to three heads worth looking at.

    In rotated layers, the head with the strongest band and the one with the lowest SequenceFE; then the strongest
    band of a layer without rotation or, if there is none, the highest SpectrumFE. Heads with kept norms come first.

    Parameters
    ----------
    result
        What :func:`ropescope.measure` gave.
    stream
        "query" or "key".

    Returns
    -------
    list of tuple
        (layer, query head or, for keys, key head), one to three.

    Raises
    ------
    InputError
        `stream` is neither.

    Examples
    --------
    >>> default_heads(result, "key")  # doctest: +SKIP
    [(6, 0), (1, 2), (20, 1)]
    """
    data = stream_data(result, stream)
    mean = mean_over_sequences(data)
    kept = kept_heads(data, stream)
    turning = rotated_layers(result)
    if not turning.any():
        turning = ~turning
    loudest = _loudest_bands(result, stream, mean["spectrum_fe"].min(PAIR))
    wanted = [loudest.where(turning), -mean["sequence_fe"].min(PAIR).where(turning)]
    wanted.append(mean["spectrum_fe"].max(PAIR) if turning.all() else loudest.where(~turning))
    chosen: list[tuple[int, int]] = []
    for scores in wanted:
        ranked = [place for place in _ranked(scores) if place not in chosen]
        chosen += ([place for place in ranked if place in kept] or ranked)[:1]
    return chosen


def _loudest_bands(result: xr.DataTree, stream: str, like: xr.DataArray) -> xr.DataArray:
    scores = xr.full_like(like, np.nan)
    for band in reversed(bands(result, stream)):
        scores.loc[{LAYER: band.layer, HEAD_AXIS[stream]: band.head}] = band.relative_norm
    return scores


def _ranked(scores: xr.DataArray) -> list[tuple[int, int]]:
    listed = scores.stack(place=scores.dims).dropna("place")
    return [listed["place"].values[index] for index in np.argsort(-listed.values, kind="stable")]
