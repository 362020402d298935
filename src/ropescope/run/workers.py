"""Several processes on one job: who does which part of it, and how all come to know what each has found.

The engine is torch.distributed. A library user hands over the process group that is meant; the command meets the
processes that ``torchrun`` or ``accelerate launch`` started (:func:`ropescope.run.launch.launched`). What travels are
numbers and JSON, never pickles.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
import torch
import torch.distributed as distributed

from ropescope.base.errors import InputError, RopescopeError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch._C._distributed_c10d import Store
    from torch.distributed import ProcessGroup
    from torch.distributed.tensor import DTensor

# For processes that are all there.
_TO_CONNECT = timedelta(minutes=1)
_SPOKEN = "ropescope-spoken"
_LOST = "another process of the run has died; what is finished is kept: give the same command again to go on"


class WorkerError(RopescopeError):
    """Another process of the same job has ended before its work was done."""


@dataclass(frozen=True, slots=True)
class Workers:
    """The processes of one job, each of which calls the same functions in the same order.

    Parameters
    ----------
    group
        The process group; None is this process alone.
    lockstep
        Whether every process does all of the work, each on its own part of the model (tensor parallelism), instead
        of a share of it.

    Examples
    --------
    >>> Workers().share(3)
    range(0, 3)
    """

    group: ProcessGroup | None = None
    lockstep: bool = False

    @property
    def rank(self) -> int:
        """Which of the processes this is, from 0."""
        return 0 if self.group is None else distributed.get_rank(self.group)

    @property
    def size(self) -> int:
        """How many processes there are."""
        return 1 if self.group is None else distributed.get_world_size(self.group)

    @property
    def leading(self) -> bool:
        """Whether this process writes the output, shows the progress and prints."""
        return self.rank == 0

    @property
    def keeping(self) -> bool:
        """Whether this process keeps what it has finished: one that holds a share does, of equals the leading one."""
        return self.leading or not self.lockstep

    def share(self, count: int) -> range:
        """The part of `count` pieces of work that this process does: contiguous, in order of rank, equal up to one."""
        if self.lockstep:
            return range(count)
        return range(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def divided(self, names: Sequence[str], finished: Callable[[str], bool]) -> tuple[list[str], list[str]]:
        """This process's share of the pieces of work that are finished, as the leading process sees it, and of others.

        The two are shared out apart, so that a run that goes on is as even as a new one.
        """
        seen = set(self.agreed([name for name in names if finished(name)] if self.leading else None))
        done, left = ([name for name in names if (name in seen) == kept] for kept in (True, False))
        return [done[index] for index in self.share(len(done))], [left[index] for index in self.share(len(left))]

    def agreed(self, value: Any) -> Any:
        """What the leading process gives, in every process; a value that JSON can hold."""
        if self.group is None:
            return value
        text = _as_rows(value) if self.leading else np.empty(0, dtype=np.uint8)
        return json.loads(_all_rows(text, self.group).tobytes())

    def gathered(self, value: Any) -> list[Any]:
        """What each process gives, in order of rank, in every process; in lockstep all give the same one."""
        if self.group is None or self.lockstep:
            return [value]
        text = _as_rows(value)
        lengths = _all_rows(np.array([len(text)]), self.group)
        texts = np.split(_all_rows(text, self.group), np.cumsum(lengths)[:-1])
        return [json.loads(each.tobytes()) for each in texts]

    def joined(self, rows: np.ndarray) -> np.ndarray:
        """The rows of all processes in order of rank, in every process; in lockstep all have the same rows."""
        return rows if self.group is None or self.lockstep else _all_rows(rows, self.group)

    def summed(self, values: np.ndarray) -> np.ndarray:
        """The sum over all processes, in every process; in lockstep all have the same values."""
        if self.group is None or self.lockstep:
            return values
        total = torch.from_numpy(values).to(_device(self.group), copy=True)
        with _connected():
            distributed.all_reduce(total, group=self.group)
        summed: np.ndarray = total.cpu().numpy()
        return summed

    def concatenated(self, part: Tensor, dim: int) -> Tensor:
        """The equal parts of a tensor that the processes hold, put together along `dim` on the tensor's own device."""
        if self.group is None:
            return part
        parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(self.size)]
        with _connected():
            distributed.all_gather(parts, part.contiguous(), group=self.group)
        return torch.cat(parts, dim)


