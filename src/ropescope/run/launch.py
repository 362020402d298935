"""Meet the other processes that ``torchrun`` or ``accelerate launch`` started, within a finite time.

What those leave in the environment is checked without torch. What may last is waited for in a second thread, since
neither a signal nor a clock reaches a process that waits inside torch.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ropescope.base.errors import InputError, RopescopeError

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

    from ropescope.run.workers import Workers

JOIN_TIMEOUT = "ROPESCOPE_JOIN_TIMEOUT"
_DEFAULT_SECONDS = 600.0
_FIRST_WORD, _NEXT_WORD = 5.0, 30.0
_loading = threading.Event()
_STEP = 0.1
# What is there answers at once.
_ANSWER = timedelta(seconds=5)
# A process may wait for another that takes one cell more; one that is dead is noticed at once, by its connection.
_PATIENCE = timedelta(days=7)
_ALONE = "start with torchrun, which sets it, or unset RANK and WORLD_SIZE to work alone"


class LaunchError(RopescopeError):
    """The other processes of the run cannot be reached, or did not come."""


@dataclass(frozen=True, slots=True)
class Launch:
    """What the environment says of a run of several processes: which of them this is, and where they meet."""

    rank: int
    size: int
    address: str
    port: int
    patience: float

    def __str__(self) -> str:
        return f"{self.address}:{self.port} (MASTER_ADDR, MASTER_PORT)"


def launch_of(variables: Mapping[str, str]) -> Launch | None:
    """The run of several processes that environment variables tell of; None is a process alone.

    RANK and WORLD_SIZE make a run; an address alone does not, nor does a scheduler's own count of tasks.

    Raises
    ------
    InputError
        If a variable is missing, empty, no number, or out of range.
    """
    if "RANK" not in variables and variables.get("WORLD_SIZE") in (None, "1"):
        return None
    size = _whole(variables, "WORLD_SIZE", 1)
    rank = _whole(variables, "RANK", 0)
    if rank >= size:
        raise InputError(f"RANK is {rank} in the environment, but WORLD_SIZE is {size}: ranks run from 0; {_ALONE}")
    if size == 1:
        return None
    if "LOCAL_RANK" in variables:
        _whole(variables, "LOCAL_RANK", 0)
    port = _whole(variables, "MASTER_PORT", 1, 65535)
    return Launch(rank, size, _address(variables), port, _patience(variables))


def _whole(variables: Mapping[str, str], name: str, low: int, high: int | None = None) -> int:
    if name not in variables:
        given = " and ".join(other for other in ("RANK", "WORLD_SIZE") if other in variables)
        raise InputError(f"{name} is not set in the environment, but {given} is; {_ALONE}")
    try:
        number = int(variables[name])
    except ValueError:
        number = low - 1
    if number < low or (high is not None and number > high):
        allowed = f"from {low}" if high is None else f"from {low} to {high}"
        raise InputError(f"{name} is {variables[name]!r} in the environment; it is a whole number {allowed}: {_ALONE}")
    return number


def _address(variables: Mapping[str, str]) -> str:
    address = variables.get("MASTER_ADDR", "").strip()
    if not address:
        raise InputError(f"MASTER_ADDR is empty or not set in the environment; {_ALONE}")
    return address


def _patience(variables: Mapping[str, str]) -> float:
    text = variables.get(JOIN_TIMEOUT, str(_DEFAULT_SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= _PATIENCE.total_seconds():
        raise InputError(f"{JOIN_TIMEOUT} is {text!r} in the environment; it is a number of seconds from 1 to a week")
    return seconds


@contextmanager
def launched() -> Iterator[Workers]:
    """Join the processes that ``torchrun`` or ``accelerate launch`` started; alone where neither did.

    They have the time that the environment variable ROPESCOPE_JOIN_TIMEOUT gives in seconds, by default 10 minutes,
    to come together. To be told to stop (SIGTERM, as the launcher does when another process has died) raises an
    error, so that what is held is let go.

    Raises
    ------
    InputError
        If the environment does not say how.
    LaunchError
        If the other processes cannot be reached, or do not come in time.
    WorkerError
        If one of them dies.
    """
    launch = launch_of(os.environ)
    if launch is None:
        from ropescope.run.workers import Workers

        yield Workers()
        return
    before = signal.signal(signal.SIGTERM, _told_to_stop_waiting)
    try:
        store = _met(launch)
        from ropescope.run.processes import initialised

        with initialised(store, launch.rank, launch.size, _PATIENCE) as workers:
            yield workers
    finally:
        signal.signal(signal.SIGTERM, before)


def first_to_speak() -> bool:
    """Whether no process of a run that has not yet met said before what is wrong; true where none can be asked.

    torchrun keeps a store for its processes, met or not; other launchers do not.
    """
    try:
        launch = launch_of(os.environ)
    except InputError:
        return True
    if launch is None or not _kept_by_launcher():
        return True
    # Loaded here, since only the answer has a limit of time.
    import torch.distributed  # noqa: F401

    asked = _Background(lambda _: _opened_store(launch).add("spoken", 1))
    asked.start()
    asked.join(_ANSWER.total_seconds())
    return asked.found in (None, 1)


def _told_to_stop_waiting(*_: object) -> None:
    raise LaunchError("told to stop before the processes of the run had come together; nothing was begun")


def _met(launch: Launch) -> Store:
    """The store through which all processes of the run have found each other."""
    meeting = _Background(lambda own: _meet(launch, own))
    meeting.start()
    began, word = time.monotonic(), _FIRST_WORD
    try:
        while meeting.is_alive():
            waited = time.monotonic() - began
            if waited >= launch.patience:
                raise LaunchError(
                    f"{meeting.here} of {launch.size} processes came to {launch} within {launch.patience:g} s; start "
                    f"all of them, as torchrun does, or unset RANK and WORLD_SIZE to work alone ({JOIN_TIMEOUT} gives "
                    "them more seconds)"
                )
            if waited >= word:
                word = waited + _NEXT_WORD
                _say_what_is_waited_for(launch, meeting.here, launch.patience - waited)
            meeting.join(_STEP)
    finally:
        meeting.ended = True
        meeting.join(1)
        # torch aborts a process that ends while another thread is still loading it.
        while _loading.is_set() and meeting.is_alive():
            meeting.join(_STEP)
    if meeting.error is not None:
        raise meeting.error
    store: Store = meeting.found
    return store


class _Background(threading.Thread):
    """Runs what may wait inside torch, so that signals and the clock still reach the main thread."""

    def __init__(self, task: Callable[[_Background], Any]) -> None:
        super().__init__(daemon=True)
        self.task = task
        self.here = 0
        self.ended = False
        self.found: Any = None
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self.found = self.task(self)
        except Exception as error:
            self.error = error


def _meet(launch: Launch, meeting: _Background) -> Store | None:
    """Tell the others that this process is here, and wait until all are; None once the meeting is called off."""
    while not _kept_by_launcher() and launch.rank != 0 and not _answers(launch):
        if meeting.ended:
            return None
        time.sleep(_STEP)
    store = _opened_store(launch)
    try:
        if store.add(f"rank-{launch.rank}", 1) > 1:
            store.add("twice", 1)
            raise InputError(f"RANK {launch.rank} is given to two processes of the run at {launch}; give each its own")
        meeting.here = store.add("here", 1)
        while meeting.here < launch.size and not meeting.ended:
            if store.add("twice", 0):
                raise InputError(f"a RANK is given to two processes of the run at {launch}; give each its own")
            time.sleep(_STEP)
            meeting.here = store.add("here", 0)
    except RuntimeError as error:
        raise LaunchError(
            f"the process that the others meet at {launch} has ended before all {launch.size} had come; start again"
        ) from error
    return store


def _say_what_is_waited_for(launch: Launch, here: int, left: float) -> None:
    print(
        f"ropescope: process {launch.rank} waits for the others at {launch}: {here} of {launch.size} are here, "
        f"{left:.0f} s left",
        file=sys.stderr,
        flush=True,
    )


def _kept_by_launcher() -> bool:
    """Whether the store is torchrun's; else the process of rank 0 serves it."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True)


