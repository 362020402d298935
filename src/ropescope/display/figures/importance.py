"""Importance against SpectrumFE, pair by pair, and how few pairs hold most of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from ropescope.analysis.importance_in_words import area_text, percent
from ropescope.analysis.importance_scores import SPECTRUM, highest
from ropescope.analysis.importance_shares import SCORE, SELECTION, STREAM, importance_shares
from ropescope.base.axes import STREAM_NAMES, STREAMS
from ropescope.base.counting import counted
from ropescope.base.pair_variables import pair_variables
from ropescope.base.selections import PAPER, SILENT, VARIABLE_LABELS
from ropescope.base.statistics import ESTIMATE
from ropescope.display.figures.style import (
    CURVE,
    FAINT,
    REFERENCE,
    SELECTED,
    SMALL,
    colours,
    entropy_limits,
    plain,
    thresholds,
)
from ropescope.measurement.joining import extent_of, joined
from ropescope.measurement.names import model_name
from ropescope.measurement.results import mean_over_sequences, provenance, stream_data
from ropescope.measurement.worth_in_words import cumulative_share

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes

_MARKERS = ("o", "s", "^")


def importance_scatter(result: xr.DataTree, importance: xr.DataTree) -> Figure:
    """Draw importance against SpectrumFE for every query and key pair, and how much the most important pairs hold.

    Vertical lines are the thresholds of the paper's selections, the dashed one begins the most important tenth. Crosses
    on the floor are pairs of importance 0; silent ones, which have no SpectrumFE either, are counted in a corner. The
    curve adds pairs up, the most important first; markers are what the paper's selections hold.

    Parameters
    ----------
    result
        What :func:`ropescope.measure` gave.
    importance
        What :func:`ropescope.importance` gave for the same model.

    Returns
    -------
    matplotlib.figure.Figure
        Queries, keys, and both as cumulative curves.

    Raises
    ------
    InputError
        If the two are of other models or pairs.

    Examples
    --------
    >>> importance_scatter(rs.load("qwen3.nc"), rs.load("qwen3-worth.nc")).savefig("worth.png")  # doctest: +SKIP
    """
    found, both = importance_shares(result, importance), joined(result, importance)
    means = {stream: mean_over_sequences(stream_data(both, stream)) for stream in STREAMS}
    figure = Figure(figsize=(13.5, 5.2), layout="constrained")
    figure.suptitle(_caption(result, importance), fontsize=SMALL + 1, color=REFERENCE)
    query, key, cumulative = figure.subplots(1, 3)
    key.sharey(query)
    for axes, (stream, mean) in zip((query, key), means.items(), strict=True):
        _draw_pairs(axes, mean)
        area = area_text(found["auc"].sel({STREAM: stream, SCORE: SPECTRUM}))
        axes.set_title(f"{STREAM_NAMES[stream]}\ntop tenth found with AUC {area}", fontsize=SMALL + 2)
    query.set_ylabel(pair_variables()["fisher"].axis_label, fontsize=SMALL + 1)
    _draw_cumulative(cumulative, means, found)
    return figure


def _draw_pairs(axes: Axes, mean: xr.Dataset) -> None:
    present = mean["mean_norm"].notnull().values
    entropy, fisher = (mean[name].values[present] for name in ("spectrum_fe", "fisher"))
    known, worthless = ~np.isnan(entropy), fisher == 0
    style: dict[str, Any] = {"ls": "", "rasterized": True}
    shown = known & ~worthless
    axes.plot(entropy[shown], fisher[shown], marker=".", ms=3, alpha=0.35, mew=0, color=CURVE, label="pairs", **style)
    floor = known & worthless
    across = axes.get_xaxis_transform()
    if floor.any():
        axes.plot(
            entropy[floor],
            np.full(floor.sum(), 0.02),
            marker="x",
            ms=4,
            color=REFERENCE,
            transform=across,
            label="importance 0",
            **style,
        )
    if silent := int((~known).sum()):
        text = f"{SILENT.counted(silent)}: no SpectrumFE, importance 0"
        axes.text(0.98, 0.02, text, transform=axes.transAxes, ha="right", va="bottom", fontsize=SMALL, color=REFERENCE)
    axes.set_yscale("log")
    for text, place in thresholds("spectrum_fe"):
        axes.axvline(place, lw=0.9, color=FAINT, zorder=0)
        axes.annotate(text, (place, 1.0), xycoords=across, rotation=90, va="top", ha="right", fontsize=SMALL)
    tenth = float(fisher[highest(fisher)].min())
    axes.axhline(tenth, lw=0.9, ls="--", color=SELECTED, zorder=0)
    along = axes.get_yaxis_transform()
    axes.annotate("top tenth", (0.99, tenth), xycoords=along, va="bottom", ha="right", fontsize=SMALL, color=SELECTED)
    axes.set_xlim(*entropy_limits("spectrum_fe", [mean["spectrum_fe"]]))
    axes.set_xlabel(VARIABLE_LABELS["spectrum_fe"], fontsize=SMALL + 1)
    plain(axes)


def _draw_cumulative(axes: Axes, means: dict[str, xr.Dataset], found: xr.Dataset) -> None:
    for (stream, mean), colour in zip(means.items(), colours(len(means)), strict=True):
        held = cumulative_share(mean["fisher"].values.ravel())
        share = np.arange(1, len(held) + 1) / len(held)
        lesser = percent(float(found["lesser_half"].sel({STREAM: stream, ESTIMATE: "value"})))
        label = f"{STREAM_NAMES[stream]}: the lesser half holds {lesser}"
        axes.plot(share, held, color=colour, lw=1.4, label=label)
        for name, marker in zip(PAPER, _MARKERS, strict=True):
            data = found.sel({STREAM: stream, SELECTION: name})
            if float(data["pairs"]):
                place = (float(data["pairs"]), float(data["importance"].sel({ESTIMATE: "value"})))
                label = f"{PAPER[name].plural} of the {STREAM_NAMES[stream]}"
                axes.plot(*place, ls="", marker=marker, ms=6, color=colour, mec="white", label=label)
    axes.set_xscale("log")
    axes.set(xlim=(None, 1), ylim=(0, 1.02))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))
    axes.axvline(0.5, lw=0.9, color=FAINT, zorder=0)
    axes.set_xlabel("share of the pairs, the most important first", fontsize=SMALL + 1)
    axes.set_ylabel("share of the importance", fontsize=SMALL + 1)
    axes.legend(fontsize=SMALL, frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    plain(axes)


def _caption(result: xr.DataTree, importance: xr.DataTree) -> str:
    facts = provenance(importance)
    draws = facts.get("parameters", {}).get("draws")
    parts = (
        model_name(result),
        f"importance: {extent_of(importance)}" + (f", {counted(draws, 'draw')}" if draws else ""),
        f"{VARIABLE_LABELS['spectrum_fe']}: {extent_of(result)}",
    )
    return " · ".join(part for part in parts if part)
