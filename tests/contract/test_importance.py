"""Importance is what finite differences and exact enumeration say, on every architecture, and leaves nothing behind."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import xarray as xr
from torch import Tensor, nn
from transformers import PreTrainedModel

import ropescope as rs
from architectures import ARCHITECTURES, LLAMA, LONGROPE, SMOLLM3, Architecture, state_of, tokens
from ropescope.base.axes import HEAD_AXIS, STREAMS
from ropescope.base.errors import InputError, ModelError, NonFiniteError, ResultError
from ropescope.interventions.derotation import turning_back
from ropescope.interventions.masks import PairMask, labelled
from ropescope.interventions.weighting import scaling
from ropescope.measurement import importance as module
from ropescope.measurement.importance import importance
from ropescope.measurement.results import IMPORTANCE, load, provenance
from ropescope.model.attention import AttentionCall, Handler, intercepted
from ropescope.model.card import RotaryCard
from ropescope.model.probing import probe
from tiny import SIZES

pytestmark = pytest.mark.usefixtures("one_thread")

WINDOWS = tokens(2, 24)


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> None:
    """Modelling code that computes norms and softmax in float32, whatever the model's dtype, does so in float64."""
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(torch, "float", torch.float64)
    monkeypatch.setattr(Tensor, "float", Tensor.double)


def in_double(architecture: Architecture) -> PreTrainedModel:
    """A model in float64, its experts one by one: the kernels that group them know no float64."""
    model = architecture.build(torch.float64)
    model.set_experts_implementation("eager")
    return model


def no_mask(card: RotaryCard) -> PairMask:
    """A mask of a model without measuring it, nothing selected."""
    pairs = max(rotation.pairing.pairs for rotation in card.layers)
    arrays = {}
    for stream, axis in HEAD_AXIS.items():
        counts = [rotation.heads if stream == "query" else rotation.kv_heads for rotation in card.layers]
        present = np.zeros((len(counts), max(counts), pairs), dtype=bool)
        for row, (count, rotation) in enumerate(zip(counts, card.layers, strict=True)):
            present[row, :count, : rotation.pairing.pairs] = True
        layers = np.array([rotation.layer for rotation in card.layers])
        arrays |= {
            f"{stream}_present": labelled(present, layers, axis),
            stream: labelled(present & False, layers, axis),
        }
    pairing = tuple(str(rotation.pairing) for rotation in card.layers)
    return PairMask(**arrays, pairing=pairing, provenance={"selection": "none"})


def one_pair(none: PairMask, stream: str, place: tuple[int, int, int]) -> PairMask:
    chosen = {name: array.copy() for name, array in none.streams().items()}
    chosen[stream].values[place] = True
    return none.replaced(chosen["query"], chosen["key"], "one pair")


def nats(model: PreTrainedModel, window: Tensor) -> float:
    """Negative log-likelihood of a window's next tokens, nats per token."""
    with torch.no_grad():
        likelihood = model(window[None]).logits[0, :-1].log_softmax(-1).gather(-1, window[1:, None])
    return -float(likelihood.mean())


def slope(model: PreTrainedModel, window: Tensor, plain: float, at: Callable[[float], Handler], step: float) -> float:
    """Derivative at 0, where the loss is `plain`, from values on one side of it, to fourth order.

    `at` gives what an intervention of a strength does, without its look at the model, which never changes here. A step
    that is exact in float32 suits weights.
    """
    total = -25 * plain
    for count, weight in enumerate((48, -36, 16, -3), start=1):
        with intercepted(model, at(count * step)):
            total += weight * nats(model, window)
    return total / (12 * step)


def largest(values: np.ndarray) -> list[tuple[int, ...]]:
    """The pair of the largest value in every layer."""
    return [
        (row, *np.unravel_index(layer.argmax(), layer.shape)) for row, layer in enumerate(np.nan_to_num(abs(values)))
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=str)
def test_gradients_are_finite_differences_of_the_loss(architecture: Architecture) -> None:
    model = in_double(architecture)
    before = state_of(model)
    result, card = importance(model, WINDOWS, draws=1), probe(model)
    assert state_of(model) == before
    none, plain = no_mask(card), nats(model, WINDOWS[0])
    for stream in STREAMS:
        values = result[stream].gradient.values[0]
        for place in largest(values):
            mask = one_pair(none, stream, place)
            expected = slope(model, WINDOWS[0], plain, lambda down, m=mask: scaling(card, m, 1 - down), 2.0**-11)
            assert -values[place] == pytest.approx(expected, rel=1e-4, abs=1e-8), (stream, place)


