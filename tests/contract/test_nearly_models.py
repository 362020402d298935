"""What wraps a model, or is nearly one, gives the right numbers or one true line, at every entrance alike."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM, LlamaForSequenceClassification, LlamaModel, PreTrainedModel

from architectures import LLAMA, VOCABULARY, entropies_of, pair_norms_of, tokens
from ropescope.base.errors import InputError, ModelError
from ropescope.evaluation.perplexity import perplexity
from ropescope.evaluation.sweep.sweeping import sweep
from ropescope.evaluation.tasks.evaluating import evaluate_tasks
from ropescope.interventions.baking import bake
from ropescope.interventions.derotation import derotated
from ropescope.interventions.masks import PairMask
from ropescope.interventions.selection import select
from ropescope.interventions.weighting import weighted_rope
from ropescope.measurement.measure import measure
from ropescope.model.probing import probe

pytestmark = pytest.mark.usefixtures("one_thread", "no_gradients")

FRAMES = {"frame_length": 16, "hop_length": 8}
SIZES = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
COMMON = SIZES | {"vocab_size": VOCABULARY, "max_position_embeddings": 512, "pad_token_id": 0}
SPEECH = {
    "vocab_size": VOCABULARY,
    "d_model": 64,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "decoder_start_token_id": 1,
}


def entropies(model: PreTrainedModel) -> np.ndarray:
    return measure(model, tokens(1), **FRAMES)["query"].spectrum_fe.values


@pytest.fixture(scope="module")
def mask() -> PairMask:
    return select(measure(LLAMA.shared(), tokens(1), **FRAMES), "pair < 2")


ENTRANCES: dict[str, Callable[[Any, PairMask], object]] = {
    "probe": lambda model, mask: probe(model),
    "measure": lambda model, mask: measure(model, tokens(1), **FRAMES),
    "weighted_rope": lambda model, mask: ExitStack().enter_context(weighted_rope(model, mask, 0.3)),
    "derotated": lambda model, mask: ExitStack().enter_context(derotated(model, mask)),
    "bake": lambda model, mask: bake(model, mask, 0.3),
    "perplexity": lambda model, mask: perplexity(model, tokens(1)),
    "sweep": lambda model, mask: sweep(model, tokens(1), {"two": mask}, alphas=(0,)),
    "evaluate_tasks": lambda model, mask: evaluate_tasks(model, None, ["none"], mask, 0.3),
}
every_entrance = pytest.mark.parametrize("entrance", ENTRANCES)


class Tuned(nn.Module):
    """A model as PEFT wraps it: what it has not itself is that of the base model."""

    def __init__(self, base: nn.Module, prompt_learning: bool) -> None:
        super().__init__()
        self.base_model = base
        method = SimpleNamespace(value="PREFIX_TUNING" if prompt_learning else "LORA")
        self.peft_config = {"default": SimpleNamespace(is_prompt_learning=prompt_learning, peft_type=method)}
        self.active_adapter = "default"

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_model":
                raise
            return getattr(self.base_model, name)

    @property
    def active_peft_config(self) -> Any:
        return self.peft_config[self.active_adapter]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.base_model(*args, **kwargs)


class Adapted(nn.Module):
    """A linear layer with a low-rank adapter, as PEFT puts it in place of the plain one."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base
        self.lora_A = nn.Linear(base.in_features, 2, bias=False)
        self.lora_B = nn.Linear(2, base.out_features, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.base_layer(hidden) + self.lora_B(self.lora_A(hidden))


def with_lora(projection: str) -> PreTrainedModel:
    model = LLAMA.build()
    for layer in model.model.layers:
        setattr(layer.self_attn, projection, Adapted(getattr(layer.self_attn, projection)))
    return Tuned(model, prompt_learning=False)


def on_meta() -> PreTrainedModel:
    with torch.device("meta"):
        return LlamaForCausalLM(LLAMA.config())


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "data parallel": (
        lambda: nn.DataParallel(LLAMA.shared()),
        r"^got a DataParallel around a LlamaForCausalLM; give the model itself, without it \(\.module\)$",
    ),
    "averaged": (
        lambda: torch.optim.swa_utils.AveragedModel(LLAMA.build()),
        "^got a AveragedModel around a LlamaForCausalLM; give the model itself",
    ),
    "pipeline": (
        lambda: SimpleNamespace(model=LLAMA.shared()),
        r"^got a SimpleNamespace, which is no transformers model; give the model that it holds \(\.model\)$",
    ),
    "name": (
        lambda: "Qwen/Qwen3-8B",
        r"^got a str, which is no transformers model; give one, as ropescope\.load_model returns it$",
    ),
    "plain module": (lambda: nn.Linear(2, 2), "^got a Linear, which is no transformers model; give one, as"),
    "prompt learning": (
        lambda: Tuned(LLAMA.shared(), prompt_learning=True),
        r"^the PREFIX_TUNING adapter of this model puts tokens of its own before the text.*\(get_base_model\(\)\)$",
    ),
    "encoder-decoder": (
        lambda: transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(**SPEECH)),
        "^WhisperForConditionalGeneration reads its text with an encoder.*use a decoder-only model$",
    ),
    "not loaded": (on_meta, r"^the weights of this LlamaForCausalLM are not loaded \(device meta\); load them first$"),
}