def _opened_store(launch: Launch) -> Store:
    """torch's store at the address."""
    _resolve(launch)
    serves = launch.rank == 0 and not _kept_by_launcher()
    if serves:
        _check_free(launch)
    _loading.set()
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

    _loading.clear()
    options: dict[str, Any] = {"is_master": serves, "timeout": _ANSWER, "wait_for_workers": False}
    try:
        store = TCPStore(launch.address, launch.port, launch.size, **options)
    except RuntimeError as error:
        told = "this process serves, but is not reached there" if serves else "no process of torch answers there"
        raise LaunchError(
            f"cannot meet the other processes at {launch}: {told}; give the machine of rank 0 and a free port, or "
            "unset RANK and WORLD_SIZE to work alone"
        ) from error
    # torchrun serves all its attempts from one store.
    return PrefixStore(f"ropescope-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


def _resolve(launch: Launch) -> None:
    try:
        socket.getaddrinfo(launch.address, launch.port)
    except (OSError, UnicodeError) as error:
        raise InputError(
            f"MASTER_ADDR is {launch.address!r} in the environment, which does not resolve; give the name or address "
            "of the machine of rank 0, or unset RANK and WORLD_SIZE to work alone"
        ) from error


def _check_free(launch: Launch) -> None:
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    try:
        socket.create_server(("", launch.port), family=family, dualstack_ipv6=dual).close()
    except OSError as error:
        raise InputError(
            f"MASTER_PORT is {launch.port} in the environment, where this process, of rank 0, cannot listen "
            f"({os.strerror(error.errno or 0)}): is another run using it, or is RANK 0 given twice? Give another port, "
            "as in torchrun --master-port"
        ) from error


def _answers(launch: Launch) -> bool:
    """Whether anything listens at the address; torch itself complains at every attempt before that."""
    _resolve(launch)
    try:
        socket.create_connection((launch.address, launch.port), timeout=1).close()
    except OSError:
        return False
    return True
