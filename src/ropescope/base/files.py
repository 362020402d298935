"""Files appear whole or not at all: written beside their target, then renamed onto it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from ropescope.base.errors import InputError, ResultError, first_line


def check_target(path: str | Path, *, overwrite: bool = True) -> Path:
    """Say before long work whether a file could be written there; give its full path.

    Raises
    ------
    ResultError
        The folder is missing or cannot be written, the path is a folder, or the file exists and must stay.
    """
    target = Path(path).resolve()
    if not target.parent.is_dir():
        raise ResultError(f"cannot write {target}: {target.parent} is not a folder; make it first")
    if target.is_dir():
        raise ResultError(f"cannot write {target}: it is a folder; give a file name such as result.nc")
    if target.exists() and not overwrite:
        raise ResultError(f"cannot write {target}: it exists; allow overwriting or choose another name")
    if not os.access(target.parent, os.W_OK):
        raise ResultError(f"cannot write {target}: no permission; choose a folder that can be written")
    return target


def check_folder(path: str | Path) -> Path:
    """Say before long work whether files could be written to a folder, which need not exist yet; give its full path.

    Raises
    ------
    ResultError
        What is there is no folder, or cannot be written.
    """
    folder = Path(path).resolve()
    there = next(place for place in (folder, *folder.parents) if place.exists())
    if not there.is_dir():
        raise ResultError(f"cannot make the folder {folder}: {there} is a file; choose another folder")
    if not os.access(there, os.W_OK):
        raise ResultError(f"cannot write to {folder}: no permission; choose a folder that can be written")
    return folder


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """Give a path to write to, and rename it onto `target` once the block ends well; else nothing is left.

    Parameters
    ----------
    target : Path
        As :func:`check_target` gave it.

    Raises
    ------
    ResultError
        If the file cannot be written.
    """
    partial = target.with_name(f".{uuid4().hex}{target.suffix}")
    try:
        yield partial
        with partial.open("r+b") as file:
            os.fsync(file.fileno())
        partial.replace(target)
    except OSError as error:
        raise ResultError(
            f"cannot write {target}: {first_line(error)}; choose a folder that can be written and has room"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def named(paths: Sequence[Path]) -> dict[str, Path]:
    """Files by their name without suffix, or by their whole path where two have the same name."""
    if len(set(paths)) < len(paths):
        raise InputError("got the same file twice; name each file once")
    stems = [path.stem for path in paths]
    return {path.stem if stems.count(path.stem) == 1 else str(path): path for path in paths}
