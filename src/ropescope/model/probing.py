"""What a model's positions do: which dimensions turn together, how fast, and in which layers.

There is no table of models here. Every attention layer is fed a hidden state that is the same at every position, so
the queries and keys that attention receives are pure rotations of one vector; the trajectory tells the rest. Each layer
gets its own constant input, because deeper hidden states can depend on position even for constant tokens (attention
sinks). The frequencies read off are then matched with the model's own ``inv_freq``, where it has one, which sharpens
those that turn too slowly to be read well in half precision.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any

import torch

from ropescope.base.errors import InputError, ProbeError
from ropescope.base.rotary import Pairing, split_pairs
from ropescope.model.access import input_device, rotary_frequencies, undisturbed, vocabulary_size
from ropescope.model.attention import AttentionCall, intercepted

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from ropescope.base.axes import PairFlags, PairValues

_ROWS = 4
# Equal rows of a matrix product may still differ by more than one rounding.
_FLOAT32_NOISE = 2.5e-6
# Beyond this, float32 positions times frequencies are themselves rounded too coarsely.
_FARTHEST = 2**20
# Radians; half precision and far positions stay well below it.
_LINEAR = 0.25


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
        Angular frequency of every pair, rad/token, float64; 0 where it does not turn.
    matched
        Whether the frequencies were found in the model's own `inv_freq` (else they are as measured).
    """

    layer: int
    heads: int
    kv_heads: int
    head_dim: int
    pairing: Pairing
    frequency: PairValues
    matched: bool

    @property
    def rotated(self) -> PairFlags:
        """Which pairs turn at all, shape (pair,)."""
        return self.frequency > 0

    def same_rotation(self, other: LayerRotation) -> bool:
        """Whether two layers differ in nothing but their index."""
        shape = (self.heads, self.kv_heads, self.head_dim, self.pairing, self.matched)
        other_shape = (other.heads, other.kv_heads, other.head_dim, other.pairing, other.matched)
        return shape == other_shape and torch.allclose(self.frequency, other.frequency, rtol=1e-3, atol=0.0)


@dataclass(frozen=True, slots=True, eq=False)
class RotaryCard:
    """The rotations of a whole model, layer by layer.

    Parameters
    ----------
    layers
        One entry for every attention layer, by rising index.
    positions
        Positions 0 to `positions` - 1 were looked at (matters for frequencies that depend on the length).
    """

    layers: tuple[LayerRotation, ...]
    positions: int

    def groups(self) -> list[list[LayerRotation]]:
        """Layers that rotate alike, each group in layer order, groups by their first layer."""
        found: list[list[LayerRotation]] = []
        for layer in self.layers:
            for group in found:
                if group[0].same_rotation(layer):
                    group.append(layer)
                    break
            else:
                found.append([layer])
        return found

    def __str__(self) -> str:
        return "\n".join(_describe_group(group) for group in self.groups())


