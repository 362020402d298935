"""A look at a model's behaviour as tables: where its heads attend to, and what it loses without some pairs."""

from __future__ import annotations

import numpy as np
import xarray as xr

from ropescope.base.axes import HEAD, LAYER, SEQUENCE
from ropescope.base.counting import counted
from ropescope.base.schema import Schema
from ropescope.base.statistics import LEAST_WINDOWS, jackknife
from ropescope.base.tables import Section, Table
from ropescope.evaluation.claims.arms import PLAIN, TWICE_PLAIN
from ropescope.evaluation.claims.behaviour_dataset import ARM, LOOKED, READING
from ropescope.measurement.names import model_name
from ropescope.measurement.results import text_of


def look_section(data: xr.Dataset) -> Section:
    """Tell what a look at a model saw; the verdicts on it are those of :func:`ropescope.claims`.

    Parameters
    ----------
    data : xarray.Dataset
        What ``ropescope claims --model`` kept.
    """
    length = Schema.provenance(data).get("windows", {}).get("length")
    size = counted(data.sizes[SEQUENCE], "window") + (f" of {length} tokens" if length else "")
    about = ", ".join(part for part in (model_name(data), text_of(data), size) if part)
    meaning = (
        f"Brackets are 95 % intervals over windows, of {LEAST_WINDOWS} windows or more. For verdicts give the file to "
        "'ropescope claims' with the measurement of the model."
    )
    tables = [_heads(data), _arms(data), _readings(data)]
    return Section(f"A look at {about}", (meaning,), tuple(table for table in tables if table.rows))


def _heads(data: xr.Dataset) -> Table:
    """What was seen of the heads, by its median, its highest and the head that has it."""
    rows = []
    for name, what in LOOKED.items():
        seen = data[name].mean(SEQUENCE).transpose(LAYER, HEAD)
        row, head = np.unravel_index(np.nanargmax(seen.values), seen.shape)
        highest = f"{int(data[LAYER].values[row])}:{head}"
        rows.append([what, f"{float(seen.median()):.3f}", f"{float(seen.max()):.3f}", highest])
    return Table(["seen of every head", "median head", "highest", "layer:head"], rows)


def _arms(data: xr.Dataset) -> Table:
    """What each change of pairs costs the text, against the model as it stands."""
    plain = data["nats"].sel({ARM: PLAIN}).values
    rows = []
    for arm in data[ARM].values.tolist():
        nats = data["nats"].sel({ARM: arm}).values
        if not np.isnan(nats).any():
            change = "-" if arm == PLAIN else _interval(nats - plain, signed=True)
            rows.append([arm, str(int(data["pairs"].sel({ARM: arm}))), _interval(nats), change])
    return Table(["pairs changed", "key pairs", "nats per token", "more than plain"], rows, "The text, run once")


def _readings(data: xr.Dataset) -> Table:
    """A passage read twice: what the second reading gains from the first."""
    rows = []
    for arm in data[ARM].values.tolist():
        first, second = data["readings"].sel({ARM: arm}).transpose(READING, SEQUENCE).values
        if not np.isnan(first).any():
            pairs = str(int(data["pairs"].sel({ARM: arm})))
            rows.append([arm.replace(TWICE_PLAIN, PLAIN), pairs, *map(_interval, (first, second))])
    return Table(["pairs changed", "key pairs", "first reading", "second reading"], rows, "A passage read twice")


def _interval(values: np.ndarray, *, signed: bool = False) -> str:
    """The mean over windows with its interval."""
    value, low, high = jackknife(lambda drawn: drawn.mean(0), values, least=LEAST_WINDOWS)
    form = "+.3f" if signed else ".3f"
    return f"{value:{form}}" + ("" if np.isnan(low) else f" [{low:{form}}, {high:{form}}]")
