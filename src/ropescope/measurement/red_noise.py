"""Red noise as a null: how often AR(1) of the same SequenceFE would pass for a rhythm."""

from __future__ import annotations

from functools import cache

import numpy as np
import xarray as xr

from ropescope.base.axes import PAIR, SEQUENCE
from ropescope.base.selections import PERIODIC
from ropescope.measurement.periods import RHYTHM, kinds
from ropescope.measurement.results import mean_over_sequences, stream_data, window_length

_SERIES, _FITTED = 200, 32
_WINDOWS = 8
_STEPS = 12


def expected_rhythms(result: xr.DataTree, stream: str) -> float | None:
    """How many of a stream's periodic pairs would be called a rhythm if all were red noise of their median SequenceFE.

    Parameters
    ----------
    result : xarray.DataTree
    stream : {"query", "key"}

    Returns
    -------
    float or None
        None where no pair is periodic, or the result does not hold the length of its windows.
    """
    data, length = stream_data(result, stream), window_length(result)
    entropy = mean_over_sequences(data)[PERIODIC.variable].values
    periodic = entropy[PERIODIC.holds(entropy)]
    if not periodic.size or length is None:
        return None
    share: float = rhythm_of_red_noise(length, data.sizes[SEQUENCE], round(float(np.median(periodic)), 3))
    return int(periodic.size) * share


@cache
def rhythm_of_red_noise(length: int, windows: int, entropy: float, *, seed: int = 0) -> float:
    r"""Share of red noise that :func:`ropescope.measurement.periods.kinds` calls a rhythm.

    The noise is :math:`s_n = \rho s_{n-1} + \epsilon_n`, with the :math:`\rho` whose mean SequenceFE is the one asked
    for, in as many windows as were measured.

    Parameters
    ----------
    length
        Tokens in a window.
    windows
        Windows that must share a period.
    entropy
        SequenceFE, 0 to 1.
    seed
        Of the noise.

    Returns
    -------
    float
        0 to 1, from 200 series.
    """
    # More windows make agreement by chance rarer still, so that leaving some out errs on the safe side.
    noise = np.random.default_rng(seed).standard_normal((min(windows, _WINDOWS), _SERIES, length))
    low, high = 0.0, 1.0
    # SequenceFE falls as rho rises, since the slow bins take the power.
    for _ in range(_STEPS):
        middle = (low + high) / 2
        found = float(_entropy(_power(_red(noise[0, :_FITTED], middle))).mean())
        low, high = (middle, high) if found > entropy else (low, middle)
    peak = _power(_red(noise, high)).argmax(-1) + 1
    period = xr.DataArray(length / peak, dims=(SEQUENCE, PAIR))
    return float((kinds(period, length) == RHYTHM).mean())


def _red(noise: np.ndarray, rho: float) -> np.ndarray:
    from scipy.signal import lfilter

    # Begun in the stationary state, whose variance is 1 / (1 - rho^2).
    start = noise[..., :1] * (rho / max(np.sqrt(1 - rho**2), 1e-6))
    filtered: np.ndarray = lfilter([1.0], [1.0, -rho], noise, axis=-1, zi=start)[0]
    return filtered


def _power(series: np.ndarray) -> np.ndarray:
    length = series.shape[-1]
    power: np.ndarray = np.abs(np.fft.rfft(series, axis=-1)[..., 1 : length // 2]) ** 2
    return power


def _entropy(power: np.ndarray) -> np.ndarray:
    """SequenceFE of these powers, without loading torch; noise has some in every bin."""
    from scipy.stats import entropy

    found: np.ndarray = entropy(power, axis=-1) / np.log(power.shape[-1])
    return found
