"""What the keys of a text are like before their rotation, and what an error in them costs: a pass of flat memory.

Two metrics of cost. "fisher": how much the model's own predictions feel a change of the keys, from one backward pass a
window with next tokens drawn from the model. "query": how much the logits of attention feel it, from the forward alone.
The first says what matters and knows only what a few windows made the predictions feel; the second holds for whatever
is asked. So "both" adds some of the second to the first.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ropescope.base.errors import NonFiniteError
from ropescope.base.key_plans import Metric
from ropescope.base.rotary import Pairing, rotate, split_pairs
from ropescope.compression.moments import Moments, Products, products
from ropescope.compression.turning import Angles, Forward, Rotation, part, rotations_of, turned_back
from ropescope.measurement.backward import of_hidden_states
from ropescope.model.access import input_device, undisturbed
from ropescope.model.attention import AttentionCall, intercepted
from ropescope.model.gradients import differentiable, no_gradient
from ropescope.model.lm_head import headless
from ropescope.run.batching import Batches
from ropescope.run.progress import progress as steps_of
from ropescope.run.workers import Workers

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from ropescope.base.axes import TokenIds
    from ropescope.model.card import LayerRotation, RotaryCard

_DISTANCES = 64
# What an error alike in all dimensions costs by queries, over what it costs by the predictions, where both count.
_OF_QUERIES = 0.3


@dataclass(slots=True, eq=False)
class LayerStatistics:
    """Keys of one layer before their rotation, all heads together, sinks left out, and what an error in them costs.

    Parameters
    ----------
    layer
        Index of the layer whose keys they are.
    kv_heads, head_dim
        Key heads, dimensions of a head.
    keys
        Moments of the keys, (kv_head * head_dim).
    fisher, query
        Products of what is multiplied with an error of the key: gradients, and queries over distances.
    pairs
        What leaving a pair out of all keys of a window costs, summed over windows, (kv_head, pair); None where only
        queries say so.
    """

    layer: int
    kv_heads: int
    head_dim: int
    keys: Moments
    fisher: Products
    query: Products
    pairs: Tensor | None = None

    @classmethod
    def none(cls, rotation: LayerRotation, metric: Metric) -> LayerStatistics:
        """Of nothing yet."""
        heads, size = rotation.kv_heads, rotation.kv_heads * rotation.head_dim
        keys, fisher, query = Moments.none(size), Products.none(size), Products.none(size)
        pairs = None if metric == "query" else torch.zeros(heads, rotation.pairing.pairs, dtype=torch.float64)
        return cls(rotation.layer, heads, rotation.head_dim, keys, fisher, query, pairs)

    def shared(self, workers: Workers) -> LayerStatistics:
        """Those of all processes."""
        pairs = None if self.pairs is None else torch.from_numpy(workers.summed(self.pairs.numpy()))
        keys, fisher, query = self.keys.shared(workers), self.fisher.shared(workers), self.query.shared(workers)
        return LayerStatistics(self.layer, self.kv_heads, self.head_dim, keys, fisher, query, pairs)

    @property
    def cost(self) -> Tensor:
        """The metric of the mean cost of an error, (number, number)."""
        if not (self.fisher.count and self.query.count):
            return self.fisher.mean + self.query.mean
        felt, asked = self.fisher.mean.trace(), self.query.mean.trace()
        return self.fisher.mean + self.query.mean * (_OF_QUERIES * felt / asked if asked else 0.0)

    def pair_costs(self, pairing: Pairing) -> Tensor:
        """What leaving a pair out of all keys costs, (kv_head, pair); comparable between layers."""
        if self.pairs is not None:
            return self.pairs
        size = self.head_dim
        both = self.cost * self.keys.square
        heads = torch.stack([both[at : at + size, at : at + size] for at in range(0, len(both), size)])
        first, second = split_pairs(torch.arange(size), pairing)
        return sum((heads[:, a, b] for a in (first, second) for b in (first, second)), start=torch.zeros(1))


@dataclass(slots=True, eq=False)
class Calibration:
    """Statistics of all layers that make keys, and which layers attend to the keys of others.

    Parameters
    ----------
    layers
        By index of the layer.
    shared
        Layers that make no keys of their own, each with the one whose keys it uses.
    """

    layers: dict[int, LayerStatistics] = field(default_factory=dict)
    shared: dict[int, int] = field(default_factory=dict)


def calibrated(
    model: PreTrainedModel,
    windows: TokenIds,
    card: RotaryCard,
    batches: Batches,
    workers: Workers,
    *,
    metric: Metric,
    sinks: int,
    progress: bool = False,
) -> Calibration:
    """Run the windows through the model; the processes share them, and all get the whole result."""
    taken = _Statistics(card, rotations_of(model, card), windows.shape[1], sinks, metric)
    step = _asked if metric == "query" else _felt
    units = list(batches.units(len(windows)).values())
    mine = [units[index] for index in workers.share(len(units))]
    shown = progress and workers.leading
    with steps_of("calibrate", sum(map(len, mine)), "window", shown=shown) as steps:
        for batch, take in batches.run(mine, lambda batch: step(model, windows, batch, taken)):
            take()
            steps.update(len(batch))
    return taken.of_all(workers)


def _asked(model: PreTrainedModel, windows: TokenIds, batch: list[int], taken: _Statistics) -> Callable[[], None]:
    """Run a batch forward; what it gives is taken in once all of it has gone well."""
    found: list[Callable[[], None]] = []

    def take(call: AttentionCall) -> None:
        call.check_finite()
        source = taken.source(call)
        found.append(taken.of_queries(call, source))
        if source == call.layer:
            found.append(taken.of_keys(call))

    with undisturbed(model), intercepted(model, take):
        headless(model)(input_ids=windows[batch].to(input_device(model)), use_cache=False)
    return partial(_take_all, found)


def _felt(model: PreTrainedModel, windows: TokenIds, batch: list[int], taken: _Statistics) -> Callable[[], None]:
    """Run a batch forward and back."""
    found: list[Callable[[], None]] = []
    keys: dict[int, Tensor] = {}

    def keep(call: AttentionCall) -> None:
        call.check_finite()
        if not call.key.requires_grad:
            raise no_gradient(f"what comes before the attention of layer {call.layer}")
        source = taken.source(call)
        if source == call.layer:
            keys[call.layer] = call.key
        if taken.metric == "both":
            found.append(taken.of_queries(call, source))

    ids = windows[batch].to(input_device(model))
    with undisturbed(model), differentiable(model), _from_embeddings(model), intercepted(model, keep):
        output = headless(model)(input_ids=ids, use_cache=False, return_dict=True)
        _, upstream = of_hidden_states(model, output, ids, _uniforms(batch, ids.shape[1]))
        gradients = torch.autograd.grad(output.last_hidden_state, list(keys.values()), upstream, allow_unused=True)
    found += [taken.of_gradients(layer, key, gradients[at]) for at, (layer, key) in enumerate(keys.items())]
    return partial(_take_all, found)


def _take_all(found: Iterable[Callable[[], None]]) -> None:
    for take in found:
        take()


@contextmanager
def _from_embeddings(model: PreTrainedModel) -> Iterator[None]:
    """Let gradients begin at the embeddings, so that keys of the first layer have one, too."""
    embedding: Any = model.get_input_embeddings()
    start = embedding.register_forward_hook(lambda _module, _args, output: output.requires_grad_())
    try:
        yield
    finally:
        start.remove()


def _uniforms(batch: list[int], length: int) -> Tensor:
    """What decides the tokens drawn after a window's own, (draw, window, position), whatever its batch and process."""
    return torch.stack([torch.from_numpy(np.random.default_rng(window).random(length - 1)) for window in batch])[None]


