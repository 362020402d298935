"""The first tokens of a text keep whole keys: attention rests on them, and their norms are far out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ropescope.compression.turning import Forward


class Sinks:
    """Whole keys of the first tokens of every row of a batch, wherever padding lets them begin.

    Parameters
    ----------
    count
        How many tokens of a row, at least 0.

    Attributes
    ----------
    keys
        Shape (batch, kv_head, sink, head_dim); None before there are any.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.keys: Tensor | None = None

    def keep(self, keys: Tensor, forward: Forward) -> None:
        """Keep those of the newest keys of a forward, (batch, kv_head, position, head_dim), that are sinks."""
        for rows, sinks, places in self._among(forward, forward.past, keys.shape[2]):
            if self.keys is None:
                self.keys = keys.new_zeros(*keys.shape[:2], self.count, keys.shape[3])
            self.keys[rows, :, sinks] = keys[rows, :, places]

    def put_into(self, keys: Tensor, forward: Forward) -> Tensor:
        """Write the sinks over rebuilt keys of the last positions of a forward."""
        if self.keys is not None:
            first = forward.total - keys.shape[2]
            for rows, sinks, places in self._among(forward, first, keys.shape[2]):
                keys[rows, :, places] = self.keys[rows, :, sinks]
        return keys

    @property
    def held(self) -> int:
        """How many sinks every row has room for; none before there are any."""
        return 0 if self.keys is None else self.count

    def marked(self, keys: Tensor, forward: Forward) -> Tensor:
        """Which sink each of the last positions of a forward is, (batch, kv_head, position, sink) of 0 and 1."""
        marks = keys.new_zeros(*keys.shape[:3], self.count)
        for rows, sinks, places in self._among(forward, forward.total - keys.shape[2], keys.shape[2]):
            marks[rows, :, places, sinks] = torch.eye(self.count, dtype=keys.dtype, device=keys.device)[sinks, sinks]
        return marks

    def select(self, rows: Tensor) -> None:
        """Keep some rows of the batch."""
        if self.keys is not None:
            self.keys = self.keys[rows.to(self.keys.device)]

    def repeat(self, times: int) -> None:
        """Repeat every row."""
        if self.keys is not None:
            self.keys = self.keys.repeat_interleave(times, dim=0)

    def _among(self, forward: Forward, first: int, length: int) -> Iterator[tuple[slice, slice, slice]]:
        """Rows of the batch, which of their sinks are among the keys from `first` on, and where those stand there."""
        for rows, start in forward.begins:
            low, high = max(start, first), min(start + self.count, first + length)
            if low < high:
                yield rows, slice(low - start, high - start), slice(low - first, high - first)
