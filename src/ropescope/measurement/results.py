"""The schema of a measurement result, and one file for it: written whole or not at all, read fully into memory."""

from __future__ import annotations

import json
import math
from contextlib import closing
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import xarray as xr

from ropescope.base.axes import BIN, HEAD_AXIS, LAYER, PAIR, SEQUENCE, STREAMS
from ropescope.base.errors import InputError, ResultError, did_you_mean
from ropescope.base.files import check_target, written_whole
from ropescope.base.netcdf import check_source, read_attributes, reading
from ropescope.base.pair_variables import MEASURED, WORTH, pair_variables
from ropescope.measurement.periods import agreed_period

SCHEMA = "ropescope-measurement"
SCHEMA_VERSION = 2
IMPORTANCE = "ropescope-importance"
_VERSIONS = {SCHEMA: SCHEMA_VERSION, IMPORTANCE: 1}
_COMMANDS = {SCHEMA: "measure", IMPORTANCE: "importance"}
ROTARY = "rotary"
KEPT = "kept"
NORM = "norm"
MEAN_SPECTRUM = "mean_spectrum"

ROTARY_VARIABLES = {
    "frequency": ("angular frequency", "rad/token", None, (LAYER, PAIR)),
    "rotated": ("rotated", "1", "whether the layer rotates the pair", (LAYER, PAIR)),
    "pairing": ("pairing", "1", "which head dimensions make a pair, e.g. half-split[0:64]", (LAYER,)),
}


def provenance(result: xr.DataTree) -> dict[str, Any]:
    """Say what was measured, with which parameters and versions.

    Raises
    ------
    ResultError
        The result carries no readable provenance.
    """
    text = result.attrs.get("provenance")
    try:
        parsed = json.loads(text) if isinstance(text, str) else None
    except json.JSONDecodeError:
        parsed = None
    if not isinstance(parsed, dict):
        raise ResultError(f"got a result with provenance {text!r}; it must be a JSON object: measure again")
    return parsed


def short_name(name: str | None) -> str:
    """What to call a model or text: a hub name as it is, what can only be a file or folder without the way to it."""
    if not name:
        return ""
    path = PurePath(name)
    if path.suffix == ".gguf":
        return path.stem
    return path.name if path.is_absolute() or name.startswith((".", "~")) else name


def stream_data(result: xr.DataTree, stream: str) -> xr.Dataset:
    """Give the group of one stream.

    Raises
    ------
    InputError
        ``stream`` is not "query" or "key".
    """
    if stream not in STREAMS:
        raise InputError(f"got stream {stream!r}: {did_you_mean(stream, STREAMS)}")
    return result.children[stream].to_dataset()


def mean_over_sequences(data: xr.Dataset) -> xr.Dataset:
    """Average every (sequence, layer, head, pair) variable over the sequences where it is defined, in float64.

    A pair that is defined in no sequence stays NaN. The dominant period is no mean but the one that sequences share
    (:func:`agreed_period`).
    """
    per_sequence = data[[name for name in data.data_vars if SEQUENCE in data[name].dims]]
    mean = per_sequence.astype(np.float64).mean(SEQUENCE, skipna=True)
    shared = {"dominant_period": agreed_period(data["dominant_period"])} if "dominant_period" in per_sequence else {}
    further = {name: data[name] for name in pair_variables() if name in data and SEQUENCE not in data[name].dims}
    return mean.assign(shared | further)


def window_length(result: xr.DataTree) -> int | None:
    """Tokens in a window of a result, where it was recorded."""
    length = provenance(result).get("parameters", {}).get("length")
    return None if length is None else int(length)


def text_of(result: Any) -> str:
    """The text that windows were cut from, where it was recorded."""
    windows = provenance(result).get("windows", {})
    return " ".join(short_name(windows[part]) for part in ("corpus", "split") if windows.get(part))


def rotated_layers(result: xr.DataTree) -> xr.DataArray:
    """Whether each layer rotates any pair, dims (layer)."""
    return result.children[ROTARY].to_dataset()["rotated"].any(PAIR)


def kept_heads(data: xr.Dataset, stream: str) -> list[tuple[int, int]]:
    """(layer, head) of the norms that a stream's group has kept, in their order."""
    if NORM not in data:
        return []
    layers, heads = data["kept_layer"].values, data[f"kept_{HEAD_AXIS[stream]}"].values
    return list(zip(layers.tolist(), heads.tolist(), strict=True))


def wavelength(result: xr.DataTree) -> xr.DataArray:
    """Tokens in one turn of each pair, 2π / frequency: dims (layer, pair).

    Infinite where nothing turns, NaN where the pair is silent wherever it could be seen to turn.
    """
    rotary = result.children[ROTARY].to_dataset()
    speed = abs(rotary["frequency"])
    turning = rotary["rotated"] & (speed != 0)
    turn = (2 * math.pi / speed.where(turning)).where(turning, np.inf).rename("wavelength")
    return turn.assign_attrs(attributes_of("wavelength", "token"))


