"""Trained models on real text: what the product says of them against float64 before rotation and against their configs.

They bring what random weights do not: silent pairs (Gemma), key biases far above the keys (Qwen), outlier dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor, nn
from transformers import PreTrainedModel

import ropescope as rs
from architectures import entropies_of, pair_norms_of
from fetch_models import FOLDER, GEMMA, QWEN
from ropescope.base.axes import STREAMS
from ropescope.base.errors import ModelError
from ropescope.measurement.summary import counts
from ropescope.model.card import RotaryCard

pytestmark = [pytest.mark.models, pytest.mark.usefixtures("no_gradients")]

# How many tokens' logits are compared, the last ones of a short sequence.
LAST = 32


@dataclass(frozen=True)
class Trained:
    """A model, and what its publishers and an independent computation say of it."""

    source: str
    heads: int
    kv_heads: int
    head_dim: int
    thetas: tuple[float, ...]
    """Base of the rotation, layer by layer."""
    length: int
    """Tokens of WikiText test that it is measured on."""
    short: int
    """Tokens of those whose logits are looked at."""
    counts: dict[str, tuple[int, int, int, int]]
    """Bands, outliers, periodic and undefined pairs by stream."""
    card: str
    silent: dict[int, list[int]]
    """Pairs that are zero in every head, by layer."""


TRAINED = {
    "gemma": Trained(
        source=str(FOLDER / GEMMA.file),
        heads=4,
        kv_heads=1,
        head_dim=256,
        thetas=tuple(1e6 if layer % 6 == 5 else 1e4 for layer in range(18)),
        length=4096,
        short=640,  # more than its sliding window
        counts={"query": (656, 435, 0, 64), "key": (318, 74, 0, 16)},
        card=(
            "layers 0-4, 6-10, 12-16: 4 query / 1 key heads of 256, half-split[0:256], 128 pairs, "
            "wavelength 6.28 to 5.85e+04 tokens\n"
            "layers 5, 11, 17: 4 query / 1 key heads of 256, half-split[0:256], 128 pairs, "
            "wavelength 6.28 to 5.64e+06 tokens\n"
            "silent (zero whatever the input): 64 of 9216 query pairs, 16 of 2304 key pairs\n"
            "  layer 5: pairs 3, 6 in all heads\n"
            "  layer 12: pairs 0, 2-3, 6-7, 9, 11 in all heads\n"
            "  layer 14: pairs 1-2, 7, 13 in all heads\n"
            "  layer 17: pairs 1, 3, 6 in all heads"
        ),
        silent={5: [3, 6], 12: [0, 2, 3, 6, 7, 9, 11], 14: [1, 2, 7, 13], 17: [1, 3, 6]},
    ),
    "qwen": Trained(
        source=str(FOLDER / QWEN.file),
        heads=14,
        kv_heads=2,
        head_dim=64,
        thetas=(1e6,) * 24,
        length=4096,
        short=128,
        counts={"query": (4519, 40, 4, 0), "key": (930, 3, 1, 0)},
        card=(
            "layers 0-23: 14 query / 2 key heads of 64, half-split[0:64], 32 pairs, wavelength 6.28 to 4.08e+06 tokens"
        ),
        silent={},
    ),
    # test_smollm2.py measures it at full length.
    "smollm2": Trained(
        source="builtin",
        heads=9,
        kv_heads=3,
        head_dim=64,
        thetas=(1e5,) * 30,
        length=1024,
        short=128,
        counts={},
        card=(
            "layers 0-29: 9 query / 3 key heads of 64, half-split[0:64], 32 pairs, wavelength 6.28 to 4.38e+05 tokens"
        ),
        silent={},
    ),
}


@dataclass(frozen=True)
class Opened:
    """An opened model, measured; its short logits from before, and float64 entropies from the very same pass."""

    known: Trained
    model: PreTrainedModel
    card: RotaryCard
    tokens: Tensor
    untouched: Tensor
    result: xr.DataTree
    independent: dict[str, list[dict[str, np.ndarray]]]

    def logits(self) -> Tensor:
        logits: Tensor = self.model(self.tokens, use_cache=False, logits_to_keep=LAST).logits
        return logits


@pytest.fixture(scope="module", params=TRAINED)
def opened(request: pytest.FixtureRequest, wikitext: Path) -> Opened:
    known = TRAINED[request.param]
    if known.source != "builtin" and not Path(known.source).exists():
        pytest.skip(f"{known.source} is not there; make test-models fetches it")
    model, tokenizer = rs.load_model(known.source, device="cpu", dtype="float32")
    windows = rs.token_windows(tokenizer, str(wikitext), length=known.length, count=1)
    tokens = windows[:, : known.short]
    with torch.no_grad():
        untouched = model(tokens, use_cache=False, logits_to_keep=LAST).logits
    with independently(model, known) as independent:
        result = rs.measure(model, windows)
    return Opened(known, model, rs.probe(model), tokens, untouched, result, independent)


def only(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("opened", names, indirect=True)


@contextmanager
def independently(model: PreTrainedModel, known: Trained) -> Iterator[dict[str, list[dict[str, np.ndarray]]]]:
    """Entropies of every layer by stream, from the hidden states that its attention is given, in float64."""
    found: dict[str, list[dict[str, np.ndarray]]] = {stream: [] for stream in STREAMS}

    def compute(attention: Any, _args: Any, arguments: dict[str, Any]) -> None:
        hidden = arguments["hidden_states"]
        # The probe, too, runs the layers; its sequences are shorter.
        if hidden.shape[1] == known.length:
            for stream in STREAMS:
                heads = before_rotation(attention, stream, hidden[0], known.head_dim)
                norms = pair_norms_of(heads.numpy(), "half-split", 0, known.head_dim)
                found[stream].append(entropies_of(norms, frame_length=1024, hop_length=512))

    hooks = [
        layer.self_attn.register_forward_pre_hook(compute, with_kwargs=True) for layer in model.get_decoder().layers
    ]
    yield found
    for hook in hooks:
        hook.remove()


def before_rotation(attention: Any, stream: str, hidden: Tensor, head_dim: int) -> Tensor:
    """Queries or keys (head, position, head_dim) in float64: projection, its bias, Gemma's norm."""
    projection = getattr(attention, {"query": "q_proj", "key": "k_proj"}[stream])
    projected = hidden.double() @ projection.weight.double().T
    if projection.bias is not None:
        projected = projected + projection.bias.double()
    heads = projected.unflatten(-1, (-1, head_dim)).transpose(0, 1)
    norm: nn.Module | None = getattr(attention, {"query": "q_norm", "key": "k_norm"}[stream], None)
    if norm is None:
        return heads
    mean_square = heads.square().mean(-1, keepdim=True) + attention.config.rms_norm_eps
    # Gemma's weights are kept as what is added to one.
    return heads / mean_square.sqrt() * (1 + norm.weight.double())


