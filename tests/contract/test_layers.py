"""One row for every attention call: shared blocks, repeated layers and loops are told apart, or refused."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from architectures import LLAMA, VOCABULARY, entropies_of, pair_norms_of, state_of, tokens
from matrix import plain
from ropescope.base.errors import ModelError
from ropescope.interventions.baking import bake
from ropescope.interventions.derotation import derotated
from ropescope.interventions.masks import PairMask
from ropescope.interventions.selection import select
from ropescope.interventions.weighting import weighted_rope
from ropescope.measurement.measure import measure
from ropescope.model.attention import intercepted
from ropescope.model.probing import probe

pytestmark = pytest.mark.usefixtures("one_thread", "no_gradients")

FRAMES = {"frame_length": 16, "hop_length": 8}
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "initializer_range": 0.15,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
HYBRID = COMMON | {
    "num_hidden_layers": 6,
    "layers_block_type": ["mamba", "hybrid"] * 3,
    "num_key_value_heads": 4,
    "mamba_d_state": 8,
    "n_mamba_heads": 2,
}


def built(config_class: str, settings: dict[str, Any]) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.AutoModelForCausalLM.from_config(getattr(transformers, config_class)(**settings)).eval()


def with_layers(change: Callable[[nn.ModuleList], list[nn.Module]]) -> PreTrainedModel:
    """A Llama whose layers were rearranged by hand."""
    model = LLAMA.build()
    model.model.layers = nn.ModuleList(change(model.model.layers))
    model.config.num_hidden_layers = len(model.model.layers)
    return model


def stacked() -> PreTrainedModel:
    """Every layer twice, as copies that may be trained apart."""
    return with_layers(lambda layers: [copy.deepcopy(layer) for layer in layers for _ in range(2)])


def repeated() -> PreTrainedModel:
    """Every layer twice, the very same module."""
    return with_layers(lambda layers: [layer for layer in layers for _ in range(2)])


def attention_in_two_places() -> PreTrainedModel:
    model = LLAMA.build()
    model.model.layers[2].self_attn = model.model.layers[0].self_attn
    return model


def zamba2() -> PreTrainedModel:
    """Blocks that are tied, each with the index -1."""
    settings = {"num_mem_blocks": 2, "use_mem_rope": True, "mamba_ngroups": 1, "mamba_headdim": 64, "chunk_size": 16}
    return built("Zamba2Config", HYBRID | settings)


def zamba() -> PreTrainedModel:
    """Blocks without an index."""
    return built("ZambaConfig", HYBRID | {"mamba_dt_rank": 4})


def hrm() -> PreTrainedModel:
    """Two stacks with the same indices, each run several times."""
    cycles = {"num_layers_per_stack": 2, "H_cycles": 2, "L_cycles": 2, "prefix_lm": False}
    return built("HrmTextConfig", COMMON | cycles)


CALLS = {stacked: 8, repeated: 8, attention_in_two_places: 4, zamba2: 3, zamba: 3, hrm: 12}
shared = pytest.mark.parametrize("build", CALLS, ids=lambda build: build.__name__)
# A cache has one place for each layer index, so by itself the model generates only where it gives them apart.
cached = pytest.mark.parametrize("build", [zamba2, zamba, hrm], ids=lambda build: build.__name__)


@contextmanager
def at_projections(model: PreTrainedModel, seen: Callable[[str, int, Tensor], Tensor | None]) -> Iterator[None]:
    """Call `seen` with stream, number of the call in its forward, and output of every q_proj and k_proj."""
    counts = {"query": 0, "key": 0}
    decoder = model.get_decoder()

    def project(stream: str) -> Callable[..., Tensor | None]:
        def hook(_module: nn.Module, _args: Any, output: Tensor) -> Tensor | None:
            counts[stream] += 1
            return seen(stream, counts[stream] - 1, output)

        return hook

    with ExitStack() as hooks:
        begin = decoder.register_forward_pre_hook(lambda *_: counts.update(query=0, key=0))
        hooks.callback(begin.remove)
        for name, module in decoder.named_modules():
            for stream, projection in (("query", "q_proj"), ("key", "k_proj")):
                if name.endswith(projection):
                    hooks.callback(module.register_forward_hook(project(stream)).remove)
        yield


def scaled_by_hand(model: PreTrainedModel, call: int, mask: PairMask, factor: float) -> Any:
    """The first two pairs of one attention call, scaled where they are projected."""
    head_dim = probe(model).layers[call].head_dim
    rows = torch.ones(head_dim)
    rows[[0, 1, head_dim // 2, head_dim // 2 + 1]] = factor
    return at_projections(
        model,
        lambda _stream, number, output: (
            (output.unflatten(-1, (-1, head_dim)) * rows).flatten(-2) if number == call else None
        ),
    )


def two_pairs_of(model: PreTrainedModel, selection: str) -> PairMask:
    return select(measure(model, tokens(1), **FRAMES), f"pair < 2 and {selection}")


def generated(model: PreTrainedModel) -> Tensor:
    out = model.generate(
        tokens(2, 20),
        max_new_tokens=5,
        min_new_tokens=5,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return torch.stack(out.logits, dim=1)


@shared
def test_every_attention_call_has_a_row(build: Callable[[], PreTrainedModel]) -> None:
    assert [rotation.layer for rotation in probe(build()).layers] == list(range(CALLS[build]))


@shared
def test_every_row_holds_what_its_own_call_projected(build: Callable[[], PreTrainedModel]) -> None:
    model = build()
    head_dim = probe(model).layers[0].head_dim
    outputs: dict[tuple[str, int], Tensor] = {}
    with at_projections(model, lambda stream, number, output: outputs.update({(stream, number): output})):
        plain(model)
    result = measure(model, tokens(2), **FRAMES)
    for (stream, number), output in outputs.items():
        heads = output.unflatten(-1, (-1, head_dim)).transpose(1, 2).numpy()
        norms = pair_norms_of(heads, "half-split", 0, head_dim)
        expected = entropies_of(norms, *FRAMES.values())["spectrum_fe"]
        found = result[stream].spectrum_fe.values[:, number, : heads.shape[1]]
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)
    assert len(outputs) == 2 * CALLS[build]


@shared
def test_weighting_one_row_weights_one_call(build: Callable[[], PreTrainedModel]) -> None:
    model = build()
    before = state_of(model)
    stock = plain(model)
    mask = two_pairs_of(model, "layer == 2")
    with scaled_by_hand(model, 2, mask, 0.3):
        by_hand = plain(model)
    with weighted_rope(model, mask, 0.3):
        weighted = plain(model)
    torch.testing.assert_close(weighted, by_hand, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(weighted, stock, rtol=1e-3, atol=1e-3)
    assert state_of(model) == before


@pytest.mark.slow
@cached
def test_weighting_one_row_weights_its_call_in_every_step_of_a_generation(
    build: Callable[[], PreTrainedModel],
) -> None:
    model = build()
    stock = generated(model)
    mask = two_pairs_of(model, "layer == 1")
    with scaled_by_hand(model, 1, mask, 0.0):
        by_hand = generated(model)
    with weighted_rope(model, mask, 0.0):
        weighted = generated(model)
    torch.testing.assert_close(weighted, by_hand, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(weighted, stock, rtol=1e-3, atol=1e-3)


def test_derotation_of_one_row_is_not_that_of_another() -> None:
    model = repeated()
    logits = []
    for row in (4, 5):
        with derotated(model, two_pairs_of(model, f"layer == {row}")):
            logits.append(plain(model))
    assert not torch.allclose(*logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("build", [repeated, attention_in_two_places, hrm], ids=lambda build: build.__name__)
def test_a_shared_module_is_baked_once_where_its_rows_agree(build: Callable[[], PreTrainedModel]) -> None:
    model = build()
    mask = two_pairs_of(model, "layer >= 0")
    with weighted_rope(model, mask, 0.3):
        weighted = plain(model)
    torch.testing.assert_close(plain(bake(model, mask, 0.3)), weighted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("build", [repeated, attention_in_two_places, hrm], ids=lambda build: build.__name__)
def test_a_shared_module_is_not_baked_where_its_rows_differ(build: Callable[[], PreTrainedModel]) -> None:
    model = build()
    mask = two_pairs_of(model, "layer == 0")
    before = state_of(model)
    with pytest.raises(ModelError, match="q_proj of layer 0 shares its weights with q_proj of layer"):
        bake(model, mask, 0.3)
    assert state_of(model) == before


def test_copies_of_a_layer_are_baked_apart() -> None:
    model = stacked()
    mask = two_pairs_of(model, "layer == 3")
    with weighted_rope(model, mask, 0.3):
        weighted = plain(model)
    torch.testing.assert_close(plain(bake(model, mask, 0.3)), weighted, rtol=1e-4, atol=1e-4)


def tied() -> PreTrainedModel:
    """Two attentions that are apart, with one query weight."""
    model = LLAMA.build()
    model.model.layers[3].self_attn.q_proj.weight = model.model.layers[1].self_attn.q_proj.weight
    return model


def test_tied_weights_are_scaled_once() -> None:
    model = tied()
    mask = two_pairs_of(model, "layer >= 0")
    with weighted_rope(model, mask, 0.3):
        weighted = plain(model)
    torch.testing.assert_close(plain(bake(model, mask, 0.3)), weighted, rtol=1e-4, atol=1e-4)


def test_tied_weights_that_would_be_scaled_apart_are_refused() -> None:
    model = tied()
    mask = two_pairs_of(model, "layer == 3")
    with pytest.raises(ModelError, match="q_proj of layer 3 shares its weights with q_proj of layer 1, which the mask"):
        bake(model, mask, 0.3)


def test_a_key_projection_that_makes_values_too_is_not_baked() -> None:
    model = LLAMA.build()
    attention = model.model.layers[1].self_attn
    attention.v_proj.weight = attention.k_proj.weight
    mask = two_pairs_of(model, "layer == 1")
    with pytest.raises(ModelError, match=r"k_proj of layer 1 shares its weights with model\.layers\.1\.self_attn\.v_p"):
        bake(model, mask, 0.3)


class Twice(nn.Module):
    """A layer that runs in a loop, which no index and no place shows."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden_states: Tensor, **arguments: Any) -> Tensor:
        return self.layer(self.layer(hidden_states, **arguments), **arguments)


