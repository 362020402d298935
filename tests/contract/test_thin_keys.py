"""Thin keys do in a window what their cache does token by token, on every architecture, and leave nothing behind."""

from __future__ import annotations

import functools
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, StaticCache

from architectures import (
    ARCHITECTURES,
    DEEPSEEK,
    GEMMA3,
    GEMMA4,
    LLAMA,
    LLAMA4,
    QWEN3,
    QWEN3_NEXT,
    Architecture,
    state_of,
    tokens,
)
from matrix import left_padding
from ropescope.base.errors import InputError, ModelError
from ropescope.compression.forms import Dropped
from ropescope.compression.planning import Planner, plan_keys, planner_of
from ropescope.compression.plans import KeyPlan
from ropescope.compression.sinks import Sinks
from ropescope.compression.thinning import thin_keys
from ropescope.compression.turning import Forward
from ropescope.interventions.derotation import derotated
from ropescope.interventions.selection import select
from ropescope.interventions.weighting import weighted_rope
from ropescope.measurement.measure import measure
from ropescope.model.attention import intercepted
from ropescope.model.identity import model_provenance

pytestmark = pytest.mark.usefixtures("one_thread", "no_gradients")

WITH_KEYS = [architecture for architecture in ARCHITECTURES if architecture is not DEEPSEEK]
# What another architecture could do otherwise: sliding windows, shared keys, states beside keys.
SEVERAL = [LLAMA, GEMMA3, GEMMA4, QWEN3_NEXT]

every_architecture = pytest.mark.parametrize("architecture", WITH_KEYS, ids=str)
several = pytest.mark.parametrize("architecture", SEVERAL, ids=str)
both_methods = pytest.mark.parametrize("method", ["latent", "drop"])


@functools.cache
def planner(architecture: Architecture, sinks: int) -> Planner:
    return planner_of(architecture.shared(), tokens(8, 48, seed=5), metric="query", sinks=sinks)


@functools.cache
def plan_of(architecture: Architecture, method: str = "latent", keep: float = 0.6, sinks: int = 2) -> KeyPlan:
    if method == "drop" and any(layer.size < layer.head_dim for layer in architecture.expected()):
        # What does not turn stays.
        keep = max(keep, 0.95)
    return planner(architecture, sinks).plan(keep, method)


def change(logits: Tensor, other: Tensor) -> float:
    return float((logits - other).abs().max() / other.abs().max())


def at_once(model: PreTrainedModel, ids: Tensor, **arguments: Any) -> Tensor:
    return model(ids, use_cache=False, **arguments).logits


