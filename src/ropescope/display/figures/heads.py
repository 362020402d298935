"""One column a head: both entropies over the pairs, and the pair norms along the text (figures 1, 2 and 4)."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from ropescope.base.axes import HEAD_AXIS, LAYER, PAIR, SEQUENCE
from ropescope.base.pair_variables import pair_variables
from ropescope.base.selections import BANDS, PAPER, VARIABLE_LABELS
from ropescope.display.figures.style import (
    CURVE,
    FAINT,
    REFERENCE,
    SELECTED,
    SMALL,
    caption,
    check_heads,
    check_known,
    colour_bar,
    draw_norms,
    draw_nothing,
    entropy_limits,
    label_lines,
    pair_axis,
    plain,
    thresholds,
    wavelength_axis,
)
from ropescope.measurement.joining import measured_on
from ropescope.measurement.reference_lines import constant_entropy, noise_entropy
from ropescope.measurement.results import NORM, kept_heads, mean_over_sequences, rotated_layers, stream_data, wavelength

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WORTH = "fisher"
# Heads beside each other; further ones stand below.
_ACROSS = 4


def panel(
    result: xr.DataTree, heads: Sequence[tuple[int, int]], stream: str = "query", sequence: int | None = None
) -> Figure:
    """Draw a column per head, at most four beside each other: both entropies over the pairs, norms along the sequence.

    Points that one of the paper's selections holds stand out; crosses on the floor are pairs
    without a value. Dotted lines mark what a constant signal and white noise score. Where importance was joined to the
    result, it is drawn under the entropies, crosses on the floor being pairs of importance 0.

    Parameters
    ----------
    result
        What :func:`ropescope.measure` gave.
    heads
        (model layer, query head or, for keys, key head); at least one.
    stream
        "query" or "key".
    sequence
        One sequence alone, 0 to the number of windows less one; None is the mean over sequences, their range shaded.

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

    Examples
    --------
    >>> panel(result, default_heads(result)).savefig("heads.png")  # doctest: +SKIP
    """
    data = stream_data(result, stream)
    check_heads(data, heads, stream)
    if sequence is not None:
        data = data.sel({SEQUENCE: [check_known(data, SEQUENCE, sequence)]})
    kept = not set(heads).isdisjoint(kept_heads(data, stream))
    rows = [*VARIABLE_LABELS, *([WORTH] if WORTH in data else []), NORM]
    across = min(len(heads), _ACROSS)
    blocks = [heads[start : start + across] for start in range(0, len(heads), across)]
    height = (8.2 if kept else 5.8) + 1.9 * (len(rows) - 3)
    figure = Figure(figsize=(1.2 + 3.6 * across, height * len(blocks)), layout="constrained")
    worth = f" · importance: {measured_on(data[WORTH])}" if WORTH in data and measured_on(data[WORTH]) else ""
    title = fill(caption(result, stream, data, "mean and range of") + worth, 50 * across)
    figure.suptitle(title, fontsize=SMALL + 1, color=REFERENCE)
    heights = [*[1.0] * (len(rows) - 1), 1.3 if kept else 0.3] * len(blocks)
    grid = figure.subplots(len(heights), across, squeeze=False, height_ratios=heights, sharey="row")
    for block, part in zip(blocks, np.split(grid, len(blocks)), strict=True):
        for (layer, head), column in zip(block, part.T, strict=False):
            _draw_head(figure, result, data, stream, (layer, head), column)
        for axes in part[:, len(block) :].flat:
            axes.remove()
        _label_block(part, rows, kept)
        # A shorter row at the end would push the columns above it apart.
        for axes, name in zip(part[:2, -1], VARIABLE_LABELS, strict=True) if len(block) == across else ():
            label_lines(axes, _lines(result, name))
    return figure


def _label_block(part: np.ndarray, rows: Sequence[str], kept: bool) -> None:
    """Names of the axes to the left."""
    labels = [*(pair_variables()[name].axis_label for name in rows[:-1]), "pair j" if kept else ""]
    for axes, label in zip(part[:, 0], labels, strict=True):
        axes.set_ylabel(label, fontsize=SMALL + 1)
    part[-1, 0].tick_params(labelleft=kept)


def _draw_head(
    figure: Figure, result: xr.DataTree, data: xr.Dataset, stream: str, place: tuple[int, int], column: Sequence[Axes]
) -> None:
    layer, head = place
    one = data.sel({LAYER: layer, HEAD_AXIS[stream]: head})
    rotated = bool(rotated_layers(result).sel({LAYER: layer}))
    column[0].set_title(f"layer {layer}, head {head} ({'RoPE' if rotated else 'NoPE'})", fontsize=SMALL + 3)
    for axes, name in zip(column[:2], VARIABLE_LABELS, strict=True):
        for _, height, colour in _lines(result, name):
            style = ("-", FAINT) if colour == SELECTED else (":", REFERENCE)
            axes.axhline(height, lw=0.9, ls=style[0], color=style[1], zorder=0)
        _draw_entropy(axes, one, name)
        axes.set_ylim(entropy_limits(name, [data[name]]))
    turns = wavelength(result).sel({LAYER: layer})[one["mean_norm"].notnull().any(SEQUENCE).values]
    for axes in column[2:-1]:
        _draw_worth(axes, one)
    for axes in column[:-1]:
        pair_axis(axes, turns)
        axes.tick_params(labelbottom=axes is column[-2])
    wavelength_axis(column[0], turns)
    column[-2].set_xlabel("pair j", fontsize=SMALL + 1)
    _draw_norms(figure, column[-1], data, stream, place)


def _draw_worth(axes: Axes, one: xr.Dataset) -> None:
    """Importance over the pairs, those that a selection of the paper holds standing out."""
    pair, mean = one[PAIR].values, mean_over_sequences(one)
    values = mean[WORTH].values
    worth = values > 0
    label = pair_variables()[WORTH].label
    axes.plot(pair, np.where(worth, values, np.nan), color=CURVE, lw=1.2, marker="o", ms=2.5, label=label)
    bands = worth & BANDS.holds(mean[BANDS.variable].values)
    axes.plot(pair[bands], values[bands], ls="", color=SELECTED, marker="o", ms=4, label=BANDS.plural)
    axes.set_yscale("log")
    axes.set_xlim(-0.5, pair[-1] + 0.5)
    _draw_on_floor(axes, pair[values == 0], "none")
    plain(axes)


def _draw_entropy(axes: Axes, one: xr.Dataset, name: str) -> None:
    pair = one[PAIR].values
    mean = mean_over_sequences(one)
    values, present = mean[name].values, mean["mean_norm"].notnull().values
    if one.sizes[SEQUENCE] > 1:
        low, high = one[name].min(SEQUENCE).values, one[name].max(SEQUENCE).values
        axes.fill_between(pair, low, high, color=CURVE, alpha=0.2, lw=0, label="range over sequences")
    axes.plot(pair, values, color=CURVE, lw=1.2, marker="o", ms=2.5, label=VARIABLE_LABELS[name])
    chosen = np.any([each.holds(values) for each in PAPER.values() if each.variable == name], axis=0)
    axes.plot(pair[chosen], values[chosen], ls="", color=SELECTED, marker="o", ms=4, label="selected")
    axes.set_xlim(-0.5, pair[-1] + 0.5)
    _draw_on_floor(axes, pair[present & np.isnan(values)], "undefined")
    plain(axes)


def _draw_on_floor(axes: Axes, pair: np.ndarray, word: str) -> None:
    if not pair.size:
        return
    across = axes.get_xaxis_transform()
    floor = np.full(pair.size, 0.05)
    axes.plot(pair, floor, ls="", marker="x", color=REFERENCE, ms=5, transform=across, label=word)
    left = bool(pair[-1] < sum(axes.get_xlim()) / 2)
    place, gap, side = (pair[-1], 5, "left") if left else (pair[0], -5, "right")
    axes.annotate(
        word,
        (place, 0.05),
        (gap, 0),
        xycoords=across,
        textcoords="offset points",
        ha=side,
        va="center",
        fontsize=SMALL,
    )


def _draw_norms(figure: Figure, axes: Axes, data: xr.Dataset, stream: str, place: tuple[int, int]) -> None:
    kept = place in kept_heads(data, stream)
    if not kept or 0 not in data[SEQUENCE].values:
        missing = f"not kept when layer {place[0]},\nhead {place[1]} was measured"
        draw_nothing(axes, f"norms {'kept for sequence 0 only' if kept else missing}")
        axes.set_ylim(-0.5, data.sizes[PAIR] - 0.5)
        return
    image = draw_norms(axes, data, place, stream)
    style = {"location": "bottom", "extend": "max", "shrink": 0.8, "aspect": 30}
    colour_bar(figure, image, [axes], "pair norm, sequence 0", **style)


def _lines(result: xr.DataTree, name: str) -> list[tuple[str, float, str]]:
    """Thresholds of an entropy, and what a signal of no interest scores: text, height, colour."""
    lines = [(text, height, SELECTED) for text, height in thresholds(name)]
    reference = constant_entropy(result) if name == "spectrum_fe" else noise_entropy(result)
    label = "constant" if name == "spectrum_fe" else "white noise"
    return lines if reference is None else [*lines, (f"{label} {reference:.3f}", reference, REFERENCE)]
