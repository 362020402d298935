"""The schema of a sweep, and one file for it: written whole or not at all, read fully into memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ropescope.errors import ResultError, first_line
from ropescope.files import written_whole

SCHEMA = "ropescope-sweep"
SCHEMA_VERSION = 1
SELECTION, ARM, ALPHA, WINDOW, STREAM = "selection", "arm", "alpha", "window", "stream"
LOWEST_NORM = "lowest-norm"
RANDOM = "random-"
VARIABLES = {
    "nats": ("negative log likelihood of the scored tokens of a window", "nat", (SELECTION, ARM, ALPHA, WINDOW)),
    "perplexity": ("perplexity over all windows", "1", (SELECTION, ARM, ALPHA)),
    "tokens": ("scored tokens of a window", "token", (WINDOW,)),
    "selected_pairs": ("selected pairs of all layers and heads", "1", (SELECTION, STREAM)),
}


def labelled(
    variables: Mapping[str, np.ndarray], coordinates: Mapping[str, Any], provenance: Mapping[str, Any]
) -> xr.Dataset:
    """Label the arrays of a sweep."""
    arrays = {
        name: (dims, variables[name], {"long_name": long_name, "units": units})
        for name, (long_name, units, dims) in VARIABLES.items()
    }
    text = json.dumps(provenance, allow_nan=False, ensure_ascii=False)
    facts = {"schema": SCHEMA, "schema_version": SCHEMA_VERSION, "provenance": text}
    return xr.Dataset(arrays, {name: np.asarray(values) for name, values in coordinates.items()}, facts)


def load_sweep(path: str | Path) -> xr.Dataset:
    """Read a sweep fully into memory.

    Raises
    ------
    ResultError
        If the file is missing, damaged, no sweep, or of another schema version.
    """
    if not Path(path).is_file():
        kind = "is a folder" if Path(path).is_dir() else "does not exist"
        raise ResultError(f"cannot read {path}: it {kind}; give a file written by 'ropescope sweep'")
    try:
        with closing(xr.open_dataset(path, engine="h5netcdf", decode_times=False)) as opened:
            data = opened.load().drop_encoding()
    except Exception as error:  # a damaged file makes HDF5 raise almost any type
        raise ResultError(
            f"{path} is damaged or no NetCDF4 file ({first_line(error)}): copy it again or sweep again"
        ) from error
    check_sweep(data, str(path))
    return data


def check_sweep(data: xr.Dataset, source: str) -> None:
    """Refuse a dataset that is no sweep of this schema version.

    Raises
    ------
    ResultError
        Naming `source` and what is wrong.
    """
    if data.attrs.get("schema") != SCHEMA:
        raise ResultError(
            f"{source} is not a sweep: its schema is {data.attrs.get('schema')!r}, not {SCHEMA!r}; give a file written "
            "by 'ropescope sweep'"
        )
    if data.attrs.get("schema_version") != SCHEMA_VERSION:
        raise ResultError(
            f"{source} has schema version {data.attrs.get('schema_version')}; this ropescope reads {SCHEMA_VERSION}: "
            "upgrade ropescope, or sweep again"
        )
    for name, (_, _, dims) in VARIABLES.items():
        if name not in data or data[name].dims != dims:
            raise ResultError(f"{source}: {name} must have dims {dims}; sweep again")


def save_sweep(data: xr.Dataset, target: Path) -> None:
    """Write a sweep as one NetCDF4 file, whole or not at all, the same bytes for the same sweep."""
    # through memory, since HDF5 on a full disk also complains from its destructors
    content = data.to_netcdf(engine="h5netcdf")
    with written_whole(target) as partial:
        partial.write_bytes(content)
