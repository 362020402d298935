"""Measurements, sweeps and importance in which a truth about bands and periods is planted."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import xarray as xr

from ropescope.evaluation.sweep.dataset import labelled
from ropescope.evaluation.tasks.dataset import labelled as labelled_tasks
from ropescope.evaluation.tasks.scores import Score
from ropescope.measurement.labelling import label_importance
from synthetic import synthetic_result

LAYERS, HEADS, KV_HEADS, PAIRS, WINDOWS = 8, 4, 2, 16, 6
RUN = (3, 4, 5, 6)
SCATTERED = (0, 5, 9, 14)


def measurement(
    bands: Sequence[int] = (),
    *,
    key_bands: Sequence[int] | None = None,
    loud: float = 3.0,
    periodic: Sequence[int] = (),
    key_periodic: Sequence[int] | None = None,
    periods: Sequence[float] = (64.0,) * WINDOWS,
    wander: bool = False,
    nope: Sequence[int] = (),
    only_layers: Sequence[int] = tuple(range(LAYERS)),
    corpus: str = "wikitext",
    length: int = 4096,
    weights: str = "0" * 16,
    layers: int = LAYERS,
) -> xr.DataTree:
    """Six windows of a model with bands and periodic pairs at the given pairs of every head of some layers.

    `loud` is what the norm of a band is multiplied by; with `wander` bands shift by one pair from layer to layer, round
    the end; `periods` are those of every pair in each window.
    """
    result = synthetic_result(
        layers, HEADS, KV_HEADS, PAIRS, WINDOWS, length, nope_layers=nope, padded=False, corpus=corpus
    )
    for stream in ("query", "key"):
        data = result[stream].to_dataset(inherit=False)
        mine = bands if stream == "query" or key_bands is None else key_bands
        beating = periodic if stream == "query" or key_periodic is None else key_periodic
        random = np.random.default_rng(1 + len(stream))
        shape = data["spectrum_fe"].shape
        spectrum = random.normal(0.3, 0.005, shape)
        sequence, norm = random.normal(0.9, 0.005, shape), random.normal(1.0, 0.02, shape)
        for layer in only_layers:
            for pairs, values in ((mine, spectrum), (beating, sequence)):
                chosen = [(pair + layer * wander) % PAIRS for pair in pairs]
                values[:, layer, :, chosen] = random.normal(0.1 if values is spectrum else 0.45, 0.005)
                if values is spectrum:
                    norm[:, layer, :, chosen] *= loud
        period = np.broadcast_to(np.array(periods)[:, None, None, None], shape)
        dims = data["spectrum_fe"].dims
        arrays = {"spectrum_fe": spectrum, "sequence_fe": sequence, "mean_norm": norm, "dominant_period": period}
        result[stream] = xr.DataTree(data.assign({name: (dims, array) for name, array in arrays.items()}))
    facts = json.loads(result.attrs["provenance"])
    facts["model"]["fingerprint"] = weights
    result.attrs["provenance"] = json.dumps(facts)
    return result


def sweep(name: str, selected: float, random: float, *, windows: int = 12, noise: float = 1e-3) -> xr.Dataset:
    """Nats per token 3; at alpha 0 the selection and two random arms add what is given, with noise over windows."""
    draw = np.random.default_rng(0)
    arms = {"selection": selected, "random-0": random, "random-1": random}
    nats = (
        np.array([[added + noise * draw.normal(size=windows), np.zeros(windows)] for added in arms.values()])[None] + 3
    )
    variables = {
        "nats": nats,
        "perplexity": np.exp(nats.mean(-1)),
        "tokens": np.ones(windows, dtype=int),
        "selected_pairs": np.array([[30, 10]]),
    }
    places = {"selection": [name], "arm": list(arms), "alpha": [0.0, 1.0], "stream": ["query", "key"]}
    model = {"id": "synthetic/tiny-irope", "fingerprint": "0" * 16}
    return labelled(variables, places, {"model": model, "intervention": "ropescope.weighted_rope"})


def tasks(plain: Sequence[float], weighted: Sequence[float], selection: str = "table1") -> xr.Dataset:
    """One task, with whether each document is right."""
    facts = {"filter": "none", "stderr": 0.01, "members": (), "shots": 0, "version": "1", "higher_is_better": True}
    sides = {"plain": plain, f"{selection} at 0.1": weighted}
    cells = {
        arm: [
            Score(
                "hellaswag",
                "acc",
                value=float(np.mean(right)),
                documents=(len(right), len(right)),
                outcomes=tuple((float(each), 1.0) for each in right),
                **facts,
            )
        ]
        for arm, right in sides.items()
    }
    provenance = {"model": {"id": "synthetic/tiny-irope", "fingerprint": "0" * 16}, "failed": {}}
    return labelled_tasks({"plain": ("plain", 1.0), f"{selection} at 0.1": (selection, 0.1)}, cells, provenance)


def importance(favoured: Sequence[int], times: float, *, windows: int = WINDOWS) -> xr.DataTree:
    """Fisher information of about 1 for every pair, and so many times as much for the favoured ones."""
    values = {}
    for stream, heads in (("query", HEADS), ("key", KV_HEADS)):
        random = np.random.default_rng(len(stream))
        shape = (windows, LAYERS, heads, PAIRS)
        base = random.lognormal(0, 0.3, shape[1:]) * random.lognormal(0, 0.05, shape)
        base[..., list(favoured)] *= times
        values[stream] = np.stack([base] * 4, axis=1)
    return label_importance(values, range(LAYERS), {"model": {"id": "synthetic/tiny-irope", "fingerprint": "0" * 16}})
