"""Which heads of a result are worth looking at first."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import xarray as xr

from ropescope.base.axes import HEAD_AXIS, LAYER, PAIR, SEQUENCE, STREAMS
from ropescope.base.selections import OUTLIERS
from ropescope.measurement.results import KEPT, kept_heads, mean_over_sequences, rotated_layers, stream_data
from ropescope.measurement.summary import bands


def default_heads(result: xr.DataTree, stream: str = "query") -> list[tuple[int, int]]:
    """Choose up to three heads worth looking at.

    In rotated layers, the head with the strongest band and the one with the lowest SequenceFE; then the strongest
    band of a layer without rotation or, if there is none, the head with the most outliers.

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
    mean = mean_over_sequences(stream_data(result, stream))
    turning = rotated_layers(result)
    if not turning.any():
        turning = ~turning
    loudest = _loudest_bands(result, stream, mean["spectrum_fe"].min(PAIR))
    wanted = [loudest.where(turning), -mean["sequence_fe"].min(PAIR).where(turning)]
    wanted.append(_outliers(mean) if turning.all() else loudest.where(~turning))
    chosen: list[tuple[int, int]] = []
    for scores in wanted:
        chosen += [place for place in _ranked(scores) if place not in chosen][:1]
    return chosen


def key_heads(result: xr.DataTree, heads: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The key heads that these query heads attend to.

    Parameters
    ----------
    result
        What :func:`ropescope.measure` gave.
    heads
        (layer, query head).

    Returns
    -------
    list of tuple
        (layer, key head), each once; a place that the result does not hold stays as it is.
    """
    there = {stream: stream_data(result, stream)["mean_norm"].notnull().any((SEQUENCE, PAIR)) for stream in STREAMS}
    counts = {stream: present.sum(HEAD_AXIS[stream]).to_series().to_dict() for stream, present in there.items()}
    found = []
    for layer, head in heads:
        query, key = (counts[stream].get(layer, 0) for stream in STREAMS)
        found.append((layer, head // (query // key) if 0 <= head < query and key else head))
    return list(dict.fromkeys(found))


def with_norms_worth_seeing(result: xr.DataTree) -> xr.DataTree:
    """A result whose kept norms are those of the first head of every layer and of the default heads of each stream."""
    groups = {group: node.to_dataset() for group, node in result.children.items()}
    for stream in STREAMS:
        wanted, places = default_heads(result, stream), kept_heads(groups[stream], stream)
        shown = [row for row, place in enumerate(places) if place[1] == 0 or place in wanted]
        groups[stream] = groups[stream].isel({KEPT: shown})
    found = xr.DataTree.from_dict(groups)
    found.attrs = result.attrs
    return found


def _outliers(mean: xr.Dataset) -> xr.DataArray:
    """How many pairs of each head are outliers; among as many, the highest SpectrumFE decides."""
    highest = mean["spectrum_fe"].max(PAIR)
    counts: xr.DataArray = OUTLIERS.holds(mean["spectrum_fe"]).sum(PAIR)
    return counts + highest


def _loudest_bands(result: xr.DataTree, stream: str, like: xr.DataArray) -> xr.DataArray:
    scores = xr.full_like(like, np.nan)
    for band in reversed(bands(result, stream)):
        scores.loc[{LAYER: band.layer, HEAD_AXIS[stream]: band.head}] = band.relative_norm
    return scores


def _ranked(scores: xr.DataArray) -> list[tuple[int, int]]:
    listed = scores.stack(place=scores.dims).dropna("place")
    return [listed["place"].values[index] for index in np.argsort(-listed.values, kind="stable")]