def test_the_card_is_the_published_one(opened: Opened) -> None:
    known = opened.known
    assert [layer.layer for layer in opened.card.layers] == list(range(len(known.thetas)))
    for layer, theta in zip(opened.card.layers, known.thetas, strict=True):
        assert (layer.heads, layer.kv_heads, layer.head_dim) == (known.heads, known.kv_heads, known.head_dim)
        assert str(layer.pairing) == f"half-split[0:{known.head_dim}]"
        assert layer.matched
        assert layer.rotated.all()
        expected = theta ** (-np.arange(0, known.head_dim, 2) / known.head_dim)
        np.testing.assert_allclose(layer.frequency.numpy(), expected, rtol=1e-6)
    assert str(opened.card) == known.card


def test_the_rotations_are_those_of_the_config(opened: Opened) -> None:
    config, known = opened.model.config, opened.known
    assert (config.num_attention_heads, config.num_key_value_heads) == (known.heads, known.kv_heads)
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    parameters = [config.rope_parameters.get(kind, config.rope_parameters) for kind in kinds]
    assert [rope["rope_theta"] for rope in parameters] == list(known.thetas)


@pytest.mark.parametrize("stream", STREAMS)
def test_every_layer_head_and_pair_equals_float64_before_rotation(opened: Opened, stream: str) -> None:
    layers = opened.independent[stream]
    assert len(layers) == len(opened.known.thetas)
    for name in ("spectrum_fe", "sequence_fe", "dc_share", "peak_share"):
        expected = np.stack([layer[name] for layer in layers])
        np.testing.assert_allclose(opened.result[stream][name].values[0], expected, rtol=0, atol=2e-5, err_msg=name)
    norms = np.stack([layer["mean_norm"] for layer in layers])
    np.testing.assert_allclose(opened.result[stream]["mean_norm"].values[0], norms, rtol=2e-5)