def test_a_layer_that_runs_in_a_loop_is_refused() -> None:
    model = with_layers(lambda layers: [layers[0], Twice(layers[1])])
    with pytest.raises(ModelError, match=r"^layer 1 of this model calls attention more than once in one forward"):
        probe(model)


@pytest.mark.parametrize(
    ("change", "order"),
    [(lambda layers: [layers[0], *layers[2:]], [0, 2, 3]), (lambda layers: list(reversed(layers)), [3, 2, 1, 0])],
    ids=["pruned", "reversed"],
)
def test_pruned_and_reordered_layers_keep_their_own_index(
    change: Callable[[nn.ModuleList], list[nn.Module]], order: list[int]
) -> None:
    model = with_layers(change)
    assert [rotation.layer for rotation in probe(model).layers] == sorted(order)
    mask = two_pairs_of(model, "layer == 2")
    with weighted_rope(model, mask, 0.3):
        weighted = plain(model)
    attention = model.model.layers[order.index(2)].self_attn
    for projection in (attention.q_proj, attention.k_proj):
        projection.weight.view(-1, 16, 64)[:, [0, 1, 8, 9]] *= 0.3
    torch.testing.assert_close(plain(model), weighted, rtol=1e-4, atol=1e-4)


def test_cross_attention_is_not_taken_for_the_attention_of_its_layer() -> None:
    sizes = {"d_model": 64, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 64}
    config = transformers.BartConfig(vocab_size=VOCABULARY, is_decoder=True, add_cross_attention=True, **sizes)
    config.is_encoder_decoder = False
    model = transformers.BartForCausalLM(config).eval()
    mask = two_pairs_of(model, "layer == 1")
    assert [rotation.layer for rotation in probe(model).layers] == [0, 1]
    with weighted_rope(model, mask, 0.3), pytest.raises(ModelError, match=r"more than once in one forward.*cross-att"):
        model(tokens(1), encoder_hidden_states=torch.ones(1, 3, 64))


