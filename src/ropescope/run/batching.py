"""How many windows go into one forward pass: a number, or as many as the memory takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch

from ropescope.base.arguments import AUTO, BatchSize
from ropescope.base.errors import InputError, ModelError
from ropescope.run.workers import Lockstep, Workers

# A CPU gains nothing from more windows at once, and refuses no memory: the system ends the process instead.
_FIRST_TRY = {"cpu": 1, "accelerator": 32}

_SMALLER = "smaller batches (batch_size), "

Found = TypeVar("Found")


@dataclass
class Batches:
    """Runs windows in batches; in automatic ones it halves those that do not fit, and remembers what did.

    Parameters
    ----------
    size
        Windows in a batch, or "auto".
    device
        Type of the device that the model runs on.
    """

    size: BatchSize
    device: str
    _fitting: int = 0

    def units(self, windows: int) -> dict[str, range]:
        """The windows of every cell by its name, run together to have the same bits again: a batch, or each alone."""
        size = self.size if isinstance(self.size, int) else 1
        starts = range(0, windows, size)
        return {self.name(start): range(start, min(start + size, windows)) for start in starts}

    def split(
        self, batch: Sequence[int], by_window: Mapping[str, np.ndarray]
    ) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        """Arrays of a batch, windows along their first axis, as the cells that it holds, by name."""
        size = len(batch) if self.size != AUTO else 1
        for start in range(0, len(batch), size):
            rows = {name: values[start : start + size] for name, values in by_window.items()}
            yield self.name(batch[start]), rows

    @staticmethod
    def name(start: int) -> str:
        """The name of the cell that begins with a window."""
        return f"windows-{start:06}"

    def run(self, units: Sequence[range], step: Callable[[list[int]], Found]) -> Iterator[tuple[list[int], Found]]:
        """Call `step` with the windows of each batch in turn.

        Raises
        ------
        ModelError
            If the memory does not suffice for one batch.
        """
        if self.size != AUTO:
            for unit in units:
                yield list(unit), fitted(partial(step, list(unit)), f"a batch of {len(unit)} windows", _SMALLER)
            return
        left = [window for unit in units for window in unit]
        while left:
            batch, found = self._largest(left, step)
            yield batch, found
            left = left[len(batch) :]

    def _largest(self, left: Sequence[int], step: Callable[[list[int]], Found]) -> tuple[list[int], Found]:
        size = self._fitting or _FIRST_TRY["cpu" if self.device == "cpu" else "accelerator"]
        while True:
            batch = list(left[:size])
            if len(batch) == 1:
                found = fitted(partial(step, batch), "one window", _SMALLER)
            elif (attempt := _attempted(partial(step, batch))) is None:
                size = len(batch) // 2
                continue
            else:
                found = attempt[0]
            self._fitting = size
            return batch, found


def batches_of(batch_size: BatchSize, device: str, workers: Workers) -> Batches:
    """Batches for a model on that type of device, held by those workers.

    Raises
    ------
    InputError
        If the size is automatic and the model spread over processes.
    """
    if batch_size == AUTO and isinstance(workers, Lockstep):
        raise InputError(
            "batch_size got 'auto' with a model spread over processes (tensor parallelism), which could run out of "
            "memory one by one; give a number"
        )
    return Batches(batch_size, device)


def fitted(step: Callable[[], Found], what: str, remedy: str = "") -> Found:
    """What a step gives that needs memory.

    Raises
    ------
    ModelError
        If the memory does not suffice for `what`; says the remedy first.
    """
    attempt = _attempted(step)
    if attempt is None:
        raise ModelError(
            f"the memory does not suffice for {what}; use {remedy}shorter windows, a smaller dtype, or spread the "
            "model (device_map, tensor parallelism)"
        )
    return attempt[0]


def _attempted(step: Callable[[], Found]) -> tuple[Found] | None:
    """What the step gives; None if the memory does not suffice, all that it took being free again."""
    try:
        return (step(),)
    except (RuntimeError, MemoryError) as error:
        if not _out_of_memory(error):
            raise
    # Only here, where no traceback holds the step's tensors any more.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def _out_of_memory(error: BaseException) -> bool:
    """PyTorch's CPU allocator raises a plain RuntimeError."""
    kinds = (torch.OutOfMemoryError, MemoryError)
    return isinstance(error, kinds) or "can't allocate memory" in str(error)
