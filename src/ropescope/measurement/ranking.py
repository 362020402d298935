"""The pairs of a result that stand out, by their places: outliers, periodic pairs with their periods, silent pairs."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import xarray as xr

from ropescope.base.axes import HEAD_AXIS, LAYER, PAIR
from ropescope.base.errors import InputError
from ropescope.base.selections import OUTLIERS, PERIODIC, SILENT, Selection
from ropescope.base.tables import Table
from ropescope.measurement.periods import kinds
from ropescope.measurement.results import mean_over_sequences, stream_data, window_length
from ropescope.measurement.summary import format_tokens


def ranked(result: xr.DataTree, stream: str = "query", most: int = 10) -> list[Table]:
    """List the pairs of the paper's selections that lie furthest beyond their thresholds, and the silent ones.

    Bands are listed by :func:`ropescope.summary_text`, loudest first.

    Parameters
    ----------
    result
        What :func:`ropescope.measure` gave.
    stream
        "query" or "key".
    most
        Rows of each table, at least 1.

    Returns
    -------
    list of Table
        Outliers, periodic pairs with the period that windows share and whether they beat or drift, silent pairs; a
        selection without pairs has no table.

    Raises
    ------
    InputError
        `stream` is neither, or `most` is less than 1.
    """
    if most < 1:
        raise InputError(f"got most={most}; the number of pairs to list must be 1 or more")
    data = stream_data(result, stream)
    flat = _flat(mean_over_sequences(data).assign(kind=kinds(data["dominant_period"], window_length(result))), stream)
    tables = [_furthest(flat, OUTLIERS, stream, most), _furthest(flat, PERIODIC, stream, most, **_PERIODS)]
    return [table for table in (*tables, _silent(flat, stream, most)) if table.rows]


def _flat(mean: xr.Dataset, stream: str) -> xr.Dataset:
    """One row for every pair of every head."""
    return mean.stack(place=(LAYER, HEAD_AXIS[stream], PAIR), create_index=False)


def _shared_period(row: xr.Dataset) -> str:
    period = float(row["dominant_period"])
    return "" if math.isnan(period) else format_tokens(period)


_PERIODS: dict[str, Callable[[xr.Dataset], str]] = {
    "period": _shared_period,
    "kind": lambda row: str(row["kind"].values),
}


def _furthest(
    flat: xr.Dataset, selection: Selection, stream: str, most: int, **further: Callable[[xr.Dataset], str]
) -> Table:
    """The pairs of a selection, the furthest from its threshold first; `further` are columns of their own."""
    values = flat[selection.variable].values
    places = np.flatnonzero(selection.holds(values) & flat["mean_norm"].notnull().values)
    order = places[np.argsort(values[places] if selection.comparison == "<" else -values[places], kind="stable")]
    rows = [flat.isel(place=place) for place in order[:most]]
    entries = [
        [
            *(str(int(row[axis])) for axis in (LAYER, HEAD_AXIS[stream], PAIR)),
            f"{float(row[selection.variable]):.3f}",
            *(text(row) for text in further.values()),
        ]
        for row in rows
    ]
    shown = f", the {most} furthest" if places.size > most else ""
    title = f"{stream}: {selection.counted(places.size)} ({selection.rule}){shown}"
    return Table([LAYER, "head", PAIR, selection.variable_label, *further], entries, title)


def _silent(flat: xr.Dataset, stream: str, most: int) -> Table:
    """Silent pairs, a row for every layer and pair, with the heads where it is silent."""
    rows = flat.isel(place=np.flatnonzero(SILENT.holds(flat["mean_norm"].values)))
    heads: dict[tuple[int, int], list[int]] = {}
    for layer, head, pair in zip(*(rows[axis].values for axis in (LAYER, HEAD_AXIS[stream], PAIR)), strict=True):
        heads.setdefault((int(layer), int(pair)), []).append(int(head))
    listed = [[str(layer), str(pair), ", ".join(map(str, at))] for (layer, pair), at in sorted(heads.items())[:most]]
    title = f"{stream}: {SILENT.counted(rows.sizes['place'])}"
    return Table([LAYER, PAIR, "heads"], listed, title + (f", the first {most} places" if len(heads) > most else ""))
