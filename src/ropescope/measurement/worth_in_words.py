"""Importance in numbers and words: how unevenly the pairs share what the model feels."""

from __future__ import annotations

import numpy as np
import xarray as xr

from ropescope.base.axes import HEAD_AXIS, KEY, LAYER, SEQUENCE, STREAMS
from ropescope.base.counting import counted
from ropescope.measurement.results import stream_data

_BEST = (0.01, 0.1)


def importance_text(worth: xr.DataTree) -> str:
    """Tell importance as plain text, per stream: how much of its sum the best pairs hold, how little the least half.

    Parameters
    ----------
    worth
        What :func:`ropescope.importance` gave.

    Returns
    -------
    str
        Lines without a newline at the end.

    Examples
    --------
    >>> print(importance_text(rs.load("qwen3-worth.nc")))  # doctest: +SKIP
    """
    return "\n\n".join("\n".join(_lines(stream_data(worth, stream), stream)) for stream in STREAMS)


def cumulative_share(values: np.ndarray) -> np.ndarray:
    """Share of the sum that the pairs of highest value hold, by how many they are, (count); NaN is no pair.

    Examples
    --------
    >>> cumulative_share(np.array([1.0, 6.0, np.nan, 3.0])).tolist()
    [0.6, 0.9, 1.0]
    """
    ordered = np.sort(values[~np.isnan(values)])[::-1]
    shares: np.ndarray = np.cumsum(ordered) / ordered.sum()
    return shares


def lesser_half(values: np.ndarray) -> float:
    """Share of the sum that the half of the pairs of lowest value holds; NaN is no pair.

    Examples
    --------
    >>> lesser_half(np.array([1.0, 6.0, np.nan, 3.0, 0.0]))
    0.1
    """
    ordered = np.sort(values[~np.isnan(values)])
    return float(ordered[: len(ordered) // 2].sum() / ordered.sum())


def _lines(data: xr.Dataset, stream: str) -> list[str]:
    sizes, present = data.sizes, data["fisher"].notnull().any(SEQUENCE)
    title = (
        f"{stream}: {int(present.sum())} pairs in {counted(sizes[LAYER], 'layer')} x "
        f"{counted(sizes[HEAD_AXIS[stream]], 'head')}, mean over {counted(sizes[SEQUENCE], 'window')}"
    )
    # A rotation is a key head's group's: among queries it stands once for every head of the group.
    rotation = [_shares(data["rotation_fisher"], "of rotation")] if stream == KEY else []
    return [
        title,
        _shares(data["fisher"], "importance"),
        *rotation,
        f"  worth nothing  {int((data['fisher'] == 0).all(SEQUENCE).sum()):>5} pairs",
    ]


def _shares(fisher: xr.DataArray, name: str) -> str:
    values = fisher.astype(np.float64).mean(SEQUENCE).values.ravel()
    shares = cumulative_share(values)
    best = [f"best {share:.0%} hold {shares[max(1, round(share * len(shares))) - 1]:.0%}" for share in _BEST]
    lesser, total = lesser_half(values), np.nansum(values)
    return f"  {name:<13}  {', '.join(best)}, the lesser half {lesser:.1%} of {total:.3g} nat/token"
