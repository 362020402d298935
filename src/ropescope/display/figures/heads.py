"""Results as pictures: figures that the caller saves or shows. Nothing here writes a file or touches pyplot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import PurePath
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ropescope.base.axes import HEAD_AXIS, LAYER, PAIR, POSITION, SEQUENCE
from ropescope.base.errors import InputError
from ropescope.measurement.results import (
    KEPT,
    NORM,
    ROTARY,
    mean_over_sequences,
    provenance,
    stream_data,
    wavelength,
)
from ropescope.measurement.summary import BAND, OUTLIER, PERIODIC, bands, format_tokens

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

SPECTRUM = "spectrum_fe"
SEQUENCE_FE = "sequence_fe"
LABELS = {SPECTRUM: "SpectrumFE", SEQUENCE_FE: "SequenceFE"}
THRESHOLDS = {SPECTRUM: (("bands <", BAND), ("outliers >", OUTLIER)), SEQUENCE_FE: (("periodic <", PERIODIC),)}
STREAM_NAMES = {"query": "queries", "key": "keys"}
HEAD_NAMES = {"query": "query head", "key": "key head"}
LOWEST = {SPECTRUM: "minimum over heads: strongest band", SEQUENCE_FE: "minimum over heads: most periodic"}
SCALES = {SPECTRUM: (0.0, 0.6), SEQUENCE_FE: (0.4, 1.0)}
# Okabe and Ito's colours, told apart by every kind of colour vision.
CURVE, SELECTED, REFERENCE, FAINT = "#0072B2", "#D55E00", "#444444", "#BBBBBB"
SMALL = 8
TICKS = 5


def panel(
    result: xr.DataTree, heads: Sequence[tuple[int, int]], stream: str = "query", sequence: int | None = None
) -> Figure:
    """Draw one column per head: SpectrumFE and SequenceFE over the pairs, and the pair norms along the sequence.

    Points under 0.2, over 0.4 (SpectrumFE) and under 0.6 (SequenceFE) stand out; crosses on the floor are pairs
    without a value. Dotted lines mark what a constant signal and white noise score.

    Parameters
    ----------
    result : xarray.DataTree
    heads : sequence of (layer, head)
        Model layer, and query head or, for keys, key head. At least one.
    stream : {"query", "key"}
    sequence : int, optional
        One sequence alone; by default the mean over sequences, with their range shaded.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    InputError
        A stream, layer, head or sequence that the result does not hold, or no head at all.

    References
    ----------
    Frequency Entropy paper, figures 1, 2 and 4.
    """
    data = stream_data(result, stream)
    _check_heads(data, heads, stream)
    if sequence is not None:
        data = data.sel({SEQUENCE: [_check_known(data, SEQUENCE, sequence)]})
    kept = not set(heads).isdisjoint(_kept_heads(data, stream))
    figure = Figure(figsize=(1.2 + 3.6 * len(heads), 8.2 if kept else 5.8), layout="constrained")
    caption = fill(_caption(result, stream, data, "mean and range of"), 50 * len(heads))
    figure.suptitle(caption, fontsize=SMALL + 1, color=REFERENCE)
    grid = figure.subplots(3, len(heads), squeeze=False, height_ratios=(1, 1, 1.3 if kept else 0.3), sharey="row")
    for (layer, head), column in zip(heads, grid.T, strict=True):
        _draw_head(figure, result, data, stream, (layer, head), column)
    for axes, name in zip(grid[:2, -1], LABELS, strict=True):
        _label_lines(axes, _lines(result, name))
    for axes, label in zip(grid[:, 0], (*LABELS.values(), "pair j" if kept else ""), strict=True):
        axes.set_ylabel(label, fontsize=SMALL + 1)
    grid[2, 0].tick_params(labelleft=kept)
    return figure


def overview(result: xr.DataTree, stream: str = "query") -> Figure:
    """Map both entropies over layers and pairs: their mean over heads, and the lowest head.

    Dark is structure: bands in SpectrumFE, periodic pairs in SequenceFE. The colour scales are the same in every
    figure, so two models compare by eye. Grey is a place without a value.

    Parameters
    ----------
    result : xarray.DataTree
    stream : {"query", "key"}

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    InputError
        ``stream`` is neither.
    """
    data = stream_data(result, stream)
    mean, head = mean_over_sequences(data), HEAD_AXIS[stream]
    figure = Figure(figsize=(10, 3 + 2 * min(max(0.12 * mean.sizes[LAYER], 1.4), 4.5)), layout="constrained")
    figure.suptitle(_caption(result, stream, data, "mean of"), fontsize=SMALL + 1, color=REFERENCE)
    grid = figure.subplots(2, 2, sharex=True, sharey=True)
    for name, row in zip(LABELS, grid, strict=True):
        maps = {"mean over heads": mean[name].mean(head), LOWEST[name]: mean[name].min(head)}
        for axes, (title, values) in zip(row, maps.items(), strict=True):
            image = _draw_map(axes, values, name)
            axes.set_title(f"{LABELS[name]}, {title}", fontsize=SMALL + 2)
        _colour_bar(figure, image, row, name, mean[name])
    _mark_nope_layers(figure, grid, result)
    _label_overview(grid, result)
    return figure


def default_heads(result: xr.DataTree, stream: str = "query") -> list[tuple[int, int]]:
    """Choose up to three heads worth looking at.

    In rotated layers, the head with the strongest band and the one with the lowest SequenceFE; then the strongest
    band of a layer without rotation or, if there is none, the highest SpectrumFE. Heads with kept norms come first.

    Parameters
    ----------
    result : xarray.DataTree
    stream : {"query", "key"}

    Returns
    -------
    list of (layer, head)

    Raises
    ------
    InputError
        ``stream`` is neither.
    """
    data = stream_data(result, stream)
    mean = mean_over_sequences(data)
    kept = _kept_heads(data, stream)
    turning = _rotated_layers(result)
    if not turning.any():
        turning = ~turning
    loudest = _loudest_bands(result, stream, mean[SPECTRUM].min(PAIR))
    wanted = [loudest.where(turning), -mean[SEQUENCE_FE].min(PAIR).where(turning)]
    wanted.append(mean[SPECTRUM].max(PAIR) if turning.all() else loudest.where(~turning))
    chosen: list[tuple[int, int]] = []
    for scores in wanted:
        ranked = [place for place in _ranked(scores) if place not in chosen]
        chosen += ([place for place in ranked if place in kept] or ranked)[:1]
    return chosen


def constant_entropy(result: xr.DataTree) -> float | None:
    """SpectrumFE of a constant signal under the result's frames, the floor of its curves; None if they are unknown."""
    import torch

    from ropescope.base.entropy import spectrum_fe

    given = provenance(result).get("parameters", {})
    if not {"frame_length", "hop_length", "window"} <= given.keys():
        return None
    frame_length = int(given["frame_length"])
    return float(spectrum_fe(torch.ones(frame_length), frame_length, int(given["hop_length"]), given["window"]))