def probe(model: PreTrainedModel, positions: int | None = None) -> RotaryCard:
    """Find pairing, rotary block, frequencies and NoPE layers of a model by looking at what its positions do.

    Parameters
    ----------
    model
        Any transformers model whose attention goes through the attention interface.
    positions
        Look at positions 0 to `positions` - 1, at least 2; default the model's `max_position_embeddings`. Frequencies
        that depend on the length (dynamic NTK, LongRoPE) are those in force at that length.

    Returns
    -------
    RotaryCard
        One :class:`LayerRotation` for every attention layer.

    Raises
    ------
    ModelError
        If the model does not call attention through the interface.
    ProbeError
        If a layer's queries move with the position, but not as pairs that turn. A wrong pairing would invent
        periodicity, so there is no fallback.

    Examples
    --------
    >>> card = probe(model)  # doctest: +SKIP
    >>> print(card)  # doctest: +SKIP
    layers 0-29: 9 query / 3 key heads of 64, half-split[0:64], 32 pairs, wavelength 6.28 to 4.39e+05 tokens
    """
    text_config = model.config.get_text_config()
    limit = getattr(text_config, "max_position_embeddings", None) or 4096
    positions = limit if positions is None else positions
    if positions < 2:
        raise InputError(f"probe got positions={positions}; rotation shows only from 2 positions on")
    if positions > limit and not any(rotation.rotated.any() for rotation in probe(model, limit).layers):
        raise InputError(
            f"{positions} positions are more than the {limit} that this model has learned, and it rotates none"
        )
    places = _places(min(positions, _FARTHEST))
    trajectories, known = _observe(model, places)
    if not trajectories:
        raise ProbeError(
            f"{type(model).__name__} ran without calling attention through transformers' interface, so its queries "
            "and keys cannot be seen"
        )
    readings = [_read(trajectory, places, known) for trajectory in trajectories]
    seen = Counter((t.head_dim, r.pairing) for t, r in zip(trajectories, readings, strict=True) if r is not None)
    layers = [
        _layer_rotation(trajectory, reading or _unrotated(trajectory.head_dim, seen))
        for trajectory, reading in zip(trajectories, readings, strict=True)
    ]
    return RotaryCard(tuple(layers), int(places[-1]) + 1)


@dataclass(frozen=True, slots=True, eq=False)
class _Trajectory:
    """Queries and keys of one layer, each (row, head, place, head_dim) in float64, and the rounding they came with."""

    layer: int
    query: Tensor
    key: Tensor
    epsilon: float

    @property
    def head_dim(self) -> int:
        return self.query.shape[-1]

    def samples(self) -> Tensor:
        """All heads of both streams, (sample, place, head_dim), scaled to the norm at the first place.

        A model may scale whole queries by their position (Llama-4's temperature); a rotation keeps their norm.
        """
        heads = torch.cat((self.query, self.key), dim=1).flatten(0, 1)
        norm = heads.norm(dim=-1, keepdim=True)
        scaled: Tensor = heads * (norm[:, :1] / norm.clamp_min(torch.finfo(torch.float64).tiny))
        return scaled


@dataclass(frozen=True, slots=True, eq=False)
class _Reading:
    pairing: Pairing
    frequency: Tensor
    matched: bool


def _places(positions: int) -> Tensor:
    """0, 1 and on, growing by a third to the farthest, so that each phase is unwrapped by the one before."""
    places = {0, positions - 1}
    step = 1.0
    while step < positions - 1:
        places.add(int(step))
        step *= 4 / 3
    return torch.tensor(sorted(places))


def _observe(model: PreTrainedModel, places: Tensor) -> tuple[list[_Trajectory], list[Tensor]]:
    """Trajectories of all layers at `places`, and the model's own frequency vectors as they were in use."""
    seen: dict[int, _Trajectory] = {}

    def keep(call: AttentionCall) -> None:
        call.check_finite()
        epsilon = max(torch.finfo(call.key.dtype).eps, _FLOAT32_NOISE)
        query, key = (call.all_heads(x.detach(), 1).cpu().double() for x in (call.query, call.key))
        seen[call.layer] = _Trajectory(call.layer, query, key, epsilon)

    decoder = model.get_decoder()
    tokens = (torch.arange(_ROWS)[:, None] * 7 % vocabulary_size(model)).expand(-1, len(places))
    with undisturbed(model), intercepted(model, keep), _constant_inputs(decoder):
        decoder(
            input_ids=tokens.to(input_device(model)),
            position_ids=places.expand(_ROWS, -1).to(input_device(model)),
            use_cache=False,
        )
        known = [
            buffer.detach().cpu().double() for _, name, buffer in rotary_frequencies(decoder) if "orig" not in name
        ]
    return [seen[layer] for layer in sorted(seen)], known


