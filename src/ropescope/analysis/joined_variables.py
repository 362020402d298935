"""Variables that other measurements have joined to a result, in words and by layer."""

from __future__ import annotations

import numpy as np
import xarray as xr

from ropescope.base.axes import HEAD_AXIS, LAYER, PAIR, SEQUENCE, STREAMS
from ropescope.base.pair_variables import PairVariable
from ropescope.base.tables import Section, Table
from ropescope.measurement.joining import further_variables
from ropescope.measurement.results import stream_data

_QUANTILES = (0.1, 0.5, 0.9)


def further_sections(result: xr.DataTree, name: str = "") -> list[Section]:
    """A section for every registered variable that the result holds beside its own.

    Parameters
    ----------
    result
        A measurement with others joined to it, or one of those.
    name
        What to call the result in the titles; may be empty.

    Returns
    -------
    list of Section
        What the variable is, and its tenth, middle and ninetieth percentile in every layer.
    """
    variables = further_variables(stream_data(result, STREAMS[0]))
    names = [variable.name for variable in variables]
    streams = {stream: _mean(stream_data(result, stream)[names]) for stream in STREAMS}
    return [_section(variable, streams, name) for variable in variables]


def _mean(data: xr.Dataset) -> xr.Dataset:
    """Over sequences, where there are any."""
    return data.mean(SEQUENCE) if SEQUENCE in data.dims else data


def _section(variable: PairVariable, streams: dict[str, xr.Dataset], name: str) -> Section:
    about = f"{variable.label.capitalize()}: {variable.text or 'no description'}"
    meaning = f" A low value means: {variable.low}." if variable.low else ""
    header = [LAYER, *(f"{stream} {percent:.0%}" for stream in STREAMS for percent in _QUANTILES)]
    layers = streams[STREAMS[0]][LAYER].values
    rows = [
        [str(layer), *(entry for item in streams.items() for entry in _entries(variable, item, layer))]
        for layer in layers
    ]
    unit = "" if variable.unit == "1" else f", {variable.unit}"
    title = variable.label.capitalize() + (f" in {name}" if name else "")
    return Section(title, (f"{about}.{meaning}",), (Table(header, rows, f"{variable.label} of pairs, by layer{unit}"),))


def _entries(variable: PairVariable, item: tuple[str, xr.Dataset], layer: int) -> list[str]:
    stream, data = item
    values = data[variable.name].sel({LAYER: layer}).transpose(HEAD_AXIS[stream], PAIR).values
    known = values[~np.isnan(values)]
    return [f"{value:.3g}" for value in np.quantile(known, _QUANTILES)] if known.size else ["-"] * len(_QUANTILES)