# LongRoPE's frequencies, made anew in float64, are not the float32 ones that the model was built with.
@pytest.mark.slow
@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("architecture", [each for each in ARCHITECTURES if each is not LONGROPE], ids=str)
def test_rotation_gradients_are_finite_differences_of_the_loss(architecture: Architecture) -> None:
    model = in_double(architecture)
    result, card = importance(model, WINDOWS, draws=1), probe(model)
    none, plain = no_mask(card), nats(model, WINDOWS[0])
    for stream in STREAMS:
        values = result[stream].rotation_gradient.values[0]
        for place in largest(values):
            mask = one_pair(none, stream, place)
            expected = slope(model, WINDOWS[0], plain, lambda s, m=mask: turning_back(model, card, m, s), 2.0**-14)
            assert values[place] == pytest.approx(expected, rel=1e-4, abs=1e-8), (stream, place)


def enumerated(model: PreTrainedModel, window: Tensor) -> dict[str, np.ndarray]:
    """Fisher information of every pair of a window, by every token of the vocabulary at every position."""
    scales: dict[tuple[str, int], Tensor] = {}

    def scaled(call: AttentionCall) -> tuple[Tensor, Tensor]:
        found = []
        for stream, heads in (("query", call.query), ("key", call.key)):
            half = heads.shape[-1] // 2
            leaf = torch.ones(heads.shape[1], 1, half, dtype=heads.dtype, requires_grad=True)
            scales[stream, call.layer] = leaf
            found.append(heads * torch.cat((leaf, leaf), -1))
        return found[0], found[1]

    with intercepted(model, scaled):
        likelihood = model(window[None]).logits[0, :-1].log_softmax(-1)
    total = {place: torch.zeros_like(leaf) for place, leaf in scales.items()}
    for row in likelihood:
        for token in row:
            found = torch.autograd.grad(token, list(scales.values()), retain_graph=True)
            for place, values in zip(scales, found, strict=True):
                total[place] += token.exp().detach() * values.square()
    layers = range(len(scales) // 2)
    return {
        s: np.stack([total[s, layer][:, 0].detach().numpy() / len(likelihood) for layer in layers]) for s in STREAMS
    }


@pytest.mark.slow
def test_fisher_is_what_enumeration_gives_within_sampling_error() -> None:
    config = transformers.LlamaConfig(**SIZES | {"vocab_size": 8, "initializer_range": 0.2})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(config).double().eval()
    window, draws = torch.randint(0, 8, (1, 12), generator=torch.Generator().manual_seed(1)), 600
    result, expected = importance(model, window, draws), enumerated(model, window[0])
    for stream in STREAMS:
        found = result[stream].fisher[0].values
        # squares of sums over 11 tokens are about as wide as a chi-squared variable: sqrt(2 / draws)
        assert found.sum() == pytest.approx(expected[stream].sum(), rel=3 * math.sqrt(2 / draws))
        np.testing.assert_allclose(found, expected[stream], rtol=8 * math.sqrt(2 / draws))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=str)
def test_layers_run_again_give_the_same_bits(architecture: Architecture) -> None:
    model = architecture.build()
    before = state_of(model)
    again = importance(model, WINDOWS, checkpointing=True)
    assert state_of(model) == before
    once = importance(model, WINDOWS)
    for stream in STREAMS:
        xr.testing.assert_identical(again[stream].to_dataset(), once[stream].to_dataset())


def test_silent_pairs_are_worth_exactly_nothing() -> None:
    model = LLAMA.build()
    silence(model.model.layers[1].self_attn.q_proj, heads=4, head=2, pair=3)
    silence(model.model.layers[2].self_attn.k_proj, heads=2, head=1, pair=0)
    result = importance(model, WINDOWS)
    # Queries of the silent key's group scale nothing.
    silent = {"query": [(1, 2, 3), (2, 2, 0), (2, 3, 0)], "key": [(2, 1, 0)]}
    for stream, places in silent.items():
        for name in ("fisher", "gradient"):
            values = result[stream][name].values
            assert [tuple(place) for place in np.argwhere((values == 0).all(0))] == places
            assert (values == 0).sum() == len(places) * len(WINDOWS)


def silence(projection: nn.Linear, heads: int, head: int, pair: int) -> None:
    with torch.no_grad():
        rows = projection.weight.view(heads, 2, -1, projection.in_features)
        rows[head, :, pair] = 0


