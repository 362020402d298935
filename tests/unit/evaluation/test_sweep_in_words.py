"""What a sweep says in plain words follows from its intervals."""

from __future__ import annotations

import numpy as np
import xarray as xr

from ropescope.evaluation.sweep.dataset import labelled
from ropescope.evaluation.sweep.in_words import findings

WINDOWS = 12


def a_sweep(selected: float, random: float, lowest: float | None, noise: float = 0.01, pairs: int = 30) -> xr.Dataset:
    """Nats per token 3 at alpha 1; at alpha 0 the arms add what is given, with noise over the windows."""
    added = {"selection": selected, "random-0": random, "lowest-norm": np.nan if lowest is None else lowest}
    draw = np.random.default_rng(0)
    nats = np.array([[a + noise * draw.normal(size=WINDOWS), np.zeros(WINDOWS)] for a in added.values()])[None] + 3
    variables = {
        "nats": nats,
        "perplexity": np.exp(nats.mean(-1)),
        "tokens": np.ones(WINDOWS, dtype=int),
        "selected_pairs": np.array([[pairs, pairs // 3]]),
    }
    places = {"selection": ["bands"], "arm": list(added), "alpha": [0.0, 1.0], "stream": ["query", "key"]}
    return labelled(variables, places, {})


def test_harm_beyond_the_controls():
    (sentence,) = findings(a_sweep(selected=1.0, random=0.2, lowest=0.1))
    assert sentence.startswith("bands (30 query, 10 key pairs): alpha 0 raises perplexity from 20.09 to ")
    assert ", higher than with the same number of random pairs (24." in sentence
    assert ", higher than with the same number of pairs of lowest norm (22." in sentence


def test_no_change_and_less_harm_than_the_controls():
    (sentence,) = findings(a_sweep(selected=0.0, random=0.5, lowest=None, noise=0.003))
    assert "alpha 0 keeps perplexity within 1% (from 20.09 to 20.09)" in sentence
    assert "lower than with the same number of random pairs" in sentence and "lowest norm" not in sentence


def test_a_gain_like_that_of_the_controls():
    (sentence,) = findings(a_sweep(selected=-0.5, random=-0.5, lowest=-0.5, noise=0.003))
    assert "lowers perplexity" in sentence and "about the same as with the same number of random pairs" in sentence


def test_a_wide_interval_is_not_taken_for_no_change():
    (sentence,) = findings(a_sweep(selected=0.0, random=0.0, lowest=None, noise=0.1))
    assert "alpha 0 takes perplexity from 20.09 to" in sentence and "cannot tell from no change" in sentence
    assert "perhaps higher, perhaps lower than with the same number of random pairs" in sentence
    assert "about as much" not in sentence and "keeps" not in sentence


def test_too_few_windows_say_so():
    data = a_sweep(selected=1.0, random=0.0, lowest=None).isel(window=slice(4))
    (sentence,) = findings(data)
    assert "alpha 0 takes perplexity from 20.09 to" in sentence and "raises" not in sentence and "more" not in sentence
    assert sentence.endswith("; fewer than 5 windows give no intervals")


def test_a_selection_without_pairs():
    assert findings(a_sweep(0, 0, 0, pairs=0)) == ["bands (0 query, 0 key pairs): this model has none"]
