"""Importance with known contents, of the pairs of a small result."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import xarray as xr

from ropescope.base.axes import HEAD_AXIS, LAYER, PAIR, STREAMS
from ropescope.base.pair_variables import WORTH
from ropescope.measurement.labelling import label_importance
from ropescope.measurement.results import mean_over_sequences, provenance, stream_data


def synthetic_worth(
    result: xr.DataTree, fisher: Callable[[xr.Dataset], xr.DataArray], windows: int = 6, spread: float = 0.0
) -> xr.DataTree:
    """Importance that follows the means of a result, by a function of a stream's; its windows differ by `spread`.

    Silent pairs have importance 0, absent ones NaN; the other variables are as fisher.
    """
    random = np.random.default_rng(1)
    values = {}
    for stream in STREAMS:
        mean = mean_over_sequences(stream_data(result, stream)).transpose(LAYER, HEAD_AXIS[stream], PAIR)
        planted = xr.where(mean["mean_norm"] > 0, fisher(mean), mean["mean_norm"]).values
        noise = np.exp(spread * random.normal(size=(windows, *planted.shape)))
        values[stream] = np.repeat((planted * noise)[:, None], len(WORTH), 1)
    facts = {
        "model": provenance(result)["model"],
        "windows": {"corpus": "wikitext", "split": "validation"},
        "parameters": {"length": 1024, "draws": 2},
    }
    return label_importance(values, result["query"][LAYER].values.tolist(), facts)
