"""What figures have in common: colours, sizes, axes of pairs, wavelengths and layers, limits, lines, norms, captions.

A new figure is a function that takes results, makes a ``Figure`` with the layout "constrained", draws with what stands
here, and returns it. Nothing writes a file or touches pyplot.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import ListedColormap

from ropescope.base.axes import HEAD_AXIS, HEAD_NAMES, LAYER, PAIR, POSITION, SEQUENCE, STREAM_NAMES
from ropescope.base.errors import InputError
from ropescope.base.selections import PAPER, SCALES
from ropescope.measurement.joining import measured_on
from ropescope.measurement.names import model_name
from ropescope.measurement.results import KEPT, NORM, kept_heads, text_of, window_length
from ropescope.measurement.summary import format_tokens

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.colorbar import Colorbar
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

# Okabe and Ito's colours, told apart by every kind of colour vision.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
CURVE, SELECTED = COLOURS[0], COLOURS[1]
REFERENCE, FAINT = "#444444", "#BBBBBB"
SMALL = 8
_TICKS = 5
_MOST_ROWS = 12
_BRIGHTEST = 0.995
# A map of cells, the first row at the bottom.
CELLS: dict[str, Any] = {"aspect": "auto", "origin": "lower", "interpolation": "nearest"}
HATCHED: dict[str, Any] = {"facecolor": "#E4E4E4", "hatch": "/////", "edgecolor": "#777777"}
_NOTHING = (0, 0, 0, 0)
# How far a colour that no threshold selects is mixed with white.
_FADE = 0.45


def colours(count: int) -> list[str]:
    """A colour for each of `count` lines, the first ones again after seven."""
    return [COLOURS[place % len(COLOURS)] for place in range(count)]


def map_colours(signed: bool = False) -> Colormap:
    """Colours of a map, white at 0 where values have both signs, none where there is no value."""
    return colormaps["RdBu_r" if signed else "viridis"].with_extremes(bad=_NOTHING)


def selecting_colours(variable: str) -> Colormap:
    """Colours of an entropy over its usual range: full where a selection of the paper holds, pale between."""
    low, high = SCALES[variable]
    values = low + (high - low) * (np.arange(256) + 0.5) / 256
    own = [each for each in PAPER.values() if each.variable == variable]
    pale = ~np.any([each.holds(values) for each in own], axis=0)
    colours_of = colormaps["viridis"](np.arange(256))
    colours_of[pale, :3] += _FADE * (1 - colours_of[pale, :3])
    return ListedColormap(colours_of).with_extremes(bad=_NOTHING)


def hatch_missing(axes: Axes) -> None:
    """Hatch what lies behind a map, which shows where it has no value."""
    axes.patch.set(**HATCHED, linewidth=0)


def plain(axes: Axes) -> None:
    """Two spines and small ticks."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=SMALL)


def pair_axis(axes: Axes, turns: xr.DataArray) -> None:
    """Ticks at a few pairs, the first and the last included; `turns` are wavelengths (pair)."""
    axes.set_xticks(turns[PAIR].values[tick_places(turns.size)])
    axes.set_xlim(-0.5, float(turns[PAIR].values[-1]) + 0.5)
    axes.tick_params(labelsize=SMALL)