def in_parts(model: PreTrainedModel, cache: Any, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """A prefill in two chunks, single tokens, then several at once."""
    logits = []
    for start, stop in ((0, 20), (20, 40), (40, 41), (41, 42), (42, 48)):
        given = {} if mask is None else {"attention_mask": mask[:, :stop]}
        logits.append(model(ids[:, start:stop], past_key_values=cache, **given).logits)
    return torch.cat(logits, 1)


def key_bytes(cache: Any) -> int:
    return sum(layer.keys.nbytes for layer in cache.layers if getattr(layer, "keys", None) is not None)


# What must not change anything


@pytest.mark.slow
@every_architecture
def test_all_that_is_kept_gives_the_stock_logits(architecture: Architecture) -> None:
    model, ids = architecture.shared(), tokens(2)
    for method in ("latent", "drop"):
        plan = plan_of(architecture, method, keep=1.0)
        with thin_keys(model, plan):
            assert change(at_once(model, ids), model_logits(architecture)) < 2e-5
            assert change(in_parts(model, plan.cache(), ids), model_logits(architecture)) < 1e-4


@functools.cache
def model_logits(architecture: Architecture) -> Tensor:
    return at_once(architecture.shared(), tokens(2))


def test_pairs_that_are_silent_in_keys_can_be_dropped_for_nothing() -> None:
    model, ids = QWEN3.build(), tokens(2)
    for layer in model.model.layers:
        layer.self_attn.k_norm.weight[[1, 9, 4, 12]] = 0.0
    stock = at_once(model, ids)
    plan = plan_keys(model, tokens(8, 48, seed=5), keep=0.77, method="drop", metric="query", sinks=0)
    assert {tuple(plan.layers[0].dimensions.shape)} == {(2, 12)}
    assert all({1, 9, 4, 12}.isdisjoint(layer.dimensions.flatten().tolist()) for layer in plan.layers)
    with thin_keys(model, plan):
        torch.testing.assert_close(at_once(model, ids), stock, atol=1e-5, rtol=1e-5)


# The cache and the window


@pytest.mark.slow
@both_methods
@every_architecture
def test_the_cache_gives_what_the_window_gives(architecture: Architecture, method: str) -> None:
    model, plan, ids = architecture.shared(), plan_of(architecture, method), tokens(2)
    with thin_keys(model, plan):
        window = at_once(model, ids)
        cache = plan.cache()
        torch.testing.assert_close(in_parts(model, cache, ids), window, atol=1e-3, rtol=1e-3)
    assert change(window, model_logits(architecture)) > 1e-3, "the keys are thinned"
    stock = model(ids, use_cache=True).past_key_values
    assert cache.key_bytes() <= plan.provenance["parameters"]["keep"] * key_bytes(stock)
    assert cache.get_seq_length() == 48


@pytest.mark.slow
@every_architecture
def test_left_padded_rows_are_thinned_as_if_they_stood_alone(architecture: Architecture) -> None:
    model, plan, ids = architecture.shared(), plan_of(architecture), tokens(3)
    mask = left_padding(*ids.shape)
    places = mask.cumsum(1).sub(1).clamp_min(0)
    with thin_keys(model, plan):
        window = at_once(model, ids, attention_mask=mask)
        cached = in_parts(model, plan.cache(), ids, mask)
        torch.testing.assert_close(cached[mask.bool()], window[mask.bool()], atol=1e-3, rtol=1e-3)
        if architecture not in (LLAMA4, QWEN3_NEXT):  # chunks and states of these are of places, not of tokens
            padded = at_once(model, ids, attention_mask=mask, position_ids=places)
            alone = at_once(model, ids[2:, 14:])
            torch.testing.assert_close(padded[2:, 14:], alone, atol=1e-3, rtol=1e-3)


@pytest.mark.slow
@both_methods
@every_architecture
def test_generating_with_the_cache_is_generating_without_one(architecture: Architecture, method: str) -> None:
    model, plan = architecture.shared(), plan_of(architecture, method)
    given = {"input_ids": tokens(2, 24), "max_new_tokens": 6, "do_sample": False}
    with thin_keys(model, plan):
        without = model.generate(**given, use_cache=False)
        assert torch.equal(model.generate(**given, past_key_values=plan.cache()), without)


@several
def test_beams_are_reordered_with_their_keys(architecture: Architecture) -> None:
    model, plan = architecture.shared(), plan_of(architecture)
    given = {"input_ids": tokens(2, 24), "max_new_tokens": 8, "num_beams": 3, "do_sample": False}
    with thin_keys(model, plan):
        without = model.generate(**given, use_cache=False)
        assert torch.equal(model.generate(**given, past_key_values=plan.cache()), without)


def first_keys(model: PreTrainedModel, ids: Tensor, mask: Tensor, plan: KeyPlan | None) -> Tensor:
    """Keys of the first layer as attention gets them, (batch, kv_head, position, head_dim)."""
    seen: dict[int, Tensor] = {}
    around = nullcontext() if plan is None else thin_keys(model, plan)
    with intercepted(model, lambda call: seen.__setitem__(call.layer, call.key)), around:
        at_once(model, ids, attention_mask=mask)
    return seen[0]


def test_keys_of_a_texts_first_tokens_stay_whole_wherever_it_begins() -> None:
    model, plan, ids = LLAMA.shared(), plan_of(LLAMA), tokens(3)
    mask = left_padding(*ids.shape)
    apart = (first_keys(model, ids, mask, plan) - first_keys(model, ids, mask, None)).abs().amax((1, 3))
    for row, start in enumerate((0, 7, 14)):
        assert (apart[row, start : start + 2] == 0).all() and (apart[row, start + 2 :] > 1e-3).all()


@pytest.mark.parametrize("architecture", [LLAMA, GEMMA3], ids=str)
def test_where_pairs_are_dropped_a_texts_first_keys_stay_whole_and_one_query_meets_narrow_ones(
    architecture: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, plan, ids = architecture.shared(), plan_of(architecture, "drop"), tokens(3)
    mask, widths, firsts = left_padding(*ids.shape), [], []
    read = Dropped.read

    def watched(form: Dropped, stored: Tensor, like: Tensor, forward: Forward, sinks: Sinks) -> Tensor:
        keys = read(form, stored, like, forward, sinks)
        widths.append((like.shape[2] == 1, keys.shape[-1], stored.shape[-1]))
        if forward.past == 0:
            firsts.extend(
                (keys[row, :, begin : begin + 3] == like[row, :, begin : begin + 3]).all(-1).tolist()
                for row, begin in enumerate((0, 7, 14))
            )
        return keys

    monkeypatch.setattr(Dropped, "read", watched)
    with thin_keys(model, plan):
        cached = in_parts(model, plan.cache(), ids, mask)
        window = at_once(model, ids, attention_mask=mask)
    torch.testing.assert_close(cached[mask.bool()], window[mask.bool()], atol=1e-3, rtol=1e-3)
    whole = plan.layers[0].head_dim
    assert all(width == (min(stored + plan.sinks, whole) if one else whole) for one, width, stored in widths)
    assert min(width for one, width, _ in widths if one) < whole
    assert all(head[:2] == [True, True] and not head[2] for heads in firsts for head in heads)


@pytest.mark.parametrize("architecture", [LLAMA, GEMMA4], ids=str)
def test_what_is_cropped_can_be_said_again(architecture: Architecture) -> None:
    model, plan, ids = architecture.shared(), plan_of(architecture), tokens(2)
    with thin_keys(model, plan):
        cache = plan.cache()
        cache.activate_past_recording()
        model(ids[:, :40], past_key_values=cache)
        model(tokens(2, 8, seed=9), past_key_values=cache)
        cache.crop(-8)
        again = model(ids[:, 40:], past_key_values=cache).logits
        torch.testing.assert_close(again, at_once(model, ids)[:, 40:], atol=1e-3, rtol=1e-3)
    assert cache.positions.shape == (2, 48)


def test_assisted_decoding_crops_what_it_guessed_wrongly() -> None:
    model, plan = LLAMA.shared(), plan_of(LLAMA)
    given = {"input_ids": tokens(1, 12).repeat(1, 3), "max_new_tokens": 12, "do_sample": False}
    with thin_keys(model, plan):
        plain = model.generate(**given, past_key_values=plan.cache())
        assisted = model.generate(**given, past_key_values=plan.cache(), prompt_lookup_num_tokens=4)
    assert torch.equal(assisted, plain)


def test_rows_of_a_cache_are_repeated_and_chosen() -> None:
    model, plan, ids = LLAMA.shared(), plan_of(LLAMA), tokens(2)
    mask = left_padding(*ids.shape)
    with thin_keys(model, plan):
        cache = plan.cache()
        model(ids[:, :40], attention_mask=mask[:, :40], past_key_values=cache)
        cache.batch_repeat_interleave(2)
        cache.batch_select_indices(torch.tensor([3, 1]))
        swapped, both = ids[[1, 0]], mask[[1, 0]]
        found = model(swapped[:, 40:], attention_mask=both, past_key_values=cache).logits
        window = at_once(model, swapped, attention_mask=both)[:, 40:]
    torch.testing.assert_close(found, window, atol=1e-3, rtol=1e-3)
    cache.reset()
    assert cache.get_seq_length() == 0 and cache.key_bytes() == 0


def test_a_forward_that_would_make_its_own_cache_gets_a_thin_one() -> None:
    model, plan = LLAMA.shared(), plan_of(LLAMA)
    with thin_keys(model, plan):
        out = model(tokens(2))
        assert out.past_key_values.plan is plan
        torch.testing.assert_close(out.logits, at_once(model, tokens(2)), atol=1e-5, rtol=1e-5)


def test_the_key_tensors_themselves_are_smaller_and_values_are_untouched() -> None:
    model, plan, ids = LLAMA.shared(), plan_of(LLAMA), tokens(2)
    stock = model(ids[:, :1], use_cache=True).past_key_values
    with thin_keys(model, plan):
        cache = model(ids[:, :1]).past_key_values
    for layer, planned, own in zip(cache.layers, plan.layers, stock.layers, strict=True):
        assert layer.keys.shape == (2, 1, 1, planned.kept) and planned.kept < planned.whole
        assert layer.values.shape == own.values.shape
    assert torch.equal(cache.layers[0].values, stock.layers[0].values)


def test_half_precision_stores_half_precision() -> None:
    model = LLAMA.shared(torch.bfloat16)
    plan = plan_keys(model, tokens(8, 48, seed=5), keep=0.6, metric="query")
    with thin_keys(model, plan):
        out = model(tokens(2))
        window = at_once(model, tokens(2))
    assert {layer.keys.dtype for layer in out.past_key_values.layers} == {torch.bfloat16}
    assert change(out.logits.float(), window.float()) < 0.02


# What is around it


@both_methods
@pytest.mark.parametrize("architecture", [LLAMA, LLAMA4, GEMMA4], ids=str)
def test_nothing_is_left_behind_also_after_an_error(architecture: Architecture, method: str) -> None:
    model, plan = architecture.shared(), plan_of(architecture, method)
    before = state_of(model)
    with thin_keys(model, plan):
        model(tokens(1))
    assert state_of(model) == before
    with pytest.raises(RuntimeError, match="stop"), thin_keys(model, plan):
        raise RuntimeError("stop")
    assert state_of(model) == before


def test_other_interventions_nest() -> None:
    model, plan = LLAMA.shared(), plan_of(LLAMA, "drop")
    mask = select(measure(model, tokens(1), frame_length=16, hop_length=8), "pair < 4")
    with thin_keys(model, plan):
        thin = at_once(model, tokens(2))
        with weighted_rope(model, mask, 1.0):
            torch.testing.assert_close(at_once(model, tokens(2)), thin)
        with weighted_rope(model, mask, 0.5):
            assert change(at_once(model, tokens(2)), thin) > 1e-3


def test_what_would_change_keys_first_or_meet_narrow_ones_is_refused() -> None:
    model, ids = LLAMA.shared(), tokens(2)
    mask = select(measure(model, tokens(1), frame_length=16, hop_length=8), "pair < 4")
    with derotated(model, mask), thin_keys(model, plan_of(LLAMA)):
        window = at_once(model, ids)
        torch.testing.assert_close(in_parts(model, plan_of(LLAMA).cache(), ids), window, atol=1e-3, rtol=1e-3)
        assert model_provenance(model)["interventions"][1].startswith("thin_keys ")
    inside = pytest.raises(InputError, match=r"derotated .* is open inside thin_keys")
    with thin_keys(model, plan_of(LLAMA)), derotated(model, mask), inside:
        at_once(model, ids)
    around = pytest.raises(InputError, match=r"weighted_rope .* is open around thin_keys")
    with weighted_rope(model, mask, 0.5), around, thin_keys(model, plan_of(LLAMA, "drop")):
        pass


def test_another_cache_is_an_error_and_no_silent_stock_run() -> None:
    model, plan, ids = LLAMA.shared(), plan_of(LLAMA), tokens(2)
    caches = [DynamicCache(config=model.config), StaticCache(config=model.config, max_cache_len=64)]
    with thin_keys(model, plan):
        for cache in caches:
            with pytest.raises(InputError, match=rf"got a {type(cache).__name__} inside thin_keys.*plan\.cache\(\)"):
                model(ids, past_key_values=cache)
        with pytest.raises(InputError, match="got a DynamicCache inside thin_keys"):
            model.generate(ids, max_new_tokens=2)
        with pytest.raises(InputError, match="a cache of another plan"):
            model(ids, past_key_values=plan_of(LLAMA, keep=0.7).cache())
    with pytest.raises(InputError, match=r"inside 'with thin_keys\(model, plan\)' only"):
        model(ids, past_key_values=plan.cache())


def test_a_batch_larger_than_the_cache_is_refused_in_one_line() -> None:
    model, plan = LLAMA.shared(), plan_of(LLAMA)
    with thin_keys(model, plan):
        cache = model(tokens(2, 8)).past_key_values
        with pytest.raises(InputError, match=r"a batch of 3 with a cache of 2 rows; make a new plan\.cache\(\)"):
            model(tokens(3, 1), past_key_values=cache)


def test_a_mask_that_hides_where_texts_begin_is_refused() -> None:
    model, plan = LLAMA.shared(), plan_of(LLAMA)
    with thin_keys(model, plan), pytest.raises(InputError, match="attention mask that is not"):
        model(tokens(1, 8), attention_mask=torch.ones(1, 1, 8, 8, dtype=torch.bool), use_cache=False)


def test_a_plan_of_other_weights_is_refused() -> None:
    plan = plan_of(LLAMA)
    with pytest.raises(InputError, match="made for other weights"), thin_keys(LLAMA.build(seed=1), plan):
        pass
    with pytest.raises(InputError, match="made for other weights"), thin_keys(QWEN3.shared(), plan):
        pass


def test_keys_that_are_made_from_a_latent_are_refused_with_the_reason() -> None:
    with pytest.raises(ModelError, match=r"from a latent of its own \(MLA\)"):
        plan_keys(DEEPSEEK.shared(), tokens(4), keep=0.5)
