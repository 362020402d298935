"""The two forms that thin keys have, on the device of their layer: what is stored of new keys, and what attention gets.

A form stores keys as (batch, head, position, number) with as many heads as it likes; attention gets whole keys rebuilt
(latent), or, for one query, narrow keys and a query as narrow (drop).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import linear

from ropescope.compression.plans import DropLayer
from ropescope.compression.sinks import Sinks
from ropescope.compression.turning import Angles, Forward, Rotation, blocks, part, turn_on, turned_back

if TYPE_CHECKING:
    from ropescope.compression.plans import LayerPlan

# Numbers of whole keys, float32, that rebuilding works on at once beside its output: 4 MiB.
_BLOCK = 2**20


class Form(Protocol):
    """How one layer's keys are kept and read."""

    def stored(self, keys: Tensor, forward: Forward) -> Tensor:
        """What is stored of keys (batch, kv_head, position, head_dim) that are the newest of a forward."""

    def read(self, stored: Tensor, like: Tensor, forward: Forward, sinks: Sinks) -> Tensor:
        """The keys that attention gets from what is stored of the last positions of a forward."""

    def narrowed(self, query: Tensor, key: Tensor, arguments: dict[str, Any], sinks: Sinks) -> Tensor:
        """The query that goes with the keys that :meth:`read` gave."""


def form_of(plan: LayerPlan, rotation: Rotation, device: torch.device) -> Form:
    """A layer's form, its matrices on the device that the layer runs on."""
    if isinstance(plan, DropLayer):
        return Dropped(plan.dimensions.to(device), plan.head_dim)
    return Latent(plan.mean.to(device), plan.down.to(device), plan.up.to(device), rotation)


@dataclass(frozen=True, slots=True, eq=False)
class Latent:
    """Keys of all heads before rotation, on a few directions (`LatentLayer`)."""

    mean: Tensor
    down: Tensor
    up: Tensor
    rotation: Rotation

    def stored(self, keys: Tensor, forward: Forward) -> Tensor:
        """Coordinates of the newest keys, (batch, 1, position, rank), in the dtype of the keys."""
        angles = part(self._angles(forward, keys), slice(forward.total - keys.shape[2], None))
        kept = [
            (turned_back(keys[:, :, block], part(angles, block), self.rotation.pairing).transpose(1, 2).flatten(2)
             - self.mean) @ self.down
            for block in blocks(keys.shape[2], self._block(keys))
        ]  # fmt: skip
        return torch.cat(kept, 1)[:, None].to(keys.dtype)

    def read(self, stored: Tensor, like: Tensor, forward: Forward, sinks: Sinks) -> Tensor:
        """Whole keys, (batch, kv_head, position, head_dim), rebuilt block by block.

        A kernel that fuses this with attention would replace it, and :meth:`narrowed` hand it the query.
        """
        length, (batch, heads, _, head_dim) = stored.shape[2], like.shape
        angles = part(self._angles(forward, like), slice(forward.total - length, None))
        # As products give them, (batch, position, kv_head, head_dim): nothing has to be moved.
        keys = like.new_empty(batch, length, heads, head_dim).transpose(1, 2)
        for block in blocks(length, self._block(like)):
            rebuilt = linear(stored[:, 0, block].float(), self.up.T, self.mean).unflatten(2, (heads, head_dim))
            turn_on(rebuilt.transpose(1, 2), part(angles, block), self.rotation.pairing)
            keys[:, :, block] = rebuilt.transpose(1, 2)
        return sinks.put_into(keys, forward)

    def narrowed(self, query: Tensor, key: Tensor, arguments: dict[str, Any], sinks: Sinks) -> Tensor:
        """The query as it is."""
        return query

    def _angles(self, forward: Forward, like: Tensor) -> Angles | None:
        return forward.angles(self.rotation, like.device)

    @staticmethod
    def _block(keys: Tensor) -> int:
        return max(1, _BLOCK // (keys.shape[0] * keys.shape[1] * keys.shape[3]))


@dataclass(frozen=True, slots=True, eq=False)
class Dropped:
    """Some dimensions of every key head (`DropLayer`)."""

    dimensions: Tensor
    head_dim: int

    def stored(self, keys: Tensor, forward: Forward) -> Tensor:
        """The kept dimensions, (batch, kv_head, position, kept dimension)."""
        return _picked(keys, self.dimensions)

    def read(self, stored: Tensor, like: Tensor, forward: Forward, sinks: Sinks) -> Tensor:
        """What is stored and which sink it is; for many queries, whose kernels take one width for all, whole keys."""
        if forward.total - forward.past == 1 and stored.shape[3] + sinks.held < self.head_dim:
            return torch.cat((stored, sinks.marked(stored, forward)), 3) if sinks.held else stored
        whole: Tensor = stored.new_zeros(*stored.shape[:3], self.head_dim)
        return sinks.put_into(whole.scatter(3, _index(stored, self.dimensions), stored), forward)

    def narrowed(self, query: Tensor, key: Tensor, arguments: dict[str, Any], sinks: Sinks) -> Tensor:
        """The query without the dimensions that its narrow keys lack, and what these make of each sink."""
        if key.shape[-1] == query.shape[-1]:
            return query
        groups = query.shape[1] // len(self.dimensions)
        narrow = _picked(query, self.dimensions.repeat_interleave(groups, 0))
        if sinks.keys is not None:
            narrow = torch.cat((narrow, self._with_sinks(query, sinks.keys)), 3)
        if arguments.get("scaling") is not None:
            return narrow
        # The implementation takes the width of what it gets for that of a head.
        scaled: Tensor = narrow * (narrow.shape[-1] / self.head_dim) ** 0.5
        return scaled

    def _with_sinks(self, query: Tensor, sinks: Tensor) -> Tensor:
        """Products of a query with the dimensions of every sink that are not stored, (batch, head, 1, sink)."""
        rest = sinks.scatter(3, _index(sinks, self.dimensions), 0.0)
        of_groups = query.unflatten(1, (len(self.dimensions), -1))
        products: Tensor = of_groups @ rest.transpose(2, 3)[:, :, None]
        return products.flatten(1, 2)


def _picked(heads: Tensor, dimensions: Tensor) -> Tensor:
    """Some dimensions of every head, of (batch, head, position, head_dim) those of (head, kept dimension)."""
    picked: Tensor = heads.gather(3, _index(heads, dimensions))
    return picked


def _index(heads: Tensor, dimensions: Tensor) -> Tensor:
    return dimensions[None, :, None].expand(heads.shape[0], -1, heads.shape[2], -1)
