"""What a frontier holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from ropescope.base.schema import Schema

PLAN, WINDOW, SIDE, ROUND = "plan", "window", "side", "round"
STOCK, THIN = "stock", "thin"
SIDES = (STOCK, THIN)
VARIABLES = {
    "method": ("how keys are thinned", "1", (PLAN,)),
    "keep": ("share of the stock bytes that was asked for", "1", (PLAN,)),
    "key_bytes": ("bytes of the stored keys of a window, sinks and positions included", "byte", (PLAN,)),
    "nats": ("negative log likelihood of the scored tokens of a window", "nat", (PLAN, WINDOW)),
    "perplexity": ("perplexity over all windows", "1", (PLAN,)),
    "tokens": ("scored tokens of a window", "token", (WINDOW,)),
    "prefill_seconds": ("time of the decoder for a whole text", "s", (PLAN, SIDE, ROUND)),
    "decode_seconds": ("time of the decoder for one token after it", "s", (PLAN, SIDE, ROUND)),
    "extra_bytes": ("peak of accelerator memory beside the model", "byte", (PLAN, SIDE)),
}

FRONTIER = Schema(
    "ropescope-frontier",
    1,
    {name: dims for name, (_, _, dims) in VARIABLES.items()},
    what="a frontier of thin keys",
    command="ropescope compress",
    again="compress again",
)


def labelled(
    variables: Mapping[str, np.ndarray], plans: list[str], windows: int, provenance: Mapping[str, Any]
) -> xr.Dataset:
    """Label the arrays of a frontier; the first plan is the stock cache."""
    arrays = {
        name: (dims, variables[name], {"long_name": long_name, "units": units})
        for name, (long_name, units, dims) in VARIABLES.items()
    }
    labels = {PLAN: np.array([STOCK, *plans]), WINDOW: np.arange(windows), SIDE: np.array(SIDES)}
    return xr.Dataset(arrays, labels, FRONTIER.attributes(provenance))
