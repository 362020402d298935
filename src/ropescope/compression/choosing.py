"""Which directions, or which pairs, of every layer's keys are kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from ropescope.base.axes import KEY, LAYER, SEQUENCE
from ropescope.base.errors import InputError
from ropescope.base.rotary import Pairing, split_pairs
from ropescope.compression.budget import Budget, Offer, shared_out
from ropescope.compression.calibration import Calibration, LayerStatistics
from ropescope.compression.directions import Directions, directions
from ropescope.compression.plans import DropLayer, LatentLayer
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
) -> Iterator[DropLayer]:
    """As many pairs of every head of a layer, the most costly of each, and all dimensions outside the rotary block."""
    rotations = {rotation.layer: rotation for rotation in card.layers if rotation.layer in calibration.layers}
    costs = worth or {layer: _pair_costs(each, rotations[layer].pairing) for layer, each in calibration.layers.items()}
    order = {layer: cost.sort(dim=1, descending=True) for layer, cost in costs.items()}
    offers = {
        layer: Offer(order[layer].values.sum(0), 2 * each.kv_heads, each.kv_heads * (each.head_dim - each.pairing.size))
        for layer, each in rotations.items()
    }
    kept = shared_out(offers, budget, multiple)
    return (_drop(each, order[layer].indices[:, : kept[layer]]) for layer, each in rotations.items())


def _drop(rotation: LayerRotation, pairs: Tensor) -> DropLayer:
    chosen = torch.zeros(rotation.kv_heads, rotation.pairing.pairs).scatter(1, pairs, 1.0)
    weights = over_dimensions(chosen, rotation)
    return DropLayer(rotation.layer, rotation.head_dim, torch.stack([row.nonzero().flatten() for row in weights]))


def _pair_costs(statistics: LayerStatistics, pairing: Pairing) -> Tensor:
    """What leaving a pair out of all keys costs by the metric, (kv_head, pair)."""
    size = statistics.head_dim
    both = statistics.cost * statistics.keys.square
    heads = torch.stack([both[at : at + size, at : at + size] for at in range(0, len(both), size)])
    first, second = split_pairs(torch.arange(size), pairing)
    return sum((heads[:, a, b] for a in (first, second) for b in (first, second)), start=torch.zeros(1))


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