def noise_entropy(result: xr.DataTree) -> float | None:
    """Expected SequenceFE of white noise as long as the result's windows; None if the length is unknown."""
    from ropescope.base.entropy import white_noise_entropy

    length = provenance(result).get("parameters", {}).get("length")
    return None if length is None else white_noise_entropy(int(length) // 2 - 1)


def _draw_head(
    figure: Figure, result: xr.DataTree, data: xr.Dataset, stream: str, place: tuple[int, int], column: Sequence[Axes]
) -> None:
    layer, head = place
    one = data.sel({LAYER: layer, HEAD_AXIS[stream]: head})
    rotated = bool(_rotated_layers(result).sel({LAYER: layer}))
    column[0].set_title(f"layer {layer}, head {head} ({'RoPE' if rotated else 'NoPE'})", fontsize=SMALL + 3)
    for axes, name in zip(column[:2], LABELS, strict=True):
        for _, height, colour in _lines(result, name):
            style = ("-", FAINT) if colour == SELECTED else (":", REFERENCE)
            axes.axhline(height, lw=0.9, ls=style[0], color=style[1], zorder=0)
        _draw_entropy(axes, one, name)
        axes.set_ylim(_limits(data[name], name))
    turns = wavelength(result).sel({LAYER: layer})[one["mean_norm"].notnull().any(SEQUENCE).values]
    _pair_axis(column[1], turns)
    _pair_axis(column[0], turns)
    _wavelength_axis(column[0], turns)
    column[0].tick_params(labelbottom=False)
    column[1].set_xlabel("pair j", fontsize=SMALL + 1)
    _draw_norms(figure, column[2], data, stream, place)


def _draw_entropy(axes: Axes, one: xr.Dataset, name: str) -> None:
    pair = one[PAIR].values
    mean = mean_over_sequences(one)
    values, present = mean[name].values, mean["mean_norm"].notnull().values
    if one.sizes[SEQUENCE] > 1:
        low, high = one[name].min(SEQUENCE).values, one[name].max(SEQUENCE).values
        axes.fill_between(pair, low, high, color=CURVE, alpha=0.2, lw=0, label="range over sequences")
    axes.plot(pair, values, color=CURVE, lw=1.2, marker="o", ms=2.5, label=LABELS[name])
    chosen = (values < BAND) | (values > OUTLIER) if name == SPECTRUM else values < PERIODIC
    axes.plot(pair[chosen], values[chosen], ls="", color=SELECTED, marker="o", ms=4, label="selected")
    axes.set_xlim(-0.5, pair[-1] + 0.5)
    _draw_undefined(axes, pair[present & np.isnan(values)])
    axes.spines[["top", "right"]].set_visible(False)


def _draw_undefined(axes: Axes, pair: np.ndarray) -> None:
    if not pair.size:
        return
    across = axes.get_xaxis_transform()
    floor = np.full(pair.size, 0.05)
    axes.plot(pair, floor, ls="", marker="x", color=REFERENCE, ms=5, transform=across, label="undefined")
    left = bool(pair[-1] < sum(axes.get_xlim()) / 2)
    place, gap, side = (pair[-1], 5, "left") if left else (pair[0], -5, "right")
    axes.annotate(
        "undefined",
        (place, 0.05),
        (gap, 0),
        xycoords=across,
        textcoords="offset points",
        ha=side,
        va="center",
        fontsize=SMALL,
    )


def _draw_norms(figure: Figure, axes: Axes, data: xr.Dataset, stream: str, place: tuple[int, int]) -> None:
    kept = _kept_heads(data, stream)
    if place not in kept or 0 not in data[SEQUENCE].values:
        missing = "not kept: measure with\nnorm_heads=[(layer, query head), ...]"
        reason = "kept for sequence 0 only" if place in kept else missing
        axes.text(0.5, 0.5, f"norms {reason}", ha="center", va="center", color="#888888", transform=axes.transAxes)
        axes.set(xticks=[], ylim=(-0.5, data.sizes[PAIR] - 0.5))
        axes.tick_params(left=False)
        axes.spines[:].set_visible(False)
        return
    norm = data[NORM].isel({KEPT: kept.index(place)})
    position = norm[POSITION].values
    end = position[-1] + (position[-1] - position[-2] if len(position) > 1 else 1)
    extent = (position[0], end, -0.5, data.sizes[PAIR] - 0.5)
    image = axes.imshow(norm.values, aspect="auto", origin="lower", extent=extent, cmap="magma", vmin=0)
    finite = norm.values[np.isfinite(norm.values)]
    image.set_clim(0, float(np.quantile(finite, 0.995)) if finite.size else 1.0)
    axes.set_xlabel("position n (tokens)", fontsize=SMALL + 1)
    axes.set_xticks(np.linspace(position[0], end, TICKS).round().astype(int))
    axes.tick_params(labelsize=SMALL)
    bar = figure.colorbar(image, ax=axes, location="bottom", extend="max", shrink=0.8, aspect=30, pad=0.02)
    bar.set_label("pair norm, sequence 0", fontsize=SMALL)
    bar.ax.tick_params(labelsize=SMALL)


def _draw_map(axes: Axes, values: xr.DataArray, name: str) -> AxesImage:
    low, high = SCALES[name]
    colours = colormaps["viridis"].with_extremes(bad="#BFBFBF")
    layer_pair = values.transpose(LAYER, PAIR).values
    return axes.imshow(layer_pair, aspect="auto", origin="lower", cmap=colours, vmin=low, vmax=high)


def _colour_bar(figure: Figure, image: AxesImage, row: np.ndarray, name: str, values: xr.DataArray) -> None:
    low, high = SCALES[name]
    beyond = (bool((values < low).any()), bool((values > high).any()))
    extend = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}[beyond]
    bar = figure.colorbar(image, ax=list(row), extend=extend, aspect=25, pad=0.03)
    bar.set_label(LABELS[name])
    bar.ax.tick_params(labelsize=SMALL)
    for _, height in THRESHOLDS[name]:
        bar.ax.axhline(height, color="white", lw=1.5)


