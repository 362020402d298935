"""Weighted RoPE and derotation do what their formulas say, on every architecture, with caches and padding."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel, StaticCache
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

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
    QWEN3_NEXT,
    SHORT_CONTEXT,
    VOCABULARY,
    Architecture,
    Expected,
    state_of,
    tokens,
)
from matrix import every_architecture, left_padding
from ropescope.base.axes import HEAD, KV_HEAD, LAYER, PAIR
from ropescope.base.errors import InputError
from ropescope.interventions.derotation import derotated
from ropescope.interventions.fitting import looked_at_once
from ropescope.interventions.masks import PairMask
from ropescope.interventions.selection import select
from ropescope.interventions.weighting import weighted_rope
from ropescope.measurement.measure import measure
from ropescope.model.attention import AttentionCall, intercepted
from ropescope.model.identity import model_provenance

pytestmark = pytest.mark.usefixtures("one_thread", "no_gradients", "shared_models_looked_at_once")

MISTRAL = next(architecture for architecture in ARCHITECTURES if architecture.name == "mistral")
GEMMA2 = next(architecture for architecture in ARCHITECTURES if architecture.name == "gemma2")
SHORT_DYNAMIC_NTK = replace(DYNAMIC_NTK, settings=dict(DYNAMIC_NTK.settings) | {"max_position_embeddings": 64})
ROTATING = [architecture for architecture in ARCHITECTURES if architecture.style is not None]

indifferent_to_padding = pytest.mark.parametrize(
    "architecture", [architecture for architecture in ARCHITECTURES if architecture is not LLAMA4], ids=str
)
rotating = pytest.mark.parametrize("architecture", ROTATING, ids=str)


@pytest.fixture(scope="module")
def shared_models_looked_at_once() -> Iterator[None]:
    """Nothing changes a shared model, so it is compared with all masks at one look; under an intervention at others."""
    with ExitStack() as looks:
        for architecture in ARCHITECTURES:
            looks.enter_context(looked_at_once(architecture.shared()))
        yield


Intervention = Callable[[PreTrainedModel, PairMask], AbstractContextManager[None]]
Choice = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def damped(model: PreTrainedModel, mask: PairMask) -> AbstractContextManager[None]:
    return weighted_rope(model, mask, 0.3)


both_interventions = pytest.mark.parametrize("intervention", [damped, derotated], ids=["weighted", "derotated"])


def mask_of(architecture: Architecture, query: Choice, key: Choice | None = None) -> PairMask:
    """A mask for any weights, from the config alone; choices get indices (layer, head, pair)."""
    layers = architecture.expected()
    pairs = max(layer.size // 2 for layer in layers)
    arrays = {}
    for stream, axis, choice in (("query", HEAD, query), ("key", KV_HEAD, key or query)):
        counts = [layer.heads if stream == "query" else layer.kv_heads for layer in layers]
        shape = (len(layers), max(counts), pairs)
        row, head, pair = np.indices(shape)
        present = (head < np.array(counts)[row]) & (pair < np.array([layer.size // 2 for layer in layers])[row])
        model_layer = np.array([layer.layer for layer in layers])
        coords = {LAYER: model_layer, axis: np.arange(shape[1]), PAIR: np.arange(pairs)}
        chosen = np.broadcast_to(choice(model_layer[row], head, pair), shape) & present
        arrays[stream] = xr.DataArray(chosen, coords=coords, dims=list(coords))
        arrays[f"{stream}_present"] = xr.DataArray(present, coords=coords, dims=list(coords))
    pairing = tuple(layer.pairing for layer in layers)
    return PairMask(**arrays, pairing=pairing, provenance={"selection": "test"})


@functools.cache
def every_pair(architecture: Architecture) -> PairMask:
    return mask_of(architecture, lambda layer, head, pair: pair >= 0)


@functools.cache
def some_pairs(architecture: Architecture) -> PairMask:
    """Differs between layers, heads, pairs and streams."""
    return mask_of(
        architecture,
        lambda layer, head, pair: (layer + head + pair) % 3 == 0,
        lambda layer, head, pair: (layer + 2 * head + pair) % 4 == 1,
    )


@functools.cache
def no_pair(architecture: Architecture) -> PairMask:
    return mask_of(architecture, lambda layer, head, pair: pair < 0)


def at_once(model: PreTrainedModel, ids: Tensor | None = None, **arguments: Any) -> Tensor:
    return model(tokens(2) if ids is None else ids, use_cache=False, **arguments).logits


def prefill_and_steps(model: PreTrainedModel) -> Tensor:
    ids = tokens(2)
    out = model(ids[:, :40], use_cache=True)
    logits = [out.logits]
    for step in (40, 41, 44, 45, 46, 47):
        stop = {41: 44}.get(step, step + 1)
        out = model(ids[:, step:stop], past_key_values=out.past_key_values, use_cache=True)
        logits.append(out.logits)
    return torch.cat(logits, dim=1)


def left_padded(model: PreTrainedModel) -> Tensor:
    ids = tokens(3)
    return at_once(model, ids, attention_mask=left_padding(*ids.shape))


def change(logits: Tensor, other: Tensor) -> float:
    return float((logits - other).abs().max() / other.abs().max())


# What must not change anything


@pytest.mark.slow
@every_architecture
def test_weight_one_and_strength_zero_leave_logits_bit_equal(architecture: Architecture) -> None:
    model, mask = architecture.shared(), every_pair(architecture)
    stock = [run(model) for run in (at_once, prefill_and_steps, left_padded)]
    with weighted_rope(model, mask, 1.0), derotated(model, mask, strength=0.0):
        assert all(map(torch.equal, [run(model) for run in (at_once, prefill_and_steps, left_padded)], stock))
    ones = {stream: np.ones(array.shape) for stream, array in mask.streams().items()}
    with weighted_rope(model, mask, ones):
        assert torch.equal(at_once(model), stock[0])
    with weighted_rope(model, no_pair(architecture), 0.0), derotated(model, no_pair(architecture)):
        assert torch.equal(at_once(model), stock[0])


@every_architecture
def test_any_other_weight_changes_the_logits(architecture: Architecture) -> None:
    model = architecture.shared()
    for run in (at_once, left_padded):
        stock = run(model)
        with weighted_rope(model, some_pairs(architecture), 0.9):
            turned_down = run(model)
        assert turned_down.isfinite().all()
        assert change(turned_down, stock) > 1e-4


@rotating
def test_derotation_changes_the_logits(architecture: Architecture) -> None:
    model = architecture.shared()
    for run in (at_once, left_padded):
        stock = run(model)
        with derotated(model, some_pairs(architecture), strength=0.1):
            turned = run(model)
        assert turned.isfinite().all()
        assert change(turned, stock) > 1e-4


def test_a_model_without_rotation_has_none_to_take_away() -> None:
    model = GPT2.shared()
    stock = at_once(model)
    with derotated(model, every_pair(GPT2)):
        assert torch.equal(at_once(model), stock)


# Weighted RoPE


def dimensions(layer: Expected, pair: int) -> list[int]:
    """The two dimensions of a pair."""
    step = layer.size // 2
    return [layer.start + d for d in ((pair, pair + step) if layer.style == "half-split" else (2 * pair, 2 * pair + 1))]


def factors(layer: Expected, weights: np.ndarray) -> Tensor:
    """(head, 1, head_dim) from weights (head, pair)."""
    factor = torch.ones(len(weights), 1, layer.head_dim)
    for head, pair in np.ndindex(weights.shape[0], layer.size // 2):
        factor[head, 0, dimensions(layer, pair)] = float(weights[head, pair])
    return factor


def scaling_both(
    architecture: Architecture, model: PreTrainedModel, weights: dict[str, np.ndarray]
) -> AbstractContextManager[None]:
    """Equation 7 as it is written: q and k, each by its own weights (layer, head, pair)."""
    found = {}
    for row, layer in enumerate(architecture.expected()):
        query = factors(layer, weights["query"][row, : layer.heads])
        found[layer.layer] = query, factors(layer, weights["key"][row, : layer.kv_heads])

    def scale(call: AttentionCall) -> tuple[Tensor, Tensor]:
        query, key = found[call.layer]
        return call.query * query, call.key * key

    return intercepted(model, scale)


def weights_of(mask: PairMask, alpha: float) -> dict[str, np.ndarray]:
    return {stream: np.where(chosen.values, alpha, 1.0) for stream, chosen in mask.streams().items()}


@every_architecture
@pytest.mark.parametrize("alpha", [0.0, 0.7])
def test_weighted_logits_are_those_of_both_streams_scaled(architecture: Architecture, alpha: float) -> None:
    model, mask = architecture.shared(), some_pairs(architecture)
    ids = tokens(3)
    padding = left_padding(*ids.shape)
    with scaling_both(architecture, model, weights_of(mask, alpha)):
        expected = at_once(model, ids, attention_mask=padding)
    with weighted_rope(model, mask, alpha):
        got = at_once(model, ids, attention_mask=padding)
    real = padding.bool()
    torch.testing.assert_close(got[real], expected[real], rtol=1e-4, atol=1e-4)


@every_architecture
def test_every_pair_may_have_its_own_weight(architecture: Architecture) -> None:
    model, mask = architecture.shared(), some_pairs(architecture)
    random = np.random.default_rng(0)
    own = {stream: random.random(chosen.shape) for stream, chosen in mask.streams().items()}
    effective = {stream: np.where(chosen.values, own[stream], 1.0) for stream, chosen in mask.streams().items()}
    with scaling_both(architecture, model, effective):
        expected = at_once(model)
    with weighted_rope(model, mask, own):
        got = at_once(model)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert change(got, at_once(model)) > 1e-4


@pytest.mark.parametrize("architecture", [LLAMA, COHERE2, DEEPSEEK], ids=str)
def test_a_pair_is_weighted_by_its_own_streams_selection(architecture: Architecture) -> None:
    """Query head 1 alone, key head 1 alone, and both: the factors of the logits are 1/4, 1/4 and 1/16."""
    model, layer = architecture.shared(), architecture.expected()[1]
    groups = layer.heads // layer.kv_heads
    chosen = {"query": [1], "key": range(groups, 2 * groups)}
    none: Choice = lambda layer, head, pair: pair < 0  # noqa: E731
    one: Choice = lambda layer, head, pair: (layer == 1) & (head == 1) & (pair == 2)  # noqa: E731
    for streams in (["query"], ["key"], ["query", "key"]):
        mask = mask_of(architecture, *(one if stream in streams else none for stream in ("query", "key")))
        expected = torch.ones(layer.heads, layer.head_dim)
        for stream in streams:
            for head in chosen[stream]:
                expected[head, dimensions(layer, 2)] *= 0.25
        with intercepted(model, stock := Recorder()):
            at_once(model)
        with intercepted(model, weighted := Recorder()):  # noqa: SIM117
            with weighted_rope(model, mask, 0.25):
                at_once(model)
        # The outer context sees what the inner one returned.
        assert torch.equal(weighted.query[1], stock.query[1] * expected[:, None])
        assert torch.equal(weighted.key[1], stock.key[1])
        assert torch.equal(weighted.query[0], stock.query[0])


class Recorder:
    """Queries and keys by layer, of the last run."""

    def __init__(self) -> None:
        self.query: dict[int, Tensor] = {}
        self.key: dict[int, Tensor] = {}

    def __call__(self, call: AttentionCall) -> None:
        self.query[call.layer], self.key[call.layer] = call.query, call.key


@pytest.mark.parametrize("intervention", [damped, derotated], ids=["weighted", "derotated"])
def test_only_the_selected_heads_of_the_selected_layers_are_touched(intervention: Intervention) -> None:
    mask = mask_of(LLAMA, lambda layer, head, pair: (layer == 2) & (head == 3) & (pair < 4), lambda *_: np.False_)
    model, stock, touched = LLAMA.shared(), Recorder(), Recorder()
    with intercepted(model, stock):
        at_once(model)
    with intercepted(model, touched), intervention(model, mask):
        at_once(model)
    for layer in (0, 1):
        assert torch.equal(touched.query[layer], stock.query[layer])
        assert torch.equal(touched.key[layer], stock.key[layer])
    heads = (touched.query[2] != stock.query[2]).flatten(2).any(2).any(0).tolist()
    # A pair turns in all heads of a key head's group, or in none.
    assert heads == ([False, False, True, True] if intervention is derotated else [False, False, False, True])
    kv_heads = (touched.key[2] != stock.key[2]).flatten(2).any(2).any(0).tolist()
    assert kv_heads == [False, intervention is derotated]
    dims = (touched.query[2] != stock.query[2]).flatten(0, 2).any(0).nonzero().flatten().tolist()
    assert dims == [0, 1, 2, 3, 8, 9, 10, 11]


def test_cached_keys_are_never_written_to() -> None:
    model = LLAMA.shared()
    stock = model(tokens(2), use_cache=True).past_key_values
    with weighted_rope(model, every_pair(LLAMA), 0.5), derotated(model, every_pair(LLAMA)):
        cached = model(tokens(2), use_cache=True).past_key_values
    assert torch.equal(cached.layers[0].keys, stock.layers[0].keys)
    assert cached.layers[1].keys.shape == stock.layers[1].keys.shape


# Derotation


@contextmanager
def rotation_off(model: PreTrainedModel) -> Iterator[None]:
    """The rotary modules turn by no angle, and keep the scale of their cosines."""

    def still(_module: Any, _args: Any, output: Any) -> Any:
        if isinstance(output, Tensor):
            return output.abs().to(output.dtype)
        cos, sin = output
        return torch.hypot(cos, sin), torch.zeros_like(sin)

    modules = {id(module): module for module in model.modules() if type(module).__name__.endswith("RotaryEmbedding")}
    hooks = [module.register_forward_hook(still) for module in modules.values()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.slow
@rotating
def test_derotating_every_pair_is_switching_the_rotation_off(architecture: Architecture) -> None:
    model = architecture.shared()
    runs = (at_once, prefill_and_steps, left_padded)
    with rotation_off(model):
        expected = [run(model) for run in runs]
    with derotated(model, every_pair(architecture)):
        got = [run(model) for run in runs]
    assert change(expected[0], at_once(model)) > 1e-2
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", [LLAMA, SHORT_DYNAMIC_NTK], ids=str)
def test_derotation_undoes_a_rotation_that_turns_backwards(
    architecture: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        modeling_llama, "apply_rotary_pos_emb", lambda q, k, cos, sin: apply_rotary_pos_emb(q, k, cos, -sin)
    )
    model, ids = architecture.build(), tokens(2, 96)
    with rotation_off(model):
        expected = at_once(model, ids)
    with derotated(model, every_pair(architecture)):
        got = at_once(model, ids)
    assert change(expected, at_once(model, ids)) > 1e-2
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@rotating
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_derotation_slows_the_selected_pairs_down(architecture: Architecture, strength: float) -> None:
    """Every third pair, in a model whose own frequencies are lower."""
    model, slow = architecture.shared(), architecture.build()
    for name, buffer in slow.named_buffers():
        if name.endswith("inv_freq"):
            buffer[1::3] *= 1 - strength
    expected = at_once(slow)
    with derotated(model, mask_of(architecture, lambda layer, head, pair: pair % 3 == 1), strength=strength):
        got = at_once(model)
    assert change(expected, at_once(model)) > 1e-4
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_a_derotated_pair_is_as_it_was_before_its_rotation() -> None:
    """Query head 3 selects pair 2 of layer 1: query heads 2 and 3 and key head 1 lose its rotation."""
    model = LLAMA.shared()
    attention = model.model.layers[1].self_attn
    projected: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _module, _args, output, name=name: projected.update({name: output}))
        for name, module in {
            "query": attention.q_proj,
            "key": attention.k_proj,
            "angles": model.model.rotary_emb,
        }.items()
    ]

    def unrotated(call: AttentionCall) -> tuple[Tensor, Tensor] | None:
        if call.layer != 1:
            return None
        heads = [projected[name].unflatten(-1, (-1, 16)).transpose(1, 2) for name in ("query", "key")]
        torch.testing.assert_close(apply_rotary_pos_emb(*heads, *projected["angles"])[0], call.query)
        query, key = call.query.clone(), call.key.clone()
        query[:, 2:, :, [2, 10]] = heads[0][:, 2:, :, [2, 10]]
        key[:, 1:, :, [2, 10]] = heads[1][:, 1:, :, [2, 10]]
        return query, key

    with intercepted(model, unrotated):
        expected = at_once(model)
    for hook in hooks:
        hook.remove()
    mask = mask_of(LLAMA, lambda layer, head, pair: (layer == 1) & (head == 3) & (pair == 2), lambda *_: np.False_)
    with derotated(model, mask):
        got = at_once(model)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert change(got, at_once(model)) > 1e-4


@pytest.mark.parametrize(
    ("architecture", "lengths"),
    [(LONGROPE, (SHORT_CONTEXT + 32, 32)), (SHORT_DYNAMIC_NTK, (96, 32))],
    ids=["longrope", "dynamic-ntk"],
)
def test_derotation_uses_the_frequencies_in_force_at_the_length(
    architecture: Architecture, lengths: tuple[int, int]
) -> None:
    model = architecture.build()
    with rotation_off(model):
        # The short one last: at rest the model keeps the frequencies of its last run.
        expected = [at_once(model, tokens(1, length)) for length in lengths]
    with derotated(model, every_pair(architecture)):
        for _ in range(2):
            for length, logits in zip(lengths, expected, strict=True):
                torch.testing.assert_close(at_once(model, tokens(1, length)), logits, rtol=1e-3, atol=1e-3)


def test_frequencies_that_the_model_does_not_keep_are_derotated_as_measured() -> None:
    """A rotary module that computes its own: nothing to look up, so the probe's frequencies are used."""
    model, stock = LLAMA.build(), LLAMA.shared()
    rotary = model.model.rotary_emb
    frequency = rotary.inv_freq.clone()
    del rotary.inv_freq, rotary.original_inv_freq

    def turning(hidden: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        angle = (position_ids[..., None] * frequency).repeat(1, 1, 2)
        return angle.cos(), angle.sin()

    rotary.forward = turning
    torch.testing.assert_close(at_once(model), at_once(stock), rtol=1e-4, atol=1e-4)
    with derotated(stock, some_pairs(LLAMA)):
        expected = at_once(stock)
    with derotated(model, some_pairs(LLAMA)):
        torch.testing.assert_close(at_once(model), expected, rtol=1e-3, atol=1e-3)


def turning_on_its_own() -> PreTrainedModel:
    """The probe's frequencies are the measured ones; a vector left over in the module says something else."""
    model = LLAMA.build()
    rotary = model.model.rotary_emb
    frequency = rotary.inv_freq.clone()
    del rotary.original_inv_freq
    rotary.inv_freq.mul_(0.7)

    def turning(hidden: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        angle = (position_ids[..., None] * frequency.to(hidden.device)).repeat(1, 1, 2)
        return angle.cos(), angle.sin()

    rotary.forward = turning
    return model


def test_a_buffer_that_fits_in_length_but_is_not_what_turns_is_not_used() -> None:
    model, stock = turning_on_its_own(), LLAMA.shared()
    with derotated(stock, some_pairs(LLAMA)):
        expected = at_once(stock)
    with derotated(model, some_pairs(LLAMA)):
        torch.testing.assert_close(at_once(model), expected, rtol=1e-3, atol=1e-3)


# Generation, padding, sampling


@pytest.mark.slow
@every_architecture
@both_interventions
def test_a_cache_changes_nothing(architecture: Architecture, intervention: Intervention) -> None:
    model = architecture.shared()
    with intervention(model, some_pairs(architecture)):
        torch.testing.assert_close(prefill_and_steps(model), at_once(model), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@every_architecture
@both_interventions
def test_generated_logits_are_those_of_the_same_tokens_at_once(
    architecture: Architecture, intervention: Intervention
) -> None:
    """Greedy, from 24 tokens to 32: past the sliding window of 16."""
    model, ids = architecture.shared(), tokens(2, 24)
    with intervention(model, some_pairs(architecture)):
        logits, sequences = generated(model, ids, torch.ones_like(ids), steps=8)
        whole = at_once(model, sequences)
    torch.testing.assert_close(logits, whole[:, 23:-1], rtol=1e-4, atol=1e-4)
    assert torch.equal(sequences[:, 24:], whole[:, 23:-1, 3:].argmax(-1) + 3)


def generated(
    model: PreTrainedModel, ids: Tensor, attention_mask: Tensor, steps: int, noise: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Logits (sequence, step, token) and sequences; `noise` (sequence, step, token) makes the best token a sample."""

    class Draw(LogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            drawn = scores if noise is None else scores + noise[:, input_ids.shape[1] - ids.shape[1]]
            return drawn.index_fill(1, torch.arange(3), -torch.inf)

    out = model.generate(
        ids,
        attention_mask=attention_mask,
        max_new_tokens=steps,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        logits_processor=LogitsProcessorList([Draw()]),
    )
    return torch.stack(out.logits, dim=1), out.sequences


def test_llama4_itself_gives_padded_sequences_other_chunks() -> None:
    """So nothing can be asked of an intervention on it there."""
    model, ids = LLAMA4.shared(), tokens(2)
    padding = left_padding(*ids.shape)
    batch = at_once(model, ids, attention_mask=padding, position_ids=(padding.cumsum(-1) - 1).clamp_min(0))
    assert change(batch[1:, 7:], at_once(model, ids[1:, 7:])) > 1e-3


@pytest.mark.slow
@indifferent_to_padding
@both_interventions
def test_padded_batches_equal_single_sequences(architecture: Architecture, intervention: Intervention) -> None:
    model, ids = architecture.shared(), tokens(3)
    padding = left_padding(*ids.shape)
    positions = (padding.cumsum(-1) - 1).clamp_min(0)
    with intervention(model, some_pairs(architecture)):
        batch = at_once(model, ids, attention_mask=padding, position_ids=positions)
        for row, start in enumerate((0, 7, 14)):
            single = at_once(model, ids[row : row + 1, start:])
            torch.testing.assert_close(batch[row, start:], single[0], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@indifferent_to_padding
def test_sampling_from_a_padded_batch_equals_sampling_each_alone(architecture: Architecture) -> None:
    """Gumbel noise on the logits, the same for a sequence in its batch and alone, makes greedy search a sampler."""
    model, ids = architecture.shared(), tokens(2, 30)
    padding = left_padding(*ids.shape)
    uniform = torch.rand(2, 4, VOCABULARY, generator=torch.Generator().manual_seed(0))
    noise = -(-uniform.clamp(1e-6, 1 - 1e-6).log()).log()
    with damped(model, some_pairs(architecture)), derotated(model, some_pairs(architecture)):
        logits, sequences = generated(model, ids, padding, 4, noise)
        for row, start in enumerate((0, 7)):
            alone = ids[row : row + 1, start:]
            single_logits, single = generated(model, alone, torch.ones_like(alone), 4, noise[row : row + 1])
            assert torch.equal(sequences[row, start:], single[0])
            # Qwen3-Next's linear attention rounds so without any intervention.
            tolerance = 2e-3 if architecture is QWEN3_NEXT else 1e-4
            torch.testing.assert_close(logits[row], single_logits[0], rtol=tolerance, atol=tolerance)
    greedy = generated(model, ids, padding, 4)[1]
    assert not torch.equal(greedy, sequences)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [LLAMA, GEMMA3, COHERE2], ids=str)
@both_interventions
def test_seeded_sampling_of_a_padded_sequence_equals_the_bare_one(
    architecture: Architecture, intervention: Intervention
) -> None:
    model, ids = architecture.shared(), tokens(1, 30)
    padding = (torch.arange(30) >= 9).long()[None]
    drawn = []
    with intervention(model, some_pairs(architecture)):
        for start in (0, 9):
            torch.manual_seed(0)
            arguments = {"attention_mask": padding[:, start:], "max_new_tokens": 6, "min_new_tokens": 6}
            drawn.append(model.generate(ids[:, start:], do_sample=True, top_k=0, **arguments)[:, 30 - start :])
    assert torch.equal(*drawn)


@pytest.mark.slow
@both_interventions
def test_beam_search_equals_scoring_its_sequences(intervention: Intervention) -> None:
    model, ids = LLAMA.shared(), tokens(2, 20)
    with intervention(model, some_pairs(LLAMA)):
        arguments = {"max_new_tokens": 5, "min_new_tokens": 5, "num_beams": 3, "return_dict_in_generate": True}
        out = model.generate(ids, attention_mask=torch.ones_like(ids), output_scores=True, **arguments)
        scores = at_once(model, out.sequences)[:, 19:-1].log_softmax(-1)
    chosen = scores.gather(-1, out.sequences[:, 20:, None]).squeeze(-1).sum(-1)
    # Five new tokens, length penalty 1; end of text is forbidden, which renormalises nothing.
    torch.testing.assert_close(out.sequences_scores, chosen / 5, rtol=1e-4, atol=1e-4)


def test_derotation_refuses_a_static_cache() -> None:
    model, ids = LLAMA.build(), tokens(1, 8)
    before = state_of(model)
    cache = StaticCache(model.config, max_cache_len=16)
    text = r"^derotation cannot tell the positions in a static cache; generate with the default cache$"
    with pytest.raises(InputError, match=text), derotated(model, every_pair(LLAMA)):
        model(ids, past_key_values=cache, use_cache=True)
    assert state_of(model) == before
    with pytest.raises(InputError, match=text), derotated(model, every_pair(LLAMA)):
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=2, cache_implementation="static")


def test_weighting_works_with_a_static_cache() -> None:
    model, ids = LLAMA.shared(), tokens(1, 8)
    with weighted_rope(model, some_pairs(LLAMA), 0.3):
        cached = model(ids, past_key_values=StaticCache(model.config, max_cache_len=16), use_cache=True).logits
        torch.testing.assert_close(cached, at_once(model, ids), rtol=1e-4, atol=1e-4)


# Nesting


@pytest.mark.parametrize("architecture", [LLAMA, GEMMA3, LLAMA4, COHERE2, DEEPSEEK, GPT2], ids=str)
def test_nested_weights_multiply(architecture: Architecture) -> None:
    model, mask = architecture.shared(), some_pairs(architecture)
    with weighted_rope(model, mask, 0.3):
        expected = at_once(model)
    with weighted_rope(model, mask, 0.5), weighted_rope(model, mask, 0.6):
        got = at_once(model)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    other = mask_of(architecture, lambda layer, head, pair: pair % 2 == 0)
    product = {stream: weights_of(mask, 0.5)[stream] * weights_of(other, 0.6)[stream] for stream in ("query", "key")}
    with weighted_rope(model, every_pair(architecture), product):
        expected = at_once(model)
    with weighted_rope(model, other, 0.6), weighted_rope(model, mask, 0.5):
        torch.testing.assert_close(at_once(model), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@rotating
def test_weighting_and_derotation_nest_either_way(architecture: Architecture) -> None:
    model, run = architecture.shared(), left_padded
    mask, other = some_pairs(architecture), mask_of(architecture, lambda layer, head, pair: pair % 2 == 0)
    with derotated(model, other), weighted_rope(model, mask, 0.2):
        one = run(model)
    with weighted_rope(model, mask, 0.2), derotated(model, other):
        torch.testing.assert_close(run(model), one, rtol=1e-4, atol=1e-4)
    with derotated(model, other):
        assert change(one, run(model)) > 1e-4
    with weighted_rope(model, mask, 0.2):
        assert change(one, run(model)) > 1e-4


def test_nested_derotations_add_up() -> None:
    model, mask = LLAMA.shared(), some_pairs(LLAMA)
    with derotated(model, mask, strength=0.75):
        expected = at_once(model)
    with derotated(model, mask, strength=0.25), derotated(model, mask, strength=0.5):
        torch.testing.assert_close(at_once(model), expected, rtol=1e-4, atol=1e-4)


def test_two_models_have_each_their_own_intervention() -> None:
    model, other = LLAMA.shared(), COHERE2.shared()
    with damped(model, some_pairs(LLAMA)):
        expected = at_once(model), at_once(other)
        with damped(other, some_pairs(COHERE2)):
            assert torch.equal(at_once(model), expected[0])
            assert change(at_once(other), expected[1]) > 1e-4
        assert torch.equal(at_once(other), expected[1])


# Nothing is left


@pytest.mark.slow
@every_architecture
@both_interventions
def test_nothing_is_left(architecture: Architecture, intervention: Intervention) -> None:
    model = architecture.build()
    stock = at_once(model)
    before = state_of(model)
    with intervention(model, some_pairs(architecture)):
        at_once(model)
    assert state_of(model) == before
    with pytest.raises(ZeroDivisionError), intervention(model, some_pairs(architecture)):
        raise ZeroDivisionError
    assert state_of(model) == before
    assert torch.equal(at_once(model), stock)


@both_interventions
def test_nothing_is_left_after_an_error_inside_the_model(intervention: Intervention) -> None:
    model = LLAMA.build()
    at_once(model)
    before = state_of(model)
    with pytest.raises(IndexError), intervention(model, some_pairs(LLAMA)):
        model(torch.full((1, 8), VOCABULARY))
    assert state_of(model) == before


@both_interventions
def test_a_refused_mask_leaves_nothing(intervention: Intervention) -> None:
    model = LLAMA.build()
    before = state_of(model)
    with pytest.raises(InputError), intervention(model, some_pairs(COHERE2)):
        pytest.fail("the mask of another model was accepted")
    assert state_of(model) == before


def test_training_mode_survives_and_gradients_flow() -> None:
    model = LLAMA.build().train()
    with torch.enable_grad(), weighted_rope(model, some_pairs(LLAMA), 0.5), derotated(model, some_pairs(LLAMA)):
        at_once(model).square().sum().backward()
    assert model.training
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


# Half precision


@pytest.mark.slow
@rotating
def test_bfloat16_runs(architecture: Architecture) -> None:
    model, mask = architecture.shared(torch.bfloat16), some_pairs(architecture)
    stock = at_once(model)
    with weighted_rope(model, mask, 1.0), derotated(model, mask, strength=0.0):
        assert torch.equal(at_once(model), stock)
    for context in (damped(model, mask), derotated(model, mask)):
        with context:
            logits = at_once(model)
        assert logits.dtype == torch.bfloat16
        assert logits.isfinite().all()
        assert change(logits.float(), stock.float()) > 1e-2


@both_interventions
def test_bfloat16_is_near_float32(intervention: Intervention) -> None:
    half, single = LLAMA.shared(torch.bfloat16), LLAMA.build(torch.bfloat16).float()
    rounding = change(at_once(half).float(), at_once(single))
    with intervention(single, some_pairs(LLAMA)):
        expected = at_once(single)
    with intervention(half, some_pairs(LLAMA)):
        assert change(at_once(half).float(), expected) < 3 * rounding
    assert change(at_once(single), expected) > 10 * rounding


# Masks that do not fit


@functools.cache
def measured_mask() -> PairMask:
    """Selected on LLAMA itself, so it knows which model it is for."""
    result = measure(LLAMA.shared(), tokens(2, 128), frame_length=32, hop_length=16)
    mask = select(result, "spectrum_fe > 0.4 or pair < 4")
    assert mask.query.any() and mask.key.any()
    return mask


def refusals(model: PreTrainedModel, mask: PairMask) -> set[str]:
    texts = set()
    for intervention in (damped, derotated):
        with pytest.raises(InputError) as caught, intervention(model, mask):
            pytest.fail("a mask that does not fit was accepted")
        texts.add(str(caught.value))
    return texts


@both_interventions
def test_a_measured_mask_fits_its_own_model_in_any_dtype(intervention: Intervention) -> None:
    mask = measured_mask()
    assert mask.measured_on["fingerprint"] == model_provenance(LLAMA.shared())["fingerprint"]
    model = LLAMA.shared()
    with intervention(model, mask):
        expected = at_once(model)
    with intervention(model, mask.for_any_model()):
        assert torch.equal(at_once(model), expected)
    with intervention(LLAMA.build().bfloat16(), mask):
        pass


def test_a_mask_for_other_weights_is_refused_unless_it_is_for_any_model() -> None:
    other = LLAMA.build(seed=1)
    assert refusals(other, measured_mask()) == {
        "the mask was selected on other weights (None) than this model's; measure and select on this model "
        "(in Python mask.for_any_model() lifts the check)"
    }
    stock = at_once(other)
    for intervention in (damped, derotated):
        with intervention(other, measured_mask().for_any_model()):
            assert change(at_once(other), stock) > 1e-4


def llama(**settings: Any) -> Architecture:
    return replace(LLAMA, settings=dict(LLAMA.settings) | settings)


@pytest.mark.parametrize(
    ("architecture", "text"),
    [
        (llama(num_hidden_layers=3), "the mask is for 4 layers, 0 to 3, the model has 3, 0 to 2; select on this model"),
        (
            llama(num_attention_heads=8),
            "layer 0 has 8 query and 2 key heads paired half-split[0:16], but the mask is for 4 and 2 paired "
            "half-split[0:16]; select on this model",
        ),
        (llama(num_key_value_heads=4), "layer 0 has 4 query and 4 key heads paired half-split[0:16], but the mask is"),
        (llama(head_dim=32), "layer 0 has 4 query and 2 key heads paired half-split[0:32], but the mask is"),
        (COHERE2, "layer 0 has 4 query and 2 key heads paired interleaved[0:16], but the mask is for 4 and 2 paired"),
    ],
    ids=["layers", "heads", "kv_heads", "pairs", "pairing"],
)
def test_a_mask_for_another_shape_is_refused_even_if_it_is_for_any_model(architecture: Architecture, text: str) -> None:
    for mask in (measured_mask(), measured_mask().for_any_model()):
        (refusal,) = refusals(architecture.shared(), mask)
        assert refusal.startswith(text)


def test_a_mask_of_other_layer_indices_is_refused() -> None:
    """Qwen3-Next rotates layer 3 alone; a one-layer model is not the same."""
    shifted = mask_of(QWEN3_NEXT, lambda layer, head, pair: pair >= 0)
    assert shifted.layers == [3]
    arrays = {
        name: getattr(shifted, name).assign_coords(layer=[0])
        for name in ("query", "key", "query_present", "key_present")
    }
    (refusal,) = refusals(QWEN3_NEXT.shared(), replace(shifted, **arrays))
    assert refusal == "the mask is for 1 layers, 0 to 0, the model has 1, 3 to 3; select on this model"


# Weights and strengths out of range


@pytest.mark.parametrize("alpha", [float("nan"), float("inf"), -float("inf"), -0.1, 1.1])
def test_a_weight_outside_0_to_1_is_refused(alpha: float) -> None:
    text = rf"^alpha got {alpha}; it is a number from 0 to 1; allow_any_alpha=True takes other finite weights$"
    model, mask = LLAMA.shared(), some_pairs(LLAMA)
    arrays = {stream: np.full(chosen.shape, 0.5) for stream, chosen in mask.streams().items()}
    arrays["key"][2, 1, 3] = alpha
    with pytest.raises(InputError, match=text.replace("+", r"\+")), weighted_rope(model, mask, alpha):
        pytest.fail(f"alpha {alpha} was accepted")
    with (
        pytest.raises(InputError, match=r"^alpha got .*; it is a number from 0 to 1;"),
        weighted_rope(model, mask, arrays),
    ):
        pytest.fail(f"alpha {alpha} was accepted in an array")


@pytest.mark.parametrize("alpha", [-0.5, 1.5])
def test_other_finite_weights_are_taken_when_asked_for(alpha: float) -> None:
    model, mask = LLAMA.shared(), some_pairs(LLAMA)
    with scaling_both(LLAMA, model, weights_of(mask, alpha)):
        expected = at_once(model)
    with weighted_rope(model, mask, alpha, allow_any_alpha=True):
        torch.testing.assert_close(at_once(model), expected, rtol=1e-4, atol=1e-4)
    arrays = {stream: np.full(chosen.shape, alpha) for stream, chosen in mask.streams().items()}
    with weighted_rope(model, mask, arrays, allow_any_alpha=True):
        torch.testing.assert_close(at_once(model), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("alpha", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_never_taken(alpha: float) -> None:
    context = weighted_rope(LLAMA.shared(), some_pairs(LLAMA), alpha, allow_any_alpha=True)
    with pytest.raises(InputError, match=rf"^alpha got {alpha}; "), context:
        pytest.fail(f"alpha {alpha} was accepted")


def test_weights_of_another_shape_or_stream_are_refused() -> None:
    model, mask = LLAMA.shared(), some_pairs(LLAMA)
    per_pair = "weights per pair are a mapping of query and key to arrays of the mask's shape"
    fitting = {stream: np.ones(chosen.shape) for stream, chosen in mask.streams().items()}
    for alpha, text in (
        (fitting | {"query": np.ones((4, 4))}, r"weights of query have shape \(4, 4\); the mask's is \(4, 4, 8\)"),
        (fitting | {"key": np.ones((4, 4, 8))}, r"weights of key have shape \(4, 4, 8\); the mask's is \(4, 2, 8\)"),
        ({"query": fitting["query"]}, rf"alpha got weights of query; {per_pair}"),
        ({}, rf"alpha got weights of nothing; {per_pair}"),
        (fitting["query"], rf"alpha got an array of shape \(4, 4, 8\); {per_pair}"),
    ):
        with pytest.raises(InputError, match=f"^{text}"), weighted_rope(model, mask, alpha):
            pytest.fail("weights that do not fit were accepted")


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), -0.1, 1.1])
def test_a_strength_outside_0_to_1_is_refused(strength: float) -> None:
    text = rf"^strength got {strength}; it is a number from 0 to 1$"
    with pytest.raises(InputError, match=text), derotated(LLAMA.shared(), some_pairs(LLAMA), strength=strength):
        pytest.fail(f"strength {strength} was accepted")


@pytest.mark.parametrize("build", [LLAMA.build, turning_on_its_own])
@pytest.mark.parametrize("intervention", [lambda model, mask: weighted_rope(model, mask, 0.3), derotated])
def test_an_open_intervention_follows_the_model_to_another_device(
    build: Callable[[], PreTrainedModel],
    intervention: Callable[[PreTrainedModel, PairMask], AbstractContextManager[None]],
) -> None:
    model = build()
    with intervention(model, some_pairs(LLAMA)):
        logits = model.to("meta")(tokens(1).to("meta")).logits
    assert logits.device.type == "meta"
