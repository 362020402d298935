"""At which wavelengths and in which layers the members of the paper's selections lie."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr

from ropescope.analysis.shares import octaves, variance_shares
from ropescope.base.axes import HEAD_AXIS, LAYER, PAIR, STREAMS
from ropescope.base.selections import BANDS, PAPER
from ropescope.base.statistics import ESTIMATE, ESTIMATES, jackknife, permutation_p
from ropescope.interventions.masks import PairMask
from ropescope.interventions.selection import select
from ropescope.measurement.results import ROTARY, wavelength

SELECTION, OCTAVE, ROTATION = "selection", "octave", "rotation"
SELECTIONS = tuple(PAPER)
ROPE, NOPE = "RoPE", "NoPE"


def localise(result: xr.DataTree) -> xr.DataTree:
    """Say what the places of a result's bands, spectrum outliers and periodic pairs depend on.

    Parameters
    ----------
    result
        What :func:`ropescope.measure` gave.

    Returns
    -------
    xarray.DataTree
        Groups `query` and `key`: `share` as in :func:`ropescope.analysis.shares.variance_shares`; `pairs` (layer,
        octave) and `members` (selection, layer, octave), counts over octaves of wavelength, named by their lower end
        in tokens, infinite where nothing turns (pairs of unknown wavelength are in none); `median_wavelength`
        (selection, layer) in tokens; `slow_share` (selection, estimate), the members in the slower half of their
        layer's turning pairs, 95 % over layers; `rotated` (layer). In models with RoPE and NoPE layers also
        `mean_count` (selection, rotation), members in a layer, and `p` (selection), two-sided against shuffled layer
        labels.

    References
    ----------
    Frequency Entropy paper, section 5, and observation 3 of section 3.4.

    Examples
    --------
    >>> localise(result)["query"].members.sel(selection="bands").sum("layer")  # doctest: +SKIP
    """
    masks = {name: select(result, name) for name in SELECTIONS}
    return xr.DataTree.from_dict({f"/{stream}": _stream(result, stream, masks) for stream in STREAMS})


def bands_over_octaves(result: xr.DataTree, stream: str) -> xr.Dataset:
    """`pairs` and `members` of :func:`localise` for bands alone, and nothing else, which is soon counted."""
    return _counts(result, stream, {BANDS.name: select(result, BANDS.name)})


def _counts(result: xr.DataTree, stream: str, masks: Mapping[str, PairMask]) -> xr.Dataset:
    lower, within = octaves(result), [HEAD_AXIS[stream], PAIR]
    edges = np.unique(lower.values[lower.notnull().values])
    flags = lower == xr.DataArray(edges, coords={OCTAVE: edges}, dims=OCTAVE)
    pairs = (masks[BANDS.name].present(stream) & flags).sum(within)
    return xr.Dataset({"pairs": pairs, "members": (_members(stream, masks) & flags).sum(within)})


def _members(stream: str, masks: Mapping[str, PairMask]) -> xr.DataArray:
    return xr.concat([mask.streams()[stream] for mask in masks.values()], xr.Variable(SELECTION, list(masks)))


def _stream(result: xr.DataTree, stream: str, masks: Mapping[str, PairMask]) -> xr.Dataset:
    members, turns = _members(stream, masks), wavelength(result)
    rotated, within = result.children[ROTARY].to_dataset()["rotated"].any(PAIR), [HEAD_AXIS[stream], PAIR]
    values = {
        "share": variance_shares(result, stream),
        **_counts(result, stream, masks).data_vars,
        "median_wavelength": turns.where(members).median(within),
        "slow_share": _slow_share(members.sum(HEAD_AXIS[stream]), turns),
        "rotated": rotated,
    }
    return xr.Dataset({**values, **_rope_against_nope(members.sum(within), rotated)})


def _slow_share(members: xr.DataArray, turns: xr.DataArray) -> xr.DataArray:
    turning = turns.where(np.isfinite(turns))
    middle = turning.median(PAIR)
    weights = ((turning > middle) + (turning == middle) / 2, turning > 0)
    counts = [(members * weight).sum(PAIR).transpose(LAYER, SELECTION).values for weight in weights]

    def share(slower: np.ndarray, every: np.ndarray) -> np.ndarray:
        return np.where(every.sum(0) > 0, slower.sum(0) / np.maximum(every.sum(0), 1), np.nan)

    coords = {SELECTION: members[SELECTION].values, ESTIMATE: list(ESTIMATES)}
    return xr.DataArray(jackknife(share, *counts).clip(0, 1), coords=coords, dims=(SELECTION, ESTIMATE))


def _rope_against_nope(counts: xr.DataArray, rotated: xr.DataArray) -> dict[str, xr.DataArray]:
    if rotated.all() or not rotated.any():
        return {}
    flags = rotated.values
    means = [counts.transpose(SELECTION, LAYER).values[:, where].mean(1) for where in (flags, ~flags)]
    tested = [permutation_p(counts.sel({SELECTION: name}).values.astype(float), flags) for name in SELECTIONS]
    return {
        "mean_count": xr.DataArray(np.stack(means, 1), coords={ROTATION: [ROPE, NOPE]}, dims=(SELECTION, ROTATION)),
        "p": xr.DataArray(tested, dims=SELECTION),
    }
