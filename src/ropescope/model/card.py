"""The rotary card of a model: what its positions do, layer by layer, and that in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import TYPE_CHECKING

import torch

from ropescope.base.axes import STREAMS
from ropescope.base.counting import counted
from ropescope.base.rotary import Pairing
from ropescope.base.tables import preformatted

if TYPE_CHECKING:
    from torch import Tensor

    from ropescope.base.axes import PairFlags, PairValues

# More kinds of places in one layer than this are not told apart in the card's text.
_MOST_PLACES = 4


@dataclass(frozen=True, slots=True, eq=False)
class LayerRotation:
    """What the positions do in one attention layer.

    Parameters
    ----------
    layer
        Index of the layer in the model.
    heads, kv_heads, head_dim
        Query heads, key heads, dimensions of a head, as attention receives them, in all processes together where
        tensor parallelism spreads them.
    pairing
        Which dimensions pair up. A layer that does not rotate (NoPE) takes that of the rotated layers.
    frequency
        Angular frequency of every pair, rad/token, float64: 0 where it does not turn, negative where it turns
        backwards, NaN where it is not known, since the pair is silent wherever it could be seen to turn.
    matched
        Whether the frequencies were found in the model's own `inv_freq` (else they are as measured).
    silent
        By stream, "query" and "key", which pairs of which heads are exactly zero whatever the input, boolean
        (head, pair). That says nothing about their rotation.
    """

    layer: int
    heads: int
    kv_heads: int
    head_dim: int
    pairing: Pairing
    frequency: PairValues
    matched: bool
    silent: Mapping[str, Tensor]

    @property
    def rotated(self) -> PairFlags:
        """Which pairs turn, or may turn where their frequency is not known, shape (pair,)."""
        return self.frequency != 0

    def same_rotation(self, other: LayerRotation) -> bool:
        """Whether two layers differ in nothing but their index and which pairs are silent."""
        shape = (self.heads, self.kv_heads, self.head_dim, self.pairing, self.matched)
        other_shape = (other.heads, other.kv_heads, other.head_dim, other.pairing, other.matched)
        return shape == other_shape and torch.allclose(
            self.frequency, other.frequency, rtol=1e-3, atol=0.0, equal_nan=True
        )


@dataclass(frozen=True, slots=True, eq=False)
class RotaryCard:
    """The rotations of a whole model, layer by layer.

    Parameters
    ----------
    layers
        One entry for every attention layer, by rising index.
    positions
        Positions 0 to `positions` - 1 were looked at (matters for frequencies that depend on the length).

    Examples
    --------
    >>> card = rs.probe(model)  # doctest: +SKIP
    >>> [rotation.layer for rotation in card.layers if not rotation.rotated.any()]  # doctest: +SKIP
    """

    layers: tuple[LayerRotation, ...]
    positions: int

    def groups(self) -> list[list[LayerRotation]]:
        """Group the layers that rotate alike.

        Returns
        -------
        list of list of LayerRotation
            Each group in layer order, groups by their first layer.

        Examples
        --------
        >>> [len(group) for group in rs.probe(model).groups()]  # doctest: +SKIP
        [22, 4]
        """
        found: list[list[LayerRotation]] = []
        for layer in self.layers:
            for group in found:
                if group[0].same_rotation(layer):
                    group.append(layer)
                    break
            else:
                found.append([layer])
        return found

    def _repr_html_(self) -> str:
        return preformatted(self)

    def __str__(self) -> str:
        return "\n".join([*(_describe_group(group) for group in self.groups()), *_describe_silent(self.layers)])


def _ranges(numbers: list[int]) -> str:
    """Compress indices, so that 0,1,2,4 reads '0-2, 4' and 3,7,11,15 reads '3, 7, ..., 15 (every 4)'."""
    steps = {b - a for a, b in pairwise(numbers)}
    if len(numbers) > 3 and len(steps) == 1 and steps != {1}:
        return f"{numbers[0]}, {numbers[1]}, ..., {numbers[-1]} (every {steps.pop()})"
    runs = []
    for _, run in groupby(enumerate(numbers), lambda item: item[1] - item[0]):
        members = [number for _, number in run]
        runs.append(f"{members[0]}-{members[-1]}" if len(members) > 1 else str(members[0]))
    return ", ".join(runs)


def _named(noun: str, numbers: list[int]) -> str:
    return f"{noun}{'s' if len(numbers) > 1 else ''} {_ranges(numbers)}"


def _describe_group(group: list[LayerRotation]) -> str:
    one = group[0]
    shape = f"{one.heads} query / {one.kv_heads} key heads of {one.head_dim}"
    return f"{_named('layer', [rotation.layer for rotation in group])}: {shape}, {_describe_rotation(one)}"


def _describe_rotation(rotation: LayerRotation) -> str:
    frequency = rotation.frequency
    if not rotation.rotated.any():
        return f"NoPE (paired as {rotation.pairing})"
    still, unknown = int((frequency == 0).sum()), int(frequency.isnan().sum())
    turning = frequency[rotation.rotated & frequency.isfinite()].abs()
    parts = [str(rotation.pairing), f"{len(frequency)} pairs"]
    if len(turning):
        parts.append(
            f"wavelength {math.tau / float(turning.max()):.3g} to {math.tau / float(turning.min()):.3g} tokens"
        )
    if (frequency < 0).any():
        parts.append("turning backwards")
    if still:
        parts.append(counted(still, "zero-frequency pair"))
    if unknown:
        parts.append(f"{counted(unknown, 'silent pair')} of unknown frequency")
    return ", ".join(parts) + ("" if rotation.matched or not len(turning) else " (as measured)")


def _describe_silent(layers: Sequence[LayerRotation]) -> list[str]:
    """How many pairs are silent, then which, one line for layers where they are the same."""
    flags = {stream: [layer.silent[stream] for layer in layers] for stream in STREAMS}
    counts = {stream: (sum(int(f.sum()) for f in each), sum(f.numel() for f in each)) for stream, each in flags.items()}
    if not any(silent for silent, _ in counts.values()):
        return []
    alike: dict[str, list[int]] = {}
    for layer in layers:
        if text := _silent_pairs(layer):
            alike.setdefault(text, []).append(layer.layer)
    totals = ", ".join(f"{silent} of {every} {stream} pairs" for stream, (silent, every) in counts.items())
    places = [f"  {_named('layer', at)}: {text}" for text, at in alike.items()]
    return [f"silent (zero whatever the input): {totals}", *places]


def _silent_pairs(rotation: LayerRotation) -> str:
    places: dict[str, list[int]] = {}
    for pair in range(rotation.pairing.pairs):
        if heads := _silent_heads(rotation, pair):
            places.setdefault(heads, []).append(pair)
    if len(places) > _MOST_PLACES:
        places = {"some heads": sorted(pair for pairs in places.values() for pair in pairs)}
    return "; ".join(f"{_named('pair', at)} in {heads}" for heads, at in places.items())


def _silent_heads(rotation: LayerRotation, pair: int) -> str:
    silent = {stream: rotation.silent[stream][:, pair] for stream in STREAMS}
    if all(flags.all() for flags in silent.values()):
        return "all heads"
    which = {stream: flags.nonzero().flatten().tolist() for stream, flags in silent.items() if flags.any()}
    return " and ".join(
        f"all {stream} heads" if silent[stream].all() else _named(f"{stream} head", at) for stream, at in which.items()
    )
