"""Variables of other measurements of the same pairs, beside those of a result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import xarray as xr

from ropescope.base.axes import HEAD_AXIS, LAYER, PAIR, SEQUENCE, STREAMS
from ropescope.base.counting import counted
from ropescope.base.errors import InputError
from ropescope.base.facts import listed, other_model
from ropescope.base.pair_variables import MEASURED, PairVariable, pair_variables
from ropescope.measurement.results import attributes_of, provenance, stream_data, text_of, window_length

_MEASURED_ON = "measured_on"


def joined(result: xr.DataTree, *others: xr.DataTree) -> xr.DataTree:
    """Put registered variables of other measurements of the same pairs beside those of a result.

    Parameters
    ----------
    result
        What :func:`ropescope.measure` gave.
    others
        Trees with groups `query` and `key`, whose registered variables have the dims (layer, head or kv_head, pair),
        with (sequence) before them or without. Values are taken where layer, head and pair are the same.

    Returns
    -------
    xarray.DataTree
        A new result; those given stay as they were.

    Raises
    ------
    InputError
        Another tree has other layers, heads or pairs, no registered variable, or one that the result has already, or
        says that it is of another model.

    Examples
    --------
    >>> both = joined(result, norm_skewness(model, windows))  # doctest: +SKIP
    >>> rs.variable_map(both, "norm_skewness").savefig("skewness.png")  # doctest: +SKIP
    """
    groups = {name: node.to_dataset() for name, node in result.children.items()}
    for other in others:
        _check_same_model(result, other)
        extent = {_MEASURED_ON: extent_of(other)} if "provenance" in other.attrs else {}
        for stream in STREAMS:
            further = _further(groups[stream], stream_data(other, stream), stream, extent)
            groups[stream] = groups[stream].assign(further)
    tree = xr.DataTree.from_dict({f"/{name}": data for name, data in groups.items()})
    tree.attrs = result.attrs
    return tree


def of_one_model(result: xr.DataTree, other: xr.DataTree) -> bool:
    """Whether two measurements say that they are of the same model."""
    return not other_model(*_models(result, other))


def _models(*trees: xr.DataTree) -> list[Mapping[str, Any]]:
    return [provenance(tree).get("model", {}) for tree in trees]


def _check_same_model(result: xr.DataTree, other: xr.DataTree) -> None:
    if "provenance" not in result.attrs or "provenance" not in other.attrs:
        return
    ours, theirs = _models(result, other)
    if differing := other_model(ours, theirs):
        raise InputError(
            f"cannot join a measurement of another model ({theirs.get('id')}) to one of {ours.get('id')}: other "
            f"{listed(differing)}; measure both on one"
        )


def further_variables(data: xr.Dataset) -> list[PairVariable]:
    """The registered variables of a stream's group that :func:`ropescope.measure` does not write."""
    return [variable for name, variable in pair_variables().items() if name in data and variable not in MEASURED]


def _further(data: xr.Dataset, other: xr.Dataset, stream: str, extent: dict[str, str]) -> dict[str, xr.DataArray]:
    place = (LAYER, HEAD_AXIS[stream], PAIR)
    found = {variable.name: variable for variable in further_variables(other)}
    if not found or _taken_or_elsewhere(data, other, place, found):
        raise InputError(
            f"cannot join {stream} variables {', '.join(found) or '(none registered)'} to this result: they must be "
            "registered, new to it, and of the same layers, heads and pairs"
        )
    return {
        name: other[name]
        .mean([dim for dim in other[name].dims if dim not in place])
        .transpose(*place)
        .assign_attrs(attributes_of(variable.label, variable.unit, variable.text), **extent)
        for name, variable in found.items()
    }


def _taken_or_elsewhere(data: xr.Dataset, other: xr.Dataset, place: tuple[str, ...], names: Iterable[str]) -> bool:
    """Whether a name is in the data already, or the places of the other are not the same."""
    if any(name in data for name in names) or any(dim not in other.dims for dim in place):
        return True
    return not all(np.array_equal(data[dim].values, np.asarray(other[dim].values)) for dim in place)


def extent_of(result: xr.DataTree) -> str:
    """How many windows, of which length and text, something was measured on."""
    count, length = stream_data(result, STREAMS[0]).sizes.get(SEQUENCE, 1), window_length(result)
    size = counted(count, "window") + (f" of {length} tokens" if length else "")
    return " of ".join(part for part in (size, text_of(result)) if part)


def measured_on(variable: xr.DataArray) -> str:
    """The extent of the measurement that a joined variable comes from, where it was recorded."""
    return str(variable.attrs.get(_MEASURED_ON, ""))
