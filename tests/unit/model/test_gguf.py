"""GGUF files: the loaded model does what the file says, or the file is refused; a file is converted once."""

from __future__ import annotations

import importlib.util
import math
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gguf_files import random_model, write_gguf
from ropescope.base.errors import ModelError
from ropescope.model.fingerprint import fingerprint
from ropescope.model.loading import load_bare_model, load_model

pytestmark = [
    pytest.mark.skipif(
        not all(importlib.util.find_spec(name) for name in ("gguf", "accelerate")),
        reason="gguf and accelerate are not installed: ropescope[gguf]",
    ),
    pytest.mark.usefixtures("one_thread", "no_gradients"),
]

TOKENS = (torch.arange(96)[None] * 7) % 300
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
FIX = "use the model's safetensors checkpoint"


def llama3_factors(base: float, dimensions: int, **scaling: Any) -> Any:
    """What llama.cpp's converter writes to rope_freqs.weight."""
    wavelengths = 2 * np.pi * base ** (np.arange(0, dimensions, 2) / dimensions)
    low, high = (scaling["original_max_position_embeddings"] / scaling[f"{end}_freq_factor"] for end in ("low", "high"))
    smooth = (scaling["original_max_position_embeddings"] / wavelengths - scaling["low_freq_factor"]) / (
        scaling["high_freq_factor"] - scaling["low_freq_factor"]
    )
    between = 1 / ((1 - smooth) / scaling["factor"] + smooth)
    return np.where(wavelengths < high, 1.0, np.where(wavelengths > low, scaling["factor"], between))


def rope(kind: str, **parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0} | parameters}


def both(full: dict[str, Any], local: float = 10000.0) -> dict[str, Any]:
    return {
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 1000000.0} | full,
            "sliding_attention": {"rope_type": "default", "rope_theta": local},
        }
    }


SHORT, LONG = [1.0 + index / 8 for index in range(8)], [2.0 + index for index in range(8)]
GEMMA = {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 16}
GEMMA_FILE = {"attention__key_length": 32, "attention__value_length": 32, "attention__sliding_window": 16}
UNTIED = {"tie_word_embeddings": False}

# name: class, options of its config, architecture of the file, its metadata, its own tensors
CASES: dict[str, tuple[str, dict[str, Any], str, dict[str, Any], dict[str, Any]]] = {
    "llama": ("llama", {}, "llama", {"rope__dimension_count": 16}, {}),
    "linear": (
        "llama",
        rope("linear", factor=4.0),
        "llama",
        {"rope__scaling__type": "linear", "rope__scaling__factor": 4.0},
        {},
    ),
    "an old file's linear": ("llama", rope("linear", factor=2.0), "llama", {"rope__scale_linear": 2.0}, {}),
    "yarn": (
        "qwen2",
        rope("yarn", factor=4.0, original_max_position_embeddings=64),
        "qwen2",
        {
            "rope__scaling__type": "yarn",
            "rope__scaling__factor": 4.0,
            "rope__scaling__original_context_length": 64,
            "rope__scaling__finetuned": True,
        },
        {},
    ),
    "yarn with its own betas and attention factor": (
        "llama",
        rope(
            "yarn",
            factor=4.0,
            original_max_position_embeddings=64,
            beta_fast=16.0,
            beta_slow=2.0,
            attention_factor=0.5 * (0.1 * math.log(4.0) + 1),
        ),
        "llama",
        {
            "rope__scaling__type": "yarn",
            "rope__scaling__factor": 4.0,
            "rope__scaling__original_context_length": 64,
            "rope__scaling__yarn_beta_fast": 16.0,
            "rope__scaling__yarn_beta_slow": 2.0,
            "rope__scaling__attn_factor": 0.5,
        },
        {},
    ),
    "longrope": (
        "phi3",
        rope(
            "longrope",
            short_factor=SHORT,
            long_factor=LONG,
            original_max_position_embeddings=64,
            attention_factor=1.25,
            partial_rotary_factor=1.0,
        )
        | {"original_max_position_embeddings": 64}
        | UNTIED,
        "phi3",
        {
            "rope__dimension_count": 16,
            "rope__scaling__original_context_length": 64,
            "rope__scaling__attn_factor": 1.25,
        },
        {"rope_factors_long.weight": LONG, "rope_factors_short.weight": SHORT},
    ),
    "half of a head turns": (
        "phi3",
        rope("default", partial_rotary_factor=0.5),
        "phi3",
        {"rope__dimension_count": 8},
        {},
    ),
    "a window that the loader passes over": (
        "phi3",
        {"sliding_window": 16},
        "phi3",
        {"attention__sliding_window": 16},
        {},
    ),
    "heads of another size": (
        "qwen3",
        {"head_dim": 32},
        "qwen3",
        {"attention__key_length": 32, "attention__value_length": 32},
        {},
    ),
    "a base that the loader passes over": (
        "starcoder2",
        rope("default", rope_theta=500000.0) | {"norm_epsilon": 1e-3, "sliding_window": None},
        "starcoder2",
        {
            "rope__freq_base": 500000.0,
            "attention__layer_norm_epsilon": 1e-3,
            "attention__layer_norm_rms_epsilon": None,
            "vocab_size": None,
        },
        {},
    ),
    "soft caps": (
        "gemma2",
        GEMMA | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
        "gemma2",
        GEMMA_FILE | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
        {},
    ),
    "two bases, one scaled": (
        "gemma3_text",
        GEMMA | both({"rope_type": "linear", "factor": 8.0}, local=5000.0) | {"num_hidden_layers": 2},
        "gemma3",
        GEMMA_FILE
        | {
            "rope__freq_base": 1000000.0,
            "rope__freq_base_swa": 5000.0,
            "rope__scaling__type": "linear",
            "rope__scaling__factor": 8.0,
        },
        {},
    ),
    "a pattern of layers": (
        "gemma3_text",
        GEMMA | both({}) | {"layer_types": ["sliding_attention", "full_attention"]},
        "gemma3",
        GEMMA_FILE | {"rope__freq_base": 1000000.0, "attention__sliding_window_pattern": 2},
        {},
    ),
}


