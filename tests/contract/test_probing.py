"""The probe finds, without knowing the model, what the model's config says of its rotation."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import FalconConfig, FalconForCausalLM, LlamaForCausalLM, PreTrainedModel, SmolLM3ForCausalLM
from transformers.models.llama import modeling_llama

from architectures import (
    ARCHITECTURES,
    COHERE2,
    DEEPSEEK,
    DYNAMIC_NTK,
    GEMMA3,
    GPT2,
    LLAMA,
    LLAMA4,
    LONGROPE,
    MAX_POSITIONS,
    QWEN3,
    SHORT_CONTEXT,
    SMOLLM3,
    Architecture,
    state_of,
    tokens,
)
from matrix import every_architecture, every_dtype
from ropescope.base.errors import InputError, ModelError, ProbeError, RopescopeError
from ropescope.base.rotary import Pairing
from ropescope.model import probing
from ropescope.model.card import LayerRotation, RotaryCard
from ropescope.model.probing import probe

pytestmark = pytest.mark.usefixtures("one_thread")

rotating = pytest.mark.parametrize("architecture", [a for a in ARCHITECTURES if a.style is not None], ids=str)
following_the_length = pytest.mark.parametrize("architecture", [DYNAMIC_NTK, LONGROPE], ids=str)


def check_card(card: RotaryCard, architecture: Architecture, rtol: float, positions: int = MAX_POSITIONS) -> None:
    for rotation, layer in zip(card.layers, architecture.expected(positions), strict=True):
        shape = (rotation.layer, rotation.heads, rotation.kv_heads, rotation.head_dim, str(rotation.pairing))
        assert shape == (layer.layer, layer.heads, layer.kv_heads, layer.head_dim, layer.pairing)
        np.testing.assert_allclose(rotation.frequency.numpy(), layer.frequency, rtol=rtol)
        np.testing.assert_array_equal(rotation.rotated.numpy(), layer.frequency > 0)


@pytest.mark.slow
@every_architecture
@every_dtype
def test_card_agrees_with_the_config(architecture: Architecture, dtype: torch.dtype) -> None:
    card = probe(architecture.shared(dtype))
    check_card(card, architecture, rtol=1e-6)
    assert all(rotation.matched == bool(rotation.rotated.any()) for rotation in card.layers)
    assert card.positions == architecture.config().max_position_embeddings


@pytest.mark.slow
@rotating
@every_dtype
@pytest.mark.parametrize("positions", [2, 48])
def test_few_positions_suffice_where_the_model_knows_its_frequencies(
    architecture: Architecture, dtype: torch.dtype, positions: int
) -> None:
    card = probe(architecture.shared(dtype), positions)
    check_card(card, architecture, rtol=1e-6, positions=positions)
    assert card.positions == positions


@every_architecture
def test_measured_frequencies_agree_with_the_config(
    architecture: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "rotary_frequencies", lambda _decoder: iter(()))
    card = probe(architecture.shared())
    check_card(card, architecture, rtol=1e-3)
    assert not any(rotation.matched for rotation in card.layers)
    assert ("(as measured)" in str(card)) == (architecture.style is not None)


@every_architecture
def test_a_card_of_a_model_cast_to_bfloat16_holds_the_rounded_frequencies_that_it_uses(
    architecture: Architecture,
) -> None:
    card = probe(architecture.build().to(torch.bfloat16))
    check_card(card, architecture, rtol=2**-8)
    assert all(rotation.matched == bool(rotation.rotated.any()) for rotation in card.layers)


@every_architecture
def test_groups_join_the_layers_that_rotate_alike(architecture: Architecture) -> None:
    expected: dict[tuple[int, bytes], list[int]] = {}
    for layer in architecture.expected():
        expected.setdefault((layer.kv_heads, layer.frequency.tobytes()), []).append(layer.layer)
    groups = probe(architecture.shared()).groups()
    assert [[rotation.layer for rotation in group] for group in groups] == list(expected.values())


CARDS = {
    LLAMA: "layers 0-3: 4 query / 2 key heads of 16, half-split[0:16], 8 pairs, wavelength 6.28 to 1.99e+04 tokens",
    LLAMA4: "layers 0-2: 4 query / 2 key heads of 16, interleaved[0:16], 8 pairs, wavelength 6.28 to 6.09e+05 tokens\n"
    "layer 3: 4 query / 2 key heads of 16, NoPE (paired as interleaved[0:16])",
    GEMMA3: "layers 0-4: 4 query / 2 key heads of 16, half-split[0:16], 8 pairs, wavelength 6.28 to 1.99e+04 tokens\n"
    "layer 5: 4 query / 2 key heads of 16, half-split[0:16], 8 pairs, wavelength 6.28 to 1.12e+06 tokens",
    COHERE2: "layers 0-2: 4 query / 2 key heads of 16, interleaved[0:16], 8 pairs, wavelength 6.28 to 1.99e+04 tokens\n"
    "layer 3: 4 query / 2 key heads of 16, NoPE (paired as interleaved[0:16])",
    DEEPSEEK: "layers 0-3: 4 query / 4 key heads of 32, half-split[16:32], 8 pairs, wavelength 6.28 to 1.99e+04 tokens",
    GPT2: "layers 0-3: 4 query / 4 key heads of 16, NoPE (paired as half-split[0:16])",
}


@pytest.mark.parametrize(("architecture", "text"), CARDS.items(), ids=map(str, CARDS))
def test_card_reads(architecture: Architecture, text: str) -> None:
    assert str(probe(architecture.shared())) == text


def test_card_names_layers_at_equal_distances_by_their_step() -> None:
    config = SMOLLM3.config()
    config.num_hidden_layers = 16
    config.no_rope_layers, config.layer_types = [1, 1, 1, 0] * 4, ["full_attention"] * 16
    first, second = str(probe(SmolLM3ForCausalLM(config).eval())).splitlines()
    assert first.startswith("layers 0-2, 4-6, 8-10, 12-14: ")
    assert second.startswith("layers 3, 7, ..., 15 (every 4): ")


def audible(heads: int, kv_heads: int, pairs: int) -> dict[str, Tensor]:
    """No pair is silent."""
    return {"query": torch.zeros(heads, pairs, dtype=torch.bool), "key": torch.zeros(kv_heads, pairs, dtype=torch.bool)}


def test_card_counts_pairs_of_zero_frequency() -> None:
    frequency = torch.tensor([1.0, 0.5, 0.0, 0.0], dtype=torch.float64)
    layer = LayerRotation(0, 2, 1, 8, Pairing("half-split", 0, 8), frequency, matched=True, silent=audible(2, 1, 4))
    assert str(RotaryCard((layer,), 4096)) == (
        "layer 0: 2 query / 1 key heads of 8, half-split[0:8], 4 pairs, "
        f"wavelength 6.28 to {4 * math.pi:.3g} tokens, 2 zero-frequency pairs"
    )


@every_architecture
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_nothing_is_left(architecture: Architecture, training: bool) -> None:
    model = architecture.build().train(training)
    before = state_of(model)
    probe(model)
    assert state_of(model) == before


@following_the_length
@pytest.mark.parametrize("ran_before", [False, True], ids=["fresh", "after a forward pass"])
def test_the_state_of_frequencies_that_follow_the_length_is_kept(architecture: Architecture, ran_before: bool) -> None:
    model, twin = architecture.build(), architecture.build()
    if ran_before:
        for one in (model, twin):
            one(tokens(1, SHORT_CONTEXT + 1))
    before = state_of(model)
    probe(model, positions=3 * MAX_POSITIONS)
    assert state_of(model) == before
    assert torch.equal(model(tokens()).logits, twin(tokens()).logits)


@following_the_length
def test_nothing_is_left_after_an_error(architecture: Architecture, monkeypatch: pytest.MonkeyPatch) -> None:
    model = architecture.build()
    before = state_of(model)

    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patched, pytest.raises(ZeroDivisionError):
        patched.setattr(model.model.layers[1].mlp, "forward", fail, raising=False)
        probe(model, positions=3 * MAX_POSITIONS)
    model.model.layers[1].mlp.__dict__.pop("forward", None)
    assert state_of(model) == before


@pytest.mark.parametrize(
    ("positions", "factors"),
    [(SHORT_CONTEXT, "short_factor"), (SHORT_CONTEXT + 1, "long_factor"), (None, "long_factor")],
)
@every_dtype
def test_longrope_shows_the_factors_in_force_at_the_length(
    positions: int | None, factors: str, dtype: torch.dtype
) -> None:
    parameters = LONGROPE.config().rope_parameters
    expected = parameters["rope_theta"] ** (-np.arange(0, 16, 2) / 16) / np.array(parameters[factors])
    for rotation in probe(LONGROPE.shared(dtype), positions).layers:
        np.testing.assert_allclose(rotation.frequency.numpy(), expected, rtol=1e-6)


def test_dynamic_ntk_shows_the_base_in_force_at_the_length() -> None:
    model = DYNAMIC_NTK.build()
    within, beyond = (probe(model, positions).layers[0].frequency for positions in (MAX_POSITIONS, 2 * MAX_POSITIONS))
    base = 10_000.0 * (4 * 2 - 3) ** (16 / 14)
    np.testing.assert_allclose(within.numpy(), 10_000.0 ** (-np.arange(0, 16, 2) / 16), rtol=1e-6)
    np.testing.assert_allclose(beyond.numpy(), base ** (-np.arange(0, 16, 2) / 16), rtol=1e-6)


@pytest.mark.parametrize("positions", [1, 0, -5])
def test_fewer_than_two_positions_are_refused(positions: int) -> None:
    text = f"probe got positions={positions}; rotation shows only from 2 positions on"
    with pytest.raises(InputError, match=f"^{text}$"):
        probe(LLAMA.shared(), positions)


def test_more_positions_than_learned_embeddings_are_refused() -> None:
    with pytest.raises(InputError, match="128"):
        probe(GPT2.shared(), positions=129)


def with_positions(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, rotary: Any) -> PreTrainedModel:
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", rotary)
    return model


def learned_positions(query: Tensor, key: Tensor, cos: Tensor, _sin: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
    """Adds a vector per position, as a model with learned positions inside attention would."""
    table = torch.randn(cos.shape[-2:], generator=torch.Generator().manual_seed(0))
    return query + table, key + table


def stretched_positions(query: Tensor, key: Tensor, cos: Tensor, _sin: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
    """Scales each dimension by its own function of the position."""
    return query * (2 + cos[:, None]), key * (2 + cos[:, None])


def turned_in_threes(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
    """A rotation, but of dimension i with i + 3."""
    cos, sin = cos[:, None, :, :3], sin[:, None, :, :3]

    def turn(x: Tensor) -> Tensor:
        a, b, rest = x[..., :3], x[..., 3:6], x[..., 6:]
        shuffled = torch.cat((b * cos + a * sin, a * cos - b * sin), -1)[..., [0, 3, 1, 5, 4, 2]]
        return torch.cat((shuffled, rest), -1)

    return turn(query), turn(key)


@every_dtype
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("rotary", [learned_positions, stretched_positions, turned_in_threes])
def test_positions_that_are_no_rotation_of_known_pairs_are_refused(
    dtype: torch.dtype, rotary: Any, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = LLAMA.build(dtype)

    def cast(query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        turned = rotary(query.float(), key.float(), *args, **kwargs)
        return (scale * turned[0]).to(query.dtype), (scale * turned[1]).to(key.dtype)

    before = state_of(model)
    text = r"^layer 0: dimensions 0 to \d+ of 16 move with the position, but no pairing turns them \(best is "
    with pytest.raises(ProbeError, match=text):
        probe(with_positions(model, monkeypatch, cast))
    assert state_of(model) == before


def test_one_bad_layer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = modeling_llama.apply_rotary_pos_emb, []

    def second_layer_learns(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, **rest: Any) -> tuple[Tensor, Tensor]:
        calls.append(1)
        rotary = learned_positions if len(calls) == 2 else original
        return rotary(query, key, cos, sin, **rest)

    with pytest.raises(ProbeError, match=r"^layer 1: .* this model's positions are not rotary$"):
        probe(with_positions(LLAMA.shared(), monkeypatch, second_layer_learns))


@every_dtype
@pytest.mark.parametrize("known", [True, False], ids=["own frequencies", "as measured"])
def test_turning_backwards_gives_negative_frequencies(
    dtype: torch.dtype, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = modeling_llama.apply_rotary_pos_emb
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", lambda q, k, cos, sin: original(q, k, cos, -sin))
    if not known:
        monkeypatch.setattr(probing, "rotary_frequencies", lambda _decoder: iter(()))
    card = probe(LLAMA.shared(dtype))
    for rotation, layer in zip(card.layers, LLAMA.expected(), strict=True):
        np.testing.assert_allclose(rotation.frequency.numpy(), -layer.frequency, rtol=1e-6 if known else 2e-2)
        assert rotation.rotated.all() and rotation.matched == known
    assert "wavelength 6.28 to " in str(card) and "turning backwards" in str(card)


def test_positions_that_do_not_grow_evenly_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = LLAMA.build()
    rotary = model.model.rotary_emb
    original = rotary.forward
    monkeypatch.setattr(rotary, "forward", lambda x, position_ids: original(x, position_ids.clamp(max=64)))
    with pytest.raises(ProbeError):
        probe(model)


@pytest.mark.parametrize("layer", [0, 2])
def test_weights_that_are_not_finite_are_not_taken_for_a_layer_without_rotation(layer: int) -> None:
    model = LLAMA.build()
    with torch.no_grad():
        model.model.layers[layer].self_attn.q_proj.weight[5] = torch.nan
    with pytest.raises(RopescopeError, match=f"layer {layer}"):
        probe(model)


def test_a_model_that_bypasses_the_interface_is_refused() -> None:
    config = FalconConfig(vocab_size=99, hidden_size=64, num_hidden_layers=1, num_attention_heads=4)
    with pytest.raises(ModelError, match="FalconModel does not call attention through"):
        probe(FalconForCausalLM(config))


def test_a_vocabulary_of_one_token_suffices() -> None:
    config = LLAMA.config()
    config.vocab_size, config.pad_token_id = 1, None
    check_card(probe(LlamaForCausalLM(config).eval()), LLAMA, rtol=1e-6)


def test_zeroed_heads_do_not_hide_the_rotation_of_the_others() -> None:
    model = QWEN3.build()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight[:16] = 0
            layer.self_attn.k_proj.weight[:16] = 0
    check_card(probe(model), QWEN3, rtol=1e-6)


@every_dtype
@pytest.mark.parametrize("query", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("key", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("architecture", [LLAMA, LLAMA4], ids=str)
def test_the_scale_of_queries_and_keys_hides_nothing(
    architecture: Architecture, dtype: torch.dtype, query: float, key: float
) -> None:
    model = architecture.build(dtype)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight *= query
            layer.self_attn.k_proj.weight *= key
    check_card(probe(model), architecture, rtol=1e-6)


class Flagged(torch.nn.Module):
    """A part of a layer whose first argument is no hidden state."""

    layer_idx = 1

    def __init__(self, inner: torch.nn.Module, flag: Any) -> None:
        super().__init__()
        self.inner, self.flag, self.got = inner, flag, []

    def forward(self, flag: Any, hidden: Tensor) -> Tensor:
        self.got.append(flag)
        return self.inner(hidden)


class Flagging(torch.nn.Module):
    def __init__(self, inner: Flagged) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden: Tensor) -> Tensor:
        return self.inner(self.inner.flag, hidden)


@pytest.mark.parametrize("flag", [None, "full", torch.arange(6).reshape(2, 3)], ids=["none", "text", "a matrix"])
def test_a_first_argument_that_is_no_hidden_state_is_passed_on(flag: Any) -> None:
    model = LLAMA.build()
    part = Flagged(model.model.layers[1].mlp, flag)
    model.model.layers[1].mlp = Flagging(part)
    check_card(probe(model), LLAMA, rtol=1e-6)
    assert part.got and all(got is flag for got in part.got)


def test_an_odd_head_size_without_rotation_leaves_its_last_dimension_unpaired() -> None:
    odd = replace(GPT2, settings={**GPT2.settings, "n_embd": 60})
    card = probe(odd.build())
    assert str(card) == "layers 0-3: 4 query / 4 key heads of 15, NoPE (paired as half-split[0:14])"
