"""One matrix of small random models, built from their real config classes, and what each config says of its rotation.

Expectations come from the config and from transformers' own rope functions, never from ropescope's probe. Only the
pairing style stands here by hand: it is a property of the modelling code that no config names.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
import transformers
from scipy.signal import get_window
from scipy.stats import entropy
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

VOCABULARY = 99
MAX_POSITIONS = 4096
SHORT_CONTEXT = 1024
WINDOW = 16
LAYERS = 4
HALF_SPLIT: Literal["half-split"] = "half-split"
INTERLEAVED: Literal["interleaved"] = "interleaved"

_TOKENS = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_SMALL = _TOKENS | {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": MAX_POSITIONS,
    # Wide enough that attention is far from uniform, so that masks and rewritten queries show in the logits.
    "initializer_range": 0.15,
}
_MIXTURE = {"num_experts_per_tok": 1, "num_local_experts": 2}


def _without(*names: str, **changed: Any) -> dict[str, Any]:
    return {name: value for name, value in _SMALL.items() if name not in names} | changed


def _rope(kind: str, **parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10_000.0, **parameters}}


@dataclass(frozen=True)
class Expected:
    """What a config says of one attention layer; `frequency` (rad/token) is all zero where it does not rotate."""

    layer: int
    heads: int
    kv_heads: int
    head_dim: int
    style: str
    start: int
    size: int
    frequency: np.ndarray

    @property
    def pairing(self) -> str:
        return f"{self.style}[{self.start}:{self.start + self.size}]"

    @property
    def rotates(self) -> bool:
        return bool(self.frequency.any())


@dataclass(frozen=True, eq=False)
class Architecture:
    """A small random model of one architecture.

    Parameters
    ----------
    name
        Test id.
    config_class
        Name of the config class in transformers.
    settings
        Its arguments.
    style
        How the modelling code pairs dimensions; None where no layer rotates.
    unrotated
        Config to the indices of its NoPE layers.
    implementations
        Attention implementations that the modelling code allows on a CPU.
    """

    name: str
    config_class: str
    style: Literal["half-split", "interleaved"] | None = HALF_SPLIT
    settings: Mapping[str, Any] = field(default_factory=lambda: _SMALL)
    unrotated: Callable[[PretrainedConfig], set[int]] = lambda config: set()
    implementations: tuple[str, ...] = ("sdpa", "eager")

    def __str__(self) -> str:
        return self.name

    def config(self) -> PretrainedConfig:
        return getattr(transformers, self.config_class)(**self.settings)

    def build(
        self, dtype: torch.dtype = torch.float32, implementation: str | None = None, seed: int = 0
    ) -> PreTrainedModel:
        """A fresh model in evaluation mode; norms and biases are random too, so that none drops out by being 0 or 1."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = transformers.AutoModelForCausalLM.from_config(
                self.config(), dtype=dtype, attn_implementation=implementation or self.implementations[0]
            )
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.ndim == 1:
                        parameter.add_(0.1 * torch.randn_like(parameter))
        return model.eval()

    def shared(self, dtype: torch.dtype = torch.float32, implementation: str | None = None) -> PreTrainedModel:
        """The same model for every test of the session: leave it as it is."""
        return _shared(self, dtype, implementation or self.implementations[0])

    def expected(self, positions: int = MAX_POSITIONS) -> list[Expected]:
        """Shapes, pairing and frequencies of every attention layer, for sequences of `positions` tokens."""
        config = self.config()
        nope = set(range(config.num_hidden_layers)) if self.style is None else self.unrotated(config)
        layers = [
            layer for layer in range(config.num_hidden_layers) if _layer_type(config, layer) != "linear_attention"
        ]
        return [_expected(config, layer, self.style or HALF_SPLIT, layer not in nope, positions) for layer in layers]


@functools.cache
def _shared(architecture: Architecture, dtype: torch.dtype, implementation: str) -> PreTrainedModel:
    return architecture.build(dtype, implementation)


