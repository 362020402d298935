"""Several processes on one job: who does which part of it, and how all come to know what each has found.

What carries it is torch.distributed. A library user hands over the process group that is meant; the command meets the
processes that ``torchrun`` or ``accelerate launch`` started (:func:`ropescope.run.launch.launched`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as distributed

from ropescope.base import errors
from ropescope.base.errors import InputError, ResultError, UnreadableError
from ropescope.run.collectives import (
    all_rows,
    arrays_from_each,
    connected,
    device_of,
    from_each,
    from_first,
    rank_in,
    size_of,
)
from ropescope.run.head_holders import holders

if TYPE_CHECKING:
    from torch import nn
    from torch.distributed import ProcessGroup


@dataclass(frozen=True, slots=True)
class Workers:
    """The processes that share a job, each of which has the whole model and calls the same functions in the same order.

    Parameters
    ----------
    group
        The process group; None is this process alone.

    Examples
    --------
    >>> Workers().share(3)
    range(0, 3)
    """

    group: ProcessGroup | None = None

    @property
    def rank(self) -> int:
        """Which of the processes this is, from 0."""
        return rank_in(self.group)

    @property
    def size(self) -> int:
        """How many processes there are."""
        return size_of(self.group)

    @property
    def leading(self) -> bool:
        """Whether this process writes the output, shows the progress and prints."""
        return self.rank == 0

    @property
    def keeping(self) -> bool:
        """Whether this process keeps what it has finished."""
        return True

    def share(self, count: int) -> range:
        """The part of `count` pieces of work that this process does: contiguous, in order of rank, equal up to one."""
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
        return value if self.group is None else from_first(value, self.group)

    def told(self, find: Callable[[], Any]) -> Any:
        """What the leading process finds, in every process; a file or journal that ends its work ends that of all.

        Raises
        ------
        ResultError, UnreadableError
            As `find` does.
        """
        if not self.leading:
            answer = self.agreed(None)
            if "error" in answer:
                raise getattr(errors, answer["error"])(answer["text"])
            return answer["found"]
        try:
            found = find()
        except (ResultError, UnreadableError) as error:
            self.agreed({"error": type(error).__name__, "text": str(error)})
            raise
        self.agreed({"found": found})
        return found

    def gathered(self, value: Any) -> list[Any]:
        """What each process gives, in order of rank, in every process; values that JSON can hold."""
        return [value] if self.group is None else from_each(value, self.group)

    def gathered_arrays(self, arrays: Mapping[str, np.ndarray]) -> list[Mapping[str, np.ndarray]]:
        """The named arrays that each process gives, in order of rank, in every process."""
        return [arrays] if self.group is None else [*arrays_from_each(arrays, self.group)]

    def joined(self, rows: np.ndarray) -> np.ndarray:
        """The rows of all processes in order of rank, in every process."""
        return rows if self.group is None else all_rows(rows, self.group)

    def summed(self, values: np.ndarray) -> np.ndarray:
        """The sum over all processes, in every process."""
        if self.group is None:
            return values
        total = torch.from_numpy(values).to(device_of(self.group), copy=True)
        with connected():
            distributed.all_reduce(total, group=self.group)
        summed: np.ndarray = total.cpu().numpy()
        return summed


@dataclass(frozen=True, slots=True)
class Lockstep(Workers):
    """The processes that hold a model's heads between them: each does all of the work, and has all that is found."""

    @property
    def keeping(self) -> bool:
        """Of equals, the leading one keeps what is finished."""
        return self.leading

    def share(self, count: int) -> range:
        """All pieces of work."""
        return range(count)

    def gathered(self, value: Any) -> list[Any]:
        """The value once: all give the same one."""
        return [value]

    def gathered_arrays(self, arrays: Mapping[str, np.ndarray]) -> list[Mapping[str, np.ndarray]]:
        """The arrays once: all give the same ones."""
        return [arrays]

    def joined(self, rows: np.ndarray) -> np.ndarray:
        """The rows, which every process has."""
        return rows

    def summed(self, values: np.ndarray) -> np.ndarray:
        """The values, which every process has."""
        return values


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
    return Lockstep(held.group)
