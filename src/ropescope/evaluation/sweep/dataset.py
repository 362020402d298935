"""What a sweep holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from ropescope.base.schema import Schema

SELECTION, ARM, ALPHA, WINDOW, STREAM = "selection", "arm", "alpha", "window", "stream"
LOWEST_NORM = "lowest-norm"
LOWEST_IMPORTANCE = "lowest-importance"
# Arms of other pairs than random ones, by what to call their pairs.
LOWEST = {LOWEST_NORM: "lowest norm", LOWEST_IMPORTANCE: "lowest importance"}
RANDOM = "random-"
VARIABLES = {
    "nats": ("negative log likelihood of the scored tokens of a window", "nat", (SELECTION, ARM, ALPHA, WINDOW)),
    "perplexity": ("perplexity over all windows", "1", (SELECTION, ARM, ALPHA)),
    "tokens": ("scored tokens of a window", "token", (WINDOW,)),
    "selected_pairs": ("selected pairs of all layers and heads", "1", (SELECTION, STREAM)),
}


SWEEP = Schema(
    "ropescope-sweep",
    1,
    {name: dims for name, (_, _, dims) in VARIABLES.items()},
    what="a sweep",
    command="ropescope sweep",
    again="sweep again",
)


def labelled(
    variables: Mapping[str, np.ndarray], coordinates: Mapping[str, Any], provenance: Mapping[str, Any]
) -> xr.Dataset:
    """Label the arrays of a sweep."""
    arrays = {
        name: (dims, variables[name], {"long_name": long_name, "units": units})
        for name, (long_name, units, dims) in VARIABLES.items()
    }
    labels = {name: np.asarray(values) for name, values in coordinates.items()}
    return xr.Dataset(arrays, labels, SWEEP.attributes(provenance))
