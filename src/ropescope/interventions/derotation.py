"""Derotation: selected rotary pairs lose their rotation while a context is open.

It acts on q and k where attention receives them, as weighting does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import torch

from ropescope.base.arguments import check_share
from ropescope.base.axes import KEY, QUERY
from ropescope.base.errors import InputError
from ropescope.base.rotary import turn
from ropescope.interventions.fitting import fitting_card
from ropescope.interventions.masks import PairMask
from ropescope.model.access import frequency_in_force
from ropescope.model.attention import AttentionCall, Handler, intercepted
from ropescope.model.card import RotaryCard
from ropescope.model.decoder import decoder_of
from ropescope.model.identity import announced

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

_DIGEST = 8


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
    model
        The model that the mask was selected on; :meth:`PairMask.for_any_model` lifts the check of its weights.
    mask
        The pairs to derotate.
    strength
        Share s of the rotation to take away, 0 to 1. 0 leaves the logits bit-equal.

    Yields
    ------
    None
        On exit, after an exception too, the model is as it was.

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
    turn_back = turning_back(model, fitting_card(model, mask), mask, strength)
    guard = decoder_of(model).register_forward_pre_hook(_refuse_static_cache, with_kwargs=True)
    try:
        with announced(model, f"derotated {mask.digest()[:_DIGEST]} by {strength}"), intercepted(model, turn_back):
            yield
    finally:
        guard.remove()


def turning_back(model: PreTrainedModel, card: RotaryCard, mask: PairMask, strength: float) -> Handler:
    """What :func:`derotated` puts at every attention, for a mask that fits the card."""
    chosen = _derotated_pairs(card, mask) if strength > 0 else {}
    frequencies = {rotation.layer: frequency_in_force(model, rotation) for rotation in card.layers}
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

    return turn_back


def rotation_kept(model: PreTrainedModel, mask: PairMask, alpha: float) -> AbstractContextManager[None]:
    """Derotation as an intervention to sweep: the selected pairs keep the share `alpha` of their rotation."""
    return derotated(model, mask, strength=1 - alpha)


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


def _refuse_static_cache(_module: nn.Module, _args: tuple[Any, ...], arguments: dict[str, Any]) -> None:
    from transformers.cache_utils import StaticLayer

    layers = getattr(arguments.get("past_key_values"), "layers", ())
    if any(isinstance(layer, StaticLayer) for layer in layers):
        raise InputError("derotation cannot tell the positions in a static cache; generate with the default cache")
