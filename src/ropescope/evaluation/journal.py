"""What a long run has finished, kept in a folder beside its output until that is complete.

Every cell is one small file, written whole and carrying its own checksum, so a run that is killed at any moment goes
on where it was. One process at a time may hold a journal.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from ropescope.errors import ResultError, first_line
from ropescope.files import written_whole

_CONFIGURATION = "configuration.json"
_LOCK = "lock"


@dataclass(frozen=True)
class Journal:
    """The finished cells of a run, each a float64 vector under a name."""

    folder: Path

    def read(self, name: str, size: int) -> np.ndarray | None:
        """A finished cell; None if it is missing, damaged, or of another size."""
        try:
            cell = json.loads((self.folder / f"{name}.json").read_bytes())
            values = np.array([float.fromhex(value) for value in cell["values"]])
            intact = cell["sha256"] == _digest(values) and len(values) == size
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return values if intact else None

    def write(self, name: str, values: np.ndarray) -> None:
        """Keep a finished cell.

        Raises
        ------
        ResultError
            If it cannot be written; the cells before it stay.
        """
        cell = {"values": [float(value).hex() for value in values], "sha256": _digest(values)}
        with written_whole(self.folder / f"{name}.json") as partial:
            partial.write_text(json.dumps(cell))

    def empty(self) -> bool:
        """Whether no cell is finished, and nothing else lies in the folder."""
        ours = (_LOCK, _CONFIGURATION)
        return all(entry.name in ours or entry.name.startswith(".") for entry in self.folder.iterdir())

    def remove(self) -> None:
        """Drop the journal, its output being complete."""
        aside = self.folder.with_name(f".{uuid4().hex}.partial")
        with _writing(self.folder):
            self.folder.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def journal_of(output: Path, configuration: Mapping[str, Any]) -> Iterator[Journal]:
    """Hold the journal of an output file, a folder named like it with ``.partial`` added.

    Parameters
    ----------
    output
        As :func:`ropescope.files.check_target` gave it.
    configuration
        All that decides what a cell of a given name holds, in values that JSON can hold.

    Raises
    ------
    ResultError
        If another process holds it, it belongs to another configuration, or it cannot be written.
    """
    journal = Journal(_folder(output))
    with _writing(journal.folder):
        journal.folder.mkdir(exist_ok=True)
    with _locked(journal.folder / _LOCK, output):
        _check_configuration(journal, output, json.loads(json.dumps(configuration)))
        try:
            yield journal
        finally:
            if journal.folder.exists() and journal.empty():
                journal.remove()


def drop_journal(output: Path, configuration: Mapping[str, Any]) -> None:
    """Remove the journal of an output that is complete, if a run was killed before it could."""
    if _folder(output).exists():
        with journal_of(output, configuration) as journal:
            journal.remove()


def _folder(output: Path) -> Path:
    return output.with_name(f"{output.name}.partial")


def _check_configuration(journal: Journal, output: Path, wanted: Mapping[str, Any]) -> None:
    path = journal.folder / _CONFIGURATION
    if journal.empty():
        with written_whole(path) as partial:
            partial.write_text(json.dumps(wanted))
        return
    found: Any = None
    with suppress(OSError, ValueError):
        found = json.loads(path.read_bytes())
    if found != wanted:
        other = f"other {', '.join(_differences(found, wanted))}" if isinstance(found, dict) else "unreadable"
        raise ResultError(
            f"{journal.folder} holds cells of another run ({other}); finish that one as it was begun, write to another "
            f"file than {output.name}, or delete the folder to start afresh"
        )


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Dotted names of the entries that differ."""
    names = []
    for name in sorted({*found, *wanted}):
        theirs, ours = found.get(name), wanted.get(name)
        if isinstance(theirs, dict) and isinstance(ours, dict):
            names += [f"{name}.{inner}" for inner in _differences(theirs, ours)]
        elif theirs != ours:
            names.append(name)
    return names


@contextmanager
def _locked(lock: Path, output: Path) -> Iterator[None]:
    """Hold a lock file that names this process; one that a dead process left is taken over."""
    me = _identity(os.getpid())
    if not _create(lock, me):
        _remove_stale(lock)
        if not _create(lock, me):
            holder = lock.read_text().rpartition(" ")[0] if lock.exists() else "just ended"
            raise ResultError(
                f"another run (host and process: {holder}) is writing {output}; wait for it, choose another file, "
                f"or delete {lock} if that process is gone"
            )
    try:
        yield
    finally:
        # removed with the journal, it may already be another run's
        if lock.exists() and lock.read_text() == me:
            lock.unlink(missing_ok=True)


def _create(lock: Path, content: str) -> bool:
    """Make the lock unless there is one."""
    with _writing(lock):
        try:
            with lock.open("x") as file:
                file.write(content)
        except FileExistsError:
            return False
    return True


def _remove_stale(lock: Path) -> None:
    try:
        content = lock.read_text()
        host, pid, _ = content.split(" ")
        if host != socket.gethostname() or _identity(int(pid)) == content:
            return
        aside = lock.with_name(f".{uuid4().hex}.lock")
        lock.rename(aside)
        aside.unlink()
    except (OSError, ValueError):
        return


def _identity(pid: int) -> str:
    """Host, process and, where the system tells it, its start (ids are used again); "gone" once it has ended."""
    start = "?"
    try:
        if Path("/proc/self/stat").exists():
            state, *numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            start = "gone" if state in "ZX" else numbers[18]
        elif os.name == "posix":
            os.kill(pid, 0)
    except PermissionError:
        pass
    except OSError:
        start = "gone"
    return f"{socket.gethostname()} {pid} {start}"


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ResultError(
            f"cannot write {path}: {first_line(error)}; choose a folder that can be written and has room"
        ) from error


def _digest(values: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(values, dtype="<f8").tobytes()).hexdigest()
