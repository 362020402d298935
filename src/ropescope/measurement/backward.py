"""One batch forwards and back: what scaling every pair, and turning it back, would do to the log-likelihood.

Queries and keys pass through an identity whose backward pass sums their products with the gradient. So every pair of
every layer is had from one backward pass, and neither weights nor rotations are touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ropescope.base.axes import KEY, QUERY, STREAMS
from ropescope.base.errors import NonFiniteError
from ropescope.base.rotary import Pairing, split_pairs
from ropescope.measurement.reduction import padded
from ropescope.model.access import input_device, vocabulary_size
from ropescope.model.gradients import no_gradient
from ropescope.model.lm_head import headless, logits_of, positions_at_once

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from ropescope.base.axes import TokenIds
    from ropescope.model.attention import AttentionCall
    from ropescope.model.card import LayerRotation


@dataclass(slots=True)
class Felt:
    """Rewriter of the seam that changes nothing, and feels the gradient of every pair.

    Parameters
    ----------
    rotations
        What positions do, by layer.
    frequencies
        Gives a layer's frequencies in force, rad/token.
    """

    rotations: Mapping[int, LayerRotation]
    frequencies: Mapping[int, Callable[[], Tensor]]
    leaves: dict[tuple[str, int], Tensor] = field(default_factory=dict)

    def __call__(self, call: AttentionCall) -> tuple[Tensor, Tensor]:
        speed = self._speed(call)
        query = self._through(QUERY, call.layer, call.query, speed[call.key.shape[2] - call.query.shape[2] :])
        return query, self._through(KEY, call.layer, call.key, speed)

    def _through(self, stream: str, layer: int, heads: Tensor, speed: Tensor) -> Tensor:
        pairing = self.rotations[layer].pairing
        # A layer that is run again in the backward pass must meet the same leaf.
        if (leaf := self.leaves.get((stream, layer))) is None:
            shape = (2, *heads.shape[:2], pairing.pairs)
            leaf = torch.zeros(shape, dtype=_summed_in(heads), device=heads.device, requires_grad=True)
            self.leaves[stream, layer] = leaf
        felt: Tensor = _Feel.apply(heads, leaf, speed, pairing)  # type: ignore[no-untyped-call]
        return felt

    def _speed(self, call: AttentionCall) -> Tensor:
        """How far each position has turned each pair, (position, pair); 0 where nothing turns or it is not known."""
        frequency = self.frequencies[call.layer]().to(call.key.device)
        turning = self.rotations[call.layer].rotated.to(frequency.device) & frequency.isfinite()
        positions = torch.arange(call.key.shape[2], dtype=torch.float64, device=frequency.device)
        return (positions[:, None] * frequency.where(turning, 0.0)).to(_summed_in(call.key))


class _Feel(torch.autograd.Function):
    """The identity on (batch, head, position, head_dim); its leaf gets (scale or turn back, batch, head, pair)."""

    @staticmethod
    def forward(ctx: Any, heads: Tensor, leaf: Tensor, speed: Tensor, pairing: Pairing) -> Tensor:
        ctx.save_for_backward(heads, speed)
        ctx.pairing = pairing
        return heads.view_as(heads)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, None, None]:
        heads, speed = ctx.saved_tensors
        first, second = split_pairs(heads.to(_summed_in(heads)), ctx.pairing)
        down, across = split_pairs(upstream[0].to(first.dtype), ctx.pairing)
        scaled = (first * down + second * across).sum(-2)
        # A pair turned back by the angle t becomes (a + b t, b - a t), to first order.
        turned = ((second * down - first * across) * speed).sum(-2)
        return upstream[0], torch.stack((scaled, turned)), None, None


def _summed_in(heads: Tensor) -> torch.dtype:
    return torch.promote_types(heads.dtype, torch.float32)


def derivatives(
    model: PreTrainedModel, batch: TokenIds, felt: Felt, uniforms: Tensor
) -> Iterator[dict[tuple[str, int], np.ndarray]]:
    """Derivatives of a window's log-likelihood, first of its own next tokens, then of each draw of the model's.

    Parameters
    ----------
    model
        Inside contexts in which it is differentiable and `felt` is at every attention.
    batch
        Token ids, (window, position).
    felt
        What is at every attention.
    uniforms
        Numbers from 0 to 1 that decide the draws, (draw, window, position), one position fewer than the batch has.

    Yields
    ------
    By stream and layer (2, window, head, pair), float64: with respect to the scale of a pair and to the share of its
    angle that it is turned back by.

    Raises
    ------
    ModelError
        If no gradient comes to a layer's queries and keys.
    """
    felt.leaves.clear()
    ids = batch.to(input_device(model))
    output = headless(model)(input_ids=ids, use_cache=False, return_dict=True)
    hidden = output.last_hidden_state
    if not hidden.requires_grad:
        raise no_gradient(f"attention to the end of {type(model).__name__}")
    places, leaves = list(felt.leaves), list(felt.leaves.values())
    upstream = of_hidden_states(model, output, ids, uniforms)
    for count, gradient in enumerate(upstream, 1):
        more = count < len(upstream)
        found = torch.autograd.grad(hidden, leaves, gradient, retain_graph=more, allow_unused=True)
        for (_, layer), felt_there in zip(places, found, strict=True):
            if felt_there is None:
                raise no_gradient(f"the attention of layer {layer}")
        yield {place: values.cpu().double().numpy() for place, values in zip(places, found, strict=True)}


def of_hidden_states(model: PreTrainedModel, output: Any, ids: Tensor, uniforms: Tensor) -> list[Tensor]:
    """Gradients of the log-likelihoods with respect to the last hidden states, the text's own first."""
    hidden = output.last_hidden_state.detach()
    found = [torch.zeros_like(hidden) for _ in range(1 + len(uniforms))]
    scored = hidden.shape[1] - 1
    size = positions_at_once(hidden, vocabulary_size(model), scored, arrays=2)
    for window in range(len(hidden)):
        for start in range(0, scored, size):
            part = slice(start, min(start + size, scored))
            states = hidden[window, part].requires_grad_()
            logits = logits_of(model, output, states, ids[window, part])
            own = ids[window, part.start + 1 : part.stop + 1].to(logits.device)
            steps = _of_logits(logits.detach(), own, uniforms[:, window, part])
            for total, step in zip(found, steps, strict=True):
                (total[window, part],) = torch.autograd.grad(logits, states, step, retain_graph=True)
    return found


