"""Where bands and periodic pairs lie over depth and wavelength, in one result or several (figure 5, section 5)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ropescope.analysis.distributions import DEPTH, RESULT, STREAM, distributions
from ropescope.analysis.places import OCTAVE, SELECTION, bands_over_octaves
from ropescope.analysis.places_in_words import octave_name
from ropescope.base.axes import LAYER, STREAM_NAMES, STREAMS
from ropescope.base.selections import BANDS, PAPER
from ropescope.display.figures.style import (
    CELLS,
    CURVE,
    HATCHED,
    REFERENCE,
    SMALL,
    colour_bar,
    colours,
    hatch_missing,
    layer_axis,
    map_colours,
    plain,
)
from ropescope.measurement.results import stream_data

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STYLES = {"query": "-", "key": "--"}


def spread_curves(results: Mapping[str, xr.DataTree]) -> Figure:
    """Draw the share of bands, spectrum outliers and periodic pairs over relative depth and wavelength.

    Parameters
    ----------
    results
        At least two results of :func:`ropescope.measure` by name, of any models.

    Returns
    -------
    matplotlib.figure.Figure
        A row for depth, one for wavelength; a colour for each result, queries solid, keys dashed.

    Raises
    ------
    InputError
        There are fewer than two results.
    ResultError
        Frames of SpectrumFE differ.

    References
    ----------
    Frequency Entropy paper, appendix A.3 and figure 5.

    Examples
    --------
    >>> spread_curves({"qwen3": one, "llama3": other}).savefig("spread.png")  # doctest: +SKIP
    """
    data = distributions(results)
    figure = Figure(figsize=(10.5, 6.2), layout="constrained")
    grid = figure.subplots(2, len(PAPER), sharex="row", sharey="col", squeeze=False)
    for name, column in zip(PAPER, grid.T, strict=True):
        for axes, axis in zip(column, (DEPTH, OCTAVE), strict=True):
            _draw_spread(axes, data.sel({SELECTION: name}), axis)
        column[0].set_title(PAPER[name].plural, fontsize=SMALL + 3)
        column[0].set_ylim(0, max(0.01, 1.05 * _highest(data, name)))
    for axes in grid[:, 0]:
        axes.set_ylabel("share of pairs", fontsize=SMALL + 1)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=SMALL + 1)
    return figure


def bands_over_wavelength(result: xr.DataTree, name: str = "") -> Figure:
    """Map the share of bands over layer and wavelength, queries and keys, with the total on top.

    Parameters
    ----------
    result
        What :func:`ropescope.measure` gave.
    name
        What to call the result in the title; may be empty.

    Returns
    -------
    matplotlib.figure.Figure
        Hatched where a layer has no pair of such wavelengths.

    References
    ----------
    Frequency Entropy paper, section 5.

    Examples
    --------
    >>> bands_over_wavelength(rs.load("qwen3.nc"), "Qwen3").savefig("bands.png")  # doctest: +SKIP
    """
    rows = stream_data(result, STREAMS[0]).sizes[LAYER]
    figure = Figure(figsize=(10.5, 3.2 + min(max(0.12 * rows, 1.2), 5)), layout="constrained")
    grid = figure.subplots(2, 2, sharex=True, sharey="row", height_ratios=(1, 1 + min(rows, 48) / 16))
    for stream, (top, main) in zip(STREAMS, grid.T, strict=True):
        data = bands_over_octaves(result, stream)
        bands, pairs = data["members"].sel({SELECTION: BANDS.name}), data["pairs"]
        top.bar(np.arange(pairs.sizes[OCTAVE]), bands.sum(LAYER) / pairs.sum(LAYER), color=CURVE, width=0.85)
        top.set_title(f"bands among {STREAM_NAMES[stream]}", fontsize=SMALL + 3)
        plain(top)
        share = (bands / pairs.where(pairs > 0)).transpose(LAYER, OCTAVE).values
        hatch_missing(main)
        image = main.imshow(share, cmap=map_colours(), vmin=0, vmax=1, **CELLS)
        _octave_axis(main, data[OCTAVE].values)
        layer_axis(main, data[LAYER].values)
    grid[0, 0].set_ylabel("share of pairs,\nall layers", fontsize=SMALL + 1)
    grid[1, 0].set_ylabel("layer", fontsize=SMALL + 1)
    colour_bar(figure, image, grid[1], "share of pairs that are bands")
    figure.suptitle(name, fontsize=SMALL + 1, color=REFERENCE)
    if not pairs.all():
        hatched = Patch(**HATCHED, label="the layer has no pair of this wavelength")
        figure.legend(handles=[hatched], loc="outside lower center", fontsize=SMALL, frameon=False)
    return figure


def _draw_spread(axes: Axes, data: xr.Dataset, axis: str) -> None:
    places = data[DEPTH].values if axis == DEPTH else np.arange(data.sizes[OCTAVE])
    for result, colour in zip(data[RESULT].values, colours(data.sizes[RESULT]), strict=True):
        for stream, style in _STYLES.items():
            shares = data[f"share_by_{axis}"].sel({RESULT: result, STREAM: stream}).values
            label = f"{result}, {STREAM_NAMES[stream]}"
            axes.plot(places, shares, color=colour, ls=style, lw=1.3, marker="o", ms=2.8, label=label)
    plain(axes)
    if axis == DEPTH:
        axes.set_xlim(0, 1)
        axes.set_xlabel("relative depth of layer", fontsize=SMALL + 1)
    else:
        _octave_axis(axes, data[OCTAVE].values)


def _highest(data: xr.Dataset, name: str) -> float:
    shares = [data[f"share_by_{axis}"].sel({SELECTION: name}).values for axis in (DEPTH, OCTAVE)]
    return max(float(np.nanmax(values)) for values in shares)


def _octave_axis(axes: Axes, lower: np.ndarray) -> None:
    step = max(1, math.ceil(np.isfinite(lower).sum() / 8))
    shown = [place for place, edge in enumerate(lower) if np.isinf(edge) or place % step == 0]
    names = ["∞" if np.isinf(lower[place]) else octave_name(lower[place]) for place in shown]
    axes.set_xticks(shown, names, rotation=40, ha="right", rotation_mode="anchor")
    axes.tick_params(labelsize=SMALL)
    axes.set_xlabel("wavelength (tokens)", fontsize=SMALL + 1)
