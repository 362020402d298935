"""Measurements, sweeps, frontiers and importance in which a truth about bands and periods is planted."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import xarray as xr

from ropescope.base.strengths import WEIGHTING
from ropescope.evaluation.claims.arms import (
    FAST_OFF,
    FAST_STILL,
    LOUD,
    PAST_CONTROL,
    PAST_STILL,
    PLAIN,
    RANDOM,
    SLOW_OFF,
    SLOW_STILL,
    TWICE_PLAIN,
)
from ropescope.evaluation.claims.behaviour_dataset import ARM, BEHAVIOUR, READING, READINGS, VARIABLES
from ropescope.evaluation.frontier.dataset import STOCK
from ropescope.evaluation.frontier.dataset import labelled as labelled_frontier
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
    context: int | None = 4096,
    fast: np.ndarray | None = None,
) -> xr.DataTree:
    """Six windows of a model with bands and periodic pairs at the given pairs of every head of some layers.

    `loud` is what the norm of a band is multiplied by; with `wander` bands shift by one pair from layer to layer, round
    the end; `periods` are those of every pair in each window; `context` is that of the configuration; `fast` (layer,
    head) is what the norm of queries in the two fastest pairs is multiplied by.
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
        if fast is not None and stream == "query":
            norm[..., :2] *= fast[..., None]
        period = np.broadcast_to(np.array(periods)[:, None, None, None], shape)
        dims = data["spectrum_fe"].dims
        arrays = {"spectrum_fe": spectrum, "sequence_fe": sequence, "mean_norm": norm, "dominant_period": period}
        result[stream] = xr.DataTree(data.assign({name: (dims, array) for name, array in arrays.items()}))
    facts = json.loads(result.attrs["provenance"])
    facts["model"] |= {"fingerprint": weights, "config": {"max_position_embeddings": context}}
    result.attrs["provenance"] = json.dumps(facts)
    return result


def sweep(
    name: str,
    selected: float,
    random: float,
    *,
    windows: int = 12,
    noise: float = 1e-3,
    intervention: str = WEIGHTING,
) -> xr.Dataset:
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
    return labelled(variables, places, {"model": model, "intervention": intervention})


def tasks(
    plain: Sequence[float], weighted: Sequence[float], selection: str = "table1", intervention: str = WEIGHTING
) -> xr.Dataset:
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
    model = {"id": "synthetic/tiny-irope", "fingerprint": "0" * 16}
    provenance = {"model": model, "failed": {}, "intervention": intervention}
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


COSTS = {
    PLAIN: 0.0,
    SLOW_OFF: 1.0,
    SLOW_STILL: 0.02,
    FAST_OFF: 1.0,
    FAST_STILL: 0.6,
    PAST_STILL: 0.001,
    PAST_CONTROL: 0.3,
}
TWICE = {TWICE_PLAIN: (3.0, 0.5), LOUD: (3.5, 3.0)} | {
    name: (3.0 + first, 0.5 + second)
    for name, (first, second) in zip(RANDOM.values(), [(0.02, 0.05), (0.1, 0.2), (0.4, 0.6), (1.5, 2.0)], strict=True)
}


def look(
    previous: np.ndarray | None = None,
    best: float = 0.8,
    costs: dict[str, float] | None = None,
    twice: dict[str, tuple[float, float]] | None = None,
    *,
    windows: int = WINDOWS,
    length: int = 2048,
) -> xr.Dataset:
    """What was seen of the model: attention (layer, head), what arms cost, and a passage read twice."""
    random = np.random.default_rng(0)
    shape = (windows, LAYERS, HEADS)
    seen = np.broadcast_to(np.full((LAYERS, HEADS), 0.2) if previous is None else previous, shape)
    costs, twice = COSTS | (costs or {}), TWICE | (twice or {})
    names = [*costs, *twice]
    nats, readings = np.full((len(names), windows), np.nan), np.full((len(names), 2, windows), np.nan)
    for row, name in enumerate(names):
        if name in costs:
            nats[row] = 3 + costs[name] + random.normal(0, 1e-3, windows)
        else:
            readings[row] = np.array(twice[name])[:, None] + random.normal(0, 1e-3, (2, windows))
    chosen = {
        name: np.full(shape, value) + random.normal(0, 0.01, shape) for name, value in (("best", best), ("random", 0.3))
    }
    values = {
        "previous": seen,
        "diagonal": seen,
        **chosen,
        "nats": nats,
        "readings": readings,
        "pairs": np.ones(len(names)),
    }
    model = {"id": "synthetic/tiny-irope", "fingerprint": "0" * 16}
    facts = {"model": model, "windows": {"length": length}, "parameters": {"context": None}}
    arrays = {name: (dims, values[name]) for name, (_, _, dims) in VARIABLES.items()}
    labels = {ARM: names, READING: list(READINGS), "layer": range(LAYERS), "sequence": range(windows)}
    return xr.Dataset(arrays, labels, BEHAVIOUR.attributes(facts))


def frontier(windows: int = 8) -> xr.Dataset:
    """A latent that costs 0.01 nats of every token, a drop 0.5 of some, norms 1.0; windows that differ far more."""
    random = np.random.default_rng(0)
    base = 100 * random.uniform(1, 4, windows)
    costs = [np.zeros(windows), np.full(windows, 1.0), 50 * random.uniform(0.5, 1.5, windows), np.full(windows, 100.0)]
    nats = np.stack([base + cost for cost in costs])
    nothing = np.full((4, 2, 1), np.nan)
    variables = {
        "method": np.array([STOCK, "latent", "drop", "norm"]),
        "keep": np.array([1.0, 0.5, 0.5, 0.5]),
        "key_bytes": np.array([1000, 502, 503, 503]),
        "nats": nats,
        "perplexity": np.exp(nats.sum(1) / (100 * windows)),
        "tokens": np.full(windows, 100),
        "prefill_seconds": nothing,
        "decode_seconds": nothing,
        "extra_bytes": nothing[..., 0],
    }
    return labelled_frontier(variables, ["latent 0.5", "drop 0.5", "norm 0.5"], windows, {})
