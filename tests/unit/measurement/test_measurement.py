"""A measurement equals an independent computation, depends on nothing but the text, and leaves nothing behind."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from scipy.signal import get_window
from torch import Tensor, nn
from transformers import FalconConfig, FalconForCausalLM, PreTrainedModel

from architectures import (
    DYNAMIC_NTK,
    GEMMA4,
    GPT2,
    LLAMA,
    LLAMA4,
    LONGROPE,
    QWEN3,
    QWEN3_NEXT,
    SHORT_CONTEXT,
    VOCABULARY,
    Architecture,
    entropies_of,
    pair_norms_of,
    state_of,
    tokens,
)
from matrix import every_architecture
from ropescope.base.errors import InputError, ModelError, NonFiniteError, RopescopeError
from ropescope.measurement import measure as measurement
from ropescope.measurement import reduction
from ropescope.measurement.heads import default_heads
from ropescope.measurement.measure import measure
from ropescope.measurement.results import kept_heads, provenance, stream_data
from ropescope.model.attention import AttentionCall, intercepted
from ropescope.model.windows import TokenWindows

pytestmark = pytest.mark.usefixtures("one_thread")

LENGTH = 96
FRAMES = {"frame_length": 32, "hop_length": 16}
STREAMS = {"query": "head", "key": "kv_head"}


def received(model: PreTrainedModel, windows: Tensor) -> dict[tuple[str, int], np.ndarray]:
    """What attention of the whole model receives, (sequence, head, position, head_dim)."""
    seen = {}

    def keep(call: AttentionCall) -> None:
        seen["query", call.layer], seen["key", call.layer] = call.query.numpy(), call.key.numpy()

    with torch.no_grad(), intercepted(model, keep):
        model(windows, use_cache=False)
    return seen


def before_rotation(model: PreTrainedModel, windows: Tensor) -> dict[tuple[str, int], np.ndarray]:
    """The projections of a Llama or Qwen-3, after the norm that Qwen-3 gives them and before rotation."""
    seen: dict[tuple[str, int], np.ndarray] = {}

    def keep(stream: str, layer: int, head_dim: int) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
            seen[stream, layer] = output.reshape(*windows.shape, -1, head_dim).transpose(1, 2).numpy()

        return hook

    hooks = []
    for layer, block in enumerate(model.model.layers):
        attention = block.self_attn
        modules = {name: getattr(attention, f"{name}_norm", getattr(attention, f"{name}_proj")) for name in "qk"}
        for stream, module in zip(STREAMS, modules.values(), strict=True):
            hooks.append(module.register_forward_hook(keep(stream, layer, attention.head_dim)))
    with torch.no_grad():
        model(windows, use_cache=False)
    for hook in hooks:
        hook.remove()
    return seen


def check_against(
    result: xr.DataTree, architecture: Architecture, heads: dict[tuple[str, int], np.ndarray], length: int
) -> None:
    for row, layer in enumerate(architecture.expected(length)):
        for stream in STREAMS:
            norms = pair_norms_of(heads[stream, layer.layer], layer.style, layer.start, layer.size)
            for name, expected in entropies_of(norms, **FRAMES).items():
                measured = result[stream][name].isel(layer=row).to_numpy()
                shape = tuple(slice(size) for size in expected.shape)
                np.testing.assert_allclose(measured[shape], expected, rtol=1e-5, atol=1e-5, err_msg=f"{stream} {name}")
                measured = measured.copy()
                measured[shape] = np.nan
                assert np.isnan(measured).all()


@pytest.mark.slow
@every_architecture
@pytest.mark.parametrize("length", [LENGTH, 97])
def test_values_equal_float64_on_what_attention_receives(architecture: Architecture, length: int) -> None:
    model, windows = architecture.shared(), tokens(2, length)
    result = measure(model, windows, **FRAMES)
    check_against(result, architecture, received(model, windows), length)


@pytest.mark.parametrize("architecture", [LLAMA, QWEN3], ids=str)
def test_values_equal_float64_on_the_projections_before_rotation(architecture: Architecture) -> None:
    model, windows = architecture.shared(), tokens(3, 256)
    result = measure(model, windows, batch_size=2, **FRAMES)
    check_against(result, architecture, before_rotation(model, windows), 256)


@pytest.mark.slow
@every_architecture
def test_rotary_group_says_what_the_config_says(architecture: Architecture) -> None:
    expected = architecture.expected(LENGTH)
    rotary = measure(architecture.shared(), tokens(1, LENGTH), **FRAMES)["rotary"]
    assert rotary.layer.values.tolist() == [layer.layer for layer in expected]
    assert rotary.pairing.values.tolist() == [layer.pairing for layer in expected]
    for row, layer in enumerate(expected):
        pairs = len(layer.frequency)
        np.testing.assert_allclose(rotary.frequency[row, :pairs], layer.frequency, rtol=1e-6)
        np.testing.assert_array_equal(rotary.rotated[row, :pairs], layer.frequency > 0)
        assert rotary.frequency[row, pairs:].isnull().all()
        assert not rotary.rotated[row, pairs:].any()


def test_layers_with_fewer_heads_or_pairs_are_padded_with_nan() -> None:
    result = measure(GEMMA4.shared(), tokens(1, LENGTH), norm_heads=[(0, 1), (1, 1)], **FRAMES)
    assert dict(result["query"].spectrum_fe.sizes) == {"sequence": 1, "layer": 6, "head": 4, "pair": 16}
    assert dict(result["key"].spectrum_fe.sizes) == {"sequence": 1, "layer": 6, "kv_head": 2, "pair": 16}
    narrow, wide = result["key"].mean_norm.isel(layer=0), result["key"].mean_norm.isel(layer=1)
    assert narrow.isel(pair=slice(8)).notnull().all()
    assert narrow.isel(pair=slice(8, None)).isnull().all()
    assert wide.isel(kv_head=0).notnull().all()
    assert wide.isel(kv_head=1).isnull().all()
    norm = result["query"].norm
    assert norm.sel(kept=0, pair=slice(8, None)).isnull().all()
    assert norm.isel(kept=1).notnull().all()


def test_attention_layers_among_others_keep_their_index() -> None:
    result = measure(QWEN3_NEXT.shared(), tokens(1, LENGTH), norm_heads=[(3, 0)], **FRAMES)
    assert result["query"].layer.values.tolist() == [3]
    assert result["query"].kept_layer.values.tolist() == [3]


@pytest.mark.parametrize("architecture", [LLAMA, LLAMA4, GPT2], ids=str)
def test_batch_size_changes_nothing(architecture: Architecture) -> None:
    model, windows = architecture.shared(), tokens(3, LENGTH)
    one, *others = (measure(model, windows, batch_size=size, norm_heads=[(0, 0)], **FRAMES) for size in (1, 2, 3, 100))
    for other in others:
        for stream in STREAMS:
            xr.testing.assert_allclose(one[stream].to_dataset(), other[stream].to_dataset(), rtol=1e-5, atol=1e-5)


def test_sequences_keep_their_order_and_do_not_mix() -> None:
    model, windows = LLAMA.shared(), tokens(3, LENGTH)
    together = measure(model, windows, batch_size=2, **FRAMES)
    alone = [measure(model, windows[row : row + 1], **FRAMES) for row in range(3)]
    for stream in STREAMS:
        joined = np.concatenate([result[stream].spectrum_fe.values for result in alone])
        np.testing.assert_allclose(together[stream].spectrum_fe.values, joined, atol=1e-5)


def test_few_heads_at_a_time_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, windows = LLAMA.shared(), tokens(3, LENGTH)
    whole = measure(model, windows, batch_size=3, **FRAMES)
    monkeypatch.setattr(reduction, "_CHUNK", 1)
    pieces = measure(model, windows, batch_size=3, **FRAMES)
    for stream in STREAMS:
        xr.testing.assert_allclose(whole[stream].to_dataset(), pieces[stream].to_dataset(), rtol=1e-5)


@pytest.mark.parametrize("window", ["hann", "hamming", "blackman", "rectangular"])
def test_the_analysis_window_reaches_the_spectrum(window: str) -> None:
    from ropescope.base.entropy import spectrum_fe

    model, windows = LLAMA.shared(), tokens(1, LENGTH)
    result = measure(model, windows, window=window, **FRAMES)
    norms = pair_norms_of(received(model, windows)["key", 2], "half-split", 0, 16)
    expected = spectrum_fe(torch.from_numpy(norms), window=window, **FRAMES)
    np.testing.assert_allclose(result["key"].spectrum_fe.isel(layer=2).values, expected.numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("wanted", "query", "key"),
    [
        ([(0, 3)], [(0, 3)], [(0, 1)]),
        ([(2, 0), (1, 1), (2, 0)], [(1, 1), (2, 0)], [(1, 0), (2, 0)]),
        ([(1, None)], [(1, 0), (1, 1), (1, 2), (1, 3)], [(1, 0), (1, 1)]),
        ([(None, 2)], [(0, 2), (1, 2), (2, 2), (3, 2)], [(0, 1), (1, 1), (2, 1), (3, 1)]),
        ([(None, None)], [(i, j) for i in range(4) for j in range(4)], [(i, j) for i in range(4) for j in range(2)]),
    ],
)
def test_norms_of_the_heads_asked_for_are_kept(
    wanted: list[tuple[int | None, int | None]], query: list[tuple[int, int]], key: list[tuple[int, int]]
) -> None:
    model, windows = LLAMA.shared(), tokens(3, LENGTH)
    result = measure(model, windows, batch_size=2, norm_heads=wanted, **FRAMES)
    heads = received(model, windows[:1])
    for stream, places in (("query", query), ("key", key)):
        norm = result[stream].norm
        kept = zip(norm.kept_layer.values.tolist(), norm[f"kept_{STREAMS[stream]}"].values.tolist(), strict=True)
        assert list(kept) == places
        expected = [pair_norms_of(heads[stream, layer][0, head], "half-split", 0, 16) for layer, head in places]
        np.testing.assert_allclose(norm.values, np.stack(expected), rtol=1e-4)
        assert norm.position.values.tolist() == list(range(LENGTH))


def test_norms_of_long_sequences_are_averaged_over_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurement, "_HEATMAP_STRETCHES", 10)
    model, windows = LLAMA.shared(), tokens(1, LENGTH)
    norm = measure(model, windows, norm_heads=[(1, 2)], **FRAMES)["query"].norm
    whole = pair_norms_of(received(model, windows)["query", 1][0, 2], "half-split", 0, 16)
    cells = [whole[:, start : start + 10].mean(-1) for start in range(0, LENGTH, 10)]
    assert norm.position.values.tolist() == list(range(0, LENGTH, 10))
    np.testing.assert_allclose(norm.values[0], np.stack(cells, -1), rtol=1e-4)


def test_without_heads_asked_for_no_norms_are_kept() -> None:
    result = measure(LLAMA.shared(), tokens(1, LENGTH), **FRAMES)
    assert all("norm" not in result[stream] for stream in STREAMS)


def test_bfloat16_agrees_with_float32_to_its_rounding() -> None:
    exact, rounded = (
        measure(QWEN3.shared(dtype), tokens(2, LENGTH), **FRAMES)["query"].spectrum_fe
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert rounded.dtype == np.float32
    assert abs(exact - rounded).max() < 0.02
    assert abs(exact - rounded).mean() < 0.002


def test_dropout_is_off_and_the_training_mode_is_restored() -> None:
    model = GPT2.build()
    expected = measure(model, tokens(1, LENGTH), **FRAMES)
    model.train()
    model.transformer.h[1].eval()
    before = state_of(model)
    result = measure(model, tokens(1, LENGTH), **FRAMES)
    assert state_of(model) == before
    for stream in STREAMS:
        xr.testing.assert_identical(result[stream].to_dataset(), expected[stream].to_dataset())


@pytest.mark.slow
@every_architecture
def test_nothing_is_left(architecture: Architecture) -> None:
    model = architecture.build()
    before = state_of(model)
    measure(model, tokens(2, LENGTH), norm_heads=[(None, 0)], **FRAMES)
    assert state_of(model) == before


@pytest.mark.parametrize("architecture", [DYNAMIC_NTK, LONGROPE], ids=str)
def test_nothing_is_left_where_frequencies_follow_the_length(architecture: Architecture) -> None:
    length = architecture.config().max_position_embeddings + 8 if architecture is DYNAMIC_NTK else SHORT_CONTEXT + 8
    model = architecture.build()
    before = state_of(model)
    measure(model, tokens(1, length), frame_length=1024)
    assert state_of(model) == before


def test_nothing_is_left_after_an_error() -> None:
    model = LLAMA.build().train()
    before = state_of(model)
    with pytest.raises(InputError):
        measure(model, tokens(1, LENGTH), norm_heads=[(9, 0)], **FRAMES)
    spoil_embedding(model, token=50)
    spoiled = state_of(model)
    assert spoiled != before
    with pytest.raises(NonFiniteError):
        measure(model, torch.full((1, LENGTH), 50), **FRAMES)
    assert state_of(model) == spoiled


def refuse_to_run(module: nn.Module) -> None:
    def fail(*_: Any) -> None:
        pytest.fail(f"{type(module).__name__} was run")

    module.register_forward_pre_hook(fail)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_neither_the_head_nor_anything_after_the_last_attention_runs(
    implementation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = LLAMA.build(implementation=implementation)
    card = measurement.probe(model, LENGTH)
    monkeypatch.setattr(measurement, "probe", lambda *_args, **_kwargs: card)
    # What the model does with a few fixed tokens is looked at apart from the pass over the windows.
    monkeypatch.setattr(measurement, "model_provenance", lambda _model: {})
    for module in (
        model.lm_head,
        model.model.norm,
        model.model.layers[-1].mlp,
        model.model.layers[-1].self_attn.o_proj,
    ):
        refuse_to_run(module)
    assert measure(model, tokens(2, LENGTH), batch_size=1, **FRAMES)["query"].sizes["sequence"] == 2


def test_the_head_is_never_run_not_even_to_probe() -> None:
    model = LLAMA.build()
    refuse_to_run(model.lm_head)
    measure(model, tokens(1, LENGTH), **FRAMES)


def test_a_model_with_offloaded_weights_runs_to_its_end() -> None:
    model = LLAMA.build()
    ended = []
    model.model.norm.register_forward_hook(lambda *_: ended.append(1))
    measure(model, tokens(2, LENGTH), **FRAMES)
    probing_only = len(ended)
    model.model.layers[2].mlp._hf_hook = SimpleNamespace()
    measure(model, tokens(2, LENGTH), **FRAMES)
    assert len(ended) == 2 * probing_only + 2


def spoil_embedding(model: PreTrainedModel, token: int) -> None:
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = torch.nan


@pytest.mark.parametrize(
    ("projection", "row", "text"),
    [("q_proj", 40, "query of layer 2, head 2 "), ("k_proj", 20, "key of layer 2, head 1 ")],
)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_placed(projection: str, row: int, text: str, value: float) -> None:
    model = LLAMA.build()
    with torch.no_grad():
        getattr(model.model.layers[2].self_attn, projection).weight[row] = value
    with pytest.raises(RopescopeError, match=text):
        measure(model, tokens(2, LENGTH), **FRAMES)


def test_a_token_that_is_not_finite_is_placed() -> None:
    model = LLAMA.build()
    spoil_embedding(model, token=50)
    windows = torch.full((4, LENGTH), 40)
    windows[3, 17] = 50
    text = (
        "query of layer 0, head 0 is not finite at position 17 (sequence 1 of its batch); "
        "check the weights, or use dtype float32 or bfloat16"
    )
    with pytest.raises(NonFiniteError, match=f"^{re.escape(text)}$"):
        measure(model, windows, batch_size=2, **FRAMES)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_entropies_do_not_depend_on_the_scale_of_the_keys(scale: float) -> None:
    expected = measure(LLAMA.shared(), tokens(1, LENGTH), **FRAMES)["key"]
    model = LLAMA.build()
    with torch.no_grad():
        model.model.layers[-1].self_attn.k_proj.weight.mul_(scale)
    scaled = measure(model, tokens(1, LENGTH), **FRAMES)["key"]
    for name in ("spectrum_fe", "sequence_fe", "peak_share"):
        np.testing.assert_allclose(scaled[name].values, expected[name].values, atol=1e-5)


def test_norms_whose_power_overflows_are_refused() -> None:
    model = LLAMA.build()
    with torch.no_grad():
        model.model.layers[-1].self_attn.k_proj.weight.mul_(1e20)
    with pytest.raises(NonFiniteError, match="pair norms exceed 1e\\+13, so their power overflows float32"):
        measure(model, tokens(1, LENGTH), **FRAMES)


def test_a_silent_pair_is_undefined() -> None:
    model = LLAMA.build()
    with torch.no_grad():
        model.model.layers[1].self_attn.q_proj.weight[[16 + 3, 16 + 11]] = 0
    query = measure(model, tokens(2, LENGTH), **FRAMES)["query"].to_dataset()
    silent = query.isel(layer=1, head=1, pair=3)
    assert (silent.mean_norm == 0).all()
    for name in ("spectrum_fe", "sequence_fe", "dc_share", "dominant_period", "peak_share"):
        assert silent[name].isnull().all()
        assert int(query[name].isnull().sum()) == 2


def test_the_mean_spectrum_is_that_of_the_sounding_pairs() -> None:
    model, windows = LLAMA.build(), tokens(2, LENGTH)
    with torch.no_grad():
        model.model.layers[1].self_attn.q_proj.weight[[16 + 3, 16 + 11]] = 0
        model.model.layers[0].self_attn.k_proj.weight[:16] = 0
    result, heads = measure(model, windows, **FRAMES), received(model, windows)
    for stream in STREAMS:
        spectrum = result[stream].mean_spectrum
        np.testing.assert_array_equal(spectrum.bin, np.fft.rfftfreq(32))
        for row, layer in enumerate(LLAMA.expected(LENGTH)):
            norms = pair_norms_of(heads[stream, layer.layer], layer.style, layer.start, layer.size)
            frames = np.lib.stride_tricks.sliding_window_view(norms, 32, axis=-1)[..., ::16, :]
            power = (np.abs(np.fft.rfft(frames * get_window("hann", 32))) ** 2).mean(-2)
            with np.errstate(invalid="ignore"):
                share = np.ma.masked_invalid(power / power.sum(-1, keepdims=True))
            expected = share.mean((0, 2)).filled(np.nan)
            np.testing.assert_allclose(spectrum.isel(layer=row), expected, rtol=1e-4, atol=1e-7)
    assert result["key"].mean_spectrum.isel(layer=0, kv_head=0).isnull().all()


def test_a_flat_pair_has_no_sequence_entropy() -> None:
    model = LLAMA.build()
    result = measure(model, torch.full((1, LENGTH), 40), **FRAMES)["query"].to_dataset().isel(layer=0)
    assert result.sequence_fe.isnull().all()
    assert result.dominant_period.isnull().all()
    assert result.peak_share.isnull().all()
    constant = entropies_of(np.ones(LENGTH), **FRAMES)["spectrum_fe"]
    np.testing.assert_allclose(result.spectrum_fe.values, constant, atol=1e-5)


def test_provenance_names_model_text_parameters_and_versions() -> None:
    facts = provenance(measure(LLAMA.shared(), tokens(2, LENGTH), batch_size=2, **FRAMES))
    assert facts["model"]["architecture"] == "LlamaForCausalLM"
    assert facts["windows"]["windows"] == 2
    assert facts["parameters"] == {"length": LENGTH, "window": "hann", "batch_size": 2, **FRAMES}
    assert set(facts["versions"]) == {"python", "torch", "transformers", "numpy", "xarray"}
    assert facts["created"].endswith("+00:00")


def test_windows_that_know_their_protocol_hand_it_on() -> None:
    windows = TokenWindows(tokens(1, LENGTH), {"corpus": "zeros", "length": LENGTH})
    assert provenance(measure(LLAMA.shared(), windows, **FRAMES))["windows"] == windows.protocol


INPUT_ERRORS = {
    "one dimension": (
        tokens()[0],
        {},
        "windows got shape (48,), torch.int64; it takes token ids of shape (sequence, position) with at least one of "
        "each",
    ),
    "floats": (
        torch.zeros(1, LENGTH),
        {},
        "windows got shape (1, 96), torch.float32; it takes token ids of shape (sequence, position) with at least one "
        "of each",
    ),
    "no window": (
        torch.zeros(0, LENGTH, dtype=torch.int64),
        {},
        "windows got shape (0, 96), torch.int64; it takes token ids of shape (sequence, position) with at least one of "
        "each",
    ),
    "shorter than a frame": (
        tokens(1, 31),
        {},
        "a signal of 31 positions is shorter than one frame of 32; use at least 32 tokens or a shorter frame_length",
    ),
    "frame of 3": (tokens(1, LENGTH), {"frame_length": 3}, "frame_length got 3; a frame needs at least 4 tokens"),
    "hop of 0": (
        tokens(1, LENGTH),
        {"hop_length": 0},
        "hop_length got 0; frames must advance by at least 1 token",
    ),
    "unknown window": (
        tokens(1, LENGTH),
        {"window": "han"},
        "unknown analysis window 'han'; did you mean 'hann' or 'hamming'? (allowed: hann, hamming, blackman, "
        "rectangular)",
    ),
    "token too high": (
        tokens(1, LENGTH) + VOCABULARY,
        {},
        f"but the model's vocabulary is 0 to {VOCABULARY - 1}; make the windows with the model's own tokenizer",
    ),
    "token too low": (
        tokens(1, LENGTH).fill_(-1),
        {},
        f"windows hold token ids from -1 to -1, but the model's vocabulary is 0 to {VOCABULARY - 1}; make the windows "
        "with the model's own tokenizer",
    ),
    "batch of 0": (tokens(1, LENGTH), {"batch_size": 0}, "batch_size got 0; it is at least 1, or 'auto'"),
    "no such layer": (
        tokens(1, LENGTH),
        {"norm_heads": [(4, 0)]},
        "no such head: layer 4, head 0; layers are 0 to 3, query heads 0 to 3",
    ),
    "no such head": (
        tokens(1, LENGTH),
        {"norm_heads": [(0, 0), (None, 4)]},
        "no such head: layer None, head 4; layers are 0 to 3, query heads 0 to 3",
    ),
    "negative head": (
        tokens(1, LENGTH),
        {"norm_heads": [(0, -1)]},
        "no such head: layer 0, head -1; layers are 0 to 3, query heads 0 to 3",
    ),
}


@pytest.mark.parametrize(("windows", "options", "text"), INPUT_ERRORS.values(), ids=INPUT_ERRORS)
def test_input_that_cannot_be_measured_is_refused(windows: Tensor, options: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=f"{re.escape(text)}$"):
        measure(LLAMA.shared(), windows, **{**FRAMES, **options})


def test_windows_longer_than_learned_positions_are_refused() -> None:
    text = "129 positions are more than the 128 that this model has learned, and it rotates none"
    with pytest.raises(InputError, match=f"^{text}$"):
        measure(GPT2.shared(), tokens(1, 129), **FRAMES)


def test_windows_as_long_as_the_learned_positions_are_measured() -> None:
    assert measure(GPT2.shared(), tokens(1, 128), **FRAMES)["query"].spectrum_fe.notnull().all()


def test_a_model_that_bypasses_the_interface_is_refused() -> None:
    config = FalconConfig(vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=1, num_attention_heads=4)
    with pytest.raises(ModelError, match="FalconModel does not call attention through"):
        measure(FalconForCausalLM(config), tokens(1, LENGTH), **FRAMES)


def test_progress_shows_no_bar_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    measure(LLAMA.shared(), tokens(1, LENGTH), progress=True, **FRAMES)
    measure(LLAMA.shared(), tokens(1, LENGTH), progress=False, **FRAMES)
    assert capsys.readouterr() == ("", "")


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120
    )


@pytest.mark.slow
def test_measuring_needs_torch_transformers_numpy_and_xarray_alone() -> None:
    run = run_python(
        """
        import sys
        absent = "h5netcdf h5py matplotlib datasets cyclopts jaxtyping scipy sklearn netCDF4 safetensors.numpy"
        for name in absent.split():
            sys.modules[name] = None
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM
        import ropescope
        config = LlamaConfig(vocab_size=99, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
                             num_attention_heads=2, bos_token_id=1, eos_token_id=2)
        windows = torch.arange(128).reshape(2, 64) % 99
        result = ropescope.measure(LlamaForCausalLM(config), windows, frame_length=32, hop_length=16)
        print(dict(result["query"].spectrum_fe.sizes))
        """
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == "{'sequence': 2, 'layer': 2, 'head': 2, 'pair': 8}\n"


def test_importing_the_package_loads_nothing_heavy() -> None:
    run = run_python(
        """
        import sys
        import ropescope
        dir(ropescope), ropescope.__all__
        heavy = {"torch", "transformers", "matplotlib", "xarray", "numpy", "datasets", "scipy", "h5netcdf", "cyclopts"}
        print(sorted(heavy & set(sys.modules)))
        """
    )
    assert (run.returncode, run.stdout) == (0, "[]\n"), run.stderr


def test_norms_are_kept_of_the_heads_worth_seeing_and_of_the_first_of_every_layer():
    model, windows = LLAMA.shared(), tokens(2, LENGTH)
    every = measure(model, windows, norm_heads=[(None, None)], **FRAMES)
    found = measure(model, windows, norm_heads="auto", **FRAMES)
    assert provenance(found)["norm_heads"] == "auto"
    for stream in ("query", "key"):
        places = kept_heads(stream_data(found, stream), stream)
        layers = stream_data(found, stream)["layer"].values.tolist()
        assert places == sorted({(layer, 0) for layer in layers} | set(default_heads(found, stream)))
        all_places = kept_heads(stream_data(every, stream), stream)
        rows = [all_places.index(place) for place in places]
        np.testing.assert_array_equal(found[stream]["norm"].values, every[stream]["norm"].values[rows])
    assert any(head for _, head in kept_heads(stream_data(found, "query"), "query"))
