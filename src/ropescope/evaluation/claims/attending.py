"""What heads attend to, from queries and keys as attention uses them: positions, and what a few pairs would choose."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from ropescope.base.rotary import split_pairs

if TYPE_CHECKING:
    from torch import Tensor

    from ropescope.model.attention import AttentionCall
    from ropescope.model.card import LayerRotation

# Queries looked at in each of two quarters, tokens chosen, and the part of the pairs that chooses.
QUERIES = 48
TOKENS = 16
SHARE = 4


def attended(call: AttentionCall, rotation: LayerRotation) -> dict[str, np.ndarray]:
    """What each query head of a layer attends to in one window.

    Queries lie in the later half of the window, so that all have the same distances to look back to.

    Parameters
    ----------
    call
        Of one window.
    rotation
        Of the layer.

    Returns
    -------
    dict of array (head)
        `previous`, the attention to the token before; `diagonal`, the share of the variance of attention over query
        and distance that distance alone explains, 0 to 1; `best` and `random`, the share of the tokens of highest
        score that a quarter of the pairs chooses, the pairs that choose best on other queries, or random ones.
    """
    length = call.key.shape[2]
    earlier, later = _places(length)
    places = torch.cat((earlier, later))
    weights = attention(call, places)
    distance = places[:, None] - torch.arange(length // 2)
    by_distance = weights.gather(-1, distance.to(weights.device).expand(*weights.shape[:-1], -1))
    whole = by_distance.var((1, 2), correction=0)
    of_distance = by_distance.mean(1).var(-1, correction=0)
    found = {"previous": by_distance[..., 1].mean(1), "diagonal": of_distance / whole.clamp_min(1e-30)}
    found |= _choices(call, rotation, earlier, later)
    return {name: values.cpu().double().numpy() for name, values in found.items()}


def attention(call: AttentionCall, places: Tensor) -> Tensor:
    """The attention of the queries at some positions as the layer computes it, (head, query, position), float32."""
    scores = _grouped(call, places) @ call.key[0].float()[:, None].transpose(-1, -2)
    scores = _masked(call, _scaled(call, scores).flatten(0, 1), places)
    sinks = call.arguments.get("s_aux")
    if sinks is None:
        return scores.softmax(-1)
    beside = sinks.float().reshape(-1, 1, 1).expand(-1, scores.shape[1], 1)
    return torch.cat((scores, beside), -1).softmax(-1)[..., :-1]


def _places(length: int) -> tuple[Tensor, Tensor]:
    """Positions of queries in the third and in the last quarter of a window."""
    middle, quarter = length // 2, (length + 1) // 2 // 2
    spread = [torch.linspace(0, quarter - 1, min(QUERIES, quarter)).long() for _ in range(2)]
    return middle + spread[0], middle + quarter + spread[1]


def _choices(call: AttentionCall, rotation: LayerRotation, earlier: Tensor, later: Tensor) -> dict[str, Tensor]:
    """How many of the tokens that the whole head scores highest a quarter of its pairs scores highest, too."""
    number = rotation.pairing.pairs
    kept, tokens = math.ceil(number / SHARE), min(TOKENS, call.key.shape[2] // 8)
    alone = _of_pairs(call, rotation, earlier)
    agreement = _overlap(call, earlier, alone, tokens).mean(-1)  # (head, pair)
    random = torch.Generator().manual_seed(rotation.layer)
    choices = {
        "best": agreement.argsort(-1, descending=True)[:, :kept],
        "random": torch.rand(agreement.shape, generator=random).argsort(-1)[:, :kept].to(agreement.device),
    }
    alone = _of_pairs(call, rotation, later)
    found = {}
    for name, pairs in choices.items():
        together = alone.gather(1, pairs[..., None, None].expand(-1, -1, *alone.shape[2:])).sum(1, keepdim=True)
        found[name] = _overlap(call, later, together, tokens)[:, 0].mean(-1)
    return found


def _of_pairs(call: AttentionCall, rotation: LayerRotation, places: Tensor) -> Tensor:
    """What each pair adds to the scores, (head, pair, query, position)."""
    query = split_pairs(_grouped(call, places), rotation.pairing)
    key = split_pairs(call.key[0].float(), rotation.pairing)
    parts = [torch.einsum("kgqj,kmj->kgjqm", ours, theirs) for ours, theirs in zip(query, key, strict=True)]
    return (parts[0] + parts[1]).flatten(0, 1)


def _overlap(call: AttentionCall, places: Tensor, scores: Tensor, tokens: int) -> Tensor:
    """Share of the tokens that the whole head scores highest among those of each set of scores, (head, set, query)."""
    whole = (_grouped(call, places) @ call.key[0].float()[:, None].transpose(-1, -2)).flatten(0, 1)
    highest = _masked(call, whole, places).topk(tokens, -1).indices
    chosen = torch.zeros_like(whole, dtype=torch.bool).scatter_(-1, highest, True)
    by_set = torch.stack([_masked(call, one, places) for one in scores.unbind(1)], 1).topk(tokens, -1).indices
    return chosen[:, None].expand(-1, scores.shape[1], -1, -1).gather(-1, by_set).float().mean(-1)


def _grouped(call: AttentionCall, places: Tensor) -> Tensor:
    """Queries at some positions, (kv_head, head of the group, query, head_dim), float32."""
    chosen = call.query[0].float()[:, places.to(call.query.device)]
    return chosen.reshape(call.key.shape[1], -1, *chosen.shape[1:])


def _scaled(call: AttentionCall, scores: Tensor) -> Tensor:
    scaling, cap = call.arguments.get("scaling"), call.arguments.get("softcap")
    scores = scores * float(call.query.shape[-1] ** -0.5 if scaling is None else scaling)
    return scores if cap is None else torch.tanh(scores / float(cap)) * float(cap)


def _masked(call: AttentionCall, scores: Tensor, places: Tensor) -> Tensor:
    """Scores of what a query may not see are minus infinity; (..., query, position)."""
    places = places.to(scores.device)
    positions = torch.arange(scores.shape[-1], device=scores.device)
    hidden = positions > places[:, None]
    mask = call.arguments.get("attention_mask")
    if mask is not None and mask.ndim == 4:
        own = mask[0, 0, places, : scores.shape[-1]]
        hidden = hidden | (~own if own.dtype == torch.bool else own < 0)
    return scores.masked_fill(hidden, -torch.inf)
