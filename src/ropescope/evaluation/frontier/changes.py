"""What a frontier says: changes against the stock cache and between plans, with paired intervals; a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from ropescope.base.statistics import ESTIMATE, ESTIMATES, nats_difference
from ropescope.base.tables import Format, Table, csv_text, in_format
from ropescope.evaluation.frontier.dataset import FRONTIER, PLAN, SIDE, STOCK, THIN

if TYPE_CHECKING:
    from collections.abc import Iterator

OTHER = "other"
_TIMES = {"decode": "decode_seconds", "prefill": "prefill_seconds"}


def compared(data: xr.Dataset) -> xr.DataArray:
    r"""Relative change of perplexity from every plan to every other, :math:`e^{\Delta} - 1` of mean nats.

    Parameters
    ----------
    data
        What :func:`ropescope.frontier` gave.

    Returns
    -------
    xarray.DataArray
        Dims (plan, other, estimate): perplexity of `plan` over that of `other`, less 1, with a 95 % interval that
        speaks of other windows of this text; NaN with fewer than five windows.
    """
    FRONTIER.check(data, "the dataset")
    nats, plans = data["nats"].values, data[PLAN].values
    with np.errstate(over="ignore"):
        found = np.expm1(nats_difference(nats[:, None], nats[None], data["tokens"].values))
    return xr.DataArray(found, {PLAN: plans, OTHER: plans, ESTIMATE: list(ESTIMATES)}, (PLAN, OTHER, ESTIMATE))


def bytes_share(data: xr.Dataset) -> xr.DataArray:
    """Bytes of the stored keys over those of the stock cache, (plan)."""
    return data["key_bytes"] / data["key_bytes"].sel({PLAN: STOCK}, drop=True)


def time_ratios(data: xr.Dataset, variable: str) -> xr.DataArray:
    """Median, lowest and highest of thin over stock seconds of the same round, (plan, estimate); NaN if not timed."""
    ratios = data[variable].sel({SIDE: THIN}, drop=True) / data[variable].sel({SIDE: STOCK}, drop=True)
    ends = np.stack([ratios.median("round"), ratios.min("round"), ratios.max("round")], axis=-1)
    return xr.DataArray(ends, {PLAN: data[PLAN].values, ESTIMATE: list(ESTIMATES)}, (PLAN, ESTIMATE))


def frontier_table(data: xr.Dataset, *, format: Format = "text") -> str:
    """Write a row for every plan: bytes, perplexity, its change against the stock cache, and time where it was taken.

    Parameters
    ----------
    data
        What :func:`ropescope.frontier` gave.
    format
        "text" for a terminal, "markdown", or "csv" (plain numbers at full precision, intervals in own columns).

    Returns
    -------
    str

    Raises
    ------
    InputError
        If the format is another.
    ResultError
        If the dataset is no frontier.

    Examples
    --------
    >>> print(frontier_table(rs.load("smollm2-frontier.nc")))  # doctest: +SKIP
    """
    return in_format(format, lambda: as_table(data), lambda: _csv(data))


def as_table(data: xr.Dataset) -> Table:
    """The rows of :func:`frontier_table` as a table."""
    change = compared(data).sel({OTHER: STOCK})
    timed = {word: time_ratios(data, name) for word, name in _TIMES.items() if data[name].notnull().any()}
    memory = data["extra_bytes"].notnull().any()
    header = ["keys", "bytes", "perplexity", "change", *(f"{word} time" for word in timed)]
    header += ["extra memory"] if memory else []
    rows = []
    for plan in data[PLAN].values:
        at = {PLAN: plan}
        row = [str(plan), f"{float(bytes_share(data).sel(at)):.1%}", number(float(data["perplexity"].sel(at)))]
        row.append("" if plan == STOCK else percent(change.sel(at).values))
        row += [_times(ratios.sel(at).values) for ratios in timed.values()]
        rows.append([*row, *([_megabytes(data["extra_bytes"].sel({**at, SIDE: THIN}))] if memory else [])])
    return Table(header, rows)


def percent(estimates: np.ndarray) -> str:
    """A relative change with its interval, as "+0.53 % [+0.41, +0.66]"."""
    value, low, high = (_signed(100 * float(each)) for each in estimates)
    return f"{value} %" if np.isnan(estimates[1]) else f"{value} % [{low}, {high}]"


def value_percent(value: float) -> str:
    """A relative change without its interval."""
    return f"{_signed(100 * value)} %"


def _signed(value: float) -> str:
    if abs(value) >= 1e5:
        return f"{value:+.3g}"
    return f"{value:+.{0 if abs(value) >= 1000 else 1 if abs(value) >= 10 else 2}f}"


def number(value: float) -> str:
    """A perplexity."""
    return f"{value:.3g}" if value >= 1e5 else f"{value:.2f}" if value >= 10 else f"{value:.3f}"


def _times(estimates: np.ndarray) -> str:
    value, low, high = estimates
    return "" if np.isnan(value) else f"{value:.2f}x [{low:.2f}, {high:.2f}]"


def _megabytes(value: xr.DataArray) -> str:
    return "" if np.isnan(value) else f"{float(value) / 2**20:.0f} MiB"


def _csv(data: xr.Dataset) -> str:
    header = ["plan", "method", "keep", "key_bytes", "key_bytes_share", "perplexity"]
    header += [f"{word}{end}" for word in ("change", *_TIMES) for end in ("", "_low", "_high")]
    return csv_text([*header, "stock_extra_bytes", "thin_extra_bytes"], _csv_rows(data))


def _csv_rows(data: xr.Dataset) -> Iterator[list[object]]:
    change = compared(data).sel({OTHER: STOCK})
    ratios = [change, *(time_ratios(data, name) for name in _TIMES.values())]
    for plan in data[PLAN].values:
        own = data.sel({PLAN: plan})
        numbers = [own["keep"].item(), own["key_bytes"].item(), bytes_share(data).sel({PLAN: plan}).item()]
        numbers += [own["perplexity"].item(), *(n for each in ratios for n in each.sel({PLAN: plan}).values.tolist())]
        numbers += own["extra_bytes"].values.tolist()
        yield [str(plan), str(own["method"].values), *("" if np.isnan(n) else n for n in numbers)]