def save(result: xr.DataTree, path: str | Path, *, overwrite: bool = True) -> Path:
    """Write a result as one NetCDF4 file, whole or not at all.

    Parameters
    ----------
    result
        What :func:`ropescope.measure` gave, alone or with others joined to it.
    path
        The folder must exist.
    overwrite
        Whether an existing file may be replaced.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    ResultError
        The result does not follow the schema, or the file cannot be written.

    Examples
    --------
    >>> save(result, "qwen3.nc")  # doctest: +SKIP
    """
    schema = result.attrs.get("schema")
    _check_layout(result, "result to save", schema if schema in _VERSIONS else SCHEMA)
    target = check_target(path, overwrite=overwrite)
    with written_whole(target) as partial:
        _write(result, partial)
    return target


def load(path: str | Path, schema: str = SCHEMA) -> xr.DataTree:
    """Read a result file fully into memory and close it.

    Parameters
    ----------
    path
    schema
        What it must hold: a measurement, or importance.

    Raises
    ------
    ResultError
        The file is missing, damaged, not a ropescope result, or of another schema version.
    UnreadableError
        Another process holds the file open for writing, it may not be read, or the disk fails.
    """
    with reading(Path(path), _again(schema)):
        check_source(Path(path))
        read_attributes(Path(path))
        with closing(xr.open_datatree(path, engine="h5netcdf", decode_times=False)) as opened:
            tree = _without_encoding(opened.load())
    _check_layout(tree, str(path), schema)
    tree.attrs["schema_version"] = int(tree.attrs["schema_version"])
    return tree


def recorded_facts(result: xr.DataTree) -> dict[str, Any]:
    """The facts that a result was made from."""
    found = provenance(result)
    found.get("parameters", {}).pop("batch_sizes", None)
    return found


def attributes_of(long_name: str, units: str, description: str | None = None) -> dict[str, str]:
    """What a variable or axis means, as attributes."""
    given = {"long_name": long_name, "units": units, "description": description}
    return {name: text for name, text in given.items() if text is not None}


def _check_layout(tree: xr.DataTree, source: str, schema: str) -> None:
    if tree.attrs.get("schema") != schema:
        kind = "ropescope result" if schema == SCHEMA else "file of importance"
        raise ResultError(
            f"{source} is not a {kind}: its schema is {tree.attrs.get('schema')!r}, "
            f"not {schema!r}; give a file written by 'ropescope {_COMMANDS[schema]}'"
        )
    _check_version(tree.attrs.get("schema_version"), source, schema)
    for group, variables in _layout(schema).items():
        found = tree.children[group].to_dataset() if group in tree.children else xr.Dataset()
        for name, dims in variables.items():
            if name not in found or found[name].dims != dims:
                got = f"dims {found[name].dims}" if name in found else "no such variable"
                raise ResultError(f"{source}: {group}/{name} must have dims {dims}, got {got}; {_again(schema)}")
    provenance(tree)


def _again(schema: str) -> str:
    return "measure again" if schema == SCHEMA else "run 'ropescope importance' again"


def _check_version(version: Any, source: str, schema: str) -> None:
    ours = _VERSIONS[schema]
    if version == ours:
        return
    newer = isinstance(version, (int, np.integer)) and version > ours
    remedy = "upgrade ropescope" if newer else _again(schema)
    raise ResultError(f"{source} has schema version {version}; this ropescope reads version {ours}: {remedy}")


def _layout(schema: str) -> dict[str, dict[str, tuple[str, ...]]]:
    of_pairs = MEASURED if schema == SCHEMA else WORTH
    layout: dict[str, dict[str, tuple[str, ...]]] = {
        stream: dict.fromkeys([variable.name for variable in of_pairs], (SEQUENCE, LAYER, HEAD_AXIS[stream], PAIR))
        for stream in STREAMS
    }
    if schema == IMPORTANCE:
        return layout
    spectra = {stream: {**layout[stream], MEAN_SPECTRUM: (LAYER, HEAD_AXIS[stream], BIN)} for stream in STREAMS}
    return spectra | {ROTARY: {name: meaning[3] for name, meaning in ROTARY_VARIABLES.items()}}


def _without_encoding(tree: xr.DataTree) -> xr.DataTree:
    clean: xr.DataTree = tree.map_over_datasets(lambda data: data.drop_encoding())
    return clean


def _write(result: xr.DataTree, path: Path) -> None:
    compression = {"zlib": True, "complevel": 4, "shuffle": True, "fletcher32": True}
    encoding = {
        f"/{group}": {str(name): compression for name, data in node.data_vars.items() if data.dtype.kind == "f"}
        for group, node in result.children.items()
    }
    # through memory, since HDF5 on a full disk also complains from its destructors
    content = _without_encoding(result).to_netcdf(engine="h5netcdf", encoding=encoding)
    path.write_bytes(content)
