"""Make a model config say what a GGUF file says, and refuse the file where the model could not say it.

transformers' GGUF loader reads some of a file's metadata and passes over the rest, rope scaling among it. Here every
entry of the architecture is read again: it is set in the config, or known to have no effect, or the file is refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ropescope.base.errors import ModelError
from ropescope.model.gguf.file import SOURCE_FIX, GgufFile
from ropescope.model.gguf.rope import ROPE_TENSORS, rope_scaling

if TYPE_CHECKING:
    from torch import nn

# Sizes that the tensors show too (a wrong one does not load), and entries that no forward pass depends on.
_NO_EFFECT = {
    "context_length", "block_count", "embedding_length", "feed_forward_length", "tensor_data_layout", "pooling_type",
    "nextn_predict_layers", "rope.scaling.finetuned", "shortconv.l_cache", "full_attention_interval",
    "rope.dimension_sections",
}  # fmt: skip
_SSM = "ssm."
# Read as a whole below, since they depend on each other.
_ROPE = {
    "rope.freq_base", "rope.freq_base_swa", "rope.dimension_count", "rope.scale_linear", "rope.scaling.type",
    "rope.scaling.factor", "rope.scaling.attn_factor", "rope.scaling.original_context_length",
    "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow", "rope.scaling.yarn_ext_factor",
    "rope.scaling.yarn_attn_factor",
}  # fmt: skip
_HEADS = {"attention.key_length", "attention.value_length", "attention.scale", "attention.sliding_window_pattern"}
_EPSILONS = ("rms_norm_eps", "norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon")


@dataclass(frozen=True)
class _Place:
    """The names that configs keep an entry under, the values as good as no entry, and how a config says these."""

    names: tuple[str, ...]
    neutral: tuple[Any, ...] = ()
    off: Any = None


_PLACES = {
    "vocab_size": _Place(("vocab_size",)),
    "attention.head_count": _Place(("num_attention_heads", "n_head")),
    "attention.head_count_kv": _Place(("num_key_value_heads", "num_kv_heads")),
    "attention.layer_norm_rms_epsilon": _Place(_EPSILONS),
    "attention.layer_norm_epsilon": _Place(_EPSILONS),
    "attention.clamp_kqv": _Place(("clip_qkv",), (0.0,)),
    "attention.causal": _Place((), (True,)),
    "attention.sliding_window": _Place(("sliding_window",), (0,)),
    "attn_logit_softcapping": _Place(("attn_logit_softcapping",), (0.0,)),
    "final_logit_softcapping": _Place(("final_logit_softcapping",), (0.0,)),
    "logit_scale": _Place(("logit_scale",), (0.0, 1.0), off=1.0),
    "embedding_scale": _Place(("embedding_multiplier",), (0.0, 1.0), off=1.0),
    "residual_scale": _Place(("residual_multiplier",), (0.0, 1.0), off=1.0),
    "use_parallel_residual": _Place(("use_parallel_residual",)),
    "expert_count": _Place(("num_local_experts", "num_experts"), (0,), off=0),
    "expert_used_count": _Place(("num_experts_per_tok",), (0,), off=0),
    "expert_feed_forward_length": _Place(("moe_intermediate_size", "intermediate_size"), (0,), off=0),
    "expert_shared_feed_forward_length": _Place(("shared_expert_intermediate_size",), (0,), off=0),
    "expert_weights_norm": _Place(("norm_topk_prob",), (False,), off=False),
    "expert_weights_scale": _Place(("routed_scaling_factor",), (0.0, 1.0), off=1.0),
    # 1 is the softmax that all these architectures route by; MiniMax's own is read by transformers.
    "expert_gating_func": _Place((), (0, 1)),
}


def reflect(gguf: GgufFile, config: Any, source: str) -> None:
    """Write into `config` all that the file says of the forward pass.

    Raises
    ------
    ModelError
        If the file is not one whole model, or says something that the config has no place for.
    """
    _check_whole(gguf, source)
    text = config.get_text_config()
    _set(text, "vocab_size", gguf.get("vocab_size") or len(gguf.metadata.get("tokenizer.ggml.tokens", ())))
    for key, value in _entries(gguf).items():
        if key == "expert_gating_func" and hasattr(text, "scoring_func"):
            continue
        if key in _PLACES:
            _put(text, _PLACES[key], value, key, gguf, source)
        elif key not in _NO_EFFECT | _ROPE | _HEADS and not key.startswith(_SSM):
            raise _no_place(gguf, key, value, source)
    _reflect_heads(gguf, text, source)
    _reflect_rope(gguf, text, source)


def check_reflected(gguf: GgufFile, model: nn.Module, source: str) -> None:
    """Raise ModelError unless the loaded model took every weight of the file and turns as the file says."""
    _check_weights(gguf, model, source)
    _check_rotation(gguf, model, source)


def _entries(gguf: GgufFile) -> dict[str, Any]:
    prefix = f"{gguf.architecture}."
    return {key.removeprefix(prefix): value for key, value in gguf.metadata.items() if key.startswith(prefix)}


def _check_whole(gguf: GgufFile, source: str) -> None:
    kind, parts = gguf.metadata.get("general.type", "model"), gguf.metadata.get("split.count", 1)
    if kind != "model":
        raise ModelError(f"{source!r} holds no model but a GGUF of type {kind!r}: give the model's own file")
    if parts > 1:
        part = gguf.metadata.get("split.no", 0) + 1
        raise ModelError(f"{source!r} is part {part} of {parts}: join them with llama-gguf-split --merge")


def _no_place(gguf: GgufFile, key: str, value: Any, source: str) -> ModelError:
    return ModelError(
        f"{source!r} says {gguf.architecture}.{key} = {str(value)[:60]}, which the model that transformers makes of it"
        f" does not reflect: {SOURCE_FIX}"
    )


def _put(text: Any, place: _Place, value: Any, key: str, gguf: GgufFile, source: str) -> None:
    """Set one entry. The config class refuses a value for each layer, but for LFM2, whose convolutions have 0 heads."""
    if isinstance(value, list) and text.model_type == "lfm2":
        value = max(value)
    name = next((name for name in place.names if hasattr(text, name)), None)
    if name is not None:
        _set(text, name, place.off if value in place.neutral else value)
    elif value not in place.neutral:
        raise _no_place(gguf, key, value, source)


def _set(text: Any, name: str, value: Any) -> None:
    if getattr(text, name, None) != value:
        setattr(text, name, value)


def _reflect_heads(gguf: GgufFile, text: Any, source: str) -> None:
    """Size of a head, scale of its logits, and which layers see a window only."""
    heads, width = gguf.get("attention.head_count"), gguf.get("embedding_length")
    if heads == 0:
        return
    if not isinstance(heads, int) or not isinstance(width, int):
        raise _no_place(gguf, "attention.head_count", heads, source)
    size = gguf.get("attention.key_length", width // heads)
    if gguf.get("attention.value_length", size) != size:
        raise _no_place(gguf, "attention.value_length", gguf.get("attention.value_length"), source)
    if (getattr(text, "head_dim", None) or width // heads) != size:
        text.head_dim = size
    if hasattr(text, "query_pre_attn_scalar"):
        # No entry says it: llama.cpp knows the 27 billion models by their number of layers.
        large = (gguf.architecture, gguf.get("block_count")) in (("gemma2", 46), ("gemma3", 62))
        _set(text, "query_pre_attn_scalar", width // heads if large else size)
        if scale := gguf.get("attention.scale"):
            text.query_pre_attn_scalar = scale**-2
    elif not math.isclose(gguf.get("attention.scale") or size**-0.5, size**-0.5, rel_tol=1e-6):
        raise _no_place(gguf, "attention.scale", gguf.get("attention.scale"), source)
    _reflect_pattern(gguf, text, source)


def _reflect_pattern(gguf: GgufFile, text: Any, source: str) -> None:
    key = "attention.sliding_window_pattern"
    pattern = gguf.get(key)
    if pattern is None:
        return
    layers = range(text.num_hidden_layers)
    local = pattern if isinstance(pattern, list) else [bool((layer + 1) % pattern) for layer in layers]
    if not hasattr(text, "layer_types") or len(local) != len(layers):
        raise _no_place(gguf, key, pattern, source)
    _set(text, "layer_types", ["sliding_attention" if near else "full_attention" for near in local])


def _reflect_rope(gguf: GgufFile, text: Any, source: str) -> None:
    """Rope parameters, of the layers that see everything where a config keeps them apart."""
    now = getattr(text, "rope_parameters", None)
    if not now:
        for key, value in _entries(gguf).items():
            if key in _ROPE:
                raise _no_place(gguf, key, value, source)
        return
    apart = "full_attention" in now
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    turned = gguf.get("rope.dimension_count", size)
    before = now["full_attention"] if apart else now
    if before.get("rope_type") == "proportional":
        scaling = {name: value for name, value in before.items() if name != "rope_theta"}
    else:
        scaling = rope_scaling(gguf, turned, source)
        kept = ("mrope_section", "mrope_interleaved")
        scaling |= {name: before[name] for name in kept if name in before}
        if "partial_rotary_factor" in before or turned != size:
            scaling["partial_rotary_factor"] = turned / size
    parameters = scaling | {"rope_theta": gguf.get("rope.freq_base", 10000.0)}
    if not apart:
        text.rope_parameters = parameters
        if "original_max_position_embeddings" in scaling and hasattr(text, "original_max_position_embeddings"):
            text.original_max_position_embeddings = scaling["original_max_position_embeddings"]
        return
    local = now["sliding_attention"] | {"rope_theta": gguf.get("rope.freq_base_swa", 10000.0)}
    text.rope_parameters = {"full_attention": parameters, "sliding_attention": local}


def _check_weights(gguf: GgufFile, model: nn.Module, source: str) -> None:
    """Count them: conversion permutes, splits and joins tensors, but neither makes nor drops a value."""
    blocks = gguf.get("block_count", 0) - gguf.get("nextn_predict_layers", 0)
    given = [
        tensor
        for tensor in gguf.tensors
        if tensor.name not in ROPE_TENSORS and not (tensor.name.startswith("blk.") and _block(tensor.name) >= blocks)
    ]
    wanted, found = _held(model), sum(tensor.elements for tensor in given)
    if wanted == found:
        return
    names = [name for name in (tensor.name for tensor in given) if name not in _known(gguf, model)]
    listing = f" ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else ""
    raise ModelError(
        f"{source!r} holds {found} weights, but a {type(model).__name__} takes {wanted} of them{listing}: {SOURCE_FIX}"
    )


def _held(model: nn.Module) -> int:
    """Values of all parameters, tied ones once, and of the buffers that a checkpoint holds."""
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    buffers = [value for name, value in model.state_dict().items() if name not in names]
    return sum(value.numel() for value in (*model.parameters(), *buffers))


def _block(name: str) -> int:
    return int(name.split(".")[1])


def _known(gguf: GgufFile, model: nn.Module) -> set[str]:
    """What the file's tensors would be called that the model has a place for."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    architecture = next(key for key, name in MODEL_ARCH_NAMES.items() if name == gguf.architecture)
    names = get_tensor_name_map(architecture, gguf.get("block_count", 0))
    endings = (".weight", ".bias")
    return {str(names.get_name(name, try_suffixes=endings)) for name in model.state_dict()}


def _check_rotation(gguf: GgufFile, model: nn.Module, source: str) -> None:
    """Where the file holds factors of its own, some rotary module must turn by exactly these."""
    turned = gguf.get("rope.dimension_count")
    vectors = [
        buffer.double().cpu().numpy()
        for name, buffer in model.named_buffers()
        if name.endswith("inv_freq") and buffer.ndim == 1
    ]
    if vectors and turned and all(2 * len(vector) != turned for vector in vectors):
        raise _no_place(gguf, "rope.dimension_count", turned, source)
    factors = gguf.values("rope_freqs.weight")
    if factors is None:
        return
    base = gguf.get("rope.freq_base", 10000.0)
    expected = base ** -(np.arange(len(factors)) / len(factors)) / np.array(factors)
    alike = [vector for vector in vectors if len(vector) == len(expected)]
    if not any(np.allclose(vector, expected, rtol=1e-5, atol=1e-15) for vector in alike):
        raise ModelError(
            f"{source!r} holds frequency factors (rope_freqs.weight) that {type(model).__name__} does not turn by: "
            f"{SOURCE_FIX}"
        )
