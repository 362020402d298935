"""What positions do to queries and keys that are otherwise the same everywhere: who moves, who turns, how fast."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from ropescope.base.axes import KEY, QUERY
from ropescope.base.rotary import Pairing, split_pairs

if TYPE_CHECKING:
    from torch import Tensor


_TINY = torch.finfo(torch.float64).tiny


@dataclass(frozen=True, slots=True, eq=False)
class Trajectory:
    """Queries and keys of one layer, each (row, head, place, head_dim) in float64, and the rounding they came with."""

    layer: int
    query: Tensor
    key: Tensor
    epsilon: float

    @property
    def head_dim(self) -> int:
        return self.query.shape[-1]

    def heads(self) -> Tensor:
        """All heads of both streams, (sample, place, head_dim)."""
        return torch.cat((self.query, self.key), dim=1).flatten(0, 1)

    def samples(self) -> Tensor:
        """All heads of both streams, (sample, place, head_dim), scaled to the norm at the first place.

        A model may scale whole queries by their position (Llama-4's temperature); a rotation keeps their norm.
        """
        heads = self.heads()
        norm = heads.norm(dim=-1, keepdim=True)
        scaled: Tensor = heads * (norm[:, :1] / norm.clamp_min(_TINY))
        return scaled

    def has_silence(self) -> bool:
        """Whether a dimension is exactly zero in every head of both streams."""
        return bool((self.heads() == 0).flatten(0, 1).all(0).any())

    def joined(self, other: Trajectory) -> Trajectory:
        """The heads of both, as if the layer had them all."""
        query, key = torch.cat((self.query, other.query), dim=1), torch.cat((self.key, other.key), dim=1)
        return Trajectory(self.layer, query, key, max(self.epsilon, other.epsilon))

    def silent(self, pairing: Pairing) -> dict[str, Tensor]:
        """Which pairs of which heads are exactly zero, (head, pair), by stream."""
        zero = {stream: (heads == 0).all(2).all(0) for stream, heads in ((QUERY, self.query), (KEY, self.key))}
        return {stream: torch.stack(split_pairs(dims, pairing)).all(0) for stream, dims in zero.items()}


def moving(samples: Tensor) -> Tensor:
    """How far each dimension strays from its first value, relative to its largest root mean square, (head_dim,)."""
    size = samples.square().mean(0).sqrt().amax(0)
    stray = (samples - samples[:, :1]).square().mean(0).sqrt().amax(0)
    return stray / size.clamp_min(_TINY)


def norm_drift(samples: Tensor, pairing: Pairing) -> float:
    """The largest change of a pair's norm along the positions, relative to its root mean square."""
    first, second = split_pairs(samples, pairing)
    norm = torch.hypot(first, second)
    drift = (norm - norm[:, :1]).square().mean(0).sqrt().amax(0)
    return float((drift / norm.square().mean((0, 1)).sqrt().clamp_min(_TINY)).max())


def frequencies(samples: Tensor, pairing: Pairing, places: Tensor) -> tuple[Tensor, float]:
    """Least-squares angular frequency of every pair, rad/token, (pair,), and how far a phase is from its line."""
    turned = torch.complex(*split_pairs(samples, pairing))
    phase = (turned * turned[:, :1].conj()).sum(0).angle()
    unwrapped = torch.from_numpy(_unwrapped(phase.numpy(), places.tolist()))
    frequency = (unwrapped * places[:, None]).sum(0) / places.double().square().sum()
    present = turned[:, 0].abs().square().mean(0) > 0
    off = (unwrapped - frequency * places[:, None])[:, present]
    return frequency, float(off.abs().max()) if off.numel() else 0.0


def _unwrapped(phase: np.ndarray, places: list[int]) -> np.ndarray:
    """Phases (place, pair) with the whole turns that the place before foretells; so many small steps suit NumPy."""
    unwrapped, frequency = np.zeros_like(phase), np.zeros_like(phase[0])
    for row, place in enumerate(places):
        if place:
            turns = np.rint((frequency * place - phase[row]) / math.tau)
            unwrapped[row] = phase[row] + math.tau * turns
            frequency = unwrapped[row] / place
    return unwrapped
