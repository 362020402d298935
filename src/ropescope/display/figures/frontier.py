"""Frontiers of thin keys -> what fewer key bytes cost, as a Matplotlib figure; no file is touched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator, PercentFormatter

from ropescope.base.errors import InputError
from ropescope.base.key_plans import BASELINES
from ropescope.base.statistics import ESTIMATE
from ropescope.display.figures.style import REFERENCE, SMALL, colours, plain
from ropescope.evaluation.frontier.changes import OTHER, bytes_share, compared
from ropescope.evaluation.frontier.dataset import PLAN, STOCK

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes

# Changes are drawn to scale up to this many per cent, and by their logarithm beyond.
_LINEAR = 1.0
_BASELINE: dict[str, Any] = {"ls": "--", "lw": 0.9, "ms": 3}
_OWN: dict[str, Any] = {"ls": "-", "lw": 1.6, "ms": 5}
_TICKS = (-1, 0, 1, 10, 100, 1000, 10_000)


def frontier_curves(frontiers: Mapping[str, xr.Dataset]) -> Figure:
    """Draw the change of perplexity over the share of key bytes: a panel for each frontier, a line for each way.

    Markers are what was measured, bars 95 % intervals; the line at 0 is the stock cache. The scale is logarithmic
    beyond 1 %. Baselines are dashed.

    Parameters
    ----------
    frontiers
        What :func:`ropescope.frontier` gave, by the name to show.

    Returns
    -------
    matplotlib.figure.Figure
        One row of panels of one scale.

    Raises
    ------
    InputError
        If there is no frontier.

    Examples
    --------
    >>> frontier_curves({"SmolLM2": rs.load("smollm2-frontier.nc")}).savefig("thin.png")  # doctest: +SKIP
    """
    if not frontiers:
        raise InputError("frontier_curves got no frontier; give at least one")
    methods = [*dict.fromkeys(str(way) for data in frontiers.values() for way in data["method"].values if way != STOCK)]
    looks = dict(zip(methods, colours(len(methods)), strict=True))
    figure = Figure(figsize=(1.5 + 4.0 * len(frontiers), 4.4), layout="constrained")
    panels = figure.subplots(1, len(frontiers), squeeze=False, sharey=True)[0]
    for axes, (name, data) in zip(panels, frontiers.items(), strict=True):
        _draw(axes, data, looks)
        axes.set_title(name, fontsize="medium")
    panels[0].set_ylabel("change of perplexity (%)", fontsize=SMALL + 1)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize="small")
    return figure


def _draw(axes: Axes, data: xr.Dataset, looks: Mapping[str, str]) -> None:
    share = 100 * bytes_share(data)
    change = 100 * compared(data).sel({OTHER: STOCK}).drop_vars(OTHER)
    axes.axhline(0, color=REFERENCE, lw=0.8, label="stock cache")
    for way, colour in looks.items():
        place = np.flatnonzero(data["method"].values == way)
        place = place[np.argsort(share.values[place])]
        value, low, high = (change.isel({PLAN: place}).sel({ESTIMATE: end}).values for end in ("value", "low", "high"))
        style: dict[str, Any] = (
            {"ls": "--", "lw": 0.9, "ms": 3} if way in BASELINES else {"ls": "-", "lw": 1.6, "ms": 5}
        )
        bars = np.nan_to_num(np.stack((value - low, high - value)).clip(0))
        axes.errorbar(share.values[place], value, bars, color=colour, marker="o", capsize=2, label=way, **style)
    axes.set_yscale("symlog", linthresh=_LINEAR)
    least, most = float(np.nanmin(change)), float(np.nanmax(change))
    axes.set_yticks([tick for tick in _TICKS if min(least, 0) - 1 <= tick <= most * 3 + 1])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}" if value else "0"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(PercentFormatter(decimals=0))
    axes.set_xlabel("key bytes as stored, of the stock cache's", fontsize=SMALL + 1)
    plain(axes)
