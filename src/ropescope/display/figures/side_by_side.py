"""Results beside each other, and where bands live, as Matplotlib figures; no file is touched."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from matplotlib import colormaps
from matplotlib.figure import Figure

from ropescope.analysis.comparability import check_pairwise, length_of, on_scale_of
from ropescope.analysis.distributions import DEPTH, RESULT, STREAM, distributions
from ropescope.analysis.places import NOPE, OCTAVE, ROPE, SELECTION, SELECTIONS, localise
from ropescope.analysis.places_in_words import octave_name
from ropescope.base.axes import HEAD_AXIS, LAYER, PAIR, POSITION, SEQUENCE, STREAMS
from ropescope.base.errors import InputError
from ropescope.display.figures.curves import COLOURS
from ropescope.display.figures.heads import (
    FAINT,
    HEAD_NAMES,
    LABELS,
    REFERENCE,
    SCALES,
    SEQUENCE_FE,
    SMALL,
    STREAM_NAMES,
    THRESHOLDS,
)
from ropescope.measurement.results import KEPT, NORM, mean_over_sequences, stream_data, wavelength
from ropescope.measurement.summary import format_tokens

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLES = {"bands": "bands", "spectrum-outliers": "spectrum outliers", "periodic": "periodic pairs"}
_STYLES = {"query": "-", "key": "--"}
_TICKS = 5


def side_by_side(results: Mapping[str, xr.DataTree], heads: Sequence[tuple[int, int]], stream: str = "query") -> Figure:
    """Draw the same heads of several results over each other, and under them the pair norms of each.

    A column for each head: SpectrumFE and SequenceFE over the pairs, a line for each result with its range over
    sequences shaded, SequenceFE on the first result's scale. Norms are drawn where a result has kept them.

    Parameters
    ----------
    results
        As in :func:`ropescope.compare`.
    heads
        (layer, query head or, for keys, key head), at least one.
    stream
        "query" or "key".

    Returns
    -------
    Figure

    Raises
    ------
    InputError
        A stream or head that the results do not hold, no head, or fewer than two results.
    ResultError
        The results cannot be compared pair by pair.

    References
    ----------
    Frequency Entropy paper, figure 6.
    """
    check_pairwise(results)
    (first_name, first), *others = results.items()
    placed = {first_name: first, **{name: on_scale_of(first, other) for name, other in others}}
    data = {name: stream_data(result, stream) for name, result in placed.items()}
    _check_heads(data[first_name], heads, stream)
    kept = [name for name in data if any(_kept_norm(data[name], place, stream) is not None for place in heads)]
    size = (1.4 + 3.6 * len(heads), 4.6 + 2.1 * len(kept))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(2 + len(kept), len(heads), squeeze=False, sharey="row")
    for place, column in zip(heads, grid.T, strict=True):
        _draw_entropies(column[:2], data, place, stream, wavelength(first).sel({LAYER: place[0]}))
        for axes, name in zip(column[2:], kept, strict=True):
            _draw_norm(axes, data[name], place, stream)
    lengths = {length_of(result) for result in results.values()}
    scale = f",\nat {length_of(first)} tokens" if len(lengths) > 1 else ""
    labels = (LABELS["spectrum_fe"], f"{LABELS[SEQUENCE_FE]}{scale}", *(f"{name}, norms\npair j" for name in kept))
    for axes, label in zip(grid[:, 0], labels, strict=True):
        axes.set_ylabel(label, fontsize=SMALL + 1)
    for axes, entropy in zip(grid[:2, -1], LABELS, strict=True):
        _label_thresholds(axes, entropy)
        axes.set_ylim(_limits(data, heads, stream, entropy))
    handles, names = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=4, frameon=False, fontsize=SMALL + 1)
    return figure


def spread_curves(results: Mapping[str, xr.DataTree]) -> Figure:
    """Share of bands, spectrum outliers and periodic pairs over relative depth and over wavelength, for any models.

    Parameters
    ----------
    results
        As in :func:`ropescope.analysis.distributions.distributions`.

    Returns
    -------
    Figure
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
    """
    data = distributions(results)
    figure = Figure(figsize=(10.5, 6.2), layout="constrained")
    grid = figure.subplots(2, len(SELECTIONS), sharex="row", sharey="col", squeeze=False)
    for name, column in zip(SELECTIONS, grid.T, strict=True):
        for axes, axis in zip(column, (DEPTH, OCTAVE), strict=True):
            _draw_spread(axes, data.sel({SELECTION: name}), axis)
        column[0].set_title(TITLES[name], fontsize=SMALL + 3)
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
    Figure
        Grey where a layer has no pairs in an octave.

    References
    ----------
    Frequency Entropy paper, section 5.
    """
    tree = localise(result)
    rows = stream_data(result, STREAMS[0]).sizes[LAYER]
    figure = Figure(figsize=(10.5, 3.2 + min(max(0.12 * rows, 1.2), 5)), layout="constrained")
    grid = figure.subplots(2, 2, sharex=True, sharey="row", height_ratios=(1, 1 + min(rows, 48) / 16))
    for stream, (top, main) in zip(STREAMS, grid.T, strict=True):
        data = tree.children[stream].to_dataset()
        bands, pairs = data["members"].sel({SELECTION: "bands"}), data["pairs"]
        top.bar(np.arange(pairs.sizes[OCTAVE]), bands.sum(LAYER) / pairs.sum(LAYER), color=COLOURS[0], width=0.85)
        top.set_title(f"bands among {STREAM_NAMES[stream]}", fontsize=SMALL + 3)
        top.tick_params(labelsize=SMALL)
        top.spines[["top", "right"]].set_visible(False)
        share = (bands / pairs.where(pairs > 0)).transpose(LAYER, OCTAVE).values
        colours = colormaps["viridis"].with_extremes(bad="#BFBFBF")
        image = main.imshow(share, aspect="auto", origin="lower", cmap=colours, vmin=0, vmax=1)
        _octave_axis(main, data[OCTAVE].values)
        _layer_axis(main, data)
    grid[0, 0].set_ylabel("share of pairs,\nall layers", fontsize=SMALL + 1)
    grid[1, 0].set_ylabel("layer", fontsize=SMALL + 1)
    bar = figure.colorbar(image, ax=list(grid[1]), aspect=25, pad=0.02)
    bar.set_label("share of pairs that are bands", fontsize=SMALL + 1)
    bar.ax.tick_params(labelsize=SMALL)
    figure.suptitle(name, fontsize=SMALL + 1, color=REFERENCE)
    return figure


