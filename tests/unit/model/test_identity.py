"""A file or journal belongs to all that decided its numbers: what changes a forward pass is named, nothing else is."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

from architectures import (
    ARCHITECTURES,
    DEEPSEEK,
    DYNAMIC_NTK,
    GEMMA3,
    LLAMA,
    LLAMA4,
    Architecture,
    state_of,
    tokens,
)
from ropescope import cli
from ropescope.analysis.comparison_in_words import same_places
from ropescope.base.errors import InputError, ResultError
from ropescope.base.facts import differences, listed, other_model
from ropescope.evaluation.perplexity import perplexity
from ropescope.evaluation.sweep import sweeping as sweep_module
from ropescope.evaluation.sweep.arms import NO_CONTROLS
from ropescope.evaluation.sweep.sweeping import sweep
from ropescope.interventions.derotation import derotated
from ropescope.interventions.masks import PairMask
from ropescope.interventions.selection import select
from ropescope.interventions.weighting import weighted_rope
from ropescope.measurement import measure as measurement
from ropescope.measurement.measure import measure
from ropescope.measurement.results import load, provenance, save
from ropescope.model.attention import intercepted
from ropescope.model.fingerprint import _bit_sum, checksum, fingerprint
from ropescope.model.identity import model_identity, model_provenance, tokenizer_identity
from ropescope.model.loading import load_model
from tiny import byte_level_tokenizer, tiny_llama

pytestmark = pytest.mark.usefixtures("one_thread")

OF = {str(architecture): architecture for architecture in ARCHITECTURES}
WINDOWS = tokens(3, 48)
FRAMES: dict[str, Any] = {"frame_length": 16, "hop_length": 8}


def twin(architecture: Architecture, **settings: Any) -> Any:
    """The very same weights under another config."""
    model = replace(architecture, settings={**architecture.settings, **settings}).build()
    model.load_state_dict(architecture.shared().state_dict())
    return model


def rope(theta: float = 10_000.0, kind: str = "default", **parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **parameters}}


CONFIGS: dict[str, tuple[Architecture, dict[str, Any], str]] = {
    "rope_theta": (LLAMA, rope(500_000.0), r"rope_parameters\.rope_theta 10000\.0 against 500000\.0"),
    "rope_scaling": (LLAMA, rope(kind="linear", factor=4.0), r"rope_parameters\.factor unknown against 4\.0"),
    "sliding window": (GEMMA3, {"sliding_window": 8}, "sliding_window 16 against 8"),
    "soft cap": (OF["gemma2"], {"attn_logit_softcapping": 2.0}, r"attn_logit_softcapping 50\.0 against 2\.0"),
    "attention multiplier": (OF["granite"], {"attention_multiplier": 0.1}, r"attention_multiplier 1\.0 against 0\.1"),
    "experts": (OF["qwen3-moe"], {"num_experts_per_tok": 2}, "num_experts_per_tok 1 against 2"),
    "norm epsilon": (LLAMA, {"rms_norm_eps": 0.1}, r"rms_norm_eps 1e-06 against 0\.1"),
    "layer types": (GEMMA3, {"layer_types": ["full_attention"] * 6}, "layer_types"),
    "residual": (OF["granite"], {"residual_multiplier": 0.5}, r"residual_multiplier 1\.0 against 0\.5"),
    "router": (DEEPSEEK, {"routed_scaling_factor": 1.0}, r"routed_scaling_factor 2\.5 against 1\.0"),
    "activation": (LLAMA, {"hidden_act": "gelu"}, 'hidden_act "silu" against "gelu"'),
}


@contextmanager
def hooked(model: Any) -> Iterator[None]:
    handle = model.model.layers[1].mlp.register_forward_hook(lambda module, args, output: 2 * output)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def everywhere_hooked(model: Any) -> Iterator[None]:
    def double(module: nn.Module, args: Any, output: Any) -> Any:
        return 2 * output if type(module).__name__ == "LlamaMLP" else None

    handle = nn.modules.module.register_module_forward_hook(double)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def replaced_forward(model: Any) -> Iterator[None]:
    mlp = model.model.layers[2].mlp
    own = mlp.forward
    mlp.forward = lambda hidden: 2 * own(hidden)
    try:
        yield
    finally:
        del mlp.forward


@contextmanager
def replaced_class(model: Any) -> Iterator[None]:
    """As a library that patches transformers does, under the name of what it replaces."""
    kind = type(model.model.layers[0].mlp)
    own = kind.forward
    kind.forward = functools.wraps(own)(lambda module, hidden: 2 * own(module, hidden))
    try:
        yield
    finally:
        kind.forward = own


@contextmanager
def attribute(model: Any) -> Iterator[None]:
    attention = model.model.layers[1].self_attn
    attention.scaling *= 3
    try:
        yield
    finally:
        attention.scaling /= 3


@contextmanager
def eager(model: Any) -> Iterator[None]:
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation("sdpa")


@contextmanager
def other_frequencies(model: Any) -> Iterator[None]:
    buffer = model.model.rotary_emb.inv_freq
    own = buffer.clone()
    buffer[3:] *= 0.5
    try:
        yield
    finally:
        buffer.copy_(own)


@contextmanager
def one_value(model: Any) -> Iterator[None]:
    """A single weight, which the fingerprint's sample passes over."""
    weight = model.model.layers[1].self_attn.k_proj.weight
    before, own = fingerprint(model), weight[3, 5].item()
    with torch.no_grad():
        weight[3, 5] = 9.0
        assert fingerprint(model) == before
        yield
        weight[3, 5] = own


