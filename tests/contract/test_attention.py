"""The seam sees what attention uses, changes only what it is told to change, and leaves nothing behind."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from architectures import ARCHITECTURES, GEMMA3, GPT2, LLAMA, QWEN3, VOCABULARY, Architecture, state_of, tokens
from matrix import every_architecture, left_padding, plain
from ropescope.base.errors import ModelError, NonFiniteError
from ropescope.model.attention import AttentionCall, intercepted

pytestmark = pytest.mark.usefixtures("one_thread", "no_gradients")

IMPLEMENTATIONS = [
    pytest.param(architecture, implementation, id=f"{architecture}-{implementation}")
    for architecture in ARCHITECTURES
    for implementation in architecture.implementations
]
every_implementation = pytest.mark.parametrize(("architecture", "implementation"), IMPLEMENTATIONS)


def left_padded(model: PreTrainedModel) -> Tensor:
    ids = tokens(3)
    return model(ids, attention_mask=left_padding(*ids.shape), use_cache=False).logits


def prefill_and_steps(model: PreTrainedModel) -> Tensor:
    ids = tokens(2)
    out = model(ids[:, :40], use_cache=True)
    logits = [out.logits]
    for step in range(40, ids.shape[1]):
        out = model(ids[:, step : step + 1], past_key_values=out.past_key_values, use_cache=True)
        logits.append(out.logits)
    return torch.cat(logits, dim=1)


def generated(model: PreTrainedModel) -> Tensor:
    ids = tokens(3, 30)
    out = model.generate(
        ids,
        attention_mask=left_padding(*ids.shape),
        max_new_tokens=6,
        min_new_tokens=6,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return torch.stack(out.logits, dim=1)


class Recorder:
    """An observing handler that remembers the calls."""

    def __init__(self) -> None:
        self.calls: list[AttentionCall] = []

    def __call__(self, call: AttentionCall) -> None:
        self.calls.append(call)

    @property
    def layers(self) -> list[int]:
        return [call.layer for call in self.calls]


def doubled_query(call: AttentionCall) -> tuple[Tensor, Tensor]:
    return call.query * 2, call.key


@every_architecture
def test_matrix_runs_the_implementations_that_the_modelling_code_supports(architecture: Architecture) -> None:
    assert ("sdpa" in architecture.implementations) == type(architecture.shared())._supports_sdpa


@every_implementation
@pytest.mark.parametrize("run", [plain, left_padded, prefill_and_steps, generated])
def test_observing_leaves_logits_bit_equal(
    architecture: Architecture, implementation: str, run: Callable[[PreTrainedModel], Tensor]
) -> None:
    model = architecture.shared(implementation=implementation)
    stock = run(model)
    recorder = Recorder()
    with intercepted(model, recorder):
        observed = run(model)
    assert stock.isfinite().all()
    assert torch.equal(observed, stock)
    assert set(recorder.layers) == {expected.layer for expected in architecture.expected()}


@every_implementation
def test_returning_the_same_values_leaves_logits_bit_equal(architecture: Architecture, implementation: str) -> None:
    model = architecture.shared(implementation=implementation)
    stock = left_padded(model)
    with intercepted(model, lambda call: (call.query * 1, call.key)):
        rewritten = left_padded(model)
    assert torch.equal(rewritten, stock)


@pytest.mark.slow
@every_architecture
@pytest.mark.parametrize("run", [plain, prefill_and_steps])
def test_rewriting_the_query_changes_the_logits(
    architecture: Architecture, run: Callable[[PreTrainedModel], Tensor]
) -> None:
    model = architecture.shared()
    stock = run(model)
    with intercepted(model, doubled_query):
        rewritten = run(model)
    assert rewritten.isfinite().all()
    change = (rewritten - stock).abs().amax((0, 2)) / stock.abs().max()
    # The first position attends to itself alone.
    assert change[1:].min() > 1e-4


@every_architecture
def test_doubling_the_key_is_doubling_the_query(architecture: Architecture) -> None:
    model = architecture.shared()
    with intercepted(model, doubled_query):
        by_query = plain(model)
    with intercepted(model, lambda call: (call.query, call.key * 2)):
        by_key = plain(model)
    assert torch.equal(by_query, by_key)


@every_architecture
def test_calls_come_once_per_layer_with_the_heads_of_the_config(architecture: Architecture) -> None:
    recorder = Recorder()
    model = architecture.shared()
    with intercepted(model, recorder):
        plain(model)
    assert recorder.layers == [expected.layer for expected in architecture.expected()]
    for call, expected in zip(recorder.calls, architecture.expected(), strict=True):
        assert call.query.shape == (2, expected.heads, 48, expected.head_dim)
        assert call.key.shape == (2, expected.kv_heads, 48, expected.head_dim)
        assert "attention_mask" in call.arguments


def test_with_a_cache_the_key_holds_all_positions_so_far() -> None:
    recorder = Recorder()
    model = LLAMA.shared()
    with intercepted(model, recorder):
        prefill_and_steps(model)
    lengths = [(call.query.shape[2], call.key.shape[2]) for call in recorder.calls if call.layer == 0]
    assert lengths == [(40, 40), *((1, 40 + step) for step in range(1, 9))]


def test_query_and_key_of_llama_are_its_projections_rotated() -> None:
    model = LLAMA.shared()
    projected: dict[str, Tensor] = {}
    attention = model.model.layers[1].self_attn
    modules = {"query": attention.q_proj, "key": attention.k_proj, "angles": model.model.rotary_emb}
    hooks = [
        module.register_forward_hook(lambda _module, _args, output, name=name: projected.__setitem__(name, output))
        for name, module in modules.items()
    ]
    recorder = Recorder()
    with intercepted(model, recorder):
        plain(model)
    for hook in hooks:
        hook.remove()
    heads = [projected[name].unflatten(-1, (-1, attention.head_dim)).transpose(1, 2) for name in ("query", "key")]
    query, key = apply_rotary_pos_emb(*heads, *projected["angles"])
    assert torch.equal(recorder.calls[1].query, query)
    assert torch.equal(recorder.calls[1].key, key)


@every_implementation
def test_nothing_is_left(architecture: Architecture, implementation: str) -> None:
    model = architecture.build(implementation=implementation)
    plain(model)
    before = state_of(model)
    with intercepted(model, doubled_query):
        assert state_of(model) != before
        plain(model)
    assert state_of(model) == before


@every_architecture
def test_nothing_is_left_after_an_error_in_the_handler(architecture: Architecture) -> None:
    model = architecture.build()
    stock = plain(model)
    before = state_of(model)

    last = architecture.expected()[-1].layer

    def fail(call: AttentionCall) -> None:
        if call.layer == last:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), intercepted(model, fail):
        plain(model)
    assert state_of(model) == before
    assert torch.equal(plain(model), stock)


@every_architecture
def test_nothing_is_left_after_an_error_in_the_context(architecture: Architecture) -> None:
    model = architecture.build()
    before = state_of(model)
    with pytest.raises(ZeroDivisionError), intercepted(model, Recorder()):
        raise ZeroDivisionError
    assert state_of(model) == before


def test_nothing_is_left_after_an_error_inside_attention() -> None:
    model = LLAMA.build()
    plain(model)
    before = state_of(model)
    with pytest.raises(RuntimeError), intercepted(model, lambda call: (call.query[..., :3], call.key)):
        plain(model)
    assert state_of(model) == before


def test_another_model_of_the_process_is_not_seen() -> None:
    model, other = LLAMA.build(), LLAMA.build(seed=1)
    stock = plain(other)
    recorder = Recorder()
    with intercepted(model, recorder):
        unaffected = plain(other)
        assert not recorder.calls
    assert torch.equal(unaffected, stock)


def test_another_model_built_from_the_very_same_config_object_is_not_seen() -> None:
    config = LLAMA.config()
    model, other = LlamaForCausalLM(config).eval(), LlamaForCausalLM(config).eval()
    stock = plain(other)
    recorder = Recorder()
    with intercepted(model, recorder):
        unaffected = plain(other)
        assert not recorder.calls
    assert torch.equal(unaffected, stock)


def test_two_models_are_intercepted_side_by_side() -> None:
    model, other = LLAMA.shared(), QWEN3.shared()
    stock = plain(model), plain(other)
    first, second = Recorder(), Recorder()
    with intercepted(model, first), intercepted(other, second):
        both = plain(model), plain(other)
    assert len(first.calls) == len(second.calls) == 4
    assert all(map(torch.equal, both, stock))


@every_implementation
def test_nested_contexts_both_see_every_call(architecture: Architecture, implementation: str) -> None:
    model = architecture.shared(implementation=implementation)
    stock = left_padded(model)
    outer, inner = Recorder(), Recorder()
    with intercepted(model, outer), intercepted(model, inner):
        observed = left_padded(model)
    assert torch.equal(observed, stock)
    assert outer.layers == inner.layers == [expected.layer for expected in architecture.expected()]


def test_the_outer_context_sees_what_the_inner_one_returns() -> None:
    model = LLAMA.shared()
    with intercepted(model, doubled_query):
        doubled = plain(model)
    outer, stock = Recorder(), Recorder()
    with intercepted(model, stock):
        plain(model)
    with intercepted(model, outer):
        with intercepted(model, doubled_query):
            assert torch.equal(plain(model), doubled)
        first_layer = outer.calls[0].query
        outer.calls.clear()
        plain(model)
    assert torch.equal(first_layer, stock.calls[0].query * 2)
    assert torch.equal(outer.calls[0].query, stock.calls[0].query)


def test_leaving_nested_contexts_restores_each() -> None:
    model = GEMMA3.build()
    plain(model)
    before = state_of(model)
    with intercepted(model, Recorder()):
        between = state_of(model)
        with intercepted(model, Recorder()):
            plain(model)
        assert state_of(model) == between
    assert state_of(model) == before


@contextmanager
def registered(name: str, attention: Callable[..., Any], mask: Callable[..., Any]) -> Iterator[None]:
    ALL_ATTENTION_FUNCTIONS.register(name, attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(name, mask)
    try:
        yield
    finally:
        del ALL_ATTENTION_FUNCTIONS._global_mapping[name], ALL_MASK_ATTENTION_FUNCTIONS._global_mapping[name]


@pytest.mark.parametrize("name", ["flash_of_our_own", "paged-flash", "own"])
def test_an_implementation_sees_its_own_name_and_gets_its_own_mask(name: str) -> None:
    names_seen, masks_made, masks_got = [], [], []

    def attention(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **rest: Any) -> Any:
        names_seen.append(module.config._attn_implementation)
        masks_got.append(mask)
        return sdpa_attention_forward(module, query, key, value, mask, **rest)

    def mask(*args: Any, **kwargs: Any) -> Tensor | None:
        masks_made.append(sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False}))
        return masks_made[-1]

    model = LLAMA.build()
    stock = left_padded(model)
    with registered(name, attention, mask):
        model.config._attn_implementation = name
        recorder = Recorder()
        with intercepted(model, recorder):
            assert ("flash" in model.config._attn_implementation) == ("flash" in name)
            observed = left_padded(model)
            assert model.config._attn_implementation != name
        assert model.config._attn_implementation == name
    assert names_seen == [name] * 4
    assert len(masks_made) == 1
    assert all(got is masks_made[0] for got in masks_got)
    assert all(call.arguments["attention_mask"] is masks_made[0] for call in recorder.calls)
    torch.testing.assert_close(observed, stock)


def test_the_implementation_may_change_between_two_contexts() -> None:
    model = LLAMA.build(implementation="sdpa")
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        stock = left_padded(model)
        with intercepted(model, Recorder()):
            assert torch.equal(left_padded(model), stock)
        assert model.config._attn_implementation == implementation


def test_gradients_flow_through_a_rewritten_query() -> None:
    model = LLAMA.shared()
    scale = torch.ones((), requires_grad=True)
    with torch.enable_grad(), intercepted(model, lambda call: (call.query * scale, call.key)):
        plain(model).square().sum().backward()
    assert scale.grad is not None
    assert scale.grad.abs() > 0
    model.zero_grad(set_to_none=True)


def test_dropout_of_a_training_model_draws_as_without_the_seam() -> None:
    model = GPT2.build().train()
    torch.manual_seed(0)
    stock = plain(model)
    torch.manual_seed(0)
    with intercepted(model, Recorder()):
        assert torch.equal(plain(model), stock)


@pytest.mark.parametrize(
    ("config_class", "settings"),
    [
        ("Gemma3Config", {"image_token_index": 90, "boi_token_index": 91, "eoi_token_index": 92}),
        ("Llama4Config", {"image_token_index": 90, "boi_token_index": 91, "eoi_token_index": 92}),
    ],
)
def test_the_language_model_inside_a_multimodal_one_is_seen(config_class: str, settings: dict[str, Any]) -> None:
    text = next(a for a in ARCHITECTURES if a.config_class == config_class.replace("Config", "TextConfig"))
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = getattr(transformers, config_class)(text_config=dict(text.settings), vision_config=vision, **settings)
    model = transformers.AutoModelForImageTextToText.from_config(config).eval()
    before = state_of(model)
    stock = left_padded(model)
    recorder = Recorder()
    with intercepted(model, recorder):
        assert torch.equal(left_padded(model), stock)
    assert recorder.layers == list(range(config.text_config.num_hidden_layers))
    assert state_of(model) == before


@pytest.mark.parametrize(
    ("config_class", "settings"),
    [
        ("FalconConfig", {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}),
        ("BloomConfig", {"hidden_size": 64, "n_layer": 2, "n_head": 4}),
        ("GPTJConfig", {"n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 16, "n_positions": 64}),
        ("MptConfig", {"d_model": 64, "n_layers": 2, "n_heads": 4, "max_seq_len": 64}),
    ],
)
def test_a_model_that_bypasses_the_interface_is_refused(config_class: str, settings: dict[str, Any]) -> None:
    special = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2}
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, config_class)(**special, **settings))
    before = state_of(model)
    text = (
        r"does not call attention through transformers' attention interface, so its queries and keys cannot be seen; "
        r"use a model that does \(Llama, Qwen"
    )
    with pytest.raises(ModelError, match=f"^{type(model.get_decoder()).__name__} {text}"), intercepted(model, print):
        pytest.fail("a model that bypasses the interface was accepted")
    assert state_of(model) == before


class TwoOf:
    """The second of `size` processes, each of which holds an equal part of the heads."""

    rank = 1

    def __init__(self, size: int) -> None:
        self.size = size

    def concatenated(self, part: Tensor, dim: int) -> Tensor:
        return torch.cat([part + 10 * rank for rank in range(self.size)], dim)


def a_call(workers: Any = None) -> AttentionCall:
    heads = torch.ones(2, 4, 6, 8), torch.ones(2, 2, 6, 8)
    return AttentionCall(3, *heads, {}) if workers is None else AttentionCall(3, *heads, {}, workers)


def test_a_process_alone_holds_all_heads() -> None:
    call = a_call()
    assert (call.heads, call.kv_heads) == (slice(0, 4), slice(0, 2))
    assert torch.equal(call.all_heads(call.query, 1), call.query)


def test_a_process_of_several_holds_the_heads_of_its_rank() -> None:
    call = a_call(TwoOf(3))
    assert (call.heads, call.kv_heads) == (slice(4, 8), slice(2, 4))


@pytest.mark.parametrize("dim", [0, 2])
def test_all_heads_are_put_together_along_the_dimension_asked_for(dim: int) -> None:
    values = torch.arange(6.0).view(2, 1, 3)
    expected = torch.cat((values, values + 10), dim)
    assert torch.equal(a_call(TwoOf(2)).all_heads(values, dim), expected)


def test_finite_queries_and_keys_pass() -> None:
    a_call(TwoOf(2)).check_finite()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    ("stream", "alone", "of_several"), [("query", "query of layer 3, head 1 ", "head 5 "), ("key", "key of", "head 3 ")]
)
def test_what_is_not_finite_is_named_by_layer_head_and_position(
    stream: str, alone: str, of_several: str, value: float
) -> None:
    place = r"is not finite at position 5 \(sequence 1 of its batch\); check the weights, or use dtype float32"
    for workers, text in ((None, f"^{alone}"), (TwoOf(2), of_several)):
        call = a_call(workers)
        getattr(call, stream)[1, 1, 5, 7] = value
        with pytest.raises(NonFiniteError, match=rf"{text}.*{place}"):
            call.check_finite()


def test_the_first_place_that_is_not_finite_is_named() -> None:
    call = a_call()
    call.query[0, 2, 4, 0] = call.query[1, 0, 0, 0] = torch.inf
    with pytest.raises(NonFiniteError, match=r"head 2 is not finite at position 4 \(sequence 0 "):
        call.check_finite()


def test_an_attention_without_a_layer_index_is_refused() -> None:
    model = LLAMA.build()
    del model.model.layers[2].self_attn.layer_idx
    text = "^LlamaAttention has no layer_idx, so its queries and keys cannot be placed$"
    with pytest.raises(ModelError, match=text), intercepted(model, Recorder()):
        plain(model)


def test_an_implementation_that_the_file_of_the_module_does_not_define_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = LLAMA.build(implementation="eager")
    # What a file of modelling code without an eager attention looks like from outside.
    monkeypatch.setitem(
        sys.modules, type(model).__module__, SimpleNamespace(ALL_ATTENTION_FUNCTIONS=ALL_ATTENTION_FUNCTIONS)
    )
    text = "^LlamaAttention runs 'eager' attention, but its file does not define it$"
    with pytest.raises(ModelError, match=text), intercepted(model, Recorder()):
        plain(model)


def held_by(monkeypatch: pytest.MonkeyPatch, processes: int, heads: int) -> list[AttentionCall]:
    """Calls of a Llama whose layers have `heads` query heads, 4 of which this process of several gives attention."""
    monkeypatch.setattr("ropescope.model.attention.holders", lambda _model: TwoOf(processes))
    model, recorder = LLAMA.build(), Recorder()
    model.config.num_attention_heads = heads
    with intercepted(model, recorder):
        plain(model)
    return recorder.calls


def test_a_process_alone_holds_whatever_heads_a_layer_has(monkeypatch: pytest.MonkeyPatch) -> None:
    for call in held_by(monkeypatch, processes=1, heads=9):
        assert (call.heads, call.kv_heads) == (slice(0, 4), slice(0, 2))


def test_heads_that_processes_divide_are_those_of_the_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    for call in held_by(monkeypatch, processes=2, heads=8):
        assert (call.heads, call.kv_heads) == (slice(4, 8), slice(2, 4))


def test_heads_that_every_process_holds_are_not_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    for call in held_by(monkeypatch, processes=2, heads=4):
        assert (call.heads, call.kv_heads) == (slice(0, 4), slice(0, 2))
        assert torch.equal(call.all_heads(call.query, 1), call.query)


def test_heads_that_processes_divide_unevenly_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        r"^layer 0 has 9 query heads, of which process 1 of 2 holds 4; use a number of processes that divides the "
        r"query and the key heads$"
    )
    with pytest.raises(ModelError, match=text):
        held_by(monkeypatch, processes=2, heads=9)
