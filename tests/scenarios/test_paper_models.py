"""The paper's four models, each by its real attention shapes: one layer of every kind, random weights, small MLPs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights

from architectures import entropies_of, pair_norms_of, state_of, tokens
from ropescope.measurement.measure import measure

pytestmark = pytest.mark.slow

LENGTH = 1024
FRAMES = {"frame_length": 512, "hop_length": 256}
SMALL = {"vocab_size": 99, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "intermediate_size": 128}


@dataclass(frozen=True)
class PaperModel:
    """Published shapes of one model; `layers` says of each layer kept whether it rotates."""

    name: str
    config_class: str
    layers: tuple[bool, ...]
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    theta: float
    pairing: str
    settings: Mapping[str, Any]

    def __str__(self) -> str:
        return self.name

    def build(self) -> PreTrainedModel:
        shapes = {
            "num_hidden_layers": len(self.layers),
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "hidden_size": self.hidden,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.theta},
        }
        config = getattr(transformers, self.config_class)(**SMALL, **shapes, **self.settings)
        with torch.random.fork_rng(devices=[]), no_init_weights():
            model = transformers.AutoModelForCausalLM.from_config(config)
            torch.manual_seed(0)
            with torch.no_grad():
                for parameter in model.parameters():
                    # Uniform draws are several times faster than normal ones.
                    parameter.uniform_(-0.03, 0.03) if parameter.ndim > 1 else parameter.uniform_(0.5, 1.5)
        return model.eval()


PAPER_MODELS = [
    PaperModel(
        name="Llama-4-Scout-17B-16E",
        config_class="Llama4TextConfig",
        layers=(True, False),
        heads=40,
        kv_heads=8,
        head_dim=128,
        hidden=5120,
        theta=500_000.0,
        pairing="interleaved[0:128]",
        settings={
            "no_rope_layers": [1, 0],
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
            "intermediate_size_mlp": 128,
            "attention_chunk_size": 512,
            "use_qk_norm": True,
        },
    ),
    PaperModel(
        name="gemma-2-9b",
        config_class="Gemma2Config",
        layers=(True, True),
        heads=16,
        kv_heads=8,
        head_dim=256,
        hidden=3584,
        theta=10_000.0,
        pairing="half-split[0:256]",
        settings={"sliding_window": 512, "query_pre_attn_scalar": 256},
    ),
    PaperModel(
        name="Qwen3-8B",
        config_class="Qwen3Config",
        layers=(True,),
        heads=32,
        kv_heads=8,
        head_dim=128,
        hidden=4096,
        theta=1_000_000.0,
        pairing="half-split[0:128]",
        settings={},
    ),
    PaperModel(
        name="Meta-Llama-3-8B",
        config_class="LlamaConfig",
        layers=(True,),
        heads=32,
        kv_heads=8,
        head_dim=128,
        hidden=4096,
        theta=500_000.0,
        pairing="half-split[0:128]",
        settings={},
    ),
]


@pytest.fixture(scope="module", params=PAPER_MODELS, ids=str)
def measured(request: pytest.FixtureRequest) -> Iterator[tuple[PaperModel, PreTrainedModel, Any, dict[str, Tensor]]]:
    """Shapes, model, result, and the last layer's projections (before rotation) from the very same pass."""
    paper = request.param
    model = paper.build()
    before = state_of(model)
    attention = model.model.layers[-1].self_attn
    projected: dict[str, Tensor] = {}
    hooks = [
        _last(attention, letter).register_forward_hook(
            lambda _module, _args, output, stream=stream: projected.__setitem__(stream, output)
        )
        for letter, stream in (("q", "query"), ("k", "key"))
    ]
    result = measure(model, tokens(1, LENGTH), norm_heads=[(0, paper.heads - 1)], **FRAMES)
    for hook in hooks:
        hook.remove()
    assert state_of(model) == before
    yield paper, model, result, projected


def _last(attention: nn.Module, letter: str) -> nn.Module:
    """What comes last before the rotation: Qwen-3 norms its projections."""
    return getattr(attention, f"{letter}_norm", None) or getattr(attention, f"{letter}_proj")


def test_result_has_the_published_shape(measured: Any) -> None:
    paper, _, result, _ = measured
    layers, pairs = len(paper.layers), paper.head_dim // 2
    sizes = {"sequence": 1, "layer": layers, "head": paper.heads, "pair": pairs}
    assert dict(result["query"].spectrum_fe.sizes) == sizes
    assert dict(result["key"].spectrum_fe.sizes) == {
        "sequence": 1,
        "layer": layers,
        "kv_head": paper.kv_heads,
        "pair": pairs,
    }
    assert (result["query"].norm.sizes["kept"], result["query"].norm.sizes["pair"]) == (1, pairs)
    assert result["query"].norm.kept_head.values.tolist() == [paper.heads - 1]
    assert result["key"].norm.kept_kv_head.values.tolist() == [paper.kv_heads - 1]


def test_rotary_group_says_what_turns_and_how_fast(measured: Any) -> None:
    paper, _, result, _ = measured
    rotary = result["rotary"]
    expected = paper.theta ** (-np.arange(0, paper.head_dim, 2) / paper.head_dim)
    for row, rotates in enumerate(paper.layers):
        assert (rotary.rotated[row] == rotates).all()
        np.testing.assert_allclose(rotary.frequency[row], expected if rotates else 0 * expected, rtol=1e-6)
    assert set(rotary.pairing.values) == {paper.pairing}


def test_every_value_is_defined_and_in_range(measured: Any) -> None:
    _, _, result, _ = measured
    for stream in ("query", "key"):
        for name in ("spectrum_fe", "sequence_fe", "dc_share", "peak_share"):
            values = result[stream][name].values
            assert ((values >= 0) & (values <= 1)).all()
        assert (result[stream].mean_norm > 0).all()
        assert ((result[stream].dominant_period > 2) & (result[stream].dominant_period <= LENGTH)).all()


def test_last_layer_equals_float64_on_its_projections(measured: Any) -> None:
    paper, _, result, projected = measured
    style = paper.pairing.partition("[")[0]
    for stream, output in projected.items():
        heads = output.reshape(LENGTH, -1, paper.head_dim).transpose(0, 1)[[0, 3, -1]]
        norms = pair_norms_of(heads.detach().numpy(), style, 0, paper.head_dim)
        found = result[stream].to_dataset().isel(sequence=0, layer=-1, missing_dims="ignore")
        found = found.isel(head=[0, 3, -1], kv_head=[0, 3, -1], missing_dims="ignore")
        for name, expected in entropies_of(norms, **FRAMES).items():
            np.testing.assert_allclose(found[name].values, expected, rtol=1e-5, atol=1e-5)
