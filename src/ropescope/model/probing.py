"""What a model's positions do: which dimensions turn together, how fast, and in which layers.

There is no table of models here. Every attention layer is fed a hidden state that is the same at every position, so
the queries and keys that attention receives are pure rotations of one vector; the trajectory tells the rest. Each layer
gets its own constant input, because deeper hidden states can depend on position even for constant tokens (attention
sinks). The frequencies read off are then matched with the model's own ``inv_freq``, where it has one, which sharpens
those that turn too slowly to be read well in half precision.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

from ropescope.base.errors import InputError, ModelError, ProbeError
from ropescope.model.access import input_device, rotary_frequencies, undisturbed, vocabulary_size
from ropescope.model.attention import AttentionCall, intercepted
from ropescope.model.card import LayerRotation, RotaryCard
from ropescope.model.decoder import check_model, decoder_of
from ropescope.model.layouts import Reading, read_layouts
from ropescope.model.trajectories import Trajectory

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel


_ROWS = 4
# Equal rows of a matrix product may still differ by more than one rounding.
_FLOAT32_NOISE = 2.5e-6
# Beyond this, float32 positions times frequencies are themselves rounded too coarsely.
_FARTHEST = 2**20


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
    InputError
        If `positions` is less than 2, or more than a model that rotates nothing has learned.
    ModelError
        If the model does not call attention through the interface.
    ProbeError
        If a layer's queries move with the position, but not as pairs that turn. A wrong pairing would invent
        periodicity, so there is no fallback.

    Examples
    --------
    >>> card = probe(model)  # doctest: +SKIP
    >>> print(card)  # doctest: +SKIP
    layers 0-29: 9 query / 3 key heads of 64, half-split[0:64], 32 pairs, wavelength 6.28 to 4.38e+05 tokens
    """
    check_model(model)
    limit = _position_limit(model)
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
    heard = trajectories
    if any(trajectory.has_silence() for trajectory in trajectories):
        voiced, _ = _observe(model, places, voiced=True)
        heard = [plain.joined(other) for plain, other in zip(trajectories, voiced, strict=True)]
    readings = read_layouts(heard, places, known)
    layers = [_layer_rotation(*pair) for pair in zip(trajectories, readings, strict=True)]
    return RotaryCard(tuple(layers), int(places[-1]) + 1)


def _places(positions: int) -> Tensor:
    """0, 1 and on, growing by a third to the farthest, so that each phase is unwrapped by the one before."""
    places = {0, positions - 1}
    step = 1.0
    while step < positions - 1:
        places.add(int(step))
        step *= 4 / 3
    return torch.tensor(sorted(places), device="cpu")


def _observe(model: PreTrainedModel, places: Tensor, voiced: bool = False) -> tuple[list[Trajectory], list[Tensor]]:
    """Trajectories of all layers at `places`, and the model's own frequency vectors as they were in use."""
    seen: dict[int, Trajectory] = {}

    def keep(call: AttentionCall) -> None:
        call.check_finite()
        _check_key_per_token(call, len(places))
        epsilon = max(torch.finfo(call.key.dtype).eps, _FLOAT32_NOISE)
        query, key = (call.all_heads(x.detach(), 1).cpu().double() for x in (call.query, call.key))
        seen[call.layer] = Trajectory(call.layer, query, key, epsilon)

    decoder = decoder_of(model)
    tokens = (torch.arange(_ROWS, device="cpu")[:, None] * 7 % vocabulary_size(model)).expand(-1, len(places))
    voices = _voices(decoder) if voiced else nullcontext()
    with undisturbed(model), intercepted(model, keep), _constant_inputs(decoder), voices:
        decoder(
            input_ids=tokens.to(input_device(model)),
            position_ids=places.expand(_ROWS, -1).to(input_device(model)),
            use_cache=False,
        )
        known = [
            buffer.detach().cpu().double() for _, name, buffer in rotary_frequencies(decoder) if "orig" not in name
        ]
    return [seen[layer] for layer in sorted(seen)], known


def _position_limit(model: PreTrainedModel) -> int:
    config: Any = model.config.get_text_config()
    # Whisper has its own name for it.
    names = ("max_position_embeddings", "max_target_positions")
    return next((limit for name in names if (limit := getattr(config, name, None))), 4096)


def _check_key_per_token(call: AttentionCall, tokens: int) -> None:
    queries, keys = call.query.shape[2], call.key.shape[2]
    if (queries, keys) != (tokens, tokens):
        raise ModelError(
            f"layer {call.layer} attends with {queries} queries to {keys} keys for {tokens} tokens; queries and keys "
            "that stand for no one token (compressed ones, DeepSeek-V4) have no signal along the positions"
        )


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
        if hasattr(module, "layer_idx")
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _voices(decoder: nn.Module) -> Iterator[None]:
    """Whatever a part of a layer mutes is let through, so that silent pairs show what positions do to them.

    A norm with a weight of zero gives its input there, a projection with rows of zeros gives ones.
    """
    layers = [module for module in decoder.modules() if hasattr(module, "layer_idx")]
    parts = {id(part): part for layer in layers for part in layer.modules() if not any(True for _ in part.children())}
    hooks = [part.register_forward_hook(_let_through) for part in parts.values()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _let_through(_module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    if not isinstance(output, torch.Tensor) or not output.is_floating_point() or output.ndim < 2:
        return output
    came = args[0] if args and isinstance(args[0], torch.Tensor) and args[0].shape == output.shape else output
    instead = came.where(~_muted(came), 1.0).to(output.dtype)
    return output.where(~_muted(output), instead)


def _muted(values: Tensor) -> Tensor:
    """Dimensions that are zero in every row and at every place."""
    return (values == 0).flatten(0, -2).all(0)


def _first_everywhere(hidden: Any) -> Any:
    if isinstance(hidden, torch.Tensor) and hidden.ndim == 3:
        return hidden[:, :1].expand_as(hidden).contiguous()
    return hidden


def _layer_rotation(trajectory: Trajectory, reading: Reading) -> LayerRotation:
    return LayerRotation(
        layer=trajectory.layer,
        heads=trajectory.query.shape[1],
        kv_heads=trajectory.key.shape[1],
        head_dim=trajectory.head_dim,
        pairing=reading.pairing,
        frequency=reading.frequency,
        matched=reading.matched,
        silent=trajectory.silent(reading.pairing),
    )