def _expected(config: PretrainedConfig, layer: int, style: str, rotates: bool, positions: int) -> Expected:
    # Gemma-4 has another head_dim in some layers.
    config = config.per_layer_config[layer] if getattr(config, "per_layer_config", None) else config
    heads = config.num_attention_heads
    head_dim = getattr(config, "qk_head_dim", None) or getattr(config, "head_dim", None) or config.hidden_size // heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    start, size = _rotary_block(config, layer, head_dim)
    frequency = _frequencies(config, layer, size, positions) if rotates else np.zeros(size // 2)
    return Expected(layer, heads, kv_heads, head_dim, style, start, size, frequency)


def _layer_type(config: PretrainedConfig, layer: int) -> str | None:
    types = getattr(config, "layer_types", None)
    return types[layer] if types else None


def _rope_parameters(config: PretrainedConfig, layer: int) -> Mapping[str, Any]:
    parameters = getattr(config, "rope_parameters", None) or {}
    return parameters.get(_layer_type(config, layer), parameters)


def _rotary_block(config: PretrainedConfig, layer: int, head_dim: int) -> tuple[int, int]:
    """First dimension and number of the dimensions that turn; "proportional" ones pair up all, and hold some still."""
    if getattr(config, "qk_rope_head_dim", None):
        return config.qk_nope_head_dim, config.qk_rope_head_dim
    parameters = _rope_parameters(config, layer)
    if parameters.get("rope_type") == "proportional":
        return 0, head_dim
    return 0, int(head_dim * parameters.get("partial_rotary_factor", 1.0))


def _frequencies(config: PretrainedConfig, layer: int, size: int, positions: int) -> np.ndarray:
    parameters = _rope_parameters(config, layer)
    kind = parameters["rope_type"]
    if kind == "default":
        return parameters["rope_theta"] ** (-np.arange(0, size, 2) / size)
    layer_type = None if parameters is config.rope_parameters else _layer_type(config, layer)
    init = ROPE_INIT_FUNCTIONS[kind]
    return init(config, torch.device("cpu"), seq_len=positions, layer_type=layer_type)[0].double().numpy()


def _no_rope_layers(config: PretrainedConfig) -> set[int]:
    """Llama-4 and SmolLM3 keep one flag per layer: 1 rotates."""
    return {layer for layer, rotates in enumerate(config.no_rope_layers) if not rotates}


def _full_attention_layers(config: PretrainedConfig) -> set[int]:
    """Cohere-2 and EXAONE-4 rotate in sliding layers only."""
    return {layer for layer, kind in enumerate(config.layer_types) if kind == "full_attention"}


LLAMA = Architecture("llama", "LlamaConfig")
QWEN3 = Architecture("qwen3", "Qwen3Config")
GPT2 = Architecture(
    "gpt2",
    "GPT2Config",
    style=None,
    settings=_TOKENS | {"n_embd": 64, "n_layer": LAYERS, "n_head": 4, "n_positions": 128, "initializer_range": 0.15},
)
DYNAMIC_NTK = Architecture("llama-dynamic-ntk", "LlamaConfig", settings=_SMALL | _rope("dynamic", factor=4.0))
LONGROPE = Architecture(
    "phi3-longrope",
    "Phi3Config",
    settings=_without(
        "head_dim",
        # Phi-3 takes the factor from max_position_embeddings; its attention must still see all of them.
        original_max_position_embeddings=SHORT_CONTEXT,
        **_rope(
            "longrope",
            short_factor=[1.0 + 0.1 * pair for pair in range(8)],
            long_factor=[2.0 + pair for pair in range(8)],
            original_max_position_embeddings=SHORT_CONTEXT,
        ),
    ),
)
GEMMA3 = Architecture(
    "gemma3", "Gemma3TextConfig", settings=_SMALL | {"num_hidden_layers": 6, "sliding_window": WINDOW}
)
LLAMA4 = Architecture(
    "llama4",
    "Llama4TextConfig",
    INTERLEAVED,
    _SMALL
    | _MIXTURE
    # floor_scale: its NoPE layers scale queries by position from there on.
    | {"intermediate_size_mlp": 64, "interleave_moe_layer_step": 2, "attention_chunk_size": WINDOW, "floor_scale": 8},
    unrotated=_no_rope_layers,
)
GEMMA4 = Architecture(
    "gemma4",
    "Gemma4TextConfig",
    settings=_SMALL
    | {
        "num_hidden_layers": 6,
        "layer_types": ["sliding_attention", "full_attention"] * 3,
        "num_kv_shared_layers": 2,
        "global_head_dim": 32,
        "attention_k_eq_v": True,
        "num_global_key_value_heads": 1,
        "sliding_window": WINDOW,
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 8,
    },
)
QWEN3_NEXT = Architecture(
    "qwen3-next",
    "Qwen3NextConfig",
    settings=_SMALL
    | {
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
    },
)
SMOLLM3 = Architecture("smollm3", "SmolLM3Config", unrotated=_no_rope_layers)
COHERE2 = Architecture(
    "cohere2", "Cohere2Config", INTERLEAVED, _SMALL | {"sliding_window": WINDOW}, _full_attention_layers
)
DEEPSEEK = Architecture(
    "deepseek-v3",
    "DeepseekV3Config",
    settings=_without(
        "head_dim",
        num_key_value_heads=4,
        q_lora_rank=32,
        kv_lora_rank=32,
        qk_rope_head_dim=16,
        qk_nope_head_dim=16,
        v_head_dim=16,
        n_routed_experts=4,
        n_group=1,
        topk_group=1,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        first_k_dense_replace=1,
    ),
)

ARCHITECTURES = (
    LLAMA,
    Architecture(
        "llama-llama3",
        "LlamaConfig",
        settings=_SMALL
        | _rope(
            "llama3",
            rope_theta=500_000.0,
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=SHORT_CONTEXT,
        ),
    ),
    Architecture(
        "llama-yarn",
        "LlamaConfig",
        settings=_SMALL | _rope("yarn", factor=4.0, original_max_position_embeddings=SHORT_CONTEXT),
    ),
    DYNAMIC_NTK,
    LLAMA4,
    Architecture("gemma2", "Gemma2Config", settings=_SMALL | {"sliding_window": WINDOW}, implementations=("eager",)),
    GEMMA3,
    GEMMA4,
    QWEN3,
    Architecture(
        "qwen3-moe",
        "Qwen3MoeConfig",
        settings=_SMALL | {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 32},
    ),
    QWEN3_NEXT,
    SMOLLM3,
    COHERE2,
    Architecture("glm4", "Glm4Config", INTERLEAVED),
    Architecture("gpt-neox", "GPTNeoXConfig", settings=_without("head_dim", "num_key_value_heads")),
    Architecture("phi", "PhiConfig", settings=_without("head_dim")),
    Architecture("olmo2", "Olmo2Config", settings=_without("head_dim")),
    Architecture(
        "exaone4",
        "Exaone4Config",
        settings=_SMALL | {"sliding_window": WINDOW, "sliding_window_pattern": 4},
        unrotated=_full_attention_layers,
    ),
    Architecture("mistral", "MistralConfig", settings=_SMALL | {"sliding_window": WINDOW}),
    Architecture(
        "gpt-oss",
        "GptOssConfig",
        settings=_SMALL | _MIXTURE | {"sliding_window": WINDOW},
        implementations=("eager",),
    ),
    DEEPSEEK,
    GPT2,
    LONGROPE,
    Architecture("granite", "GraniteConfig", settings=_without("head_dim")),
    Architecture("nemotron", "NemotronConfig"),
    Architecture("stablelm", "StableLmConfig", settings=_without("head_dim")),
)
# One of each kind: plain, with layers without rotation, soft cap, two frequencies, normalised queries, interleaved,
# latent keys, no rotation at all. `make test-fast` keeps to these.
OF_EACH_KIND = ("llama", "llama4", "gemma2", "gemma3", "qwen3", "cohere2", "deepseek-v3", "gpt2")


def tokens(sequences: int = 2, length: int = 48, seed: int = 0) -> Tensor:
    """Random token ids above the special ones, (sequence, position); 48 is three sliding windows of the matrix."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (sequences, length), generator=generator)


def state_of(model: PreTrainedModel) -> dict[str, Any]:
    """Everything that an intervention could leave behind, comparable with ==.

    Attributes and hooks of every module by identity, buffers by value, parameters by identity and write count, every
    config by value, and the names that transformers' registries hold.
    """
    buffers = {name: (id(buffer), buffer.tolist()) for name, buffer in model.named_buffers()}
    parameters = {name: (id(parameter), parameter._version) for name, parameter in model.named_parameters()}
    return {
        "attributes": {name: _attributes(module) for name, module in model.named_modules()},
        "buffers": buffers,
        "parameters": parameters,
        "configs": {id(config): repr(sorted(vars(config).items(), key=str)) for config in _configs(model)},
        "attention functions": dict(ALL_ATTENTION_FUNCTIONS._global_mapping),
        "mask functions": dict(ALL_MASK_ATTENTION_FUNCTIONS._global_mapping),
    }


def _attributes(module: nn.Module) -> dict[str, Any]:
    """By identity; the dictionaries of a module (hooks, parameters, buffers, submodules) by their entries."""
    return {
        name: [(key, id(entry)) for key, entry in value.items()] if isinstance(value, dict) else id(value)
        for name, value in vars(module).items()
        if name != "training"
    } | {"training": module.training}


def _configs(model: PreTrainedModel) -> list[PretrainedConfig]:
    held = [
        module.config for module in model.modules() if isinstance(getattr(module, "config", None), PretrainedConfig)
    ]
    nested = [sub for config in held for sub in vars(config).values() if isinstance(sub, PretrainedConfig)]
    return held + nested


def pair_norms_of(heads: np.ndarray, style: str, start: int, size: int) -> np.ndarray:
    """Norms of the rotary pairs of (..., position, head_dim), as (..., pair, position), in float64."""
    block = heads[..., start : start + size].astype(np.float64)
    shape = (2, size // 2) if style == HALF_SPLIT else (size // 2, 2)
    components = block.reshape(*block.shape[:-1], *shape)
    return np.swapaxes(np.linalg.norm(components, axis=-2 if style == HALF_SPLIT else -1), -1, -2)


def entropies_of(norms: np.ndarray, frame_length: int, hop_length: int) -> dict[str, np.ndarray]:
    """Every variable of a result from pair norms (..., pair, position), by NumPy and SciPy in float64."""
    length = norms.shape[-1]
    frames = np.lib.stride_tricks.sliding_window_view(norms, frame_length, axis=-1)[..., ::hop_length, :]
    local = (np.abs(np.fft.rfft(frames * get_window("hann", frame_length))) ** 2).mean(-2)
    whole = (np.abs(np.fft.rfft(norms)) ** 2)[..., 1 : length // 2]
    with np.errstate(invalid="ignore"):
        return {
            "spectrum_fe": entropy(local, axis=-1) / np.log(local.shape[-1]),
            "sequence_fe": entropy(whole, axis=-1) / np.log(whole.shape[-1]),
            "mean_norm": norms.mean(-1),
            "dc_share": local[..., :2].sum(-1) / local.sum(-1),
            "dominant_period": length / (whole.argmax(-1) + 1),
            "peak_share": whole.max(-1) / whole.sum(-1),
        }
