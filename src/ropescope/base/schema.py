"""Datasets of an evaluation as files: one schema each, written whole or not at all, read fully into memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xarray as xr

from ropescope.base.errors import ResultError
from ropescope.base.files import written_whole
from ropescope.base.netcdf import reading


@dataclass(frozen=True)
class Schema:
    """What a kind of dataset holds.

    Parameters
    ----------
    name, version
        Under which the file says what it is.
    dims
        Dimensions of every variable.
    what
        What such a dataset is called, as in "a sweep".
    command, again
        The command that writes it, and what to do to have it anew.
    """

    name: str
    version: int
    dims: Mapping[str, tuple[str, ...]]
    what: str
    command: str
    again: str

    def attributes(self, provenance: Mapping[str, Any]) -> dict[str, Any]:
        """Attributes of such a dataset, with its provenance as one JSON string."""
        text = json.dumps(provenance, allow_nan=False, ensure_ascii=False)
        return {"schema": self.name, "schema_version": self.version, "provenance": text}

    @staticmethod
    def provenance(data: xr.Dataset) -> dict[str, Any]:
        """What :meth:`attributes` was given."""
        found: dict[str, Any] = json.loads(data.attrs["provenance"])
        return found

    def load(self, path: str | Path) -> xr.Dataset:
        """Read a dataset fully into memory.

        Raises
        ------
        ResultError
            If the file is missing, damaged, of another kind, or of another schema version.
        UnreadableError
            If another process holds the file open for writing, it may not be read, or the disk fails.
        """
        with reading(Path(path), self.again):
            if not Path(path).is_file():
                kind = "is a folder" if Path(path).is_dir() else "does not exist"
                raise ResultError(f"cannot read {path}: it {kind}; give a file written by '{self.command}'")
            with closing(xr.open_dataset(path, engine="h5netcdf", decode_times=False)) as opened:
                data = opened.load().drop_encoding()
        self.check(data, str(path))
        return data

    def check(self, data: xr.Dataset, source: str) -> None:
        """Refuse a dataset that is of another kind or schema version.

        Raises
        ------
        ResultError
            Naming `source` and what is wrong.
        """
        if data.attrs.get("schema") != self.name:
            raise ResultError(
                f"{source} is not {self.what}: its schema is {data.attrs.get('schema')!r}, not {self.name!r}; give a "
                f"file written by '{self.command}'"
            )
        if data.attrs.get("schema_version") != self.version:
            raise ResultError(
                f"{source} has schema version {data.attrs.get('schema_version')}; this ropescope reads {self.version}: "
                f"upgrade ropescope, or {self.again}"
            )
        for name, dims in self.dims.items():
            if name not in data or data[name].dims != dims:
                raise ResultError(f"{source}: {name} must have dims {dims}; {self.again}")

    def save(self, data: xr.Dataset, target: Path) -> None:
        """Write a dataset as one NetCDF4 file, whole or not at all, the same bytes for the same dataset."""
        self.check(data, "the dataset to save")
        # through memory, since HDF5 on a full disk also complains from its destructors
        content = data.to_netcdf(engine="h5netcdf")
        with written_whole(target) as partial:
            partial.write_bytes(content)
