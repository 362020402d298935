"""Turn selected rotary pairs down, or take their rotation away, while a context is open.

Both act on q and k where attention receives them, for every forward, `generate` with a cache, and padded batches, nest
with each other, and leave nothing behind.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ropescope.base.arguments import check_share
from ropescope.base.axes import KEY, QUERY
from ropescope.base.errors import InputError
from ropescope.base.facts import listed, other_model, other_weights
from ropescope.base.rotary import turn
from ropescope.interventions.masks import PairMask
from ropescope.model.access import rotary_frequencies
from ropescope.model.attention import AttentionCall, intercepted
from ropescope.model.decoder import decoder_of
from ropescope.model.identity import announced, model_identity
from ropescope.model.probing import LayerRotation, RotaryCard, probe

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

Alpha = float | Mapping[str, Any]
_DIGEST = 8
_PER_PAIR = "a mapping of query and key to arrays of the mask's shape"


@contextmanager
def weighted_rope(
    model: PreTrainedModel, mask: PairMask, alpha: Alpha, *, allow_any_alpha: bool = False
) -> Iterator[None]:
    r"""Weighted RoPE: scale the selected pairs of q and k by alpha while the context is open.

    .. math:: q^{(j)*} = \alpha_q q^{(j)}, \quad k^{(j)*} = \alpha_k k^{(j)}

    with :math:`\alpha` where the stream's own mask selects the pair, else 1, so the part of pair j in a logit is
    scaled by :math:`\alpha_q \alpha_k`. Both factors are folded into the query: q·k is bilinear, so this is exact,
    and cached keys are never written to.

    Parameters
    ----------
    model
        The model that the mask was selected on; :meth:`PairMask.for_any_model` lifts the check of its weights.
    mask
        The pairs to scale.
    alpha
        Weight of the selected pairs, 0 to 1; or weights per pair, a mapping of "query" and "key" to arrays of the
        mask's shape. 1 leaves the logits bit-equal.
    allow_any_alpha
        Take finite weights outside [0, 1] too.

    Raises
    ------
    InputError
        If the mask does not fit the model, or alpha is out of range.

    References
    ----------
    Frequency Entropy paper, section 4.1, equation 7.

    Examples
    --------
    >>> with weighted_rope(model, mask, alpha=0.1):  # doctest: +SKIP
    ...     model.generate(**inputs)
    """
    card = fitting_card(model, mask)
    weights = query_weights(card, mask, alpha, allow_any_alpha)

    def scale(call: AttentionCall) -> tuple[Tensor, Tensor] | None:
        weight = weights.get(call.layer)
        return None if weight is None else (call.query * _on(weight[call.heads], call.query), call.key)

    what = f"weighted_rope of {mask.digest()[:_DIGEST]} at {_written(alpha)}"
    with announced(model, what), intercepted(model, scale):
        yield


@contextmanager
def derotated(model: PreTrainedModel, mask: PairMask, *, strength: float = 1.0) -> Iterator[None]:
    r"""Take the rotation of the selected pairs away while the context is open: they become NoPE.

    A query at position n is turned back by :math:`s\,\theta_j n`, a key at position m by :math:`s\,\theta_j m`, so
    the part of pair j in a logit depends on the distance by :math:`(1-s)\,\theta_j (n - m)` only. q and k of a pair
    turn together, hence a pair that either stream selects, in any head of a key head's group, is derotated for that
    whole group. Positions are counted along the key axis: they must be consecutive, as they are in forwards,
    generation with a growing cache, sliding windows and padded batches. Frequencies are those in force at the time
    (dynamic NTK and LongRoPE change them with the length; keys that were cached before a change stay as they were).

    Parameters
    ----------
    model, mask
        As in :func:`weighted_rope`.
    strength
        Share s of the rotation to take away, 0 to 1. 0 leaves the logits bit-equal.

    Raises
    ------
    InputError
        If the mask does not fit the model, the strength is out of range, or the model runs with a preallocated
        (static) cache.

    Examples
    --------
    >>> with derotated(model, mask):  # doctest: +SKIP
    ...     model(input_ids).logits
    """
    check_share("strength", strength)
    card = fitting_card(model, mask)
    chosen = _derotated_pairs(card, mask) if strength > 0 else {}
    frequencies = {rotation.layer: _frequency_in_force(model, rotation) for rotation in card.layers}
    pairings = {rotation.layer: rotation.pairing for rotation in card.layers}

    def turn_back(call: AttentionCall) -> tuple[Tensor, Tensor] | None:
        if call.layer not in chosen:
            return None
        device, pairing = call.key.device, pairings[call.layer]
        positions = torch.arange(call.key.shape[2], dtype=torch.float64, device=device)
        angle = -strength * positions[:, None] * frequencies[call.layer]().to(device)
        pairs = chosen[call.layer][call.kv_heads].to(device)
        cos, sin = torch.where(pairs, angle.cos().float(), 1.0), torch.where(pairs, angle.sin().float(), 0.0)
        newest = slice(call.key.shape[2] - call.query.shape[2], None)
        grouped = call.query.unflatten(1, (call.key.shape[1], -1))
        query = turn(grouped, cos[:, None, newest], sin[:, None, newest], pairing).flatten(1, 2)
        return query, turn(call.key, cos, sin, pairing)

    guard = decoder_of(model).register_forward_pre_hook(_refuse_static_cache, with_kwargs=True)
    try:
        with announced(model, f"derotated {mask.digest()[:_DIGEST]} by {strength}"), intercepted(model, turn_back):
            yield
    finally:
        guard.remove()


def fitting_card(model: PreTrainedModel, mask: PairMask) -> RotaryCard:
    """The model's rotations, once it is clear that the mask belongs to it.

    Raises
    ------
    InputError
        If layers, heads, pairing, weights, config, frequencies or adapters are others than those the mask was selected
        on. What a mask does not know, as one of a file from before these facts were kept, is not compared.
    """
    card = probe(model)
    layers = [rotation.layer for rotation in card.layers]
    if layers != mask.layers:
        raise InputError(
            f"the mask is for {len(mask.layers)} layers, {mask.layers[0]} to {mask.layers[-1]}, the model has "
            f"{len(layers)}, {layers[0]} to {layers[-1]}; select on this model"
        )
    for row, rotation in enumerate(card.layers):
        wanted = (rotation.heads, rotation.kv_heads, str(rotation.pairing))
        got = (_heads(mask, QUERY, row), _heads(mask, KEY, row), mask.pairing[row])
        if got != wanted:
            raise InputError(
                f"layer {rotation.layer} has {wanted[0]} query and {wanted[1]} key heads paired {wanted[2]}, but the "
                f"mask is for {got[0]} and {got[1]} paired {got[2]}; select on this model"
            )
    _check_measured_on(model, mask)
    return card


def _check_measured_on(model: PreTrainedModel, mask: PairMask) -> None:
    if not mask.measured_on:
        return
    differing = other_model(mask.measured_on, model_identity(model))
    ways = "select on this model, or take mask.for_any_model()"
    if other_weights(differing):
        raise InputError(
            f"the mask was selected on other weights ({mask.measured_on.get('id')}) than this model's; {ways}"
        )
    if differing:
        raise InputError(f"the mask was selected on these weights run otherwise ({listed(differing)}); {ways}")


def query_weights(card: RotaryCard, mask: PairMask, alpha: Alpha, allow_any_alpha: bool = False) -> dict[int, Tensor]:
    """Factor of every query dimension, (head, 1, head_dim), by layer; layers where all are 1 are left out."""
    found = {}
    for row, rotation in enumerate(card.layers):
        query, key = (pair_weights(mask, alpha, stream, row, rotation, allow_any_alpha) for stream in (QUERY, KEY))
        groups = rotation.heads // rotation.kv_heads
        weight = over_dimensions(query * key.repeat_interleave(groups, 0), rotation)
        if (weight != 1).any():
            found[rotation.layer] = weight[:, None]
    return found


def pair_weights(
    mask: PairMask, alpha: Alpha, stream: str, row: int, rotation: LayerRotation, allow_any: bool
) -> Tensor:
    """Weight of every pair of a layer, (head, pair)."""
    heads = rotation.heads if stream == QUERY else rotation.kv_heads
    chosen = torch.from_numpy(mask.streams()[stream].values[row, :heads, : rotation.pairing.pairs])
    if not isinstance(alpha, Mapping):
        if np.ndim(alpha):
            raise InputError(f"alpha got an array of shape {np.shape(alpha)}; weights per pair are {_PER_PAIR}")
        _check_alpha(float(alpha), allow_any)
        return torch.where(chosen, float(alpha), 1.0)
    if stream not in alpha:
        raise InputError(
            f"alpha got weights of {', '.join(map(str, alpha)) or 'nothing'}; weights per pair are {_PER_PAIR}"
        )
    values = np.asarray(alpha[stream], dtype=np.float32)
    if values.shape != mask.streams()[stream].shape:
        raise InputError(f"weights of {stream} have shape {values.shape}; the mask's is {mask.streams()[stream].shape}")
    mine = torch.from_numpy(values[row, :heads, : rotation.pairing.pairs])
    for extreme in (float(mine.min()), float(mine.max())):
        _check_alpha(extreme, allow_any)
    return torch.where(chosen, mine, 1.0)


def over_dimensions(weight: Tensor, rotation: LayerRotation) -> Tensor:
    """Spread weights per pair, (head, pair), over the head's dimensions, (head, head_dim); 1 outside the block."""
    pairing = rotation.pairing
    spread = torch.ones(weight.shape[0], rotation.head_dim, device=weight.device)
    both = torch.cat((weight, weight), -1) if pairing.style == "half-split" else weight.repeat_interleave(2, -1)
    spread[:, pairing.start : pairing.stop] = both
    return spread


