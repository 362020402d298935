"""Weights as training and baking leave them: pairs that are exactly zero, loud dimensions, biases far above the keys.

Which parameters make which dimensions of a query or key stands here by hand, since no config names it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from architectures import INTERLEAVED, Architecture, Expected
from ropescope.model.attention import AttentionCall, intercepted

QUERY, KEY = "query", "key"
STREAMS = (QUERY, KEY)


@dataclass(frozen=True)
class Rows:
    """The part of a parameter that makes dimensions `first` and on of every head, as a view (head, dimension, ...)."""

    values: Tensor
    first: int = 0

    def dimensions(self, wanted: Iterable[int]) -> list[int]:
        inside = self.values.shape[1]
        return [dimension - self.first for dimension in wanted if 0 <= dimension - self.first < inside]


@dataclass(frozen=True)
class Silence:
    """Pairs (of how many), head and streams that a kind of silence takes; None is all of them."""

    pairs: Callable[[int], Iterable[int]] | None
    head: int | None = None
    streams: tuple[str, ...] = STREAMS


KINDS = {
    "first pair": Silence(lambda pairs: [0]),
    "last pair": Silence(lambda pairs: [pairs - 1]),
    "middle pair": Silence(lambda pairs: [pairs // 2]),
    "first half": Silence(lambda pairs: range(pairs // 2)),
    "last half": Silence(lambda pairs: range(pairs // 2, pairs)),
    "every other pair": Silence(lambda pairs: range(0, pairs, 2)),
    "all but the second pair": Silence(lambda pairs: [0, *range(2, pairs)]),
    "all but the first pair": Silence(lambda pairs: range(1, pairs)),
    "all but the last pair": Silence(lambda pairs: range(pairs - 1)),
    "one head": Silence(None, head=0),
    "first pair of one head": Silence(lambda pairs: [0], head=1),
    "first pair of the queries": Silence(lambda pairs: [0], streams=(QUERY,)),
    "first pair of the keys": Silence(lambda pairs: [0], streams=(KEY,)),
    "all queries": Silence(None, streams=(QUERY,)),
    "all keys": Silence(None, streams=(KEY,)),
    "everything": Silence(None),
}


@torch.no_grad()
def silence(model: PreTrainedModel, layer: Expected, kind: Silence) -> None:
    """Set the weights of the pairs to zero in one layer; with all pairs, dimensions outside the rotary block too."""
    for stream in kind.streams:
        for rows in rows_of(model, layer, stream):
            heads = rows.values if kind.head is None else rows.values[kind.head : kind.head + 1]
            if kind.pairs is None:
                heads[:] = 0
            else:
                wanted = dimensions_of(model, layer, kind.pairs(layer.size // 2))
                heads[:, rows.dimensions(wanted)] = 0


def dimensions_of(model: PreTrainedModel, layer: Expected, pairs: Iterable[int]) -> list[int]:
    """Dimensions of the pairs as the projections give them; DeepSeek reorders them before it rotates."""
    half = layer.size // 2
    if layer.style == INTERLEAVED or getattr(model.config, "rope_interleave", False):
        return [layer.start + 2 * pair + part for pair in pairs for part in (0, 1)]
    return [layer.start + pair + part * half for pair in pairs for part in (0, 1)]


def rows_of(model: PreTrainedModel, layer: Expected, stream: str) -> list[Rows]:
    """Weights and biases that make a stream; none where a layer takes its keys from another one."""
    module = attention_of(model, layer.layer)
    row, heads = STREAMS.index(stream), layer.heads if stream == QUERY else layer.kv_heads
    own = getattr(module, ("q_proj", "k_proj")[row], None)
    if own is not None:
        return [Rows(x.unflatten(0, (heads, -1))[:, : layer.head_dim]) for x in own.parameters()]
    if hasattr(module, "query_key_value"):
        return [Rows(x.unflatten(0, (heads, 3, -1))[:, row]) for x in module.query_key_value.parameters()]
    if hasattr(module, "c_attn"):
        return [Rows(x.mT.unflatten(0, (3, heads, -1))[row]) for x in _transposable(module.c_attn.parameters())]
    if hasattr(module, "qkv_proj"):
        start = row * layer.heads * layer.head_dim
        stop = start + heads * layer.head_dim
        return [Rows(x[start:stop].unflatten(0, (heads, -1))) for x in module.qkv_proj.parameters()]
    if hasattr(module, "q_b_proj"):
        if stream == QUERY:
            return [Rows(module.q_b_proj.weight.unflatten(0, (heads, -1)))]
        rotary = module.kv_a_proj_with_mqa.weight[-layer.size :].unflatten(0, (1, -1))
        rest = module.kv_b_proj.weight.unflatten(0, (heads, -1))[:, : layer.start]
        return [Rows(rest), Rows(rotary, layer.start)]
    return []


def _transposable(parameters: Iterable[Tensor]) -> list[Tensor]:
    """GPT-2 keeps its weights (input, output); a bias is a row without input."""
    return [x if x.ndim == 2 else x[None] for x in parameters]


def attention_of(model: PreTrainedModel, layer: int) -> nn.Module:
    names = ("q_proj", "query_key_value", "c_attn", "qkv_proj", "q_b_proj")
    return next(
        module
        for module in model.get_decoder().modules()
        if getattr(module, "layer_idx", None) == layer and any(hasattr(module, name) for name in names)
    )


def zero_pairs(model: PreTrainedModel, architecture: Architecture, tokens: Tensor) -> dict[int, dict[str, Tensor]]:
    """By layer and stream, the pairs of each head that are zero at every token, (head, pair), without the probe."""
    layers = {layer.layer: layer for layer in architecture.expected()}
    found: dict[int, dict[str, Tensor]] = {}

    def look(call: AttentionCall) -> None:
        layer = layers[call.layer]
        half = layer.size // 2
        first, second = (
            (layer.start, layer.start + half) if layer.style != INTERLEAVED else (layer.start, layer.start + 1)
        )
        step = 2 if layer.style == INTERLEAVED else 1
        found[call.layer] = {}
        for stream, heads in ((QUERY, call.query), (KEY, call.key)):
            zero = (heads == 0).all(2).all(0)
            found[call.layer][stream] = torch.stack(
                [zero[:, first + step * pair] & zero[:, second + step * pair] for pair in range(half)], -1
            )

    with torch.no_grad(), intercepted(model, look):
        model.get_decoder()(input_ids=tokens, use_cache=False)
    return found