def wavelength_axis(axes: Axes, turns: xr.DataArray, label: str = "wavelength (tokens)") -> None:
    """A second axis above with the wavelengths of the ticked pairs; one infinity where nothing turns."""
    places = tick_places(turns.size)
    if np.isinf(turns).all():
        places = places[len(places) // 2 : len(places) // 2 + 1]
    labels = [format_tokens(tokens).replace("inf", "∞") for tokens in turns.values[places].tolist()]
    upper = axes.secondary_xaxis("top")
    upper.set_xticks(turns[PAIR].values[places], labels=labels)
    upper.set_xlabel(label, fontsize=SMALL)
    upper.tick_params(labelsize=SMALL)


def layer_axis(axes: Axes, layers: np.ndarray) -> None:
    """At most a dozen layers along a map's rows."""
    rows = np.arange(0, len(layers), max(1, math.ceil(len(layers) / _MOST_ROWS)))
    axes.set_yticks(rows, labels=[str(layer) for layer in layers[rows]])
    axes.tick_params(labelsize=SMALL)


def tick_places(count: int) -> np.ndarray:
    """Indices of a few evenly spaced of `count` places, ends included."""
    return np.unique(np.linspace(0, count - 1, _TICKS).round().astype(int))


def thresholds(variable: str) -> list[tuple[str, float]]:
    """What is written beside each threshold of a variable, and its height."""
    found = [selection for selection in PAPER.values() if selection.variable == variable]
    return [(f"{each.label} {each.comparison} {each.threshold:g}", each.threshold) for each in found]


def label_lines(axes: Axes, lines: Iterable[tuple[str, float, str]]) -> None:
    """Write text, in a colour, to the right of the axes at each height."""
    for text, height, colour in lines:
        axes.annotate(
            text, (1.02, height), xycoords=("axes fraction", "data"), va="center", fontsize=SMALL, color=colour
        )


def entropy_limits(variable: str, values: Iterable[xr.DataArray]) -> tuple[float, float]:
    """The usual range of an entropy, wider where a value lies beyond it."""
    low, high = SCALES[variable]
    drawn = list(values)
    lowest, highest = ([float(end(each)) for each in drawn] for end in (np.min, np.max))
    return float(np.nanmin([low, *lowest])), float(np.nanmax([high, *(np.array(highest) + 0.02)]))


def colour_bar(figure: Figure, image: AxesImage, axes: Iterable[Axes], label: str, **style: Any) -> Colorbar:
    """A colour bar beside these axes."""
    bar = figure.colorbar(image, ax=list(axes), **{"aspect": 25, "pad": 0.02, **style})
    bar.set_label(label, fontsize=SMALL + 1)
    bar.ax.tick_params(labelsize=SMALL)
    return bar


def draw_norms(axes: Axes, data: xr.Dataset, place: tuple[int, int], stream: str) -> AxesImage:
    """The kept norms of a head along the first sequence, pair by position, as bright as all but its loudest values."""
    norm = data[NORM].isel({KEPT: kept_heads(data, stream).index(place)}).transpose(PAIR, POSITION)
    position = norm[POSITION].values
    end = position[-1] + (position[-1] - position[-2] if len(position) > 1 else 1)
    finite = norm.values[np.isfinite(norm.values)]
    extent = (position[0], end, -0.5, norm.sizes[PAIR] - 0.5)
    image = axes.imshow(norm.values, extent=extent, cmap="magma", vmin=0, **CELLS)
    image.set_clim(0, float(np.quantile(finite, _BRIGHTEST)) if finite.size else 1.0)
    axes.set_xticks(np.linspace(position[0], end, _TICKS).round().astype(int))
    axes.set_xlabel("position n (tokens)", fontsize=SMALL + 1)
    axes.tick_params(labelsize=SMALL)
    return image


def draw_nothing(axes: Axes, reason: str) -> None:
    """Say in the middle of empty axes why nothing is drawn."""
    axes.text(0.5, 0.5, reason, ha="center", va="center", color="#888888", transform=axes.transAxes)
    axes.set(xticks=[])
    axes.tick_params(left=False)
    axes.spines[:].set_visible(False)


def caption(result: xr.DataTree, stream: str, data: xr.Dataset, several: str, joined: str | None = None) -> str:
    """Model, text, stream and extent of what a figure shows; of a variable that was joined, its own text and extent."""
    model = model_name(result)
    if joined is not None:
        return " · ".join(part for part in (model, STREAM_NAMES[stream], measured_on(data[joined])) if part)
    sequences = data[SEQUENCE].values
    extent = f"{several} {len(sequences)} sequences" if len(sequences) > 1 else f"sequence {sequences[0]}"
    length = window_length(result)
    parts = (model, text_of(result), STREAM_NAMES[stream], extent + (f" of {length} tokens" if length else ""))
    return " · ".join(part for part in parts if part)


def check_heads(data: xr.Dataset, heads: Sequence[tuple[int, int]], stream: str) -> None:
    """Raise InputError unless there is at least one (layer, head), and the stream holds all of them."""
    if not heads:
        raise InputError(
            "got no heads to draw; give at least one (layer, head), for example from default_heads(result)"
        )
    for layer, head in heads:
        check_known(data, LAYER, layer)
        check_known(data, HEAD_AXIS[stream], head)
        if data["mean_norm"].sel({LAYER: layer, HEAD_AXIS[stream]: head}).isnull().all():
            raise InputError(
                f"layer {layer} has no {HEAD_NAMES[stream]} {head}; other layers have more: choose a lower one"
            )


def check_known(data: xr.Dataset, dim: str, index: int) -> int:
    """The index, once it is clear that the dimension has it."""
    known = data[dim].values.tolist()
    if index in known:
        return index
    listing = ", ".join(map(str, known))
    if len(known) > 1 and known == list(range(known[0], known[-1] + 1)):
        listing = f"{known[0]} to {known[-1]}"
    raise InputError(f"got {dim} {index}; the result holds {dim} {listing}: choose one of these")