@only("gemma", "qwen")
@pytest.mark.parametrize("stream", STREAMS)
def test_as_many_pairs_are_in_each_selection_as_are_known_and_as_float64_counts(opened: Opened, stream: str) -> None:
    found = counts(opened.result, stream)
    spectrum, sequence = (
        np.stack([layer[name] for layer in opened.independent[stream]]) for name in ("spectrum_fe", "sequence_fe")
    )
    chosen = (spectrum < 0.2, spectrum > 0.4, sequence < 0.6, np.isnan(spectrum))
    expected = tuple(int(flags.sum()) for flags in chosen)
    assert (found.bands, found.outliers, found.periodic, found.undefined_spectrum) == expected
    assert expected == opened.known.counts[stream]


@pytest.mark.parametrize("stream", STREAMS)
def test_silent_pairs_are_silent_in_the_card_and_undefined_in_the_result_and_no_others(
    opened: Opened, stream: str
) -> None:
    expected = np.zeros((len(opened.known.thetas), opened.known.head_dim // 2), dtype=bool)
    for layer, pairs in opened.known.silent.items():
        expected[layer, pairs] = True
    undefined = opened.result[stream].spectrum_fe.isnull().values[0]
    for layer, silent in zip(opened.card.layers, expected, strict=True):
        for found in (layer.silent[stream].numpy(), undefined[layer.layer]):
            np.testing.assert_array_equal(found, np.broadcast_to(silent, found.shape))


def test_measuring_leaves_the_logits_bit_equal(opened: Opened) -> None:
    assert torch.equal(opened.logits(), opened.untouched)


def test_interventions_change_the_logits_and_leave_them_bit_equal(opened: Opened) -> None:
    mask = rs.select(opened.result, "bands")
    for intervention in (rs.weighted_rope(opened.model, mask, alpha=0.1), rs.derotated(opened.model, mask)):
        with intervention:
            assert distance(opened.logits(), opened.untouched) > 1
        assert torch.equal(opened.logits(), opened.untouched)


def distance(logits: Tensor, other: Tensor) -> float:
    return float((logits - other).abs().max())


@contextmanager
def kept_projections(model: PreTrainedModel) -> Iterator[None]:
    """Baking is in place; afterwards the projections are as they were."""
    kept = {
        name: tensor.clone() for name, tensor in model.state_dict().items() if ".q_proj." in name or ".k_proj." in name
    }
    try:
        yield
    finally:
        model.load_state_dict(kept, strict=False)


@only("qwen", "smollm2")
def test_baked_logits_are_those_of_the_weighting(opened: Opened) -> None:
    mask = rs.select(opened.result, "spectrum_fe > 0.2")
    with rs.weighted_rope(opened.model, mask, alpha=0.3):
        expected = opened.logits()
    with kept_projections(opened.model):
        rs.bake(opened.model, mask, alpha=0.3)
        got = opened.logits()
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-3)
    assert distance(expected, opened.untouched) > 1
    assert torch.equal(opened.logits(), opened.untouched)


@only("gemma")
def test_a_model_with_norms_behind_its_projections_is_not_baked_and_stays_as_it_is(opened: Opened) -> None:
    text = (
        r"^layer 0 does more than rotate between q_proj and attention \(QK-norm\), so a weighting cannot be folded into"
    )
    with pytest.raises(ModelError, match=text):
        rs.bake(opened.model, rs.select(opened.result, "spectrum_fe > 0.2"), alpha=0.3)
    assert torch.equal(opened.logits(), opened.untouched)


@contextmanager
def rotation_off(model: PreTrainedModel) -> Iterator[None]:
    """The model's rotary embedding gives cosine 1 and sine 0 at every position."""

    def still(_module: Any, _args: Any, output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        cos, sin = output
        return torch.ones_like(cos), torch.zeros_like(sin)

    hook = model.get_decoder().rotary_emb.register_forward_hook(still)
    try:
        yield
    finally:
        hook.remove()


def test_derotating_every_pair_is_a_rotation_by_nothing(opened: Opened) -> None:
    with rotation_off(opened.model):
        expected = opened.logits()
    with rs.derotated(opened.model, rs.select(opened.result, "pair >= 0")):
        got = opened.logits()
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-3)
    assert distance(expected, opened.untouched) > 1