def workers_of(model: nn.Module, group: ProcessGroup | None = None) -> Workers:
    """The processes that work with this one: those of `group`, or those that hold the model's other parts.

    Raises
    ------
    InputError
        If there are both.
    """
    held = holders(model)
    if held.group is None:
        return Workers(group)
    if group is not None:
        raise InputError(
            f"got a process group, but the model is already spread over {held.size} processes (tensor parallelism); "
            "leave the group out"
        )
    return Workers(held.group, lockstep=True)


def holders(model: nn.Module) -> Workers:
    """The processes that hold a model's heads between them (transformers' tensor parallelism), else this one alone."""
    for parameter in model.parameters() if _initialized() else ():
        if is_spread(parameter) and "tp" in (parameter.device_mesh.mesh_dim_names or ()):
            return Workers(parameter.device_mesh["tp"].get_group())
    return Workers()


def is_spread(weight: Tensor) -> TypeGuard[DTensor]:
    """Whether a weight is spread over processes."""
    if not _initialized():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(weight, DTensor)


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
        with _connected():
            distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_TO_CONNECT)
            distributed.distributed_c10d._set_pg_timeout(patience)
            store.set_timeout(patience)
        yield all_launched()
        # Not after an error: the other processes need not come to the same point.
        distributed.destroy_process_group()
    except RuntimeError as error:
        # Tensor parallelism meets a dead process in the middle of a layer.
        if isinstance(error, distributed.DistError) or "gloo" in str(error):
            raise WorkerError(_LOST) from error
        raise


def all_launched() -> Workers:
    """All processes of the initialised process group; this one alone where there is none."""
    return Workers(distributed.group.WORLD) if _initialized() else Workers()


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
    if not _initialized():
        return True
    try:
        store = distributed.distributed_c10d._get_default_store()
        return int(store.add(_SPOKEN, 1)) == 1
    except RuntimeError:
        return distributed.get_rank() == 0


def _initialized() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _told_to_stop(*_: object) -> None:
    raise WorkerError(f"told to stop, most likely since {_LOST}")


@contextmanager
def _connected() -> Iterator[None]:
    """A process that dies breaks its connections to the others."""
    try:
        yield
    except RuntimeError as error:
        raise WorkerError(_LOST) from error


def _as_rows(value: Any) -> np.ndarray:
    return np.frombuffer(bytearray(json.dumps(value).encode()), dtype=np.uint8)


def _all_rows(rows: np.ndarray, group: ProcessGroup) -> np.ndarray:
    """Rows of all processes, which may hold different numbers of them."""
    device, size = _device(group), distributed.get_world_size(group)
    mine = torch.from_numpy(np.ascontiguousarray(rows)).to(device)
    counts = [torch.empty(1, dtype=torch.int64, device=device) for _ in range(size)]
    with _connected():
        distributed.all_gather(counts, torch.tensor([len(rows)], device=device), group=group)
        padded = mine.new_zeros((int(max(counts)), *mine.shape[1:]))
        padded[: len(mine)] = mine
        parts = [torch.empty_like(padded) for _ in range(size)]
        distributed.all_gather(parts, padded, group=group)
    joined = torch.cat([part[: int(count)] for part, count in zip(parts, counts, strict=True)])
    found: np.ndarray = joined.cpu().numpy()
    return found


def _device(group: ProcessGroup) -> torch.device:
    """Where a group takes tensors from: the CPU if it can, since the numbers are there."""
    return torch.device("cpu" if "cpu" in str(distributed.get_backend_config(group)) else "cuda")
