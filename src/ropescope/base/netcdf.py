"""NetCDF4 files: what they say they are, and whether one that cannot be read is damaged or only out of reach."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ropescope.base.errors import ResultError, UnreadableError, first_line

if TYPE_CHECKING:
    import h5py
    import xarray as xr

HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_NO_VARIABLE = b"This is a netCDF dimension but not a netCDF variable"
_NOTES = {"CLASS", "NAME", "DIMENSION_LIST", "REFERENCE_LIST", "_Netcdf4Dimid", "_Netcdf4Coordinates", "_NCProperties"}


@contextmanager
def reading(path: Path, again: str) -> Iterator[None]:
    """Say of a NetCDF4 file that cannot be read whether it is damaged or only out of reach.

    Parameters
    ----------
    path : Path
    again : str
        What to do to have a damaged file anew.

    Raises
    ------
    ResultError
        The file is damaged.
    UnreadableError
        Another process holds the file open for writing, it may not be read, or the disk fails.
    """
    try:
        yield
    except ResultError:
        raise
    except Exception as error:  # a damaged file makes HDF5 raise almost any type
        if reason := _out_of_reach(error):
            raise UnreadableError(f"cannot read {path} now: {reason}; it is left as it is") from error
        raise ResultError(f"{path} is damaged or cut short ({first_line(error)}): copy it again or {again}") from error


def _out_of_reach(error: Exception) -> str | None:
    """What the system says; None where it says nothing, so that the content must be at fault."""
    if isinstance(error, MemoryError):
        return "the memory does not suffice"
    if not isinstance(error, OSError):
        return None
    told = re.search(r"errno = (\d+)", str(error))
    number = error.errno or (int(told[1]) if told else 0)
    if number in (errno.EAGAIN, errno.EWOULDBLOCK):
        return "another process holds it open for writing; wait until that has closed it"
    # the last three are what the system says to places in a file that a damaged one points to
    silent = number in (0, errno.EINVAL, errno.EFBIG, errno.EOVERFLOW)
    return None if silent else f"{os.strerror(number)}; see to that first"


def schema_of(path: str | Path) -> str | None:
    """The schema that a NetCDF file says it follows, such as "ropescope-sweep"; None where it says nothing readable."""
    import h5py

    with reading(Path(path), "make it again"):
        check_source(Path(path))
    try:
        with h5py.File(path, "r") as file:
            return str(file.attrs["schema"])
    except (OSError, KeyError):
        return None


def check_source(path: Path) -> None:
    """Refuse what is not there, or is no NetCDF4 file."""
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "does not exist"
        raise ResultError(f"cannot read {path}: it {kind}; give a result file written by 'ropescope measure'")
    with path.open("rb") as file:
        signature = file.read(len(HDF5_SIGNATURE))
    if signature != HDF5_SIGNATURE:
        raise ResultError(f"{path} is not a NetCDF4 file; give a result file written by 'ropescope measure'")


def read_groups(path: Path) -> dict[str, xr.Dataset]:
    """Every group of a file that xarray has written, by its path, in memory and without encoding.

    xarray's own way through h5netcdf looks every dimension up anew for every variable, and takes four times as long;
    and on damaged structure it fails half built, and complains again when it is collected.
    """
    import h5py

    with h5py.File(path, "r") as file:
        groups = {"/": file}
        file.visititems(lambda name, item: groups.update({name: item} if isinstance(item, h5py.Group) else {}))
        return {name: _dataset(group) for name, group in groups.items()}


def _dataset(group: h5py.Group) -> xr.Dataset:
    import h5py
    import xarray as xr

    members = {name: item for name, item in group.items() if isinstance(item, h5py.Dataset)}
    variables = {
        name: xr.Variable(_dims(item), _values(item), _attributes(item))
        for name, item in members.items()
        if not item.attrs.get("NAME", b"").startswith(_NO_VARIABLE)
    }
    raw = xr.Dataset(variables, attrs=_attributes(group))
    return xr.decode_cf(raw, decode_times=False).load().drop_encoding()


def _dims(item: h5py.Dataset) -> tuple[str, ...]:
    """Names of the axes: of a coordinate its own, else those of the scales it refers to."""
    scales = item.attrs.get("DIMENSION_LIST")
    axes = [item] * item.ndim if scales is None else [item.file[scale[0]] for scale in scales]
    return tuple(str(axis.name).rpartition("/")[2] for axis in axes)


def _values(item: h5py.Dataset) -> np.ndarray:
    import h5py

    return np.asarray(item.asstr()[()], dtype=str) if h5py.check_string_dtype(item.dtype) else np.asarray(item[()])


def _attributes(item: h5py.HLObject) -> dict[str, Any]:
    """What is said of a group or variable, but for HDF5's own notes on dimensions."""
    found = {name: value for name, value in item.attrs.items() if name not in _NOTES}
    return {
        name: value[0] if isinstance(value, np.ndarray) and value.shape == (1,) else value
        for name, value in found.items()
    }
