"""Keys turned back to what they were before their rotation, and turned on again, at the positions of a forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ropescope.base.rotary import Pairing, split_pairs, turn
from ropescope.model.access import frequency_in_force

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ropescope.model.card import LayerRotation, RotaryCard

Angles = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class Rotation:
    """How one layer turns.

    Parameters
    ----------
    pairing
        Which dimensions pair up.
    frequency
        Gives the frequencies in force, rad/token, float64 (pair); None where the layer turns nothing (NoPE).
    group
        Layers of one group turn alike.
    """

    pairing: Pairing
    frequency: Callable[[], Tensor] | None
    group: int


def rotations_of(model: PreTrainedModel, card: RotaryCard) -> dict[int, Rotation]:
    """How every layer of a model turns, by layer."""
    return {
        layer.layer: Rotation(layer.pairing, _frequency(model, layer), group)
        for group, alike in enumerate(card.groups())
        for layer in alike
    }


def _frequency(model: PreTrainedModel, layer: LayerRotation) -> Callable[[], Tensor] | None:
    return frequency_in_force(model, layer) if layer.rotated.any() else None


@dataclass(eq=False)
class Forward:
    """Where the tokens of one forward stand: positions of all keys, and where each text begins.

    Parameters
    ----------
    positions
        Of every key along the key axis, those of the cache first, as the rotation counts them; shape (batch or 1,
        key position).
    begins
        Rows of the batch, and how many padded places they begin with.
    past
        How many of the keys were there before.
    """

    positions: Tensor
    begins: Sequence[tuple[slice, int]]
    past: int
    _angles: dict[int, Angles] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Keys in all, those of the cache included."""
        return self.positions.shape[1]

    def angles(self, rotation: Rotation, device: torch.device) -> Angles | None:
        """Cosine and sine at every key, float32 (batch or 1, 1, key position, pair); made once for layers alike."""
        if rotation.frequency is None:
            return None
        if rotation.group not in self._angles:
            # A pair of unknown frequency is silent: there is nothing to turn.
            frequency = rotation.frequency().nan_to_num(0.0).to(self.positions.device)
            angle = self.positions[:, None, :, None].double() * frequency
            self._angles[rotation.group] = (angle.cos().float(), angle.sin().float())
        cos, sin = self._angles[rotation.group]
        return cos.to(device), sin.to(device)


def turned_back(keys: Tensor, angles: Angles | None, pairing: Pairing) -> Tensor:
    """Keys as they were before their rotation, float32, for angles of the same positions."""
    keys = keys.float()
    return keys if angles is None else turn(keys, angles[0], -angles[1], pairing)


def turn_on(keys: Tensor, angles: Angles | None, pairing: Pairing) -> None:
    """Make keys what attention uses, in place, for angles of the same positions: what a decoded token waits for."""
    if angles is not None:
        (cos, sin), (first, second) = angles, split_pairs(keys, pairing)
        across = first * sin
        first.mul_(cos).addcmul_(second, sin, value=-1)
        second.mul_(cos).add_(across)


def part(angles: Angles | None, where: slice) -> Angles | None:
    """The angles of some positions."""
    return None if angles is None else (angles[0][:, :, where], angles[1][:, :, where])


def blocks(length: int, size: int) -> Iterator[slice]:
    """Consecutive parts of a length, none longer than `size`."""
    return (slice(start, min(start + size, length)) for start in range(0, length, size))