class _Statistics:
    """Takes in what attention calls show, layer by layer."""

    def __init__(
        self, card: RotaryCard, rotations: Mapping[int, Rotation], length: int, sinks: int, metric: Metric
    ) -> None:
        self.card = {rotation.layer: rotation for rotation in card.layers}
        self.rotations = rotations
        self.length, self.sinks, self.metric = length, sinks, metric
        self.found = Calibration({layer: LayerStatistics.none(each, metric) for layer, each in self.card.items()})
        self.seen: dict[int, weakref.ref[Tensor]] = {}

    def of_queries(self, call: AttentionCall, source: int) -> Callable[[], None]:
        """What queries would make of an error in the keys of a layer at any distance."""
        statistics, rotation = self.found.layers[source], self.card[call.layer]
        queries = self._before(call.query.detach(), call.layer).unflatten(1, (statistics.kv_heads, -1))
        heads = queries.transpose(0, 1).flatten(1, 3)
        squares = torch.stack([products(each, torch.ones_like(each[:, 0])) for each in heads])
        total = torch.block_diag(*over_distances(squares, rotation, self.length)) * _scale(call) ** 2
        return partial(statistics.query.add, total, heads.shape[1])

    def of_keys(self, call: AttentionCall) -> Callable[[], None]:
        """Keys, one as heavy as another."""
        keys = _joined(self._before(call.key, call.layer))
        return partial(self.found.layers[call.layer].keys.add, keys, torch.ones_like(keys[:, 0]))

    def of_gradients(self, layer: int, key: Tensor, gradient: Tensor | None) -> Callable[[], None]:
        """Keys, each as heavy as the predictions feel it, and how they feel it."""
        if gradient is None:
            raise no_gradient(f"the attention of layer {layer}")
        if not gradient.isfinite().all():
            raise NonFiniteError(
                f"the gradient of the keys of layer {layer} is not finite; check the weights, or use dtype float32"
            )
        statistics = self.found.layers[layer]
        heads = [self._before(each.detach(), layer) for each in (key, gradient)]
        pairs = _felt_pairs(heads[0], heads[1], self.rotations[layer].pairing)
        keys, felt = map(_joined, heads)

        def take() -> None:
            statistics.pairs = pairs if statistics.pairs is None else statistics.pairs + pairs
            statistics.keys.add(keys, felt.square().sum(-1))
            statistics.fisher.add(products(felt, torch.ones_like(felt[:, 0])), len(felt))

        return take

    def source(self, call: AttentionCall) -> int:
        """The layer whose keys a call uses: those of an earlier one are the very tensor that it used."""
        earlier = (layer for layer, key in self.seen.items() if layer < call.layer and key() is call.key)
        source = next(earlier, call.layer)
        self.seen[call.layer] = weakref.ref(call.key)
        if source != call.layer:
            self.found.shared[call.layer] = source
        return source

    def _before(self, heads: Tensor, layer: int) -> Tensor:
        """Queries or keys before their rotation without the sinks."""
        return turned_back(heads[:, :, self.sinks :], self._angles(layer, heads), self.rotations[layer].pairing)

    def _angles(self, layer: int, like: Tensor) -> Angles | None:
        positions = torch.arange(self.length, device=like.device)[None]
        return part(Forward(positions, [], 0).angles(self.rotations[layer], like.device), slice(self.sinks, None))

    def of_all(self, workers: Workers) -> Calibration:
        """What all processes have taken in."""
        named = {str(layer): source for layer, source in self.found.shared.items()}
        shared = {int(layer): source for layer, source in workers.agreed(named).items()}
        own = {layer: each for layer, each in self.found.layers.items() if layer not in shared}
        return Calibration({layer: each.shared(workers) for layer, each in own.items()}, shared)


