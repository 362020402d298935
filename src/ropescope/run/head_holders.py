"""The processes that hold a model's heads between them (transformers' tensor parallelism)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeGuard

import torch
import torch.distributed as distributed

from ropescope.run.collectives import connected, initialized, rank_in, size_of

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.distributed import ProcessGroup
    from torch.distributed.tensor import DTensor


@dataclass(frozen=True, slots=True)
class Holders:
    """The processes that hold heads between them, in order of rank, an equal part each.

    Parameters
    ----------
    group
        The process group; None is this process, which holds them all.
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

    def concatenated(self, part: Tensor, dim: int) -> Tensor:
        """The equal parts of a tensor that the processes hold, put together along `dim` on the tensor's own device."""
        if self.group is None:
            return part
        parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(self.size)]
        with connected():
            distributed.all_gather(parts, part.contiguous(), group=self.group)
        return torch.cat(parts, dim)


def holders(model: nn.Module) -> Holders:
    """The processes that hold a model's heads between them, else this one alone."""
    for parameter in model.parameters() if initialized() else ():
        if is_spread(parameter) and "tp" in (parameter.device_mesh.mesh_dim_names or ()):
            return Holders(parameter.device_mesh["tp"].get_group())
    return Holders()


def is_spread(weight: Tensor) -> TypeGuard[DTensor]:
    """Whether a weight is spread over processes."""
    if not initialized():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(weight, DTensor)