def gradients(model: PreTrainedModel, mask: PairMask) -> Tensor:
    with torch.enable_grad(), weighted_rope(model, mask, 0.3):
        model(tokens(1), use_cache=False).logits.square().sum().backward()
    return model.get_input_embeddings().weight.grad


def test_gradient_checkpointing_weights_the_layers_it_runs_again() -> None:
    model, plain_model = LLAMA.build().train(), LLAMA.build().train()
    mask = two_pairs_of(model, "layer == 2")
    model.activation_checkpointing_enable()
    torch.testing.assert_close(gradients(model, mask), gradients(plain_model, mask))


def test_gradient_checkpointing_of_layers_that_only_their_order_tells_apart_is_refused() -> None:
    model = stacked().train()
    mask = two_pairs_of(model, "layer == 2")
    model.activation_checkpointing_enable()
    with pytest.raises(ModelError, match=r"outside a forward of its decoder \(gradient checkpointing does that\)"):
        gradients(model, mask)


def test_an_interrupted_forward_does_not_shift_the_numbers_of_the_next() -> None:
    model = repeated()
    layers: list[int] = []

    def stop(call: Any) -> None:
        layers.append(call.layer)
        if len(layers) == 3:
            raise ZeroDivisionError

    with intercepted(model, stop):
        with pytest.raises(ZeroDivisionError):
            plain(model)
        plain(model)
    assert layers == [0, 1, 2, *range(8)]
