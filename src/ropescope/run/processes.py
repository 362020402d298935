"""The processes that a launcher started, once they have met: their group, their devices, their end."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as distributed

from ropescope.base.errors import InputError
from ropescope.run.collectives import LOST, WorkerError, connected, initialized
from ropescope.run.workers import Workers

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

# For processes that are all there.
_TO_CONNECT = timedelta(minutes=1)
_SPOKEN = "ropescope-spoken"


@contextmanager
def initialised(store: Store, rank: int, size: int, patience: timedelta) -> Iterator[Workers]:
    """Work with the other processes, all of which have met at a store of torch's, until the block ends.

    Parameters
    ----------
    store
        Through which they connect.
    rank, size
        Which of the processes this is, of how many.
    patience
        How long one may wait for another.

    Raises
    ------
    WorkerError
        If another process dies, or this one is told to stop (SIGTERM).
    """
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    signal.signal(signal.SIGTERM, _told_to_stop)
    try:
        with connected():
            distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_TO_CONNECT)
            distributed.distributed_c10d._set_pg_timeout(patience)
            store.set_timeout(patience)
        yield all_launched()
        # Not after an error: the other processes need not come to the same point.
        distributed.destroy_process_group()
    except RuntimeError as error:
        # Tensor parallelism meets a dead process in the middle of a layer.
        if isinstance(error, distributed.DistError) or "gloo" in str(error):
            raise WorkerError(LOST) from error
        raise


def all_launched() -> Workers:
    """All processes of the initialised process group; this one alone where there is none."""
    return Workers(distributed.group.WORLD) if initialized() else Workers()


def local_device(workers: Workers) -> str:
    """The accelerator of this process, the others of its machine having theirs; "auto" for a process alone.

    Raises
    ------
    InputError
        If the machine has fewer GPUs than processes.
    """
    if workers.group is None or not torch.cuda.is_available():
        return "auto"
    local, present = int(os.environ.get("LOCAL_RANK", workers.rank)), torch.cuda.device_count()
    if local >= present:
        raise InputError(
            f"process {local} of this machine has no GPU of its own: there are {present}; start at most {present} "
            "processes a machine (--nproc-per-node), or give --device cpu"
        )
    return f"cuda:{local}"


def first_to_speak() -> bool:
    """Whether no other process has yet said what ended the run; what the others meet then is only the echo."""
    if not initialized():
        return True
    try:
        store = distributed.distributed_c10d._get_default_store()
        return int(store.add(_SPOKEN, 1)) == 1
    except RuntimeError:
        return distributed.get_rank() == 0


def _told_to_stop(*_: object) -> None:
    raise WorkerError(f"told to stop, most likely since {LOST}")
