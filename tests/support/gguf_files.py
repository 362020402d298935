"""Small GGUF files of models in memory, written as llama.cpp's converter writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tiny import byte_level_tokenizer

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
METADATA: dict[str, Any] = {
    "context_length": 256,
    "embedding_length": 64,
    "feed_forward_length": 96,
    "block_count": 2,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-6,
    "rope.freq_base": 10000.0,
    "vocab_size": 300,
}


def random_model(kind: str, seed: int = 0, **options: Any) -> Any:
    """A causal language model of the class that transformers calls `kind`, with weights large enough to attend."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    config = CONFIG_MAPPING[kind](**(SIZES | options))
    if hasattr(config, "rms_norm_eps"):
        config.rms_norm_eps = METADATA["attention.layer_norm_rms_epsilon"]
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(torch.randn_like(weight) * (0.3 if weight.ndim == 1 else 0.25))
            if name.endswith("norm.weight") and "gemma" not in kind:
                weight.add_(1)
    return model


def write_gguf(
    path: Path, model: nn.Module, architecture: str, extra: dict[str, Any] | None = None, **more: Any
) -> Path:
    """Write `model`; `more` are metadata (dots as two underscores), `extra` are tensors. None leaves an entry out."""
    import gguf

    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    entries = METADATA | {name.replace("__", "."): value for name, value in more.items()}
    for key, value in entries.items():
        if value is not None:
            _add(writer, key if key.startswith(("general.", "split.")) else f"{architecture}.{key}", value)
    _add_vocabulary(writer)
    for name, weight in (_tensors(model, architecture) | (extra or {})).items():
        writer.add_tensor(name, np.ascontiguousarray(np.asarray(weight, dtype=np.float32)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: Any, key: str, value: Any) -> None:
    kinds = {bool: "bool", int: "uint32", float: "float32", str: "string", list: "array"}
    getattr(writer, f"add_{kinds[type(value)]}")(key, value)


def _add_vocabulary(writer: Any) -> None:
    tokenizer = byte_level_tokenizer()
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    vocabulary += [(f"<{index}>", index) for index in range(len(vocabulary), SIZES["vocab_size"])]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([1] * len(vocabulary))
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    for token in ("bos", "eos", "unk", "pad"):
        getattr(writer, f"add_{token}_token_id")(0)


def _tensors(model: nn.Module, architecture: str) -> dict[str, Any]:
    """Weights under ggml's names: Llama's queries and keys interleaved, Gemma's norms one up."""
    import gguf

    kind = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, SIZES["num_hidden_layers"])
    tensors = {}
    for name, weight in model.named_parameters():
        value = weight.detach()
        for stream, heads in (("q_proj", 4), ("k_proj", 2)):
            if architecture == "llama" and stream in name:
                value = value.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(value.shape)
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            value = value + 1
        tensors[names.get_name(name, try_suffixes=(".weight", ".bias"))] = value.numpy()
    return tensors
