"""Copies of converted files in the user's cache folder, found again by what the files hold."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

VARIABLE = "ROPESCOPE_CACHE"
_PARTIAL = ".partial-"
_STALE = 24 * 3600


def cache_folder() -> Path:
    """Where copies are kept: $ROPESCOPE_CACHE, or `ropescope` where the platform keeps what can be made again."""
    if chosen := os.environ.get(VARIABLE):
        return _expanded(Path(chosen))
    if sys.platform == "win32":
        parent = Path(os.environ.get("LOCALAPPDATA") or "~/AppData/Local")
    elif sys.platform == "darwin":
        parent = Path("~/Library/Caches")
    else:
        parent = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return _expanded(parent / "ropescope")


def _expanded(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise OSError(f"{error}; {VARIABLE} names another folder") from error


def digest_of(path: Path) -> str:
    """SHA-256 of a whole file. A second a gigabyte is little beside reading the copy, and nothing else is certain."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def found_copy(name: str) -> Path | None:
    """The folder `name` of the cache, if it is there."""
    folder = cache_folder() / name
    return folder if folder.is_dir() else None


def keep_copy(name: str, size: int, write: Callable[[Path], None]) -> Path:
    """Write the folder `name` of the cache.

    Parameters
    ----------
    name
        Says all that decides what the copy holds.
    size
        Bytes that writing it takes at most; never more than half of what is free.
    write
        Fills the folder it is given.

    Returns
    -------
    Path
        A folder that is whole: it appears by being renamed. Of two processes that write it, the later one uses what
        the earlier one wrote.

    Raises
    ------
    OSError
        If it cannot be kept: no permission, no room. Nothing is left then.
    """
    folder = cache_folder()
    target = folder / name
    folder.mkdir(parents=True, exist_ok=True)
    _remove_stale(folder)
    free = shutil.disk_usage(folder).free
    if free < 2 * size:
        raise OSError(f"it takes {size / 2**30:.1f} GiB, more than half of the {free / 2**30:.1f} GiB free in {folder}")
    partial = folder / f"{_PARTIAL}{uuid4().hex}"
    try:
        partial.mkdir()
        write(partial)
        _flush(partial)
        _settle(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _settle(partial: Path, target: Path) -> None:
    try:
        partial.rename(target)
    except OSError:
        if not target.is_dir():
            raise


def _flush(folder: Path) -> None:
    """A copy that is there after a power failure is whole."""
    for path in folder.iterdir():
        with path.open("r+b") as file:
            os.fsync(file.fileno())


def _remove_stale(folder: Path) -> None:
    """Remove what processes left that were killed while they wrote."""
    for left in folder.glob(f"{_PARTIAL}*"):
        with suppress(FileNotFoundError):
            age = time.time() - left.stat().st_mtime
            if age > _STALE:
                shutil.rmtree(left, ignore_errors=True)