def test_what_does_not_turn_has_a_rotation_that_is_worth_exactly_nothing() -> None:
    result = importance(SMOLLM3.shared(), WINDOWS)
    rotates = [layer.rotates for layer in SMOLLM3.expected()]
    assert {True, False} == set(rotates)
    for stream in STREAMS:
        worth = result[stream].rotation_fisher.values
        assert (worth[:, [not each for each in rotates]] == 0).all() and (worth[:, rotates] > 0).all()


def test_query_heads_of_a_group_share_the_worth_of_their_rotation() -> None:
    result = importance(LLAMA.shared(), WINDOWS)
    for name in ("rotation_fisher", "rotation_gradient"):
        np.testing.assert_array_equal(result["query"][name], result["key"][name].values.repeat(2, axis=2))


def test_draws_and_seeds_decide_fisher_alone_and_batches_hardly_anything() -> None:
    model = LLAMA.shared()
    result = importance(model, WINDOWS)
    other = importance(model, WINDOWS, seed=1)
    assert not np.allclose(result["key"].fisher, other["key"].fisher)
    np.testing.assert_array_equal(result["key"].gradient, other["key"].gradient)
    together = importance(model, WINDOWS, batch_size=2)
    swapped = importance(model, WINDOWS.flip(0))
    for name in ("fisher", "gradient", "rotation_fisher", "rotation_gradient"):
        found = together["query"][name].values
        np.testing.assert_allclose(found, result["query"][name], rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(swapped["key"].gradient[::-1], result["key"].gradient, rtol=1e-4, atol=1e-7)
    assert provenance(result)["parameters"] == {"length": 24, "draws": 2, "seed": 0, "batch_size": 1}


def test_bfloat16_is_summed_in_float32() -> None:
    exact, rounded = (importance(LLAMA.build(dtype), WINDOWS, draws=8) for dtype in (torch.float32, torch.bfloat16))
    for stream in STREAMS:
        fine, coarse = (result[stream].gradient.values.ravel() for result in (exact, rounded))
        assert np.corrcoef(fine, coarse)[0, 1] > 0.99


def test_weights_that_need_gradients_need_them_again_after_an_error() -> None:
    model = LLAMA.build()
    model.lm_head.weight.requires_grad_(False)
    before = state_of(model)
    needing = [weight.requires_grad for weight in model.parameters()]
    hook = model.model.layers[2].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="stop here"):
        importance(model, WINDOWS, checkpointing=True)
    hook.remove()
    assert [weight.requires_grad for weight in model.parameters()] == needing
    assert all(weight.grad is None for weight in model.parameters())
    assert state_of(model) == before


def fail(*_: object) -> None:
    raise RuntimeError("stop here")


def without_gradient(module: nn.Module) -> None:
    own = module.forward
    module.forward = lambda *arguments, **named: detached(own(*arguments, **named))


def detached(output: Any) -> Any:
    return tuple(map(detached, output)) if isinstance(output, tuple) else output.detach()


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ("model.layers.1.mlp.down_proj", "no gradient comes through Linear;"),
        ("model.layers.2.post_attention_layernorm", "no gradient comes through LlamaRMSNorm;"),
        ("model.norm", "no gradient comes through LlamaRMSNorm;"),
        ("lm_head", "no gradient comes through Linear;"),
    ],
)
def test_kernels_made_for_inference_are_refused(place: str, text: str) -> None:
    model = LLAMA.build()
    without_gradient(model.get_submodule(place))
    with pytest.raises(ModelError, match=text):
        importance(model, WINDOWS)


def test_attention_without_a_backward_pass_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    own = ALL_ATTENTION_FUNCTIONS["sdpa"]
    registered = ALL_ATTENTION_FUNCTIONS._global_mapping
    monkeypatch.setitem(registered, "sdpa", lambda *given, **named: (own(*given, **named)[0].detach(), None))
    with pytest.raises(ModelError, match=r"no gradient comes through the attention of layer 0|to the end of Llama"):
        importance(LLAMA.build(), WINDOWS)


def test_gradients_that_are_not_finite_are_placed() -> None:
    model = LLAMA.build()
    model.model.layers[2].self_attn.o_proj.register_full_backward_hook(overflow)
    with pytest.raises(NonFiniteError, match=r"of (query|key) pair \d of layer 2, head \d is not finite \(window 0"):
        importance(model, WINDOWS)