@contextmanager
def _constant_inputs(decoder: nn.Module) -> Iterator[None]:
    """Every module of a layer receives, at all positions, the hidden state of the first."""

    def flatten(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        if "hidden_states" in kwargs:
            return args, {**kwargs, "hidden_states": _first_everywhere(kwargs["hidden_states"])}
        return (*map(_first_everywhere, args[:1]), *args[1:]), kwargs

    hooks = [
        module.register_forward_pre_hook(flatten, with_kwargs=True)
        for module in decoder.modules()
        if getattr(module, "layer_idx", None) is not None
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _first_everywhere(hidden: Any) -> Any:
    if isinstance(hidden, torch.Tensor) and hidden.ndim == 3:
        return hidden[:, :1].expand_as(hidden).contiguous()
    return hidden


def _read(trajectory: _Trajectory, places: Tensor, known: list[Tensor]) -> _Reading | None:
    """Pairing and frequencies of one layer, or None if nothing moves."""
    samples = trajectory.samples()
    tolerance = 4 * trajectory.epsilon
    moving = _moving(samples) > tolerance
    if not moving.any():
        return None
    fits = [(_norm_drift(samples, pairing), pairing) for pairing in _candidates(moving)]
    drift, pairing = min(fits, key=lambda fit: fit[0])
    if drift > 2 * tolerance:
        raise ProbeError(
            f"layer {trajectory.layer}: dimensions {_extent(moving)} of {len(moving)} move with the position, but no "
            f"pairing turns them (best is {pairing}, whose norms drift by {drift:.2g}, allowed {2 * tolerance:.2g}); "
            "this model's positions are not rotary"
        )
    frequency, residual = _frequencies(samples, pairing, places)
    if residual > _LINEAR:
        raise ProbeError(
            f"layer {trajectory.layer}: the angles of {pairing} are not proportional to the position (off by "
            f"{residual:.2g} rad, allowed {_LINEAR}); such positions have no frequency"
        )
    if (frequency * places[-1] < -tolerance).any():
        raise ProbeError(f"layer {trajectory.layer}: pairs of {pairing} turn by negative angles; this is not supported")
    return _matched(pairing, frequency, tolerance / float(places[-1]), known, len(moving))


def _moving(samples: Tensor) -> Tensor:
    """How far each dimension strays from its first value, relative to its largest root mean square, (head_dim,)."""
    size = samples.square().mean(0).sqrt().amax(0)
    stray = (samples - samples[:, :1]).square().mean(0).sqrt().amax(0)
    return stray / size.clamp_min(torch.finfo(torch.float64).tiny)


def _candidates(moving: Tensor) -> Iterator[Pairing]:
    """Every layout that covers the dimensions that move.

    The fastest pair comes first in all of them; slow pairs at the end may not be seen to move.
    """
    dims = moving.nonzero().flatten().tolist()
    start, stop, head_dim = dims[0], dims[-1] + 1, len(moving)
    interleaved_start = start - start % 2
    yield Pairing("interleaved", interleaved_start, stop - interleaved_start + (stop - interleaved_start) % 2)
    for half in range((stop - start + 1) // 2, (head_dim - start) // 2 + 1):
        yield Pairing("half-split", start, 2 * half)


def _norm_drift(samples: Tensor, pairing: Pairing) -> float:
    """The largest change of a pair's norm along the positions, relative to its root mean square."""
    first, second = split_pairs(samples, pairing)
    norm = torch.hypot(first, second)
    drift = (norm - norm[:, :1]).square().mean(0).sqrt().amax(0)
    return float((drift / norm.square().mean((0, 1)).sqrt().clamp_min(torch.finfo(torch.float64).tiny)).max())


def _frequencies(samples: Tensor, pairing: Pairing, places: Tensor) -> tuple[Tensor, float]:
    """Least-squares angular frequency of every pair, rad/token, (pair,), and how far a phase is from its line."""
    turned = torch.complex(*split_pairs(samples, pairing))
    phase = (turned * turned[:, :1].conj()).sum(0).angle()
    frequency = torch.zeros_like(phase[0])
    unwrapped = torch.zeros_like(phase)
    for row, place in enumerate(places.tolist()):
        if place:
            turns = ((frequency * place - phase[row]) / math.tau).round()
            unwrapped[row] = phase[row] + math.tau * turns
            frequency = unwrapped[row] / place
    frequency = (unwrapped * places[:, None]).sum(0) / places.double().square().sum()
    present = turned[:, 0].abs().square().mean(0) > 0
    off = (unwrapped - frequency * places[:, None])[:, present]
    return frequency, float(off.abs().max()) if off.numel() else 0.0


def _matched(pairing: Pairing, measured: Tensor, tolerance: float, known: list[Tensor], head_dim: int) -> _Reading:
    """Take the model's own frequencies where they agree with the measured ones, else the measured ones."""
    for own in known:
        size = 2 * len(own)
        extends = pairing.style == "interleaved" and pairing.start + size <= head_dim
        if len(own) != len(measured) and not (extends and len(own) > len(measured)):
            continue
        padded = torch.nn.functional.pad(measured, (0, len(own) - len(measured)))
        if ((padded - own).abs() <= tolerance + 2e-3 * own).all():
            return _Reading(Pairing(pairing.style, pairing.start, size), own, True)
    return _Reading(pairing, measured.where(measured.abs() > tolerance, 0.0), False)


def _unrotated(head_dim: int, seen: Counter[tuple[int, Pairing]]) -> _Reading:
    """NoPE: nothing turns; pair the dimensions as most rotated layers of that size do, else half-split."""
    alike = [pairing for (size, pairing), _ in seen.most_common() if size == head_dim]
    pairing = alike[0] if alike else Pairing("half-split", 0, head_dim - head_dim % 2)
    return _Reading(pairing, torch.zeros(pairing.pairs, dtype=torch.float64), False)


def _layer_rotation(trajectory: _Trajectory, reading: _Reading) -> LayerRotation:
    return LayerRotation(
        layer=trajectory.layer,
        heads=trajectory.query.shape[1],
        kv_heads=trajectory.key.shape[1],
        head_dim=trajectory.head_dim,
        pairing=reading.pairing,
        frequency=reading.frequency,
        matched=reading.matched,
    )


def _extent(flags: Tensor) -> str:
    dims = flags.nonzero().flatten().tolist()
    return f"{dims[0]} to {dims[-1]}"


def _layer_ranges(layers: list[int]) -> str:
    """Compress layer indices, so that 0,1,2,4 reads '0-2, 4' and 3,7,11,15 reads '3, 7, ..., 15 (every 4)'."""
    steps = {b - a for a, b in pairwise(layers)}
    if len(layers) > 3 and len(steps) == 1 and steps != {1}:
        return f"{layers[0]}, {layers[1]}, ..., {layers[-1]} (every {steps.pop()})"
    runs = []
    for _, run in groupby(enumerate(layers), lambda item: item[1] - item[0]):
        members = [layer for _, layer in run]
        runs.append(f"{members[0]}-{members[-1]}" if len(members) > 1 else str(members[0]))
    return ", ".join(runs)


def _describe_group(group: list[LayerRotation]) -> str:
    one = group[0]
    shape = f"{one.heads} query / {one.kv_heads} key heads of {one.head_dim}"
    rotated = one.frequency[one.rotated]
    if len(rotated) == 0:
        turning = f"NoPE (paired as {one.pairing})"
    else:
        still = len(one.frequency) - len(rotated)
        slow, fast = math.tau / float(rotated.min()), math.tau / float(rotated.max())
        turning = (
            f"{one.pairing}, {len(one.frequency)} pairs, wavelength {fast:.3g} to {slow:.3g} tokens"
            + (f", {still} zero-frequency pairs" if still else "")
            + ("" if one.matched else " (as measured)")
        )
    plural = "s" if len(group) > 1 else ""
    return f"layer{plural} {_layer_ranges([rotation.layer for rotation in group])}: {shape}, {turning}"
