"""Both entropies over all layers and pairs at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ropescope.base.axes import HEAD_AXIS, LAYER, PAIR
from ropescope.base.errors import InputError, did_you_mean
from ropescope.base.pair_variables import PairVariable, pair_variables
from ropescope.base.selections import SCALES, VARIABLE_LABELS
from ropescope.display.figures.style import (
    CELLS,
    HATCHED,
    REFERENCE,
    SELECTED,
    SMALL,
    caption,
    colour_bar,
    hatch_missing,
    layer_axis,
    map_colours,
    pair_axis,
    selecting_colours,
    thresholds,
    wavelength_axis,
)
from ropescope.measurement.joining import further_variables
from ropescope.measurement.results import mean_over_sequences, rotated_layers, stream_data, wavelength

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage


def overview(result: xr.DataTree, stream: str = "query") -> Figure:
    """Map both entropies over layers and pairs: their mean over heads, and the lowest head.

    Dark is structure: bands in SpectrumFE, periodic pairs in SequenceFE. Colours are full where a selection of the
    paper holds and pale between; their scales are the same in every figure, so two models compare by eye. A place
    without a value is hatched.

    Parameters
    ----------
    result
        What :func:`ropescope.measure` gave.
    stream
        "query" or "key".

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    InputError
        `stream` is neither.

    Examples
    --------
    >>> overview(rs.load("qwen3.nc"), "key").savefig("keys.png")  # doctest: +SKIP
    """
    data = stream_data(result, stream)
    mean, head = mean_over_sequences(data), HEAD_AXIS[stream]
    figure = Figure(figsize=(10, 3 + 2 * min(max(0.12 * mean.sizes[LAYER], 1.4), 4.5)), layout="constrained")
    figure.suptitle(caption(result, stream, data, "mean of"), fontsize=SMALL + 1, color=REFERENCE)
    grid = figure.subplots(2, 2, sharex=True, sharey=True)
    for name, row in zip(VARIABLE_LABELS, grid, strict=True):
        maps = {
            "mean over heads": mean[name].mean(head),
            f"minimum over heads: {pair_variables()[name].low}": mean[name].min(head),
        }
        for axes, (title, values) in zip(row, maps.items(), strict=True):
            image = _draw_map(axes, values, name)
            axes.set_title(f"{VARIABLE_LABELS[name]}, {title}", fontsize=SMALL + 2)
        _entropy_bar(figure, image, row, name, mean[name])
    words = "no head has a value: none has the pair, or its norm is always 0 or flat"
    _explain_marks(figure, grid, result, words if mean["spectrum_fe"].isnull().all(head).any() else "")
    _label_overview(grid, result)
    return figure


def variable_map(result: xr.DataTree, variable: str, stream: str = "query") -> Figure:
    """Map any registered variable of pairs over layers and pairs: its mean over heads, and its highest head.

    A variable of both signs has colours around 0, and the head of largest magnitude beside the mean.

    Parameters
    ----------
    result
        A measurement, with other ones joined to it where the variable is theirs.
    variable
        Name of a registered variable that the result holds.
    stream
        "query" or "key".

    Returns
    -------
    matplotlib.figure.Figure
        A place without a value is hatched.

    Raises
    ------
    InputError
        `stream` is neither, or the result does not hold the variable.

    Examples
    --------
    >>> variable_map(rs.load("qwen3.nc"), "mean_norm").savefig("norms.png")  # doctest: +SKIP
    """
    data = stream_data(result, stream)
    known = [name for name in pair_variables() if name in data]
    if variable not in known:
        raise InputError(f"got variable {variable!r}: {did_you_mean(variable, known)}")
    values, head, meaning = mean_over_sequences(data)[variable], HEAD_AXIS[stream], pair_variables()[variable]
    figure = Figure(figsize=(10, 1.6 + min(max(0.12 * values.sizes[LAYER], 1.4), 4.5)), layout="constrained")
    own = variable if meaning in further_variables(data) else None
    figure.suptitle(caption(result, stream, data, "mean of", own), fontsize=SMALL + 1, color=REFERENCE)
    grid = figure.subplots(1, 2, sharex=True, sharey=True, squeeze=False)
    signed = meaning.scale is None and bool((values < 0).any())
    beside = ("largest magnitude of a head", _furthest) if signed else ("maximum over heads", xr.DataArray.max)
    maps = {"mean over heads": values.mean(head), beside[0]: beside[1](values, head)}
    norm = _colour_scale(meaning, list(maps.values()), signed)
    for axes, (title, shown) in zip(grid[0], maps.items(), strict=True):
        # On a logarithmic scale 0 is as dark as the least.
        content = shown.transpose(LAYER, PAIR).clip(min=norm.vmin if meaning.logarithmic else None).values
        hatch_missing(axes)
        image = axes.imshow(content, cmap=map_colours(signed), norm=norm, **CELLS)
        axes.set_title(f"{meaning.label}, {title}", fontsize=SMALL + 2)
    colour_bar(figure, image, grid[0], meaning.axis_label)
    _explain_marks(figure, grid, result, "no head has a value" if values.isnull().all(head).any() else "")
    _label_overview(grid, result)
    return figure


def _furthest(values: xr.DataArray, head: str) -> xr.DataArray:
    """Of every place the value that is furthest from 0, with its sign."""
    return values.isel({head: abs(values).fillna(-1).argmax(head)})


def _colour_scale(meaning: PairVariable, maps: Sequence[xr.DataArray], signed: bool) -> Normalize:
    """From the lowest to the highest value drawn, as far below 0 as above where signed; or the usual range."""
    drawn = np.concatenate([shown.values.ravel() for shown in maps])
    known = drawn[~np.isnan(drawn) & ((drawn > 0) | (not meaning.logarithmic))]
    low, high = meaning.scale or ((float(known.min()), float(known.max())) if known.size else (1.0, 1.0))
    if signed:
        low, high = -max(-low, high), max(-low, high)
    return (LogNorm if meaning.logarithmic else Normalize)(low, high)


def _draw_map(axes: Axes, values: xr.DataArray, name: str) -> AxesImage:
    low, high = SCALES[name]
    layer_pair = values.transpose(LAYER, PAIR).values
    hatch_missing(axes)
    return axes.imshow(layer_pair, cmap=selecting_colours(name), vmin=low, vmax=high, **CELLS)


def _entropy_bar(figure: Figure, image: AxesImage, row: np.ndarray, name: str, values: xr.DataArray) -> None:
    low, high = SCALES[name]
    beyond = (bool((values < low).any()), bool((values > high).any()))
    extend = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}[beyond]
    bar = colour_bar(figure, image, row, VARIABLE_LABELS[name], extend=extend, pad=0.03)
    for _, height in thresholds(name):
        bar.ax.axhline(height, color=REFERENCE, lw=1.2)


def _explain_marks(figure: Figure, grid: np.ndarray, result: xr.DataTree, hatched: str) -> None:
    """Say beside the maps which layers do not rotate, and under them what the marks and the hatching mean."""
    rows = np.flatnonzero(~rotated_layers(result).values)
    style: dict[str, Any] = {
        "ls": "",
        "marker": "<",
        "ms": 4,
        "color": SELECTED,
        "label": "layer without rotation (NoPE)",
    }
    handles: list[Artist] = [Line2D([], [], **style)] if rows.size else []
    if hatched:
        handles.append(Patch(**HATCHED, label=hatched))
    for axes in grid.flat if rows.size else ():
        axes.plot(np.full(rows.size, 1.015), rows, transform=axes.get_yaxis_transform(), clip_on=False, **style)
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=SMALL, frameon=False)


def _label_overview(grid: np.ndarray, result: xr.DataTree) -> None:
    turns = wavelength(result)
    for axes in grid.flat:
        layer_axis(axes, turns[LAYER].values)
        pair_axis(axes, turns[0])
    for axes in grid[:, 0]:
        axes.set_ylabel("layer", fontsize=SMALL + 1)
    for axes in grid[-1]:
        axes.set_xlabel("pair j", fontsize=SMALL + 1)
    turning = turns.where(rotated_layers(result), drop=True)
    if turning.sizes[LAYER]:
        shared = bool(np.array_equal(turning.values, np.broadcast_to(turning.values[0], turning.shape), equal_nan=True))
        for axes in grid[0]:
            label = "wavelength (tokens)" if shared else f"wavelength in layer {int(turning[LAYER][0])} (tokens)"
            wavelength_axis(axes, turning[0], label)
