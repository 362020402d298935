"""What travels between the processes of one job: rows of numbers, JSON and named arrays, never pickles."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as distributed

from ropescope.base.errors import RopescopeError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

LOST = "another process of the run has died; what is finished is kept: give the same command again to go on"


class WorkerError(RopescopeError):
    """Another process of the same job has ended before its work was done."""


def initialized() -> bool:
    """Whether this process has met others."""
    return distributed.is_available() and distributed.is_initialized()


def rank_in(group: ProcessGroup | None) -> int:
    """Which process of a group this is, from 0; no group is this process alone."""
    return 0 if group is None else distributed.get_rank(group)


def size_of(group: ProcessGroup | None) -> int:
    """How many processes a group has."""
    return 1 if group is None else distributed.get_world_size(group)


@contextmanager
def connected() -> Iterator[None]:
    """A process that dies breaks its connections to the others."""
    try:
        yield
    except RuntimeError as error:
        raise WorkerError(LOST) from error


def from_first(value: Any, group: ProcessGroup) -> Any:
    """What the first process of a group gives, in every one; a value that JSON can hold."""
    text = _as_rows(value) if rank_in(group) == 0 else np.empty(0, dtype=np.uint8)
    return json.loads(all_rows(text, group).tobytes())


def from_each(value: Any, group: ProcessGroup) -> list[Any]:
    """What each process of a group gives, in order of rank; values that JSON can hold."""
    return [json.loads(each) for each in _all_bytes(_as_rows(value), group)]


def arrays_from_each(arrays: Mapping[str, np.ndarray], group: ProcessGroup) -> list[dict[str, np.ndarray]]:
    """The named arrays of each process of a group, in order of rank, bit for bit."""
    from safetensors.numpy import load, save

    content = save({name: np.asarray(array, order="C") for name, array in arrays.items()})
    return [load(each) for each in _all_bytes(np.frombuffer(bytearray(content), dtype=np.uint8), group)]


def all_rows(rows: np.ndarray, group: ProcessGroup) -> np.ndarray:
    """Rows of all processes in order of rank, which may hold different numbers of them."""
    device, size = device_of(group), size_of(group)
    mine = torch.from_numpy(np.ascontiguousarray(rows)).to(device)
    counts = [torch.empty(1, dtype=torch.int64, device=device) for _ in range(size)]
    with connected():
        distributed.all_gather(counts, torch.tensor([len(rows)], device=device), group=group)
        padded = mine.new_zeros((int(max(counts)), *mine.shape[1:]))
        padded[: len(mine)] = mine
        parts = [torch.empty_like(padded) for _ in range(size)]
        distributed.all_gather(parts, padded, group=group)
    joined = torch.cat([part[: int(count)] for part, count in zip(parts, counts, strict=True)])
    found: np.ndarray = joined.cpu().numpy()
    return found


def device_of(group: ProcessGroup) -> torch.device:
    """Where a group takes tensors from: the CPU if it can, since the numbers are there."""
    return torch.device("cpu" if "cpu" in str(distributed.get_backend_config(group)) else "cuda")


def _as_rows(value: Any) -> np.ndarray:
    return np.frombuffer(bytearray(json.dumps(value).encode()), dtype=np.uint8)


def _all_bytes(mine: np.ndarray, group: ProcessGroup) -> list[bytes]:
    lengths = all_rows(np.array([len(mine)]), group)
    return [each.tobytes() for each in np.split(all_rows(mine, group), np.cumsum(lengths)[:-1])]