@every_entrance
@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_model_by_itself_is_refused_at_every_entrance(kind: str, entrance: str, mask: PairMask) -> None:
    build, text = REFUSED[kind]
    with pytest.raises(ModelError, match=text):
        ENTRANCES[entrance](build(), mask)


@pytest.mark.parametrize("projection", ["q_proj", "v_proj"])
def test_lora_is_measured_as_it_runs(projection: str) -> None:
    model = with_lora(projection)
    assert not np.array_equal(entropies(model), entropies(LLAMA.shared()))
    merged = LLAMA.build()
    for layer, adapted in zip(merged.model.layers, model.model.layers, strict=True):
        part = getattr(adapted.self_attn, projection)
        getattr(layer.self_attn, projection).weight += part.lora_B.weight @ part.lora_A.weight
    np.testing.assert_allclose(entropies(model), entropies(merged), atol=2e-5)
    np.testing.assert_allclose(perplexity(model, tokens(1)).nats, perplexity(merged, tokens(1)).nats, rtol=1e-5)


@pytest.mark.parametrize("projection", ["q_proj", "v_proj"])
def test_a_model_with_adapters_is_baked_after_they_are_merged(projection: str, mask: PairMask) -> None:
    model = with_lora(projection)
    with pytest.raises(ModelError, match=r"merge them first \(merge_and_unload\(\)\)$"):
        bake(model, mask.for_any_model(), 0.3)


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True], ids=["module", "in place"])
def test_a_compiled_model_gives_the_numbers_of_the_plain_one(compiled: bool, mask: PairMask) -> None:
    plain, model = LLAMA.shared(), LLAMA.build()
    if compiled:
        model.compile(backend="eager")
    else:
        model = torch.compile(model, backend="eager")
    model(tokens(1))
    np.testing.assert_array_equal(entropies(model), entropies(plain))
    assert perplexity(model, tokens(1)).nats == perplexity(plain, tokens(1)).nats
    with weighted_rope(model, mask, 0.3), weighted_rope(plain, mask, 0.3):
        torch.testing.assert_close(model(tokens(1)).logits, plain(tokens(1)).logits)


@pytest.mark.parametrize("build", [LlamaModel, LlamaForSequenceClassification])
def test_a_model_without_a_head_is_measured_but_has_no_perplexity(build: Callable[[Any], PreTrainedModel]) -> None:
    model = build(LLAMA.config()).eval()
    assert np.isfinite(entropies(model)).all()
    with pytest.raises(ModelError, match=rf"^{build.__name__} has no language-model head.*\(AutoModelForCausalLM\)$"):
        perplexity(model, tokens(1))


@pytest.mark.parametrize("name", ["BertForMaskedLM", "BertLMHeadModel", "ModernBertForMaskedLM"])
def test_a_model_that_sees_the_next_token_has_no_perplexity(name: str) -> None:
    config = transformers.ModernBertConfig if name.startswith("Modern") else transformers.BertConfig
    model = getattr(transformers, name)(config(**COMMON)).eval()
    with pytest.raises(ModelError, match=f"^{name} sees the tokens that it would have to predict; a perplexity needs"):
        perplexity(model, tokens(1))


def test_tasks_need_a_head_too(mask: PairMask) -> None:
    with pytest.raises(ModelError, match=r"^LlamaModel has no language-model head"):
        evaluate_tasks(LLAMA.build().model, None, ["none"], mask.for_any_model(), 0.3)


def test_bert_as_a_decoder_predicts_next_tokens() -> None:
    model = transformers.BertLMHeadModel(transformers.BertConfig(**COMMON, is_decoder=True)).eval()
    ids = tokens(1)
    expected = cross_entropy(model(ids).logits[0, :-1], ids[0, 1:], reduction="sum").item()
    assert perplexity(model, ids).nats == pytest.approx(expected, rel=1e-5)