RUNS: dict[str, tuple[Callable[[Any], AbstractContextManager[None]], str]] = {
    "hook": (hooked, r"model\.hooks\.model\.layers\.1\.mlp"),
    "global hook": (everywhere_hooked, r"model\.hooks\.every module"),
    "forward of a module": (replaced_forward, r"model\.replaced\.model\.layers\.2\.mlp"),
    "forward of a class": (replaced_class, r"model\.behaviour from layer 1 query on"),
    "attribute": (attribute, r"model\.behaviour from layer 2 query on"),
    "implementation": (eager, r'model\.attention "sdpa" against "eager"'),
    "frequencies": (other_frequencies, r"model\.frequencies\.inv_freq"),
    "one weight": (one_value, r"model\.checksum"),
    "weighted_rope": (
        lambda model: weighted_rope(model, mask_of(model), 0.0),
        r'model\.interventions \[\] against \["weighted_rope of [0-9a-f]{8} at 0\.0"\]',
    ),
    "derotated": (lambda model: derotated(model, mask_of(model)), r"model\.interventions"),
    "interception": (
        lambda model: intercepted(model, lambda call: (call.query * 2, call.key)),
        r'model\.interventions \[\] against \["an interception"\]',
    ),
}


@functools.cache
def shared_result() -> xr.DataTree:
    return measure(LLAMA.shared(), WINDOWS, **FRAMES)


def mask_of(model: Any) -> PairMask:
    return select(shared_result(), "pair < 3")


@pytest.fixture(params=[*CONFIGS, *RUNS])
def changed(request: pytest.FixtureRequest) -> Iterator[tuple[Any, Callable[[], AbstractContextManager[Any]], str]]:
    """A model as it was, what gives it changed, and what must be named."""
    if request.param in CONFIGS:
        architecture, settings, difference = CONFIGS[request.param]
        other = twin(architecture, **settings)

        @contextmanager
        def changing() -> Iterator[Any]:
            yield other

        yield architecture.shared(), changing, rf"model\.config\.{difference}"
        return
    run, difference = RUNS[request.param]
    model = LLAMA.build()

    @contextmanager
    def running() -> Iterator[Any]:
        with run(model):
            yield model

    yield model, running, difference