def _derotated_pairs(card: RotaryCard, mask: PairMask) -> dict[int, Tensor]:
    """Pairs that lose rotation, (kv_head, 1, pair), by layer; layers where none does are left out."""
    found = {}
    for row, rotation in enumerate(card.layers):
        pairs = rotation.pairing.pairs
        query, key = (torch.from_numpy(mask.streams()[stream].values[row, :, :pairs]) for stream in (QUERY, KEY))
        grouped = query[: rotation.heads].unflatten(0, (rotation.kv_heads, -1)).any(1)
        # A pair of unknown frequency is silent: there is nothing to turn back.
        chosen = (grouped | key[: rotation.kv_heads]) & rotation.rotated & rotation.frequency.isfinite()
        if chosen.any():
            found[rotation.layer] = chosen[:, None]
    return found


def _frequency_in_force(model: PreTrainedModel, rotation: LayerRotation) -> Callable[[], Tensor]:
    """What gives a layer's frequencies as they are while the model runs: the model's own buffer, where it has one."""
    sign = -1 if (rotation.frequency < 0).any() else 1
    buffers = [
        (module, name, torch.equal(sign * buffer.cpu().double(), rotation.frequency))
        for module, name, buffer in rotary_frequencies(decoder_of(model))
        if "orig" not in name and len(buffer) == rotation.pairing.pairs
    ]
    # Rotations of several kinds keep fixed frequencies; one that follows the length need not be at the probe's.
    own = [found for found in buffers if found[2]] or (buffers if len(buffers) == 1 else [])
    if not rotation.matched or not own:
        return lambda: rotation.frequency
    module, name, _ = own[0]
    return lambda: sign * module.get_buffer(name).double()


def _refuse_static_cache(_module: nn.Module, _args: tuple[Any, ...], arguments: dict[str, Any]) -> None:
    from transformers.cache_utils import StaticLayer

    layers = getattr(arguments.get("past_key_values"), "layers", ())
    if any(isinstance(layer, StaticLayer) for layer in layers):
        raise InputError("derotation cannot tell the positions in a static cache; generate with the default cache")


def _heads(mask: PairMask, stream: str, row: int) -> int:
    return int(mask.present(stream).values[row].any(-1).sum())


def _on(weight: Tensor, like: Tensor) -> Tensor:
    return weight.to(device=like.device, dtype=like.dtype)


def _written(alpha: Alpha) -> str:
    """A strength, or a digest of strengths per pair, for the record."""
    if not isinstance(alpha, Mapping):
        return f"{float(alpha)}"
    weights = [np.asarray(alpha[stream], dtype=np.float32) for stream in (QUERY, KEY)]
    return hashlib.sha256(b"".join(array.tobytes() for array in weights)).hexdigest()[:_DIGEST]


def _check_alpha(alpha: float, allow_any: bool) -> None:
    if allow_any and math.isfinite(alpha):
        return
    check_share("alpha", alpha, "; allow_any_alpha=True takes other finite weights")