def _of_logits(logits: Tensor, own: Tensor, uniforms: Tensor) -> Iterator[Tensor]:
    """Gradients of the log-likelihoods with respect to the logits, (position, vocabulary): one-hot less probability."""
    probability = logits.to(_summed_in(logits)).softmax(-1)
    below = probability.cumsum(-1)
    # The last sum, which rounding keeps from 1, is what the numbers are a share of.
    wanted = uniforms.to(logits.device, below.dtype)[..., None] * below[:, -1:]
    drawn = [torch.searchsorted(below, each, right=True).clamp_max(logits.shape[-1] - 1) for each in wanted]
    del below
    for targets in (own[:, None], *drawn):
        step = -probability
        step.scatter_add_(-1, targets, torch.ones_like(targets, dtype=step.dtype))
        yield step.to(logits.dtype)


def importance_of(model: PreTrainedModel, batch: TokenIds, felt: Felt, uniforms: Tensor) -> dict[str, np.ndarray]:
    """What a batch comes to: "query" and "key", (window, variable, layer, head, pair), NaN where a layer has fewer.

    Variables in the order of :data:`ropescope.base.pair_variables.WORTH`.

    Raises
    ------
    NonFiniteError
        If a derivative is not finite; names layer and head.
    """
    tokens, draws = batch.shape[1] - 1, len(uniforms)
    gradient: dict[tuple[str, int], np.ndarray] = {}
    fisher: dict[tuple[str, int], np.ndarray] = {}
    for count, found in enumerate(derivatives(model, batch, felt, uniforms)):
        grouped = {place: np.stack((values[0], _turned(found, place))) for place, values in found.items()}
        _check_finite(grouped)
        if count == 0:
            # Of the negative log-likelihood; adding 0 takes the sign from zeros.
            gradient = {place: 0 - values / tokens + 0 for place, values in grouped.items()}
        else:
            for place, values in grouped.items():
                fisher[place] = fisher.get(place, 0) + values**2 / (tokens * draws)
    layers = felt.rotations
    return {
        stream: padded([_four(fisher[stream, layer], gradient[stream, layer]) for layer in layers]).swapaxes(0, 2)
        for stream in STREAMS
    }


def _turned(found: Mapping[tuple[str, int], np.ndarray], place: tuple[str, int]) -> np.ndarray:
    """A pair turns for the query and key heads of a group together, (window, head, pair)."""
    stream, layer = place
    query, key = found[QUERY, layer][1], found[KEY, layer][1]
    group = query.shape[1] // key.shape[1]
    together = key + query.reshape(len(query), key.shape[1], group, -1).sum(2)
    turned: np.ndarray = together if stream == KEY else together.repeat(group, 1)
    return turned


def _four(fisher: np.ndarray, gradient: np.ndarray) -> Tensor:
    """(variable, window, head, pair)."""
    return torch.from_numpy(np.stack((fisher[0], gradient[0], fisher[1], gradient[1])).astype(np.float32))


def _check_finite(found: dict[tuple[str, int], np.ndarray]) -> None:
    # It comes from the end: the last layer has it first.
    for (stream, layer), values in reversed(found.items()):
        bad = np.argwhere(~np.isfinite(values))
        if len(bad):
            _, window, head, pair = bad[0].tolist()
            raise NonFiniteError(
                f"the gradient of {stream} pair {pair} of layer {layer}, head {head} is not finite (window {window} of "
                "its batch); check the weights, or use dtype float32 or bfloat16"
            )
