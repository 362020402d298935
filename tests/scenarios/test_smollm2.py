"""The real small model on real text: values, counts and spans that an independent computation gives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from torch import Tensor, nn
from transformers import PreTrainedModel

from architectures import entropies_of, pair_norms_of
from ropescope.analysis.importance_shares import importance_shares
from ropescope.measurement.importance import importance
from ropescope.measurement.measure import measure
from ropescope.measurement.worth_in_words import cumulative_share
from ropescope.model.probing import probe
from ropescope.model.windows import token_windows

pytestmark = pytest.mark.models

LENGTH, LAYERS, HEADS, KV_HEADS, HEAD_DIM = 4096, 30, 9, 3, 64
STREAMS = ("query", "key")
HALF = {"query": LAYERS * HEADS * HEAD_DIM // 4, "key": LAYERS * KV_HEADS * HEAD_DIM // 4}


@dataclass(frozen=True)
class Measured:
    """A result, and by layer the float64 entropies of the projections before rotation, from the very same pass."""

    result: xr.DataTree
    independent: dict[str, list[dict[str, np.ndarray]]]


@pytest.fixture(scope="module")
def measured(builtin: tuple[PreTrainedModel, Any], wikitext: Path) -> Measured:
    model, tokenizer = builtin
    windows = token_windows(tokenizer, str(wikitext), length=LENGTH, count=1)
    independent: dict[str, list[dict[str, np.ndarray]]] = {name: [] for name in STREAMS}

    def keep(stream: str, output: Tensor) -> None:
        # The probe, too, runs the projections; its sequences are shorter.
        if output.shape[1] == LENGTH:
            heads = output[0].unflatten(-1, (-1, HEAD_DIM)).transpose(0, 1).numpy()
            norms = pair_norms_of(heads, "half-split", 0, HEAD_DIM)
            independent[stream].append(entropies_of(norms, frame_length=1024, hop_length=512))

    def hook(module: nn.Module, stream: str) -> Any:
        return module.register_forward_hook(lambda _module, _args, output: keep(stream, output))

    attentions = [layer.self_attn for layer in model.model.layers]
    hooks = [hook(attention.q_proj, "query") for attention in attentions]
    hooks += [hook(attention.k_proj, "key") for attention in attentions]
    result = measure(model, windows)
    for handle in hooks:
        handle.remove()
    return Measured(result, independent)


def test_card_is_the_published_one(builtin: tuple[PreTrainedModel, Any]) -> None:
    card = probe(builtin[0])
    theta = 100_000.0 ** (-np.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    assert [layer.layer for layer in card.layers] == list(range(LAYERS))
    for layer in card.layers:
        assert (layer.heads, layer.kv_heads, layer.head_dim) == (HEADS, KV_HEADS, HEAD_DIM)
        assert str(layer.pairing) == "half-split[0:64]"
        np.testing.assert_allclose(layer.frequency.numpy(), theta, rtol=1e-6)
    assert str(card) == (
        "layers 0-29: 9 query / 3 key heads of 64, half-split[0:64], 32 pairs, wavelength 6.28 to 4.38e+05 tokens"
    )


@pytest.mark.parametrize("stream", STREAMS)
def test_every_layer_head_and_pair_equals_float64_before_rotation(measured: Measured, stream: str) -> None:
    layers = measured.independent[stream]
    assert len(layers) == LAYERS
    for name in ("spectrum_fe", "sequence_fe", "mean_norm", "dc_share", "peak_share"):
        expected = np.stack([layer[name] for layer in layers])
        np.testing.assert_allclose(measured.result[stream][name].values[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("stream", "bands", "of"), [("query", 1970, 8640), ("key", 1027, 2880)])
def test_pairs_under_the_band_threshold(measured: Measured, stream: str, bands: int, of: int) -> None:
    values = measured.result[stream].spectrum_fe
    assert int((values < 0.2).sum()) == bands
    assert values.size == int(values.notnull().sum()) == of


@pytest.mark.parametrize(("name", "low", "high"), [("spectrum_fe", 0.083, 0.548), ("sequence_fe", 0.602, 0.948)])
def test_span_of_the_query_entropies(measured: Measured, name: str, low: float, high: float) -> None:
    values = measured.result["query"][name]
    assert (round(float(values.min()), 3), round(float(values.max()), 3)) == (low, high)


def test_bands_hold_most_of_what_the_loss_feels(
    measured: Measured, builtin: tuple[PreTrainedModel, Any], wikitext: Path
) -> None:
    model, tokenizer = builtin
    worth = importance(model, token_windows(tokenizer, str(wikitext), length=256, count=2))
    found = importance_shares(measured.result, worth)
    held = found.importance.sel(selection="bands", estimate="value")
    assert 0.85 < float(held.sel(stream="query")) < 0.97 and 0.8 < float(held.sel(stream="key")) < 0.95
    assert (found.auc.sel(score="norm_product", estimate="value") > 0.9).all()
    for stream in STREAMS:
        assert cumulative_share(worth[stream].fisher.mean("sequence").values.ravel())[HALF[stream]] > 0.97
