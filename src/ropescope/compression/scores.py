"""Orders of pairs that others keep keys by: baselines in the frame of "drop", each a score of every pair of a key head.

They compare pairs within a head; how many a head keeps is the same everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ropescope.base.axes import KEY, LAYER, QUERY, STREAMS
from ropescope.base.errors import InputError
from ropescope.base.facts import listed, other_model
from ropescope.base.key_plans import ENTROPY, NORM, NORM_PRODUCT, RANDOM
from ropescope.measurement.results import mean_over_sequences, provenance, stream_data

if TYPE_CHECKING:
    import xarray as xr
    from torch import Tensor

    from ropescope.model.card import LayerRotation, RotaryCard

_SEED = 0


@dataclass(frozen=True, slots=True, eq=False)
class Order:
    """In which order pairs of a head are kept.

    Parameters
    ----------
    name
        Of the baseline.
    scores
        Of every pair by layer, (kv_head, pair); the highest are kept.
    origin
        Provenance of the measurement that it rests on; None if on none.
    """

    name: str
    scores: Mapping[int, Tensor]
    origin: Mapping[str, Any] | None


# Gives a variable of a layer's queries or keys, (head, pair), mean over sequences.
Layer = Callable[[str, str], np.ndarray]


def _norm_product(layer: Layer) -> np.ndarray:
    """Norm of a key pair times the norms of the queries that it serves, as Xu et al., ThinK (2024), score channels."""
    key = layer(KEY, "mean_norm")
    product: np.ndarray = key * layer(QUERY, "mean_norm").reshape(len(key), -1, key.shape[1]).sum(1)
    return product


# None draws it.
_SCORES: dict[str, Callable[[Layer], np.ndarray] | None] = {
    NORM_PRODUCT: _norm_product,
    NORM: lambda layer: layer(KEY, "mean_norm"),
    ENTROPY: lambda layer: -layer(KEY, "spectrum_fe"),
    RANDOM: None,
}


def needs_measurement(names: Sequence[str]) -> bool:
    """Whether one of the baselines rests on a measurement."""
    return any(_SCORES[name] is not None for name in names)


def order_by(name: str, card: RotaryCard, result: xr.DataTree | None, model: Mapping[str, Any]) -> Order:
    """The order of a baseline.

    Parameters
    ----------
    name
        One of :data:`ropescope.base.key_plans.BASELINES`.
    card
        The model's layers.
    result
        What :func:`ropescope.measure` gave for the model, where the baseline rests on one.
    model
        Provenance of the model.

    Raises
    ------
    InputError
        If the measurement is of another model.
    """
    score = _SCORES[name]
    if score is None or result is None:
        random = torch.Generator().manual_seed(_SEED)
        drawn = {each.layer: torch.rand(each.kv_heads, each.pairing.pairs, generator=random) for each in card.layers}
        return Order(name, drawn, {"seed": _SEED})
    origin = provenance(result)
    if differing := other_model(origin.get("model", {}), model):
        raise InputError(f"the measurement is of another model (other {listed(differing)}); measure this one")
    means = {stream: mean_over_sequences(stream_data(result, stream)) for stream in STREAMS}
    return Order(name, {each.layer: _scored(score, means, each) for each in card.layers}, origin)


def _scored(of: Callable[[Layer], np.ndarray], means: Mapping[str, xr.Dataset], rotation: LayerRotation) -> Tensor:
    counts = {QUERY: rotation.heads, KEY: rotation.kv_heads}

    def layer(stream: str, variable: str) -> np.ndarray:
        of_layer: np.ndarray = means[stream][variable].sel({LAYER: rotation.layer}).values
        return of_layer[: counts[stream], : rotation.pairing.pairs]

    # A pair that is silent has no entropy.
    return torch.from_numpy(np.nan_to_num(of(layer), nan=-np.inf))
