"""Orders of pairs that others keep keys by: baselines in the frame of "drop", each a score of every pair of a key head.

They compare pairs within a head; how many a head keeps is the same everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ropescope.base.axes import HEAD_AXIS, KEY, LAYER, PAIR
from ropescope.base.errors import InputError
from ropescope.base.facts import listed, other_model
from ropescope.base.key_plans import ENTROPY, NORM, NORM_PRODUCT, RANDOM
from ropescope.measurement.norm_products import norm_products
from ropescope.measurement.results import mean_over_sequences, provenance, stream_data

if TYPE_CHECKING:
    import xarray as xr
    from torch import Tensor

    from ropescope.model.card import RotaryCard

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


Score = Callable[["xr.DataTree"], np.ndarray]


def _of_keys(result: xr.DataTree, variable: str) -> np.ndarray:
    mean = mean_over_sequences(stream_data(result, KEY))[variable]
    values: np.ndarray = mean.transpose(LAYER, HEAD_AXIS[KEY], PAIR).values
    return values


# Of every key pair, (layer, kv_head, pair); None draws it.
_SCORES: dict[str, Score | None] = {
    NORM_PRODUCT: lambda result: norm_products(result)[KEY],
    NORM: lambda result: _of_keys(result, "mean_norm"),
    ENTROPY: lambda result: -_of_keys(result, "spectrum_fe"),
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
    # A pair that is silent has no entropy.
    values = torch.from_numpy(np.nan_to_num(score(result), nan=-np.inf))
    rows = stream_data(result, KEY)[LAYER].values.tolist()
    return Order(
        name,
        {each.layer: values[rows.index(each.layer), : each.kv_heads, : each.pairing.pairs] for each in card.layers},
        origin,
    )
