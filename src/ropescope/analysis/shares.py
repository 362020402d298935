"""How much of an entropy's variance pair index, layer and head explain."""

from __future__ import annotations

import numpy as np
import xarray as xr

from ropescope.base.axes import SEQUENCE
from ropescope.base.statistics import ESTIMATE, ESTIMATES, jackknife
from ropescope.measurement.results import mean_over_sequences, stream_data, wavelength

ENTROPY, SOURCE = "entropy", "source"
ENTROPIES = ("spectrum_fe", "sequence_fe")
# The first five add up to one.
SOURCES = ("pair", "layer", "head", "layer x pair", "head x pair", "windows", "wavelength")


def variance_shares(result: xr.DataTree, stream: str) -> xr.DataArray:
    r"""Shares of the variance of each entropy that pair index, layer and head explain, with 95 % intervals.

    An entropy (mean over sequences) is taken as a sum of independent parts, heads within layers, since head numbers
    mean nothing across layers:

    .. math:: y_{lhj} = \mu + P_j + L_l + H_{h(l)} + (LP)_{lj} + E_{hj(l)}.

    The variance of each part is solved from mean squared differences between places that share layer, head or pair
    index and places that do not. That is unbiased, also where places are missing: a part that is not there scores
    about 0, and may come out below. Shares are of the variance between places of other layer and other pair index,
    the sum of all parts. Intervals are jackknifed over layers.

    Parameters
    ----------
    result
        What :func:`ropescope.measure` gave.
    stream
        "query" or "key".

    Returns
    -------
    xarray.DataArray
        Dims (entropy, source, estimate). Sources are "pair", "layer", "head" within layer, "layer x pair" and
        "head x pair" within layer, noise included, which add up to 1; then "windows", the noise between windows that
        they contain, NaN with one sequence; and "wavelength" (its octave) in place of the pair index, NaN where all
        layers turn alike. With one head in every layer, "head" is NaN and counts to "layer", likewise "head x pair"
        to "layer x pair". With one layer all are NaN.

    References
    ----------
    Frequency Entropy paper, section 5. Koch, A general approach to the estimation of variance components,
    Technometrics 9 (1967).

    Examples
    --------
    >>> variance_shares(result, "query").sel(entropy="spectrum_fe", source="pair")  # doctest: +SKIP
    """
    data = stream_data(result, stream)
    mean, flags = mean_over_sequences(data), _differing_octaves(result)
    noise = [_noise(data[name].transpose(SEQUENCE, ...).values.astype(np.float64)) for name in ENTROPIES]
    rows = [
        jackknife(_share_of_each, mean[name].values, error, flags) for name, error in zip(ENTROPIES, noise, strict=True)
    ]
    coords = {ENTROPY: list(ENTROPIES), SOURCE: list(SOURCES), ESTIMATE: list(ESTIMATES)}
    return xr.DataArray(np.stack(rows), coords=coords, dims=(ENTROPY, SOURCE, ESTIMATE))


def octaves(result: xr.DataTree) -> xr.DataArray:
    """Lower end in tokens of the octave of each pair's wavelength, a power of two: dims (layer, pair).

    NaN where the wavelength is not known.
    """
    turns = wavelength(result)
    lower: xr.DataArray = 2.0 ** xr.DataArray(np.floor(np.log2(turns)))
    return lower


def _share_of_each(values: np.ndarray, noise: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Shares in the order of `SOURCES`, from (layer, head, pair), noise alike, and (layer, pair, octave) flags."""
    known = ~np.isnan(values)
    centred = np.where(known, values - values[known].mean() if known.any() else 0, 0)
    moments = np.stack((known, centred, centred**2))
    within_head = _half_square(_squares(moments, 3) - [0, known.sum()])
    across_heads = _half_square(_squares(moments, 2) - [0, known.sum()])
    apart = _squares(moments, 2, 3) - _squares(moments, 3) - _squares(moments, 2) + [0, known.sum()]
    same_pair, other_pair = _between_layers(moments.sum(2))
    parts = _parts(within_head, across_heads, _half_square(apart), same_pair, other_pair)
    seen = np.where(known & ~np.isnan(noise), noise, 0).sum() / _positive((known & ~np.isnan(noise)).sum())
    same_octave, other_octave = _between_layers(np.einsum("mlhj,ljo->mlo", moments, classes))
    return np.append(np.append(parts, seen) / _positive(other_pair), 1 - same_octave / _positive(other_octave))


def _parts(within_head: float, across_heads: float, apart: float, same_pair: float, other_pair: float) -> list[float]:
    """Variance of pair, layer, head, layer x pair, head x pair, solved from half mean squared differences."""
    pair = other_pair - same_pair
    if np.isnan(across_heads):
        return [pair, other_pair - within_head, np.nan, within_head - pair, np.nan]
    head = apart - within_head
    return [pair, other_pair - apart, head, apart - across_heads - pair, across_heads - head]


def _squares(moments: np.ndarray, *axes: int) -> np.ndarray:
    """Sum of squared differences, and their number, over ordered pairs of places that differ along the axes only."""
    count, total, square = moments.sum(axes) if axes else moments
    return np.array([2 * (count * square - total**2).sum(), (count**2).sum()])


def _between_layers(moments: np.ndarray) -> tuple[float, float]:
    """Half mean squared difference between layers, in the same class and in another, from moments (layer, class)."""
    single, layer, shared = _squares(moments), _squares(moments, 2), _squares(moments, 1)
    return _half_square(shared - single), _half_square(_squares(moments, 1, 2) - layer - shared + single)


def _half_square(squares: np.ndarray) -> float:
    return float(squares[0] / 2 / squares[1]) if squares[1] > 0 else np.nan


def _positive(number: float) -> float:
    return number if number > 0 else np.nan


def _noise(values: np.ndarray) -> np.ndarray:
    """Squared standard error of the mean over sequences, beyond what all places share: (layer, head, pair)."""
    known = ~np.isnan(values)
    number = np.maximum(known.sum((1, 2, 3), keepdims=True), 1)
    own = np.where(known, values - np.where(known, values, 0).sum((1, 2, 3), keepdims=True) / number, 0)
    count = known.sum(0)
    square = (own**2).sum(0) - own.sum(0) ** 2 / np.maximum(count, 1)
    return np.where(count > 1, square / np.maximum(count * (count - 1), 1), np.nan)


def _differing_octaves(result: xr.DataTree) -> np.ndarray:
    """Which octave each turning pair is in (layer, pair, octave); none where all layers turn alike."""
    turns, lower = wavelength(result).values, octaves(result).values
    turning = np.isfinite(turns)
    fastest, slowest = np.where(turning, turns, np.inf).min(0), np.where(turning, turns, 0).max(0)
    differing = bool((fastest < slowest).any())
    flags: np.ndarray = (lower[..., None] == np.unique(lower[turning])) & differing
    return flags
