"""Periods of several windows together, and whether a periodic pair beats with a rhythm or drifts with the text."""

from __future__ import annotations

import numpy as np
import xarray as xr

from ropescope.base.axes import SEQUENCE

# Within it two windows have the same period.
_SAME = 0.1
# A rhythm has at least so many cycles in a window; a drift has fewer.
CYCLES = 8
RHYTHM, DRIFT = "rhythm", "drift"
RHYTHM_RULE, DRIFT_RULE = f"{CYCLES} cycles or more", f"fewer than {CYCLES}"


def agreed_period(period: xr.DataArray) -> xr.DataArray:
    """The dominant period of each pair that windows have in common; NaN where they have none.

    Parameters
    ----------
    period
        Dominant period in tokens, dims (sequence, ...); NaN where it is undefined.

    Returns
    -------
    xarray.DataArray
        Without `sequence`: a window's period that at least half of the windows with a period, and two where there are
        two, share within 10 %. A mean would name periods that no window has.
    """
    values = period.transpose(SEQUENCE, ...).values.astype(np.float64)
    sharing = np.stack([(np.abs(values - own) <= _SAME * own).sum(0) for own in values])
    defined = np.isfinite(values).sum(0)
    most = sharing.argmax(0)[None]
    shared = np.take_along_axis(sharing, most, 0)[0]
    agreed = np.take_along_axis(values, most, 0)[0]
    enough = (2 * shared >= defined) & (shared >= np.minimum(defined, 2)) & (defined > 0)
    return xr.zeros_like(period.isel({SEQUENCE: 0}, drop=True), dtype=np.float64).copy(
        data=np.where(enough, agreed, np.nan).reshape(values.shape[1:])
    )


def kinds(period: xr.DataArray, length: int | None) -> xr.DataArray:
    """Whether the norm of each pair beats or follows the text: "rhythm", "drift", or "" for neither.

    Parameters
    ----------
    period
        As in :func:`agreed_period`.
    length
        Tokens in a window; where it is not known neither can be told.

    Returns
    -------
    xarray.DataArray
        Without `sequence`. A rhythm has at least 8 cycles in a window, with the same period in at least half of the
        windows; a drift has none, but a period over `length` / 8 in half of them.
    """
    shared = agreed_period(period)
    if length is None:
        return shared.astype(object).copy(data=np.full(shared.shape, "", dtype=object))
    long = (period > length / CYCLES).sum(SEQUENCE)
    drifting = (2 * long >= period.notnull().sum(SEQUENCE)) & (long > 0)
    found = np.where(shared <= length / CYCLES, RHYTHM, np.where(drifting.transpose(*shared.dims), DRIFT, ""))
    return shared.astype(object).copy(data=found.astype(object))
