"""The same heads of several results over each other (figure 6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from ropescope.analysis.comparability import check_pairwise, length_of, on_scale_of
from ropescope.analysis.places import NOPE, ROPE
from ropescope.base.axes import HEAD_AXIS, HEAD_NAMES, LAYER, PAIR, SEQUENCE
from ropescope.base.selections import VARIABLE_LABELS
from ropescope.display.figures.style import (
    FAINT,
    REFERENCE,
    SMALL,
    check_heads,
    colours,
    draw_norms,
    draw_nothing,
    entropy_limits,
    label_lines,
    pair_axis,
    plain,
    thresholds,
    tick_places,
    wavelength_axis,
)
from ropescope.measurement.results import kept_heads, mean_over_sequences, stream_data, wavelength

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
    matplotlib.figure.Figure

    Raises
    ------
    InputError
        A stream or head that the results do not hold, no head, or fewer than two results.
    ResultError
        The results cannot be compared pair by pair.

    References
    ----------
    Frequency Entropy paper, figure 6.

    Examples
    --------
    >>> side_by_side({"wikitext": one, "c4": other}, [(6, 0), (1, 0)])  # doctest: +SKIP
    """
    check_pairwise(results)
    (first_name, first), *others = results.items()
    placed = {first_name: first, **{name: on_scale_of(first, other) for name, other in others}}
    data = {name: stream_data(result, stream) for name, result in placed.items()}
    check_heads(data[first_name], heads, stream)
    kept = [name for name in data if not set(heads).isdisjoint(kept_heads(data[name], stream))]
    size = (1.4 + 3.6 * len(heads), 4.6 + 2.1 * len(kept))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(2 + len(kept), len(heads), squeeze=False, sharey="row")
    for place, column in zip(heads, grid.T, strict=True):
        _draw_entropies(column[:2], data, place, stream, wavelength(first).sel({LAYER: place[0]}))
        for axes, name in zip(column[2:], kept, strict=True):
            _draw_norm(axes, data[name], place, stream)
    lengths = {length_of(result) for result in results.values()}
    scale = f",\nat {length_of(first)} tokens" if len(lengths) > 1 else ""
    spectrum, sequence = VARIABLE_LABELS.values()
    labels = (spectrum, f"{sequence}{scale}", *("pair j" for _ in kept))
    for axes, label in zip(grid[:, 0], labels, strict=True):
        axes.set_ylabel(label, fontsize=SMALL + 1)
    for axes, name in zip(grid[2:, 0], kept, strict=True):
        axes.set_title(f"{name}, norms", loc="left", fontsize=SMALL + 1)
    for axes, entropy in zip(grid[:2, -1], VARIABLE_LABELS, strict=True):
        label_lines(axes, [(text, height, REFERENCE) for text, height in thresholds(entropy)])
        axes.set_ylim(entropy_limits(entropy, _drawn(data, heads, stream, entropy)))
    handles, names = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=4, frameon=False, fontsize=SMALL + 1)
    return figure


def _draw_entropies(
    column: Sequence[Axes], data: Mapping[str, xr.Dataset], place: tuple[int, int], stream: str, turns: xr.DataArray
) -> None:
    rotated = np.isfinite(turns.values).any()
    column[0].set_title(f"layer {place[0]}, {HEAD_NAMES[stream]} {place[1]} ({ROPE if rotated else NOPE})", pad=6)
    column[0].title.set_fontsize(SMALL + 2)
    for axes, entropy in zip(column, VARIABLE_LABELS, strict=True):
        for _, height in thresholds(entropy):
            axes.axhline(height, lw=0.9, color=FAINT, zorder=0)
        for (name, one), colour in zip(data.items(), colours(len(data)), strict=True):
            head = one.sel({LAYER: place[0], HEAD_AXIS[stream]: place[1]})
            _draw_line(axes, head, entropy, name, colour)
        plain(axes)
        pair_axis(axes, turns)
    column[1].set_xlabel("pair j", fontsize=SMALL + 1)
    wavelength_axis(column[0], turns)


def _drawn(
    data: Mapping[str, xr.Dataset], heads: Sequence[tuple[int, int]], stream: str, entropy: str
) -> list[xr.DataArray]:
    return [one[entropy].sel({LAYER: layer, HEAD_AXIS[stream]: head}) for one in data.values() for layer, head in heads]


def _draw_line(axes: Axes, head: xr.Dataset, entropy: str, name: str, colour: str) -> None:
    pair, mean = head[PAIR].values, mean_over_sequences(head)[entropy].values
    if head.sizes[SEQUENCE] > 1:
        span = (head[entropy].min(SEQUENCE).values, head[entropy].max(SEQUENCE).values)
        axes.fill_between(pair, *span, color=colour, alpha=0.18, lw=0)
    axes.plot(pair, mean, color=colour, lw=1.2, marker="o", ms=2.2, label=name)


def _draw_norm(axes: Axes, data: xr.Dataset, place: tuple[int, int], stream: str) -> None:
    if place not in kept_heads(data, stream):
        draw_nothing(axes, "norms not kept")
        return
    draw_norms(axes, data, place, stream)
    axes.set_yticks(tick_places(data.sizes[PAIR]))