def overflow(_module: nn.Module, gradients: tuple[Tensor, ...], _: object) -> tuple[Tensor, ...]:
    return tuple(gradient * math.inf for gradient in gradients)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"draws": 0}, "draws got 0; it is at least 1"),
        ({"seed": -1}, "seed got -1; it is at least 0"),
        ({"batch_size": 0}, "batch_size got 0; it is at least 1, or 'auto'"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        importance(LLAMA.shared(), WINDOWS, **options)


def test_windows_without_a_next_token_and_models_without_a_head_are_refused() -> None:
    with pytest.raises(InputError, match="windows got 1 position; a next token needs at least 2"):
        importance(LLAMA.shared(), WINDOWS[:, :1])
    with pytest.raises(ModelError, match="has no language-model head"):
        importance(LLAMA.shared().model, WINDOWS)


def test_memory_that_does_not_suffice_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, own, left = tmp_path / "worth.nc", module.importance_of, [1]

    def failing(*given: Any) -> Any:
        if not left:
            raise torch.OutOfMemoryError("out of memory")
        left.pop()
        return own(*given)

    with (
        monkeypatch.context() as patch,
        pytest.raises(ModelError, match="the memory does not suffice for a batch of 1"),
    ):
        patch.setattr(module, "importance_of", failing)
        importance(LLAMA.shared(), WINDOWS, path=path)
    assert (tmp_path / "worth.nc.partial" / "windows-000000.safetensors").exists()
    importance(LLAMA.shared(), WINDOWS, path=path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["worth.nc"]


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 2, "auto"])
def test_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_size: Any) -> None:
    model, windows, own, calls = LLAMA.shared(), tokens(5, 24), module.importance_of, []

    def interrupted(model: Any, batch: Tensor, *given: Any) -> Any:
        calls.append(len(batch))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return own(model, batch, *given)

    monkeypatch.setattr(module, "importance_of", interrupted)
    with pytest.raises(KeyboardInterrupt):
        importance(model, windows, batch_size=batch_size, path=tmp_path / "worth.nc")
    first = calls[0]
    result = importance(model, windows, batch_size=batch_size, path=tmp_path / "worth.nc")
    assert sum(calls[2:]) == 5 - first
    expected = importance(model, windows, batch_size=batch_size)
    for stream in STREAMS:
        xr.testing.assert_identical(result[stream].to_dataset(), expected[stream].to_dataset())
        xr.testing.assert_identical(rs.load(tmp_path / "worth.nc")[stream].to_dataset(), expected[stream].to_dataset())
    calls.clear()
    importance(model, windows, batch_size=batch_size, path=tmp_path / "worth.nc")
    assert not calls
    with pytest.raises(ResultError, match=r"holds another run \(other parameters.draws 2 against 3\)"):
        importance(model, windows, 3, batch_size=batch_size, path=tmp_path / "worth.nc")


def test_a_file_of_importance_is_no_measurement_and_the_other_way_round(tmp_path: Path) -> None:
    worth = importance(LLAMA.shared(), WINDOWS)
    rs.save(worth, tmp_path / "worth.nc")
    xr.testing.assert_identical(rs.load(tmp_path / "worth.nc"), worth)
    with pytest.raises(ResultError, match=r"is not a ropescope result: .* give a file written by 'ropescope measure'"):
        load(tmp_path / "worth.nc")
    rs.save(rs.measure(LLAMA.shared(), tokens(1, 96), frame_length=32, hop_length=16), tmp_path / "result.nc")
    with pytest.raises(ResultError, match=r"is not a file of importance: .* written by 'ropescope importance'"):
        load(tmp_path / "result.nc", IMPORTANCE)
    with pytest.raises(ResultError, match=r"query/fisher must have dims .*; run 'ropescope importance' again"):
        rs.save(worth.map_over_datasets(lambda data: data.drop_vars("fisher", errors="ignore")), tmp_path / "worth.nc")


def test_selections_take_importance_beside_entropies() -> None:
    result = rs.measure(LLAMA.shared(), tokens(1, 96), frame_length=32, hop_length=16)
    worth = importance(LLAMA.shared(), WINDOWS)
    middle = float(worth["key"].fisher.mean("sequence").median())
    mask = rs.select(result, f"fisher < {middle} and spectrum_fe < 0.9", importance=worth)
    assert mask.key.sum() == pytest.approx(mask.key.size / 2, abs=2)
    assert mask.digest() == rs.select(result, f"fisher < {middle} and spectrum_fe < 0.9", worth).digest()
    other = importance(LLAMA.build(seed=1), WINDOWS)
    with pytest.raises(InputError, match=r"cannot join .* of another model"):
        rs.select(result, "fisher < 1", importance=other)
    with pytest.raises(InputError, match="the result holds no fisher"):
        rs.select(result, "fisher < 1")