def _mark_nope_layers(figure: Figure, grid: np.ndarray, result: xr.DataTree) -> None:
    rows = np.flatnonzero(~_rotated_layers(result).values)
    if not rows.size:
        return
    style: dict[str, Any] = {
        "ls": "",
        "marker": "<",
        "ms": 4,
        "color": SELECTED,
        "label": "layer without rotation (NoPE)",
    }
    for axes in grid.flat:
        axes.plot(np.full(rows.size, 1.015), rows, transform=axes.get_yaxis_transform(), clip_on=False, **style)
    figure.legend(handles=[Line2D([], [], **style)], loc="outside lower center", fontsize=SMALL, frameon=False)


def _label_overview(grid: np.ndarray, result: xr.DataTree) -> None:
    turns = wavelength(result)
    layers = turns[LAYER].values
    rows = np.arange(0, len(layers), max(1, math.ceil(len(layers) / 12)))
    for axes in grid.flat:
        axes.set_yticks(rows, labels=[str(layer) for layer in layers[rows]])
        _pair_axis(axes, turns[0])
    for axes in grid[:, 0]:
        axes.set_ylabel("layer", fontsize=SMALL + 1)
    for axes in grid[-1]:
        axes.set_xlabel("pair j", fontsize=SMALL + 1)
    turning = turns.where(_rotated_layers(result), drop=True)
    if turning.sizes[LAYER]:
        shared = bool(np.array_equal(turning.values, np.broadcast_to(turning.values[0], turning.shape), equal_nan=True))
        for axes in grid[0]:
            label = "wavelength (tokens)" if shared else f"wavelength in layer {int(turning[LAYER][0])} (tokens)"
            _wavelength_axis(axes, turning[0], label)


