"""From the trajectories of constant inputs to layouts: which dimensions of a head turn together, and how fast.

A dimension that is exactly zero is silent: it fits every layout. So the audible dimensions of one layer can leave
several layouts open. What decides between them is the model's own frequency vectors, then the layers that leave only
one layout open; the frequency of a silent pair comes from the same two. Where neither tells it, it is not known: NaN.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ropescope.base.errors import ProbeError
from ropescope.base.rotary import Pairing, split_pairs
from ropescope.model.trajectories import Trajectory, frequencies, moving, norm_drift

if TYPE_CHECKING:
    from torch import Tensor

    from ropescope.base.axes import PairValues

# Radians; half precision and far positions stay well below it.
_LINEAR = 0.25
# Relative; by how much two readings of one frequency may differ.
_ALIKE = 2e-3


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """Pairing and angular frequencies of a layer, rad/token: NaN where not known, and whether the model keeps them."""

    pairing: Pairing
    frequency: PairValues
    matched: bool

    def agrees(self, other: Reading, tolerance: float) -> bool:
        """Whether both say the same, as far as both say something."""
        return self.pairing == other.pairing and _alike(self.frequency, other.frequency, tolerance)


@dataclass(frozen=True, slots=True, eq=False)
class _Heard:
    """What a layer lets be heard: its samples, and by dimension whether it is ever other than zero and moves."""

    trajectory: Trajectory
    samples: Tensor
    places: Tensor
    audible: Tensor
    moving: Tensor
    tolerance: float

    @classmethod
    def of(cls, trajectory: Trajectory, places: Tensor) -> _Heard:
        samples, tolerance = trajectory.samples(), 4 * trajectory.epsilon
        audible = (samples != 0).any(1).any(0)
        return cls(trajectory, samples, places, audible, moving(samples) > tolerance, tolerance)

    @property
    def layer(self) -> int:
        return self.trajectory.layer

    @property
    def head_dim(self) -> int:
        return self.trajectory.head_dim

    @property
    def speed_tolerance(self) -> float:
        """Rad/token that a frequency can be off by."""
        return self.tolerance / float(self.places[-1])

    def turns(self, pairing: Pairing) -> bool:
        return norm_drift(self.samples, pairing) <= 2 * self.tolerance

    def read(self, pairing: Pairing) -> tuple[Tensor, float]:
        """Frequency of every pair, NaN where it is silent, and how far a phase is from its line."""
        frequency, residual = frequencies(self.samples, pairing, self.places)
        return frequency.where(self.pairs(pairing), torch.nan), residual

    def pairs(self, pairing: Pairing) -> Tensor:
        """Which pairs can be heard."""
        first, second = split_pairs(self.audible, pairing)
        return first | second


def read_layouts(trajectories: Sequence[Trajectory], places: Tensor, known: Sequence[Tensor]) -> list[Reading]:
    """Pairing and frequencies of every layer, from all layers together.

    Parameters
    ----------
    trajectories
        What the layers do at the places.
    places
        Positions, rising from 0.
    known
        The model's own frequency vectors, rad/token.

    Raises
    ------
    ProbeError
        If a layer moves otherwise than as pairs that turn, or nothing in the whole model can be heard.
    """
    layers = [_Heard.of(trajectory, places) for trajectory in trajectories]
    known = [own for row, own in enumerate(known) if not any(torch.equal(own, other) for other in known[:row])]
    turning = {heard.layer: _fitting(heard, known) for heard in layers if heard.moving.any()}
    found: dict[int, Reading] = {}
    for head_dim in {heard.head_dim for heard in layers}:
        alike = [heard for heard in layers if heard.head_dim == head_dim]
        settled = _settled([heard for heard in alike if heard.layer in turning], turning)
        still = [heard for heard in alike if heard.layer not in turning]
        found |= settled | _still(still, list(settled.values()), head_dim, known)
    return [found[heard.layer] for heard in layers]


def _settled(layers: Sequence[_Heard], fitting: dict[int, list[Reading]]) -> dict[int, Reading]:
    """One reading for every layer that moves: what fits it, in a layout that other layers leave no doubt about."""
    sure = {fitting[heard.layer][0].pairing for heard in layers if len(fitting[heard.layer]) == 1}
    chosen = {heard.layer: _common(_shared(fitting[heard.layer], sure), heard) for heard in layers}
    return {heard.layer: _completed(chosen[heard.layer], list(chosen.values()), heard) for heard in layers}


def _shared(readings: list[Reading], sure: set[Pairing]) -> list[Reading]:
    return [reading for reading in readings if reading.pairing in sure] or readings


def _common(readings: Sequence[Reading], heard: _Heard) -> Reading:
    """What all readings say that fit a layer: silent pairs on which they differ have no known frequency.

    Where they differ in the block, it is the widest: a silent dimension beside a rotary block counts to it.
    """
    best = max(readings, key=lambda reading: (reading.pairing.size, -reading.pairing.start))
    known = heard.pairs(best.pairing)
    for other in readings:
        if other.pairing != best.pairing:
            return _with_frequency(best, best.frequency.where(known, torch.nan))
    same = [torch.isclose(reading.frequency, best.frequency, rtol=_ALIKE, atol=0.0) for reading in readings]
    return _with_frequency(best, best.frequency.where(known | torch.stack(same).all(0), torch.nan))


def _completed(reading: Reading, others: Sequence[Reading], heard: _Heard) -> Reading:
    """Frequencies that are not known, from the layers that agree on those that are, if these have one answer.

    Of the model's own frequencies all that fit have been looked at already.
    """
    if reading.matched or not reading.frequency.isnan().any():
        return reading
    known = torch.stack([other.frequency for other in others if other.agrees(reading, heard.speed_tolerance)])
    mean = known.nanmean(0)
    one_answer = ~((known - mean).abs() > heard.speed_tolerance + _ALIKE * mean.abs()).any(0)
    return _with_frequency(reading, reading.frequency.where(reading.frequency.isfinite() | ~one_answer, mean))


def _with_frequency(reading: Reading, frequency: Tensor) -> Reading:
    return Reading(reading.pairing, frequency, reading.matched)


def _still(
    layers: Sequence[_Heard], found: Sequence[Reading], head_dim: int, known: Sequence[Tensor]
) -> dict[int, Reading]:
    """Layers where nothing moves: NoPE if all can be heard, else whatever other layers do that would not be heard."""
    seen = Counter(reading.pairing for reading in found)
    usual = seen.most_common(1)[0][0] if seen else Pairing("half-split", 0, head_dim - head_dim % 2)
    nope = Reading(usual, torch.zeros(usual.pairs, dtype=torch.float64, device="cpu"), False)
    complete = {heard.layer: nope for heard in layers if heard.audible.all()}
    own = [Reading(pairing, values, True) for pairing in seen for values in known if len(values) == pairing.pairs]
    possible = [*found, *own, *list(complete.values())[:1]]
    rest = [heard for heard in layers if heard.layer not in complete]
    return complete | {heard.layer: _unheard(heard, possible, nope) for heard in rest}


def _unheard(heard: _Heard, possible: Sequence[Reading], nope: Reading) -> Reading:
    fitting = [reading for reading in possible if _fits(heard, reading)]
    if not fitting and not heard.audible.any():
        raise ProbeError(
            f"layer {heard.layer}: every query and key is zero, and no other layer shows what positions do; there is "
            "nothing to measure in this model"
        )
    return _common(fitting or [nope], heard)


def _fits(heard: _Heard, reading: Reading) -> bool:
    frequency, residual = heard.read(reading.pairing)
    same = _alike(frequency, reading.frequency, heard.speed_tolerance)
    return heard.turns(reading.pairing) and residual <= _LINEAR and same


def _fitting(heard: _Heard, known: Sequence[Tensor]) -> list[Reading]:
    """Every reading that a moving layer's audible dimensions allow; with the model's own frequencies if any fit."""
    sizes = sorted({2 * len(own) for own in known})
    blocks = [pairing for size in sizes for pairing in _blocks(heard, size) if heard.turns(pairing)]
    read = [(pairing, *heard.read(pairing)) for pairing in blocks]
    for sign in (1, -1):
        own = [
            Reading(pairing, sign * values, True)
            for pairing, frequency, residual in read
            for values in known
            if residual <= _LINEAR and len(values) == pairing.pairs
            if _alike(frequency, sign * values, heard.speed_tolerance)
        ]
        if own:
            return own
    return _as_measured(heard)


def _blocks(heard: _Heard, size: int) -> Iterator[Pairing]:
    """Layouts of one size that cover the dimensions that move."""
    dims = heard.moving.nonzero().flatten().tolist()
    for start in range(max(0, dims[-1] + 1 - size), min(dims[0], heard.head_dim - size) + 1):
        yield Pairing("half-split", start, size)
        if start % 2 == 0:
            yield Pairing("interleaved", start, size)


def _as_measured(heard: _Heard) -> list[Reading]:
    """Readings without a frequency vector of the model: one, or with silent dimensions as many as fit."""
    drifts = {pairing: norm_drift(heard.samples, pairing) for pairing in _candidates(heard)}
    best = min(drifts, key=drifts.__getitem__)
    if drifts[best] > 2 * heard.tolerance:
        raise ProbeError(_not_turning(heard, best, drifts[best]))
    fitting = [best] if heard.audible.all() else [p for p, drift in drifts.items() if drift <= 2 * heard.tolerance]
    read = {pairing: heard.read(pairing) for pairing in fitting}
    straight = {pairing: frequency for pairing, (frequency, residual) in read.items() if residual <= _LINEAR}
    if not straight:
        raise ProbeError(
            f"layer {heard.layer}: the angles of {best} are not proportional to the position (off by "
            f"{read[best][1]:.2g} rad, allowed {_LINEAR}); such positions have no frequency"
        )
    return [
        Reading(pairing, frequency.where(~(frequency.abs() <= heard.speed_tolerance), 0.0), False)
        for pairing, frequency in straight.items()
    ]


def _candidates(heard: _Heard) -> Iterator[Pairing]:
    """Every layout that covers the dimensions that move, and silent ones beside them.

    The fastest audible pair comes first in all of them; slow pairs at the end may not be seen to move.
    """
    dims = heard.moving.nonzero().flatten().tolist()
    silent = ~heard.audible
    starts, stops = [dims[0]], [dims[-1] + 1]
    while starts[-1] > 0 and silent[starts[-1] - 1]:
        starts.append(starts[-1] - 1)
    while stops[-1] < heard.head_dim and silent[stops[-1]]:
        stops.append(stops[-1] + 1)
    for start in starts:
        even = start - start % 2
        for stop in stops:
            yield Pairing("interleaved", even, stop - even + (stop - even) % 2)
        for half in range((stops[0] - start + 1) // 2, (heard.head_dim - start) // 2 + 1):
            yield Pairing("half-split", start, 2 * half)


def _not_turning(heard: _Heard, best: Pairing, drift: float) -> str:
    for pairing in _candidates(heard):
        if _scaled_after_turning(heard, pairing):
            return (
                f"layer {heard.layer}: pairs of {pairing} turn with the position, but their two dimensions are then "
                "scaled differently (a norm with weights after the rotation), so that a pair's norm depends on its "
                "angle; this model is rotary, but its pairs have no norm of their own to measure"
            )
    dims = heard.moving.nonzero().flatten().tolist()
    return (
        f"layer {heard.layer}: dimensions {dims[0]} to {dims[-1]} of {heard.head_dim} move with the position, but no "
        f"pairing turns them (best is {best}, whose norms drift by {drift:.2g}, allowed {2 * heard.tolerance:.2g}); "
        "this model's positions are not rotary"
    )


def _scaled_after_turning(heard: _Heard, pairing: Pairing) -> bool:
    """Whether the pairs that move go along ellipses: the squares of their dimensions change against each other."""
    both = torch.stack(split_pairs(heard.moving, pairing)).all(0)
    first, second = (part[..., both].square() for part in split_pairs(heard.trajectory.heads(), pairing))
    first, second = first - first[:, :1], second - second[:, :1]
    against = -(first * second).sum(1).sum(0)
    most = (first.square().sum(1) * second.square().sum(1)).sqrt().sum(0)
    return bool(both.any()) and bool((against > (1 - heard.tolerance) * most).all())


def _alike(frequency: Tensor, other: Tensor, tolerance: float) -> bool:
    """Whether frequencies agree wherever both are known."""
    off = (frequency - other).abs()
    return not bool((off > tolerance + _ALIKE * other.abs()).any())
