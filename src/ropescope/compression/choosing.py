"""Which directions, or which pairs, of every layer's keys are kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from ropescope.base.axes import KEY, LAYER, SEQUENCE
from ropescope.base.errors import InputError
from ropescope.compression.budget import Budget, Offer, shared_out
from ropescope.compression.calibration import Calibration, LayerStatistics
from ropescope.compression.directions import Directions, directions
from ropescope.compression.plans import DropLayer, LatentLayer
from ropescope.compression.scores import Order
from ropescope.interventions.weighting import over_dimensions

if TYPE_CHECKING:
    import xarray as xr
    from torch import Tensor

    from ropescope.model.card import LayerRotation, RotaryCard


def latent_layers(
    calibration: Calibration, worth: Mapping[int, Tensor] | None, budget: Budget, multiple: int
) -> Iterator[LatentLayer]:
    """Directions of every layer's keys, and of them those that are kept."""
    found = {layer: directions(each.keys.covariance, each.cost) for layer, each in calibration.layers.items()}
    weights = {layer: 1.0 if worth is None else _weight(worth[layer], each.cost) for layer, each in found.items()}
    offers = {layer: Offer(weights[layer] * each.cost, 1) for layer, each in found.items()}
    ranks = shared_out(offers, budget, multiple)
    return (_latent(each, found[layer], ranks[layer]) for layer, each in calibration.layers.items())


def _latent(statistics: LayerStatistics, found: Directions, rank: int) -> LatentLayer:
    """The plan of a layer; all directions are any basis, and the one that is there rounds nothing."""
    size = len(found.cost)
    if rank == size:
        return LatentLayer(statistics.layer, torch.zeros(size), torch.eye(size), torch.eye(size))
    _check_tokens(statistics, rank)
    matrices: list[Tensor] = [statistics.keys.mean, found.down[:, :rank], found.up[:rank]]
    return LatentLayer(statistics.layer, *(matrix.float().contiguous() for matrix in matrices))


def _weight(worth: Tensor, cost: Tensor) -> float:
    """What makes the costs of a layer's directions come to what its pairs are worth."""
    return float(worth.sum() / cost.sum()) if cost.sum() > 0 else 0.0


def drop_layers(
    calibration: Calibration,
    card: RotaryCard,
    worth: Mapping[int, Tensor] | None,
    budget: Budget,
    multiple: int,
    order: Order | None = None,
) -> Iterator[DropLayer]:
    """As many pairs of every head of a layer, the most costly of each, and all dimensions outside the rotary block.

    By another order than of costs, which says nothing of layers, all of them keep the same share.
    """
    rotations = {rotation.layer: rotation for rotation in card.layers if rotation.layer in calibration.layers}
    own = {layer: each.pair_costs(rotations[layer].pairing) for layer, each in calibration.layers.items()}
    scores = (worth or own) if order is None else {layer: order.scores[layer] for layer in rotations}
    ordered = {layer: score.sort(dim=1, descending=True) for layer, score in scores.items()}
    offers = {
        layer: Offer(
            ordered[layer].values.sum(0) if order is None else _alike(each, budget),
            2 * each.kv_heads,
            each.kv_heads * (each.head_dim - each.pairing.size),
        )
        for layer, each in rotations.items()
    }
    kept = shared_out(offers, budget, multiple)
    return (_drop(each, ordered[layer].indices[:, : kept[layer]]) for layer, each in rotations.items())


def _alike(rotation: LayerRotation, budget: Budget) -> Tensor:
    """Costs, (pair), by which every layer keeps the same share of its pairs."""
    pairs = rotation.pairing.pairs
    left_out = 1 - torch.arange(pairs, dtype=torch.float64) / pairs
    return left_out * 2 * rotation.kv_heads * budget.tokens(rotation.layer)


def _drop(rotation: LayerRotation, pairs: Tensor) -> DropLayer:
    chosen = torch.zeros(rotation.kv_heads, rotation.pairing.pairs).scatter(1, pairs, 1.0)
    weights = over_dimensions(chosen, rotation)
    return DropLayer(rotation.layer, rotation.head_dim, torch.stack([row.nonzero().flatten() for row in weights]))


def _check_tokens(statistics: LayerStatistics, rank: int) -> None:
    if statistics.keys.count <= rank:
        raise InputError(
            f"{statistics.keys.count} calibration tokens beside the sinks are too few for {rank} directions in layer "
            f"{statistics.layer}; give more or longer windows"
        )


def fisher_of_keys(importance: xr.DataTree, calibration: Calibration) -> dict[int, Tensor]:
    """Mean Fisher value of every pair, (kv_head, pair), by layer.

    Raises
    ------
    InputError
        If there are none for these layers.
    """
    fisher = importance[KEY]["fisher"].mean(SEQUENCE) if KEY in importance else None
    if fisher is None or not set(calibration.layers) <= set(np.asarray(fisher[LAYER]).tolist()):
        raise InputError("the importance given has no Fisher values of this model's keys; take rs.importance on it")
    found = {layer: torch.from_numpy(fisher.sel({LAYER: layer}).values).double() for layer in calibration.layers}
    return {layer: each[~each.isnan().all(1)][:, ~each.isnan().all(0)] for layer, each in found.items()}