def _tick_places(count: int) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, TICKS).round().astype(int))


def _pair_axis(axes: Axes, turns: xr.DataArray) -> None:
    axes.set_xticks(turns[PAIR].values[_tick_places(turns.size)])
    axes.tick_params(labelsize=SMALL)


def _wavelength_axis(axes: Axes, turns: xr.DataArray, label: str = "wavelength (tokens)") -> None:
    places = _tick_places(turns.size)
    if np.isinf(turns).all():
        places = places[len(places) // 2 : len(places) // 2 + 1]
    labels = [format_tokens(tokens).replace("inf", "∞") for tokens in turns.values[places].tolist()]
    upper = axes.secondary_xaxis("top")
    upper.set_xticks(turns[PAIR].values[places], labels=labels)
    upper.set_xlabel(label, fontsize=SMALL)
    upper.tick_params(labelsize=SMALL)


def _label_lines(axes: Axes, lines: Sequence[tuple[str, float, str]]) -> None:
    for text, height, colour in lines:
        axes.annotate(
            text, (1.02, height), xycoords=("axes fraction", "data"), va="center", fontsize=SMALL, color=colour
        )


def _lines(result: xr.DataTree, name: str) -> list[tuple[str, float, str]]:
    lines = [(f"{selection} {height}", height, SELECTED) for selection, height in THRESHOLDS[name]]
    reference = constant_entropy(result) if name == SPECTRUM else noise_entropy(result)
    label = "constant" if name == SPECTRUM else "white noise"
    return lines if reference is None else [*lines, (f"{label} {reference:.3f}", reference, REFERENCE)]


def _limits(values: xr.DataArray, name: str) -> tuple[float, float]:
    low, high = SCALES[name]
    return float(np.fmin(low, values.min())), float(np.fmax(high, values.max() + 0.02))


def _caption(result: xr.DataTree, stream: str, data: xr.Dataset, several: str) -> str:
    origin = provenance(result)
    windows, sequences = origin.get("windows", {}), data[SEQUENCE].values
    extent = f"{several} {len(sequences)} sequences" if len(sequences) > 1 else f"sequence {sequences[0]}"
    length = origin.get("parameters", {}).get("length")
    parts = (
        _short(origin.get("model", {}).get("id")),
        " ".join(_short(windows[part]) for part in ("corpus", "split") if windows.get(part)),
        STREAM_NAMES[stream],
        extent + (f" of {length} tokens" if length else ""),
    )
    return " · ".join(part for part in parts if part)


def _short(name: str | None) -> str:
    """A hub name as it is, a file or folder without the way to it."""
    return PurePath(name).name if name and PurePath(name).is_absolute() else name or ""


def _rotated_layers(result: xr.DataTree) -> xr.DataArray:
    return result.children[ROTARY].to_dataset()["rotated"].any(PAIR)


def _kept_heads(data: xr.Dataset, stream: str) -> list[tuple[int, int]]:
    if NORM not in data:
        return []
    layers, heads = data["kept_layer"].values, data[f"kept_{HEAD_AXIS[stream]}"].values
    return list(zip(layers.tolist(), heads.tolist(), strict=True))


def _loudest_bands(result: xr.DataTree, stream: str, like: xr.DataArray) -> xr.DataArray:
    scores = xr.full_like(like, np.nan)
    for band in reversed(bands(result, stream)):
        scores.loc[{LAYER: band.layer, HEAD_AXIS[stream]: band.head}] = band.relative_norm
    return scores


def _ranked(scores: xr.DataArray) -> list[tuple[int, int]]:
    listed = scores.stack(place=scores.dims).dropna("place")
    return [listed["place"].values[index] for index in np.argsort(-listed.values, kind="stable")]


def _check_heads(data: xr.Dataset, heads: Sequence[tuple[int, int]], stream: str) -> None:
    if not heads:
        raise InputError(
            "got no heads to draw; give at least one (layer, head), for example from default_heads(result)"
        )
    for layer, head in heads:
        _check_known(data, LAYER, layer)
        _check_known(data, HEAD_AXIS[stream], head)
        if data["mean_norm"].sel({LAYER: layer, HEAD_AXIS[stream]: head}).isnull().all():
            raise InputError(
                f"layer {layer} has no {HEAD_NAMES[stream]} {head}; other layers have more: choose a lower one"
            )


def _check_known(data: xr.Dataset, dim: str, index: int) -> int:
    known = data[dim].values.tolist()
    if index in known:
        return index
    listing = ", ".join(map(str, known))
    if len(known) > 1 and known == list(range(known[0], known[-1] + 1)):
        listing = f"{known[0]} to {known[-1]}"
    raise InputError(f"got {dim} {index}; the result holds {dim} {listing}: choose one of these")
