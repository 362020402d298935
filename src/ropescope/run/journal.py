"""What a long run has finished, kept in a folder beside its output until that is complete.

Every cell is one small file, written whole and carrying its own checksum, so a run that is killed at any moment goes
on where it was. One run at a time may hold a journal; all of its processes write to it.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from ropescope.base.errors import ResultError, first_line
from ropescope.base.facts import differences, listed
from ropescope.base.files import written_whole
from ropescope.base.records import Arrays, intact_arrays, write_arrays
from ropescope.run.workers import Workers

_CONFIGURATION = "configuration.json"
_LOCK = "lock"
ALONE = Workers()


@dataclass(frozen=True)
class Journal:
    """The finished cells of a run, each of them named arrays under a name.

    Parameters
    ----------
    folder
        Where the cells are.
    begun
        When the run was begun, however often it was interrupted since; ISO 8601, UTC.
    """

    folder: Path
    begun: str = ""

    def read(self, name: str) -> dict[str, np.ndarray] | None:
        """A finished cell; None if it is missing or damaged."""
        return intact_arrays(self.folder / f"{name}.safetensors")

    def write(self, name: str, arrays: Arrays) -> None:
        """Keep a finished cell, bit for bit.

        Raises
        ------
        ResultError
            If it cannot be written; the cells before it stay.
        """
        write_arrays(self.folder / f"{name}.safetensors", arrays, {})

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
def journal_of(output: Path, configuration: Mapping[str, Any], workers: Workers = ALONE) -> Iterator[Journal]:
    """Hold the journal of an output file, a folder named like it with ``.partial`` added.

    Parameters
    ----------
    output
        As :func:`ropescope.base.files.check_target` gave it; on a file system that all workers share.
    configuration
        All that decides what a cell of a given name holds, in values that JSON can hold.
    workers
        The processes of the run; the leading one holds the journal for all.

    Raises
    ------
    ResultError
        If another run holds it, it belongs to another configuration, or it cannot be written.
    """
    with ExitStack() as stack:
        begun = workers.told(lambda: stack.enter_context(_held(output, configuration)).begun)
        if not journal_folder(output).is_dir():
            raise ResultError(
                f"{journal_folder(output)} is not there for every process of the run; write to a folder that all "
                "machines share"
            )
        yield Journal(journal_folder(output), begun)


def drop_journal(output: Path, configuration: Mapping[str, Any]) -> None:
    """Remove the journal of an output that is complete, if a run was killed before it could."""
    if journal_folder(output).exists():
        with _held(output, configuration) as journal:
            journal.remove()


def unseen(name: str) -> ResultError:
    """What to raise where a process cannot read a cell that the leading one has seen."""
    return ResultError(f"{name} of the journal is not there for every process; write to a folder that all share")


def journal_folder(output: Path) -> Path:
    """Where the journal of an output lies while it is not complete."""
    return output.with_name(f"{output.name}.partial")


@contextmanager
def _held(output: Path, configuration: Mapping[str, Any]) -> Iterator[Journal]:
    folder = journal_folder(output)
    with _writing(folder):
        folder.mkdir(exist_ok=True)
    with _locked(folder / _LOCK, output):
        journal = Journal(folder, _begun(Journal(folder), output, configuration))
        try:
            yield journal
        finally:
            if folder.exists() and journal.empty():
                journal.remove()


def _begun(journal: Journal, output: Path, wanted: Mapping[str, Any]) -> str:
    """When the run was begun that the journal belongs to, once it is clear that it is this one."""
    path = journal.folder / _CONFIGURATION
    if journal.empty():
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with written_whole(path) as partial:
            partial.write_text(json.dumps({"begun": now, "configuration": wanted}))
        return now
    record: Any = None
    try:
        with suppress(FileNotFoundError, ValueError):
            record = json.loads(path.read_bytes())
    except OSError as error:
        raise ResultError(f"cannot read {path} now: {first_line(error)}; the cells beside it are kept") from error
    found = record.get("configuration") if isinstance(record, dict) else None
    differing = differences(found, wanted) if isinstance(found, dict) else None
    if differing is None or differing:
        other = f"other {listed(differing)}" if differing else "unreadable"
        raise ResultError(
            f"{journal.folder} holds cells of another run ({other}); finish that one as it was begun, write to another "
            f"file than {output.name}, or delete the folder to start afresh"
        )
    return str(record["begun"])


@contextmanager
def _locked(lock: Path, output: Path) -> Iterator[None]:
    """Hold a lock file that names this process; one that a dead process left is taken over.

    Not filelock's, whose soft lock stays for ever on NFS when its holder is killed (taking over needs an exchange of
    names there is none for), and whose hard lock names nobody, stays behind, and holds between machines only where the
    mount passes flock on.
    """
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
        # One that has taken over in between holds what was moved.
        aside.unlink() if aside.read_text() == content else aside.rename(lock)
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