def test_the_decoder_of_whisper_is_measured_within_the_positions_it_has_learned() -> None:
    model = transformers.WhisperForCausalLM(transformers.WhisperConfig(**SPEECH)).eval()
    outputs: list[Tensor] = []
    layers = model.get_decoder().layers
    hooks = [layer.self_attn.q_proj.register_forward_hook(lambda *call: outputs.append(call[2])) for layer in layers]
    model(tokens(1))
    for hook in hooks:
        hook.remove()
    heads = torch.stack([output.unflatten(-1, (4, 16)).transpose(1, 2) for output in outputs], dim=1)
    norms = pair_norms_of(heads.numpy(), "half-split", 0, 16)
    np.testing.assert_allclose(entropies(model), entropies_of(norms, *FRAMES.values())["spectrum_fe"], atol=2e-5)
    assert not any(rotation.rotated.any() for rotation in probe(model).layers)
    with pytest.raises(InputError, match="449 positions are more than the 448 that this model has learned"):
        probe(model, positions=449)


def test_modernbert_as_a_decoder_is_seen_past_its_head_of_that_name() -> None:
    model = transformers.ModernBertDecoderForCausalLM(transformers.ModernBertDecoderConfig(**COMMON)).eval()
    theta = {kind: rope["rope_theta"] for kind, rope in model.config.rope_parameters.items()}
    for rotation, kind in zip(probe(model).layers, model.config.layer_types, strict=True):
        assert str(rotation.pairing) == "half-split[0:16]"
        np.testing.assert_allclose(rotation.frequency, theta[kind] ** (-np.arange(0, 16, 2) / 16), rtol=1e-6)
    ids = tokens(1)
    expected = cross_entropy(model(ids).logits[0, :-1], ids[0, 1:], reduction="sum").item()
    assert perplexity(model, ids).nats == pytest.approx(expected, rel=1e-5)


def test_keys_that_stand_for_no_one_token_are_refused() -> None:
    settings = COMMON | {"num_hidden_layers": 4, "num_key_value_heads": 1, "head_dim": 16}
    model = transformers.DeepseekV4ForCausalLM(transformers.DeepseekV4Config(**settings)).eval()
    with pytest.raises(ModelError, match=r"^layer \d attends with (\d+) queries to \d+ keys for \1 tokens"):
        measure(model, tokens(1), **FRAMES)


def test_autocast_around_a_call_leaves_its_numbers_in_the_dtype_that_it_names(mask: PairMask) -> None:
    model = LLAMA.shared()
    measured, judged = entropies(model), perplexity(model, tokens(1)).nats
    with torch.autocast("cpu", dtype=torch.bfloat16):
        np.testing.assert_array_equal(entropies(model), measured)
        assert perplexity(model, tokens(1)).nats == judged
        assert torch.is_autocast_enabled("cpu")


def test_a_weighted_forward_under_autocast_is_that_of_the_baked_model(mask: PairMask) -> None:
    model, baked = LLAMA.shared(), bake(LLAMA.build(), mask, 0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with weighted_rope(model, mask, 0.5):
            weighted = model(tokens(1)).logits
        # Halving is exact in bfloat16.
        torch.testing.assert_close(weighted, baked(tokens(1)).logits)


@pytest.fixture
def defaults_elsewhere() -> Any:
    """Tensors made without a device land where nothing can be read from them, those without a dtype in float64."""
    torch.set_default_device("meta")
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("defaults_elsewhere")
def test_defaults_of_the_process_do_not_reach_the_numbers(mask: PairMask) -> None:
    with torch.device("cpu"):
        torch.set_default_dtype(torch.float32)
        model, other = LLAMA.build(), LLAMA.build()
        ids = tokens(1)
        expected = entropies(model), perplexity(model, ids).nats
        torch.set_default_dtype(torch.float64)
        windows = tokens(1)
    found = measure(model, windows, **FRAMES)["query"].spectrum_fe.values
    np.testing.assert_array_equal(found, expected[0])
    assert perplexity(model, windows).nats == expected[1]
    with weighted_rope(model, mask, 0.3):
        weighted = model(windows).logits
    with derotated(model, mask):
        assert not torch.allclose(model(windows).logits, weighted)
    torch.testing.assert_close(bake(other, mask, 0.3)(windows).logits, weighted, rtol=1e-4, atol=1e-4)