def logits(model: Any) -> torch.Tensor:
    return model(TOKENS, use_cache=False).logits


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_file_gives_the_logits_of_the_model_it_was_made_of(name: str, tmp_path: Path) -> None:
    kind, options, architecture, metadata, tensors = CASES[name]
    original = random_model(kind, **options)
    path = write_gguf(tmp_path / "model.gguf", original, architecture, tensors, **metadata)
    loaded = load_bare_model(path, device="cpu")
    torch.testing.assert_close(logits(loaded), logits(original), rtol=1e-4, atol=1e-4)
    loaded.save_pretrained(tmp_path / "again")
    again = load_bare_model(tmp_path / "again", device="cpu")
    torch.testing.assert_close(logits(again), logits(loaded), rtol=0, atol=0)


@pytest.mark.parametrize("scaling", [{}, {"factor": 32.0}, {"low_freq_factor": 2.0, "high_freq_factor": 16.0}])
def test_llama3_scaling_is_recovered_from_the_factors_of_the_file(scaling: dict[str, Any], tmp_path: Path) -> None:
    scaling = LLAMA3 | {"original_max_position_embeddings": 8192} | scaling
    sizes = {"head_dim": 64, "rope_parameters": scaling | {"rope_theta": 500000.0}}
    original = random_model("llama", **sizes)
    factors = llama3_factors(500000.0, 64, **scaling)
    file = {"rope__freq_base": 500000.0, "rope__dimension_count": 64, "attention__key_length": 64}
    path = write_gguf(tmp_path / "model.gguf", original, "llama", {"rope_freqs.weight": factors}, **file)
    loaded = load_bare_model(path, device="cpu")
    assert loaded.config.rope_parameters == pytest.approx(scaling | {"rope_theta": 500000.0})
    torch.testing.assert_close(logits(loaded), logits(original), rtol=1e-4, atol=1e-4)


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_bare_model(path, device="cpu")
    message = str(caught.value)
    assert message.startswith(repr(str(path)))
    return message.removeprefix(repr(str(path))).strip()


