"""NetCDF4 files: what they say they are, and whether one that cannot be read is damaged or only out of reach."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ropescope.base.errors import ResultError, UnreadableError, first_line

HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


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


def read_attributes(path: Path) -> None:
    """Fail on damaged structure here: h5netcdf would fail half built and complain again when it is collected."""
    import h5py

    def read(_: str, item: h5py.HLObject) -> None:
        list(item.attrs.items())

    with h5py.File(path, "r") as file:
        read("/", file)
        file.visititems(read)
