"""What tests of the report put on its page: names with markup, a small sweep."""

from __future__ import annotations

import json

import numpy as np
import xarray as xr

from ropescope.evaluation.sweep.dataset import labelled
from ropescope.measurement.results import provenance

HOSTILE = "</script><script>alert(1)</script>\u2028<img src=x onerror=alert(2)>&amp;"


def renamed(result: xr.DataTree, name: str) -> xr.DataTree:
    """The result with `name` wherever a person may have written one."""
    facts = provenance(result)
    facts["model"]["id"] = facts["windows"]["corpus"] = facts["windows"]["split"] = name
    result.attrs["provenance"] = json.dumps(facts)
    return result


def small_sweep(name: str = "bands") -> xr.Dataset:
    random = np.random.default_rng(0)
    arms, alphas, windows = ["selection", "random-0", "lowest-norm"], [0.0, 0.5, 1.0], 4
    nats = random.uniform(2, 3, (1, len(arms), len(alphas), windows)) * 100
    nats[..., -1, :] = nats[:, :1, -1]
    arrays = {
        "nats": nats,
        "perplexity": np.exp(nats.mean(-1) / 100),
        "tokens": np.full(windows, 100),
        "selected_pairs": np.array([[7, 3]]),
    }
    places = {"selection": [name], "arm": arms, "alpha": alphas, "window": range(windows), "stream": ["query", "key"]}
    return labelled(arrays, places, {})