@pytest.mark.parametrize(
    ("metadata", "tensors", "expected"),
    [
        ({"attention__scale": 0.5}, {}, "says llama.attention.scale = 0.5, which the model"),
        ({"logit_scale": 0.25}, {}, "says llama.logit_scale = 0.25, which the model"),
        ({"final_logit_softcapping": 30.0}, {}, "says llama.final_logit_softcapping = 30.0, which the model"),
        ({"attention__sliding_window": 16}, {}, "says llama.attention.sliding_window = 16, which the model"),
        ({"attention__causal": False}, {}, "says llama.attention.causal = False, which the model"),
        (
            {"attention__head_count_kv": [2, 1]},
            {},
            "cannot be read as GGUF (Validation error for field 'num_key_value_heads'",
        ),
        ({"expert_count": 8}, {}, "says llama.expert_count = 8, which the model"),
        ({"rope__dimension_count": 8}, {}, "says llama.rope.dimension_count = 8, which the model"),
        ({"attention__value_length": 8}, {}, "says llama.attention.value_length = 8, which the model"),
        ({"moonlight__phase": 3}, {}, "says llama.moonlight.phase = 3, which the model"),
        (
            {"rope__scaling__type": "longrope"},
            {},
            "scales its rotation in a way that cannot be read (llama.rope",
        ),
        (
            {"rope__scaling__attn_factor": 2.0},
            {},
            "scales its rotation in a way that cannot be read (llama.rope.scaling.attn_factor = 2.0)",
        ),
        (
            {},
            {"rope_freqs.weight": [1.0, 3.0, 1.0, 7.0, 2.0, 5.0, 1.0, 1.5]},
            "holds 8 frequency factors (rope_freqs.weight) that Llama 3's formula does not give",
        ),
        (
            {},
            {"blk.1.attn_q.bias": [0.5] * 64},
            "holds 100224 weights, but a LlamaForCausalLM takes 100160 of them (blk.1.attn_q.bias)",
        ),
        ({"split__count": 3, "split__no": 0}, {}, "is part 1 of 3: join them with llama-gguf-split --merge"),
        ({"general__type": "adapter"}, {}, "holds no model but a GGUF of type 'adapter': give the model's own file"),
    ],
)
def test_what_the_model_would_not_do_is_refused(
    metadata: dict[str, Any], tensors: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    path = write_gguf(tmp_path / "model.gguf", random_model("llama"), "llama", tensors, **metadata)
    assert refusal(path).startswith(expected)


@pytest.mark.parametrize(
    "metadata",
    [
        {"logit_scale": 1.0, "expert_count": 0, "final_logit_softcapping": 0.0, "attention__sliding_window": 0},
        {"rope__scaling__type": "none", "rope__scaling__factor": 4.0, "attention__scale": 0.25},
        {"attention__causal": True, "rope__scaling__type": "linear", "rope__scaling__finetuned": False},
    ],
)
def test_what_changes_nothing_is_passed_over(metadata: dict[str, Any], tmp_path: Path) -> None:
    original = random_model("llama")
    path = write_gguf(tmp_path / "model.gguf", original, "llama", {"rope_freqs.weight": [1.0] * 8}, **metadata)
    torch.testing.assert_close(logits(load_bare_model(path, device="cpu")), logits(original), rtol=1e-4, atol=1e-4)


def test_a_wrong_size_is_not_called_truncated(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", random_model("llama"), "llama", feed_forward_length=128)
    message = refusal(path)
    assert "truncated" not in message and message.endswith(FIX)


def test_a_file_that_ends_early_says_how_many_bytes_it_has(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", random_model("llama"), "llama")
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    assert refusal(path).startswith(f"cannot be read as GGUF (it has {len(whole) - 100} of ")


def test_a_big_endian_file_is_not_called_truncated(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + struct.pack(">IQQ", 3, 1, 1) + bytes(64))
    assert refusal(path) == f"is a GGUF file of version 50331648, not 2 or 3 (little-endian): {FIX}"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "model.gguf", random_model("llama"), "llama")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ROPESCOPE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def never_converted(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("converted again")

    monkeypatch.setattr("ropescope.model.gguf.conversion._convert", refuse)


def test_the_second_opening_reads_the_copy_and_is_the_same_model(
    path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = load_model(path, device="cpu")
    with monkeypatch.context() as patch:
        patch.setattr("ropescope.model.gguf.conversion._convert", None)
        patch.setattr("ropescope.model.gguf.conversion.read_gguf", None)
        again, its_tokenizer = load_model(path, device="cpu", dtype="bfloat16")
    assert fingerprint(again) == fingerprint(model)
    assert again.config.name_or_path == its_tokenizer.name_or_path == str(path)
    assert again.dtype == torch.bfloat16
    assert its_tokenizer.get_vocab() == tokenizer.get_vocab()
    assert its_tokenizer("the model") == tokenizer("the model")
    (folder,) = cache.iterdir()
    assert not any(file.suffix == ".gguf" or file.read_bytes().count(str(path).encode()) for file in folder.iterdir())


def test_the_same_content_elsewhere_is_the_same_copy(path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_bare_model(path, device="cpu")
    elsewhere = shutil.copy(path, path.with_name("other.gguf"))
    monkeypatch.setattr("ropescope.model.gguf.conversion._convert", None)
    assert load_bare_model(elsewhere, device="cpu").config.name_or_path == str(elsewhere)


def test_other_content_of_the_same_size_and_time_is_another_model(path: Path, cache: Path) -> None:
    import os

    first = load_bare_model(path, device="cpu")
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[-4:] = struct.pack("<f", 3.0)
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    second = load_bare_model(path, device="cpu")
    assert any((a != b).any() for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_copies_of_other_packages_are_not_used(path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_bare_model(path, device="cpu")
    monkeypatch.setattr("ropescope.model.gguf.conversion.version", lambda name: "0")
    load_bare_model(path, device="cpu")
    assert len(list(cache.iterdir())) == 2


def test_without_room_the_file_itself_is_opened_and_nothing_is_left(
    path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kept = load_bare_model(path, device="cpu")
    shutil.rmtree(cache)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 2**20})())
    model, tokenizer = load_model(path, device="cpu")
    assert tokenizer.decode(tokenizer("the model")["input_ids"]) == "the model"
    assert fingerprint(model) == fingerprint(kept)
    assert model.config.architectures == kept.config.architectures
    assert "more than half of the 0.0 GiB free" in caplog.text
    assert list(cache.iterdir()) == []


def test_a_disk_that_fills_up_leaves_nothing(
    path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from safetensors import SafetensorError

    def fail(self: object, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise SafetensorError("No space left on device")

    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", fail)
    assert load_bare_model(path, device="cpu").config.name_or_path == str(path)
    assert "No space left on device" in caplog.text
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_made_keeps_no_model_from_opening(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ROPESCOPE_CACHE", str(tmp_path / "file" / "cache"))
    assert load_bare_model(path, device="cpu").config.name_or_path == str(path)
    assert "so each opening converts it" in caplog.text


def test_of_two_that_convert_the_later_one_uses_what_the_earlier_one_wrote(cache: Path) -> None:
    from ropescope.model.kept_copies import keep_copy

    def write(folder: Path) -> None:
        (folder / "config.json").write_text("later")
        (cache / "name").mkdir()
        (cache / "name" / "config.json").write_text("earlier")

    assert (keep_copy("name", 0, write) / "config.json").read_text() == "earlier"
    assert [found.name for found in cache.iterdir()] == ["name"]


def test_what_a_killed_process_left_is_removed_after_a_day(cache: Path) -> None:
    import os

    from ropescope.model.kept_copies import keep_copy

    for name, age in ((".partial-old", 2 * 86400), (".partial-new", 60)):
        (cache / name).mkdir(parents=True)
        moment = (cache / name).stat().st_mtime - age
        os.utime(cache / name, (moment, moment))
    keep_copy("name", 0, lambda folder: None)
    assert {found.name for found in cache.iterdir()} == {"name", ".partial-new"}


def test_a_damaged_copy_says_which_folder_to_delete(path: Path, cache: Path) -> None:
    load_bare_model(path, device="cpu")
    (folder,) = cache.iterdir()
    (folder / "model.safetensors").write_bytes(b"cut")
    message = refusal(path)
    assert message.startswith("cannot be read from its copy (") and message.endswith(f"): delete {folder}")


def test_a_wrong_option_is_not_blamed_on_the_copy(path: Path, cache: Path) -> None:
    with pytest.raises(ModelError, match="nope") as caught:
        load_bare_model(path, device="cpu", attn_implementation="nope")
    assert "delete" not in str(caught.value)


def test_a_file_whose_tokenizer_cannot_be_read_can_be_looked_at(tmp_path: Path, cache: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", random_model("llama"), "llama")
    path.write_bytes(path.read_bytes().replace(b"gpt2", b"gptX"))
    assert load_bare_model(path, device="cpu").config.num_hidden_layers == 2
    with pytest.raises(ModelError, match=r"cannot load the tokenizer of .*gptX"):
        load_model(path, device="cpu")


@pytest.mark.parametrize(
    ("variables", "platform", "expected"),
    [
        ({"ROPESCOPE_CACHE": "/a"}, "linux", "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "linux", "/b/ropescope"),
        ({"HOME": "/c"}, "linux", "/c/.cache/ropescope"),
        ({"HOME": "/c", "XDG_CACHE_HOME": "/b"}, "darwin", "/c/Library/Caches/ropescope"),
        ({"LOCALAPPDATA": "/d"}, "win32", "/d/ropescope"),
    ],
)
def test_the_cache_is_where_the_platform_keeps_such_things(
    variables: dict[str, str], platform: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ropescope.model.kept_copies import cache_folder

    for name in ("ROPESCOPE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.platform", platform)
    assert str(cache_folder()) == expected
