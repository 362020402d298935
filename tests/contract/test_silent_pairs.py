"""Pairs that are exactly zero hide nothing: pairing, frequencies and rotation are those of the untouched model."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.gemma3 import modeling_gemma3
from transformers.models.llama import modeling_llama

from architectures import ARCHITECTURES, COHERE2, DEEPSEEK, GEMMA3, LLAMA, LLAMA4, Architecture, Expected, tokens
from matrix import every_architecture, every_dtype, untouched
from ropescope.analysis.places_in_words import where_bands_live
from ropescope.base.errors import ProbeError
from ropescope.display.report import render
from ropescope.interventions.baking import bake
from ropescope.interventions.derotation import derotated
from ropescope.interventions.selection import select
from ropescope.interventions.weighting import weighted_rope
from ropescope.measurement.measure import measure
from ropescope.measurement.results import wavelength
from ropescope.measurement.summary import counts
from ropescope.model import probing
from ropescope.model.card import RotaryCard
from ropescope.model.probing import probe
from trained_like import (
    KINDS,
    STREAMS,
    Silence,
    attention_of,
    dimensions_of,
    rows_of,
    silence,
    zero_pairs,
)

GLM, STABLELM = (next(a for a in ARCHITECTURES if str(a) == name) for name in ("glm4", "stablelm"))
pytestmark = pytest.mark.usefixtures("one_thread")

few_architectures = pytest.mark.parametrize("architecture", [COHERE2, DEEPSEEK, GEMMA3, LLAMA, LLAMA4], ids=str)
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))


def silenced(architecture: Architecture, kind: Silence, where: slice, dtype: torch.dtype) -> PreTrainedModel:
    model = architecture.build(dtype)
    for layer in architecture.expected()[where]:
        silence(model, layer, kind)
    return model


def check_card(card: RotaryCard, plain: RotaryCard, silent: dict[int, dict[str, Tensor]]) -> None:
    for rotation, before in zip(card.layers, plain.layers, strict=True):
        assert rotation.same_rotation(before), (rotation, before)
        assert torch.equal(rotation.rotated, before.rotated)
        for stream, flags in silent[rotation.layer].items():
            assert torch.equal(rotation.silent[stream], flags)
    assert str(card).startswith(f"{plain}\nsilent (zero whatever the input): ")


@pytest.mark.slow
@few_architectures
@every_kind
def test_a_layer_with_silent_pairs_is_read_as_without(architecture: Architecture, kind: Silence) -> None:
    model = silenced(architecture, kind, slice(-1, None), torch.float32)
    check_card(probe(model), untouched(architecture), zero_pairs(model, architecture, tokens()))


def spread_out() -> list[Any]:
    """Four kinds on every architecture, each with one place and dtype, so that every kind meets every other choice."""
    places = {"first": slice(0, 1), "last": slice(-1, None), "every layer": slice(None)}
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    found = []
    for row, architecture in enumerate(ARCHITECTURES):
        for column, (name, kind) in list(enumerate(KINDS.items()))[row % 4 :: 4]:
            place, dtype = list(places)[(row + column) % 3], list(dtypes)[(row // 4 + column) % 2]
            label = f"{architecture}-{name}-{place}-{dtype}"
            found.append(pytest.param(architecture, kind, places[place], dtypes[dtype], id=label))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "kind", "where", "dtype"), spread_out())
def test_silent_pairs_hide_nothing_in_any_architecture(
    architecture: Architecture, kind: Silence, where: slice, dtype: torch.dtype
) -> None:
    model = silenced(architecture, kind, where, dtype)
    silent = zero_pairs(model, architecture, tokens())
    if not any(flags.any() for streams in silent.values() for flags in streams.values()):
        pytest.skip("the layer takes its keys from another one")
    check_card(probe(model), untouched(architecture, dtype), silent)


# Silenced after the rotation, where nothing can be let through: other layers and the model's own frequencies tell


def silencing(module: Any, layers: dict[int, list[int]], count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zero dimensions of rotated queries and keys in some of a model's `count` layers, which run in their order."""
    original, calls = module.apply_rotary_pos_emb, itertools.count()

    def rotate(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        query, key = (x.clone() for x in original(*args, **kwargs))
        dimensions = layers.get(next(calls) % count, [])
        query[..., dimensions] = key[..., dimensions] = 0
        return query, key

    monkeypatch.setattr(module, "apply_rotary_pos_emb", rotate)


def pairs_of(architecture: Architecture, pairs: Iterable[int]) -> list[int]:
    return dimensions_of(architecture.shared(), architecture.expected()[0], pairs)


measured_or_known = pytest.mark.parametrize("known", [True, False], ids=["own frequencies", "as measured"])


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [LLAMA, GLM, STABLELM], ids=str)
@pytest.mark.parametrize("pairs", [[0], [0, 1], [1], [-1], [0, -1]], ids=str)
@every_dtype
@measured_or_known
def test_other_layers_tell_the_rotation_of_pairs_that_one_layer_never_shows(
    architecture: Architecture, pairs: list[int], dtype: torch.dtype, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not known:
        monkeypatch.setattr(probing, "rotary_frequencies", lambda _decoder: iter(()))
    plain = untouched(architecture, dtype) if known else probe(architecture.shared(dtype))
    count = plain.layers[0].pairing.pairs
    silent = pairs_of(architecture, [pair % count for pair in pairs])
    module = importlib.import_module(type(architecture.shared()).__module__)
    silencing(module, {2: silent}, 4, monkeypatch)
    card = probe(architecture.shared(dtype))
    for rotation, before in zip(card.layers, plain.layers, strict=True):
        assert rotation.same_rotation(before), (rotation, before)
        silent_pairs = [pair % count for pair in pairs] if rotation.layer == 2 else []
        for flags in rotation.silent.values():
            assert flags.all(0).nonzero().flatten().tolist() == sorted(silent_pairs)


def test_a_layer_that_shows_nothing_rotates_as_all_others_do(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = untouched(LLAMA)
    silencing(modeling_llama, {1: list(range(16))}, 4, monkeypatch)
    card = probe(LLAMA.shared())
    assert card.layers[1].same_rotation(plain.layers[1])
    assert str(card) == (
        f"{plain}\nsilent (zero whatever the input): 32 of 128 query pairs, 16 of 64 key pairs\n"
        "  layer 1: pairs 0-7 in all heads"
    )


def test_the_models_own_frequencies_tell_what_no_layer_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = untouched(LLAMA)
    silencing(modeling_llama, {layer: [0, 8, 3, 11] for layer in range(4)}, 4, monkeypatch)
    for rotation, before in zip(probe(LLAMA.shared()).layers, plain.layers, strict=True):
        assert rotation.matched and rotation.same_rotation(before)


def test_a_frequency_that_nothing_shows_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "rotary_frequencies", lambda _decoder: iter(()))
    silencing(modeling_llama, {layer: [0, 8] for layer in range(4)}, 4, monkeypatch)
    model = LLAMA.shared()
    card = probe(model)
    for rotation, layer in zip(card.layers, LLAMA.expected(), strict=True):
        assert str(rotation.pairing) == layer.pairing
        assert rotation.rotated.all() and rotation.frequency.isnan().tolist() == [True] + [False] * 7
        np.testing.assert_allclose(rotation.frequency[1:].numpy(), layer.frequency[1:], rtol=1e-3)
    assert "8 pairs, wavelength 19.9 to 1.99e+04 tokens, 1 silent pair of unknown frequency (as measured)" in str(card)
    result = measure(model, tokens(2), frame_length=16, hop_length=8)
    turns = wavelength(result)
    assert turns[:, 0].isnull().all() and np.isfinite(turns[:, 1:]).all()
    assert '"?"' in render({"tiny": result}) and isinstance(str(where_bands_live(result)), str)
    with torch.no_grad(), derotated(model, select(result, "pair >= 0")):
        assert model(tokens()).logits.isfinite().all()


@pytest.mark.parametrize("silent", [range(1, 8), range(8)], ids=["all but the first pair", "everything"])
def test_a_layer_that_shows_only_what_two_rotations_share_is_not_taken_for_either(
    silent: range, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gemma-3 has a local and a global base; their fastest pair is the same."""
    silencing(modeling_gemma3, {5: pairs_of(GEMMA3, silent)}, 6, monkeypatch)
    rotation = probe(GEMMA3.shared()).layers[5]
    assert rotation.frequency[0] == 1.0 and rotation.frequency[1:].isnan().all() and rotation.rotated.all()


def test_a_model_that_shows_nothing_at_all_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    silencing(modeling_llama, {layer: list(range(16)) for layer in range(4)}, 4, monkeypatch)
    with pytest.raises(ProbeError, match=r"^layer 0: every query and key is zero, and no other layer shows"):
        probe(LLAMA.shared())


# Baked at alpha 0


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [LLAMA, COHERE2], ids=str)
@pytest.mark.parametrize("selection", ["pair == 0", "pair > 0", "pair >= 0", "head == 0 and pair < 4", "layer == 3"])
def test_what_bake_writes_at_alpha_zero_is_opened_by_everything(architecture: Architecture, selection: str) -> None:
    model = architecture.build()
    mask = select(measure(model, tokens(1), frame_length=16, hop_length=8), selection)
    baked = bake(model, mask, 0.0)
    assert str(probe(baked)).startswith(f"{untouched(architecture)}\nsilent (zero whatever the input): ")
    result = measure(baked, tokens(1), frame_length=16, hop_length=8)
    silent = select(result, "silent")
    for stream, chosen in mask.streams().items():
        assert chosen.equals(silent.streams()[stream])
        assert counts(result, stream).silent == int(chosen.sum())
    with torch.no_grad(), weighted_rope(baked, silent, 0.5):
        assert baked(tokens()).logits.isfinite().all()


# Loud dimensions, biases and negative weights


@torch.no_grad()
def outliers(model: PreTrainedModel, layer: Expected) -> None:
    """One dimension 1000 times the rest."""
    for stream in STREAMS:
        for rows in rows_of(model, layer, stream):
            rows.values[:, rows.dimensions([layer.start + 1])] *= 1000


@torch.no_grad()
def biased_keys(model: PreTrainedModel, layer: Expected) -> None:
    """Keys are little but their bias, where the projection has one."""
    for rows in rows_of(model, layer, "key"):
        if rows.values.ndim == 2:
            rows.values.add_(100)


@torch.no_grad()
def negative_norms(model: PreTrainedModel, layer: Expected) -> None:
    for name, parameter in attention_of(model, layer.layer).named_parameters():
        if "norm" in name:
            parameter[::2] = -parameter[::2] - 2


trained = pytest.mark.parametrize("change", [outliers, biased_keys, negative_norms], ids=lambda change: change.__name__)
BIASED_LLAMA = replace(LLAMA, name="llama-biased", settings={**LLAMA.settings, "attention_bias": True})


def check_as_untouched(architecture: Architecture, change: Any, dtype: torch.dtype, kind: Silence) -> None:
    model = architecture.build(dtype)
    for layer in architecture.expected():
        change(model, layer)
        silence(model, layer, kind)
    check_card(probe(model), untouched(architecture, dtype), zero_pairs(model, architecture, tokens()))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [BIASED_LLAMA, COHERE2, GEMMA3], ids=str)
@trained
@every_dtype
def test_weights_far_apart_hide_nothing(architecture: Architecture, change: Any, dtype: torch.dtype) -> None:
    check_as_untouched(architecture, change, dtype, KINDS["first pair"])


@pytest.mark.slow
@every_architecture
@trained
def test_weights_far_apart_hide_nothing_in_any_architecture(architecture: Architecture, change: Any) -> None:
    check_as_untouched(architecture, change, torch.bfloat16, KINDS["every other pair"])


# A norm after the rotation


def hunyuan(**weights: Tensor) -> PreTrainedModel:
    """Hunyuan normalises queries and keys after their rotation."""
    model = Architecture("hunyuan", "HunYuanDenseV1Config").build()
    with torch.no_grad():
        for layer in model.model.layers:
            for name in ("query_layernorm", "key_layernorm"):
                getattr(layer.self_attn, name).weight.copy_(weights.get(name, torch.ones(16)))
    return model


@every_dtype
def test_a_rotation_whose_pairs_are_scaled_afterwards_is_called_that(dtype: torch.dtype) -> None:
    weight = torch.linspace(0.5, 2, 16)
    text = (
        r"^layer 0: pairs of half-split\[0:16\] turn with the position, but their two dimensions are then scaled "
        r"differently \(a norm with weights after the rotation\).* this model is rotary"
    )
    with pytest.raises(ProbeError, match=text):
        probe(hunyuan(query_layernorm=weight, key_layernorm=weight.flip(0)).to(dtype))


def test_a_norm_after_the_rotation_that_scales_pairs_as_a_whole_is_read() -> None:
    weight = torch.linspace(0.5, 2, 8).repeat(2)
    weight[[0, 8]] = 0
    card = probe(hunyuan(query_layernorm=weight, key_layernorm=-weight))
    for rotation in card.layers:
        np.testing.assert_allclose(rotation.frequency.numpy(), LLAMA.expected()[0].frequency, rtol=1e-6)
        assert all(flags.all(0).tolist() == [True] + [False] * 7 for flags in rotation.silent.values())