def _draw_entropies(
    column: Sequence[Axes], data: Mapping[str, xr.Dataset], place: tuple[int, int], stream: str, turns: xr.DataArray
) -> None:
    rotated = np.isfinite(turns.values).any()
    column[0].set_title(f"layer {place[0]}, {HEAD_NAMES[stream]} {place[1]} ({ROPE if rotated else NOPE})", pad=6)
    column[0].title.set_fontsize(SMALL + 2)
    for axes, entropy in zip(column, LABELS, strict=True):
        for _, height in THRESHOLDS[entropy]:
            axes.axhline(height, lw=0.9, color=FAINT, zorder=0)
        for (name, one), colour in zip(data.items(), _colours(len(data)), strict=True):
            head = one.sel({LAYER: place[0], HEAD_AXIS[stream]: place[1]})
            _draw_line(axes, head, entropy, name, colour)
        axes.spines[["top", "right"]].set_visible(False)
        _pair_axis(axes, turns)
    column[1].set_xlabel("pair j", fontsize=SMALL + 1)
    upper = column[0].secondary_xaxis("top")
    places = _tick_places(turns.size) if rotated else np.array([turns.size // 2])
    upper.set_xticks(turns[PAIR].values[places], [format_tokens(turns.values[i]).replace("inf", "∞") for i in places])
    upper.set_xlabel("wavelength (tokens)", fontsize=SMALL)
    upper.tick_params(labelsize=SMALL)


def _label_thresholds(axes: Axes, entropy: str) -> None:
    style: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "va": "center", "fontsize": SMALL}
    for text, height in THRESHOLDS[entropy]:
        axes.annotate(f"{text} {height}", (1.02, height), color=REFERENCE, **style)


def _limits(
    data: Mapping[str, xr.Dataset], heads: Sequence[tuple[int, int]], stream: str, entropy: str
) -> tuple[float, float]:
    drawn = [
        one[entropy].sel({LAYER: layer, HEAD_AXIS[stream]: head}) for one in data.values() for layer, head in heads
    ]
    low, high = SCALES[entropy]
    lowest, highest = (np.array([end(values) for values in drawn]) for end in (xr.DataArray.min, xr.DataArray.max))
    return float(np.nanmin([low, *lowest])), float(np.nanmax([high, *(highest + 0.02)]))


def _draw_line(axes: Axes, head: xr.Dataset, entropy: str, name: str, colour: str) -> None:
    pair, mean = head[PAIR].values, mean_over_sequences(head)[entropy].values
    if head.sizes[SEQUENCE] > 1:
        span = (head[entropy].min(SEQUENCE).values, head[entropy].max(SEQUENCE).values)
        axes.fill_between(pair, *span, color=colour, alpha=0.18, lw=0)
    axes.plot(pair, mean, color=colour, lw=1.2, marker="o", ms=2.2, label=name)


def _draw_norm(axes: Axes, data: xr.Dataset, place: tuple[int, int], stream: str) -> None:
    norm = _kept_norm(data, place, stream)
    if norm is None:
        axes.text(0.5, 0.5, "norms not kept", ha="center", va="center", color="#888888", transform=axes.transAxes)
        axes.set(xticks=[])
        axes.tick_params(left=False)
        axes.spines[:].set_visible(False)
        return
    position = norm[POSITION].values
    end = position[-1] + (position[-1] - position[-2] if len(position) > 1 else 1)
    finite = norm.values[np.isfinite(norm.values)]
    brightest = float(np.quantile(finite, 0.995)) if finite.size else 1.0
    extent = (position[0], end, -0.5, norm.sizes[PAIR] - 0.5)
    style: dict[str, Any] = {"aspect": "auto", "origin": "lower", "cmap": "magma", "vmin": 0, "vmax": brightest}
    axes.imshow(norm.transpose(PAIR, POSITION).values, extent=extent, **style)
    axes.set_xticks(np.linspace(position[0], end, _TICKS).round().astype(int))
    axes.set_yticks(_tick_places(norm.sizes[PAIR]))
    axes.set_xlabel("position n (tokens)", fontsize=SMALL + 1)
    axes.tick_params(labelsize=SMALL)


def _kept_norm(data: xr.Dataset, place: tuple[int, int], stream: str) -> xr.DataArray | None:
    if NORM not in data:
        return None
    layers, heads = data["kept_layer"].values, data[f"kept_{HEAD_AXIS[stream]}"].values
    found = np.flatnonzero((layers == place[0]) & (heads == place[1]))
    return data[NORM].isel({KEPT: int(found[0])}) if found.size else None


def _draw_spread(axes: Axes, data: xr.Dataset, axis: str) -> None:
    places = data[DEPTH].values if axis == DEPTH else np.arange(data.sizes[OCTAVE])
    for result, colour in zip(data[RESULT].values, _colours(data.sizes[RESULT]), strict=True):
        for stream, style in _STYLES.items():
            shares = data[f"share_by_{axis}"].sel({RESULT: result, STREAM: stream}).values
            label = f"{result}, {STREAM_NAMES[stream]}"
            axes.plot(places, shares, color=colour, ls=style, lw=1.3, marker="o", ms=2.8, label=label)
    axes.tick_params(labelsize=SMALL)
    axes.spines[["top", "right"]].set_visible(False)
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


def _layer_axis(axes: Axes, data: xr.Dataset) -> None:
    layers = data[LAYER].values
    shown = np.arange(0, len(layers), max(1, math.ceil(len(layers) / 12)))
    axes.set_yticks(shown, [str(layer) for layer in layers[shown]])
    axes.tick_params(labelsize=SMALL)


def _pair_axis(axes: Axes, turns: xr.DataArray) -> None:
    axes.set_xticks(turns[PAIR].values[_tick_places(turns.size)])
    axes.set_xlim(-0.5, turns.size - 0.5)
    axes.tick_params(labelsize=SMALL)


def _tick_places(count: int) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, _TICKS).round().astype(int))


def _colours(count: int) -> list[str]:
    return [COLOURS[place % len(COLOURS)] for place in range(count)]


def _check_heads(data: xr.Dataset, heads: Sequence[tuple[int, int]], stream: str) -> None:
    if not heads:
        raise InputError("got no heads to draw; give at least one (layer, head), e.g. from figures.default_heads")
    for layer, head in heads:
        for axis, index in ((LAYER, layer), (HEAD_AXIS[stream], head)):
            if index not in data[axis].values:
                raise InputError(
                    f"got {axis} {index}; the results hold {axis} {', '.join(map(str, data[axis].values))}"
                )
