"""Results of any models against each other: how bands and periodic pairs spread over depth and wavelength."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from ropescope.analysis.comparability import check_frames, on_scale_of
from ropescope.analysis.places import OCTAVE, SELECTION, SELECTIONS
from ropescope.analysis.shares import ENTROPIES, ENTROPY, octaves
from ropescope.base.axes import HEAD_AXIS, LAYER, PAIR, STREAMS
from ropescope.interventions.selection import select
from ropescope.measurement.results import mean_over_sequences, stream_data

RESULT, STREAM, DEPTH = "result", "stream", "depth"
_DEPTHS = 10


def distributions(results: Mapping[str, xr.DataTree]) -> xr.Dataset:
    """Spread of bands, spectrum outliers and periodic pairs over relative depth and over wavelength.

    Pairs of different models cannot be matched, so only their distributions compare. SequenceFE is put on the first
    result's scale through the white-noise reference.

    Parameters
    ----------
    results
        At least two results of :func:`ropescope.measure` by name, of any models.

    Returns
    -------
    xarray.Dataset
        Over `depth`, the middle of a bin of relative layer depth (0 first, 1 last), and over `octave`, the lower end
        in tokens of an octave of wavelength, infinite where nothing turns: `pairs_by_depth` and `pairs_by_octave`
        (result, stream, bin); `share_by_depth` and `share_by_octave` (result, stream, selection, bin) of these pairs;
        `median_by_depth` and `median_by_octave` (result, stream, entropy, bin). NaN where a model has no pairs. There
        are ten bins of depth, or as many as the shallowest model has layers. `share` (result, stream, selection) is
        that of all pairs.

    Raises
    ------
    InputError
        There are fewer than two results.
    ResultError
        Frames of SpectrumFE differ.

    References
    ----------
    Frequency Entropy paper, appendix A.3.

    Examples
    --------
    >>> distributions({"qwen3": one, "gemma2": another}).share_by_depth.sel(selection="bands")  # doctest: +SKIP
    """
    check_frames(results)
    first = next(iter(results.values()))
    placed = [on_scale_of(first, result) for result in results.values()]
    bins = min(_DEPTHS, *(len(octaves(result)) for result in placed))
    edges = np.unique(np.concatenate([octaves(result).values.ravel() for result in placed]))
    streams = [
        xr.concat([_spread(result, stream, bins, edges) for result in placed], xr.Variable(RESULT, list(results)))
        for stream in STREAMS
    ]
    coords = {DEPTH: (np.arange(bins) + 0.5) / bins, OCTAVE: edges}
    return xr.concat(streams, xr.Variable(STREAM, list(STREAMS))).assign_coords(coords)


def _spread(result: xr.DataTree, stream: str, bins: int, edges: np.ndarray) -> xr.Dataset:
    mean = mean_over_sequences(stream_data(result, stream)).transpose(LAYER, HEAD_AXIS[stream], PAIR)
    present = mean["mean_norm"].notnull()
    members = np.stack([select(result, name).streams()[stream].values for name in SELECTIONS])
    entropies = np.stack([mean[name].values for name in ENTROPIES])
    depth = np.arange(present.sizes[LAYER]) * bins // present.sizes[LAYER]
    lower = octaves(result).transpose(LAYER, PAIR).values
    spread = {
        DEPTH: [_in_bin(present.values & (depth == b)[:, None, None], members, entropies) for b in range(bins)],
        OCTAVE: [_in_bin(present.values & (lower == edge)[:, None], members, entropies) for edge in edges],
    }
    variables: dict[str, tuple[Any, Any]] = {"share": (SELECTION, members.sum((1, 2, 3)) / int(present.sum()))}
    for axis, found in spread.items():
        pairs, shares, medians = (np.stack(column, axis=-1) for column in zip(*found, strict=True))
        variables |= {
            f"pairs_by_{axis}": ((axis,), pairs),
            f"share_by_{axis}": ((SELECTION, axis), shares),
            f"median_by_{axis}": ((ENTROPY, axis), medians),
        }
    return xr.Dataset(variables, coords={SELECTION: list(SELECTIONS), ENTROPY: list(ENTROPIES)})


def _in_bin(where: np.ndarray, members: np.ndarray, entropies: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Number of pairs, the share of them in each selection, and the median of each entropy where defined."""
    count = int(where.sum())
    shares = members[:, where].sum(1) / count if count else np.full(len(members), np.nan)
    found = [values[where & ~np.isnan(values)] for values in entropies]
    return np.array(count), shares, np.array([np.median(values) if values.size else np.nan for values in found])