def _joined(heads: Tensor) -> Tensor:
    """All heads of a token together, (token, head * head_dim), of (batch, head, position, head_dim)."""
    return heads.transpose(1, 2).flatten(0, 1).flatten(1)


def _felt_pairs(keys: Tensor, gradients: Tensor, pairing: Pairing) -> Tensor:
    """Squares of what scaling every pair of a window's keys does to its log-likelihood, (kv_head, pair)."""
    scaled = (keys.float() * gradients.float()).sum(2).cpu().double()
    first, second = split_pairs(scaled, pairing)
    return (first + second).square().sum(0)


def _scale(call: AttentionCall) -> float:
    """What the model multiplies a product of query and key with."""
    scaling = call.arguments.get("scaling")
    return float(call.query.shape[-1] ** -0.5 if scaling is None else scaling)


def over_distances(squares: Tensor, rotation: LayerRotation, length: int) -> Tensor:
    r"""Mean of second moments of queries turned by :math:`\theta_j` times a distance, log-uniform up to `length`.

    Parameters
    ----------
    squares
        Shape (kv_head, head_dim, head_dim), float64, positive semidefinite.
    rotation
        How the layer turns; one that does not turn leaves them as they are.
    length
        The farthest distance, tokens.
    """
    if not rotation.rotated.any():
        return squares
    values, vectors = torch.linalg.eigh(squares)
    roots = (vectors * values.clamp_min(0.0).sqrt()[:, None]).transpose(1, 2)
    distances = torch.exp(torch.linspace(0.0, math.log(length), _DISTANCES, dtype=torch.float64))
    angles = distances[:, None] * rotation.frequency.nan_to_num(0.0)
    everywhere = roots[:, None].float().expand(-1, _DISTANCES, -1, -1)
    turned = rotate(everywhere, angles[:, None], rotation.pairing).double()
    return torch.einsum("hnvd,hnve->hde", turned, turned) / _DISTANCES