def break_off(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, run: Callable[[], Any]) -> None:
    """Run until one unit is finished, as an interrupted user does."""
    own, left = getattr(module, name), 1

    def interrupting(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return own(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, name, interrupting)
        run()


def same_numbers(one: xr.DataTree, other: xr.DataTree) -> bool:
    return all(one[stream].to_dataset().equals(other[stream].to_dataset()) for stream in ("query", "key"))


@pytest.mark.slow
def test_a_measurement_belongs_to_what_decided_it(
    changed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one is refused by file and by journal, and overwrite measures it anew."""
    model, changing, difference = changed
    path = tmp_path / "result.nc"
    first = measure(model, WINDOWS, path=path, **FRAMES)
    with changing() as other:
        with pytest.raises(ResultError, match=rf"it exists and holds another run \(other {difference}"):
            measure(other, WINDOWS, path=path, **FRAMES)
        anew = measure(other, WINDOWS, path=path, overwrite=True, **FRAMES)
        assert same_numbers(load(path), anew) and not same_numbers(anew, first)
    path.unlink()
    break_off(monkeypatch, measurement, "_run", lambda: measure(model, WINDOWS, path=path, **FRAMES))
    with changing() as other, pytest.raises(ResultError, match=rf"cells of another run \(other {difference}"):
        measure(other, WINDOWS, path=path, **FRAMES)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rope_theta", "experts", "hook", "weighted_rope", "forward of a class"])
def test_a_sweep_belongs_to_what_decided_it(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    architecture = CONFIGS[name][0] if name in CONFIGS else LLAMA
    model, path = architecture.build(), tmp_path / "sweep.nc"
    other = twin(architecture, **CONFIGS[name][1]) if name in CONFIGS else model
    context = RUNS[name][0] if name in RUNS else None
    difference = RUNS[name][1] if name in RUNS else rf"model\.config\.{CONFIGS[name][2]}"
    mask = select(measure(model, WINDOWS, **FRAMES), "pair < 3").for_any_model()

    def run(judged: Any, **options: Any) -> xr.Dataset:
        return sweep(judged, WINDOWS, {"low": mask}, alphas=(0,), controls=NO_CONTROLS, **options)

    first = run(model, path=path)
    xr.testing.assert_identical(run(model, path=path), first)
    with context(other) if context else nullcontext():
        with pytest.raises(ResultError, match=rf"holds another run \(other {difference}"):
            run(other, path=path)
        anew = run(other, path=path, overwrite=True)
        np.testing.assert_array_equal(anew["nats"].sel(alpha=1)[0, 0], perplexity(other, WINDOWS).window_nats)
        assert not np.array_equal(anew["nats"], first["nats"])
    path.unlink()
    break_off(monkeypatch, sweep_module, "perplexity", lambda: run(model, path=path))
    refused = pytest.raises(ResultError, match=rf"cells of another run \(other {difference}")
    with context(other) if context else nullcontext(), refused:
        run(other, path=path)


class Lora(nn.Module):
    """Low-rank layers around a linear one, with the attributes and methods of peft's tuner layers."""

    def __init__(self, base: nn.Linear, names: tuple[str, ...]) -> None:
        super().__init__()
        self.base_layer = base
        down = {name: nn.Linear(base.in_features, 2, bias=False) for name in names}
        up = {name: nn.Linear(2, base.out_features, bias=False) for name in names}
        self.lora_A, self.lora_B = nn.ModuleDict(down), nn.ModuleDict(up)
        self.scaling = dict.fromkeys(names, 2.0)
        self.merged_adapters: list[str] = []
        self._active_adapter: str | list[str] = names[0]
        self._disable_adapters = False

    @property
    def active_adapters(self) -> list[str]:
        return [self._active_adapter] if isinstance(self._active_adapter, str) else self._active_adapter

    @property
    def disable_adapters(self) -> bool:
        return self._disable_adapters

    def set_adapter(self, names: str | list[str]) -> None:
        self._active_adapter = names

    def enable_adapters(self, enabled: bool) -> None:
        self._disable_adapters = not enabled

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        output = self.base_layer(hidden)
        if not self.disable_adapters:
            for name in self.active_adapters:
                output = output + self.scaling[name] * self.lora_B[name](self.lora_A[name](hidden))
        return output


@pytest.fixture
def adapted() -> Any:
    model = LLAMA.build()
    torch.manual_seed(1)
    for layer in model.model.layers:
        layer.self_attn.q_proj = Lora(layer.self_attn.q_proj, ("one", "two"))
    return model.eval()


def every_layer(model: Any, change: Callable[[Lora], None]) -> None:
    for module in model.modules():
        if isinstance(module, Lora):
            change(module)


SWITCHES: dict[str, Callable[[Any], None]] = {
    "disabled": lambda model: every_layer(model, lambda layer: layer.enable_adapters(False)),
    "another": lambda model: every_layer(model, lambda layer: layer.set_adapter("two")),
    "both": lambda model: every_layer(model, lambda layer: layer.set_adapter(["one", "two"])),
    "scaled": lambda model: every_layer(model, lambda layer: layer.scaling.update(one=1.0)),
    "one layer": lambda model: model.model.layers[2].self_attn.q_proj.enable_adapters(False),
    "merged": lambda model: every_layer(model, lambda layer: layer.merged_adapters.append("one")),
}


@pytest.mark.slow
@pytest.mark.parametrize("switch", SWITCHES)
def test_adapters_that_are_switched_are_another_model(switch: str, adapted: Any, tmp_path: Path) -> None:
    path = tmp_path / "result.nc"
    first = measure(adapted, WINDOWS, path=path, **FRAMES)
    assert provenance(first)["model"]["adapters"] == [
        {"active": ["one"], "merged": [], "scaling": {"one": 2.0}, "layers": 4}
    ]
    mask = select(first, "pair < 3")
    SWITCHES[switch](adapted)
    with pytest.raises(ResultError, match=r"holds another run \(other model\.adapters"):
        measure(adapted, WINDOWS, path=path, **FRAMES)
    with pytest.raises(InputError, match=r"these weights run otherwise \(adapters.*\); measure and select on this"):
        weighted_rope(adapted, mask, 0.5).__enter__()
    with weighted_rope(adapted, mask.for_any_model(), 0.5):
        pass


NOTHING: dict[str, Callable[[Any], Any]] = {
    "generation": lambda model: model.generation_config.update(temperature=0.3, max_new_tokens=7),
    "cache": lambda model: setattr(model.config, "use_cache", False),
    "special tokens": lambda model: (
        setattr(model.config, "pad_token_id", 5),
        setattr(model.config, "eos_token_id", 6),
    ),
    "dropout": lambda model: setattr(model.config, "attention_dropout", 0.5),
    "name": lambda model: setattr(model.config, "name_or_path", "/somewhere/else"),
    "outputs": lambda model: model(WINDOWS, output_hidden_states=True, output_attentions=False),
    "labels": lambda model: setattr(model.config, "id2label", {0: "yes"}),
    "training": lambda model: model.train(),
    "gradients": lambda model: model.requires_grad_(False),
    "closed": lambda model: run_and_close(model),
}


def run_and_close(model: Any) -> None:
    with weighted_rope(model, mask_of(model), 0.0), derotated(model, mask_of(model)):
        model(WINDOWS)


@pytest.mark.slow
@pytest.mark.parametrize("nothing", NOTHING)
def test_what_decides_nothing_is_no_difference(nothing: str, tmp_path: Path) -> None:
    model, path = LLAMA.build(), tmp_path / "result.nc"
    measure(model, WINDOWS, path=path, **FRAMES)
    content = path.read_bytes()
    NOTHING[nothing](model)
    measure(model, WINDOWS, path=path, **FRAMES)
    assert path.read_bytes() == content


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=str)
def test_a_model_saved_and_opened_elsewhere_is_the_same(architecture: Architecture, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = architecture.shared()
    before = state_of(model)
    facts = model_provenance(model)
    assert state_of(model) == before
    assert not facts["hooks"] and not facts["replaced"] and not facts["interventions"]
    model.save_pretrained(tmp_path / "there")
    opened = AutoModelForCausalLM.from_pretrained(
        tmp_path / "there", attn_implementation=architecture.implementations[0]
    )
    assert differences(json.loads(json.dumps({"model": facts})), {"model": model_provenance(opened)}) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_another_dtype_is_another_run_of_the_same_model(dtype: torch.dtype) -> None:
    model = tiny_llama()
    facts, other = model_provenance(model.float()), model_provenance(model.to(dtype))
    found = differences({"model": facts}, {"model": other})
    assert any(line.startswith("model.dtype") for line in found)
    assert not any("behaviour" in line or "fingerprint" in line for line in found)


def test_one_layer_in_another_dtype_is_seen() -> None:
    model = LLAMA.build()
    facts = model_provenance(model)
    model.lm_head.to(torch.bfloat16)
    assert "model.dtypes.bfloat16 unknown against 1" in differences(
        {"model": facts}, {"model": model_provenance(model)}
    )


@pytest.mark.parametrize(("dtype", "noise", "same"), [(torch.float32, 1e-3, True), (torch.float32, 0.3, False)])
def test_rounding_of_another_machine_is_no_difference(dtype: torch.dtype, noise: float, same: bool) -> None:
    """What every attention gets strays a little in all places at once."""
    model = LLAMA.shared()
    facts = model_provenance(model)

    def stray(call: Any) -> Any:
        generator = torch.Generator().manual_seed(call.layer)
        return tuple(x * (1 + noise * torch.randn(x.shape, generator=generator)) for x in (call.query, call.key))

    with intercepted(model, stray):
        strayed = model_provenance(model)
    found = differences({"behaviour": facts["behaviour"]}, {"behaviour": strayed["behaviour"]})
    assert (found == []) == same, found


def test_bfloat16_on_other_kernels_is_the_same_behaviour() -> None:
    for architecture in (LLAMA, LLAMA4, GEMMA3):
        facts = [
            model_provenance(architecture.shared(torch.bfloat16, implementation))
            for implementation in ("sdpa", "eager")
        ]
        found = differences({"model": facts[0]}, {"model": facts[1]})
        assert found == ['model.attention "sdpa" against "eager"']
        facts[1]["attention"] = "sdpa"
        assert differences({"model": facts[0]}, {"model": facts[1]}) == []


def test_the_implementation_under_an_open_intervention_has_its_own_name() -> None:
    model = LLAMA.shared()
    mask = mask_of(model)
    with weighted_rope(model, mask, 0.5), derotated(model, mask, strength=0.5), intercepted(model, lambda call: None):
        facts = model_provenance(model)
    assert facts["attention"] == "sdpa"
    digest = mask.digest()[:8]
    assert facts["interventions"] == [
        f"weighted_rope of {digest} at 0.5",
        f"derotated {digest} by 0.5",
        "an interception",
    ]
    assert model_provenance(model)["interventions"] == []


def test_weights_per_pair_are_told_apart() -> None:
    model, mask, found = LLAMA.shared(), mask_of(LLAMA.shared()), []
    for value in (0.5, 0.6):
        alpha = {stream: np.full(array.shape, value) for stream, array in mask.streams().items()}
        with weighted_rope(model, mask, alpha):
            found += model_provenance(model)["interventions"]
    assert len(set(found)) == 2


def test_the_checksum_knows_every_value_and_every_buffer_that_is_saved() -> None:
    model = DEEPSEEK.build()
    sums = [checksum(model)]
    bias = model.model.layers[1].mlp.gate.e_score_correction_bias
    with torch.no_grad():
        bias[0] = 3.0
    sums.append(checksum(model))
    with torch.no_grad():
        model.lm_head.weight[7, 7] += 1
    sums.append(checksum(model))
    assert len(set(sums)) == 3
    model.model.rotary_emb.inv_freq.mul_(2)
    assert checksum(model) == sums[2]


def test_frequencies_that_a_long_pass_left_behind_are_seen_but_not_held_against_a_mask() -> None:
    model = DYNAMIC_NTK.build()
    facts = model_provenance(model)
    with torch.no_grad():
        model(tokens(1, 4200))
    now = model_provenance(model)
    assert differences({"model": facts}, {"model": now}) == ["model.frequencies.inv_freq"]
    assert other_model(facts, now) == []


@pytest.mark.parametrize("name", ["rope_theta", "norm epsilon"])
def test_a_mask_of_these_weights_run_otherwise_is_refused(name: str) -> None:
    _, settings, difference = CONFIGS[name]
    other, mask = twin(LLAMA, **settings), mask_of(LLAMA.shared())
    text = rf"^the mask was selected on these weights run otherwise \(config\.{difference}.*\); measure and select on"
    for context in (lambda m: weighted_rope(other, m, 0.5), lambda m: derotated(other, m)):
        with pytest.raises(InputError, match=text):
            context(mask).__enter__()
    with weighted_rope(other, mask.for_any_model(), 0.5):
        pass
    both = select(measure(other, WINDOWS, **FRAMES), "pair >= 3")
    with pytest.raises(InputError, match=rf"measured on other settings \(config\.{difference}"):
        mask & both


def test_a_mask_holds_in_another_dtype_under_another_implementation_and_beside_another_mask() -> None:
    model = tiny_llama().float()
    mask = select(measure(model, tokens(2, 48), **FRAMES), "pair < 2")
    half = tiny_llama()
    half.set_attn_implementation("eager")
    with weighted_rope(half, mask, 0.5), derotated(half, mask), hooked(half):
        half(tokens(1, 8))


def test_a_mask_that_does_not_know_the_new_facts_is_compared_by_its_weights_alone(tmp_path: Path) -> None:
    """As files from before are."""
    mask = mask_of(LLAMA.shared())
    kept = {
        name: mask.measured_on[name] for name in ("id", "revision", "architecture", "dtype", "attention", "fingerprint")
    }
    old = replace(mask, provenance={**mask.provenance, "measured": {"model": kept}})
    old = PairMask.load(old.save(tmp_path / "old.safetensors"))
    with weighted_rope(twin(LLAMA, **rope(500_000.0)), old, 0.5):
        pass
    with pytest.raises(InputError, match="was selected on other weights"):
        weighted_rope(LLAMA.build(seed=1), old, 0.5).__enter__()
    assert (old & mask).measured_on == kept


def test_a_file_that_does_not_know_the_new_facts_is_opened_but_is_no_finished_run(tmp_path: Path) -> None:
    result, path = shared_result(), tmp_path / "old.nc"
    facts = provenance(result)
    for name in ("config", "dtypes", "frequencies", "adapters", "checksum", "interventions", "hooks", "behaviour"):
        del facts["model"][name]
    save(with_facts(result, facts), path)
    assert same_numbers(load(path), result)
    with pytest.raises(ResultError, match=r"other model\.adapters unknown against \[\], model\.checksum"):
        measure(LLAMA.shared(), WINDOWS, path=path, **FRAMES)


def with_facts(result: xr.DataTree, facts: dict[str, Any]) -> xr.DataTree:
    copy = result.copy()
    copy.attrs = {**result.attrs, "provenance": json.dumps(facts)}
    return copy


def described(result: xr.DataTree, **model: Any) -> xr.DataTree:
    """A result of other text whose provenance says something else of its model."""
    facts = provenance(result)
    facts["model"] |= model
    facts["windows"]["corpus"] = model.get("id", "a")
    return with_facts(result, facts)


def test_a_comparison_knows_a_model_by_what_it_is_and_not_by_its_path() -> None:
    result = shared_result()
    elsewhere = same_places({"one": described(result, id="a/model"), "two": described(result, id="/home/a/model/")})
    assert "weights are not" not in elsewhere[0].paragraphs[1] and "places stay the same" in elsewhere[0].paragraphs[1]
    assert "differ in corpus." in elsewhere[0].paragraphs[1]
    other = described(measure(twin(LLAMA, **rope(500_000.0)), WINDOWS, **FRAMES), id="b")
    otherwise = same_places({"one": result, "two": other})[0].paragraphs[1]
    assert "weights are the same but run otherwise (config.rope_parameters.rope_theta 10000.0 against" in otherwise
    assert "is not tested" in otherwise


def test_a_tokenizer_is_known_by_what_it_does() -> None:
    facts = tokenizer_identity(byte_level_tokenizer())
    again = byte_level_tokenizer()
    again.name_or_path = "/elsewhere"
    assert tokenizer_identity(again) == facts
    again.chat_template = "{{ messages }}"
    assert differences(facts, tokenizer_identity(again)) == ["chat_template"]
    again = byte_level_tokenizer()
    again.add_special_tokens({"pad_token": "<pad>"})
    found = differences(facts, tokenizer_identity(again))
    assert 'special_tokens.pad_token unknown against "<pad>"' in found and "vocabulary" in found


def test_differences_are_named_with_what_was_found_and_what_is_wanted() -> None:
    found = {"a": {"b": 1, "list": [1, 2]}, "long": "x" * 99, "same": None, "created": "then", "model": {"id": "p"}}
    wanted = {
        "a": {"b": 2, "list": (1, 2)},
        "long": "y",
        "same": None,
        "created": "now",
        "new": True,
        "model": {"id": "q"},
    }
    assert differences(found, wanted) == ["a.b 1 against 2", "long", "new unknown against true"]
    assert differences(found, found) == []
    assert listed([str(number) for number in range(7)]) == "0, 1, 2, 3, and 3 more"


def test_a_revision_is_compared_where_both_are_known() -> None:
    facts: list[dict[str, Any]] = [{"model": {"revision": revision}} for revision in ("a", "b", None)]
    assert differences(facts[0], facts[1]) == ['model.revision "a" against "b"']
    assert differences(facts[0], facts[2]) == differences(facts[2], facts[0]) == []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text("the model of the models " * 200)
    tiny_llama(torch.float32).save_pretrained(tmp_path / "model")
    byte_level_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path


SHORT = ("--length", "96", "--count", "2", "--frame-length", "32", "--hop-length", "16", "--device", "cpu")


def command(folder: Path, *more: str, model: str = "model") -> list[str]:
    text, output = str(folder / "text.txt"), str(folder / "result.nc")
    return ["measure", str(folder / model), "--corpus", text, "--output", output, *SHORT, *more]


@pytest.mark.slow
def test_a_finished_measurement_is_told_of_and_left_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(command(folder))
    content, first = (folder / "result.nc").read_bytes(), capsys.readouterr().out
    assert "already there" not in first
    cli.main(command(folder))
    told, _, rest = capsys.readouterr().out.partition("\n\n")
    assert told == f"{folder / 'result.nc'} is already there and holds this very run; --overwrite makes it anew"
    assert rest == first
    assert (folder / "result.nc").read_bytes() == content
    shutil.copytree(folder / "model", folder / "moved")
    cli.main(command(folder, model="moved"))
    assert "already there" in capsys.readouterr().out
    cli.main(command(folder, "--overwrite"))
    assert "already there" not in capsys.readouterr().out
    assert not list(folder.glob("*.partial"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "difference"),
    [
        (("--frame-length", "16"), r"parameters\.frame_length 32 against 16"),
        (("--count", "3"), r"windows\.windows 2 against 3"),
        (("--window", "rectangular"), r'parameters\.window "hann" against "rectangular"'),
    ],
)
def test_another_measurement_is_refused_before_the_model_is_loaded(
    folder: Path, more: tuple[str, str], difference: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    cli.main(command(folder))
    changed_command = command(folder)
    if more[0] in changed_command:
        changed_command[changed_command.index(more[0]) + 1] = more[1]
    else:
        changed_command += more
    monkeypatch.setattr("ropescope.model.loading.load_model", lambda *args, **kwargs: pytest.fail("loaded"))
    with pytest.raises(SystemExit, match="2"):
        cli.main(changed_command)
    assert f"other {difference.replace(chr(92), '')}); allow overwriting" in capsys.readouterr().err
    (folder / "result.nc").write_text("precious")
    with pytest.raises(SystemExit, match="2"):
        cli.main(command(folder))
    assert "it exists" in capsys.readouterr().err


@pytest.mark.slow
def test_a_moved_config_of_other_rotation_is_another_measurement(folder: Path, capsys: Any) -> None:
    """As a user does it: the same weights in a folder whose config.json says another base."""
    cli.main(command(folder))
    config = json.loads((folder / "model" / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 500_000.0
    (folder / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(SystemExit, match="2"):
        cli.main(command(folder))
    assert "model.config.rope_parameters.rope_theta 10000.0 against 500000.0" in capsys.readouterr().err
    cli.main(command(folder, "--overwrite"))
    model, _ = load_model(folder / "model", device="cpu")
    turned = load(folder / "result.nc")["rotary"].frequency.values[0]
    np.testing.assert_allclose(turned, model.model.rotary_emb.inv_freq, rtol=1e-6)
    assert model_identity(model)["config"]["rope_parameters"]["rope_theta"] == 500_000.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.bool], ids=str)
def test_the_sum_of_parts_is_that_of_the_whole(dtype: torch.dtype) -> None:
    whole = torch.randn(3000, generator=torch.Generator().manual_seed(0)).mul(1e3).to(dtype)
    parts = [int(_bit_sum(part)) for part in whole.split(7)]
    # Integers of eight bytes overflow, the parts and the whole alike.
    assert (int(_bit_sum(whole)) - sum(parts)) % 2**64 == 0 and sum(parts) != 0
    assert int(_bit_sum(whole[:0])) == 0
