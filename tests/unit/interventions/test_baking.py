"""Baked weights do what the weighting does at run time, in plain transformers, or are refused with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from architectures import ARCHITECTURES, LLAMA, QWEN3, Architecture, state_of, tokens
from matrix import plain
from ropescope.base.errors import InputError, ModelError
from ropescope.evaluation.perplexity import perplexity
from ropescope.interventions.baking import bake
from ropescope.interventions.controls import matched_random
from ropescope.interventions.masks import PairMask
from ropescope.interventions.selection import select
from ropescope.interventions.weighting import weighted_rope
from ropescope.measurement.measure import measure
from ropescope.model.windows import token_windows

pytestmark = pytest.mark.usefixtures("one_thread", "no_gradients")

QK_NORM = "does more than rotate between"
SHARED = "of its own"
OTHER_SHAPE = "gives 128 values for 4 heads of 16"
REFUSED = {
    "llama4": QK_NORM,
    "gemma3": QK_NORM,
    "gemma4": SHARED,
    "qwen3": QK_NORM,
    "qwen3-moe": QK_NORM,
    "qwen3-next": OTHER_SHAPE,
    "olmo2": QK_NORM,
    "exaone4": QK_NORM,
    "gpt-neox": SHARED,
    "deepseek-v3": SHARED,
    "gpt2": SHARED,
    "phi3-longrope": SHARED,
}
bakeable = pytest.mark.parametrize("architecture", [a for a in ARCHITECTURES if str(a) not in REFUSED], ids=str)
unbakeable = pytest.mark.parametrize("architecture", [a for a in ARCHITECTURES if str(a) in REFUSED], ids=str)


def some_pairs(model: PreTrainedModel) -> PairMask:
    """Three pairs, others in every head of both streams."""
    result = measure(model, tokens(1), frame_length=16, hop_length=8)
    return matched_random(select(result, "pair < 3"), seed=0)


@pytest.mark.slow
@bakeable
def test_baked_weights_do_what_the_weighting_does(architecture: Architecture) -> None:
    model = architecture.build()
    mask = some_pairs(model)
    stock = plain(model)
    with weighted_rope(model, mask, 0.3):
        weighted = plain(model)
    baked = plain(bake(model, mask, 0.3))
    torch.testing.assert_close(baked, weighted, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(baked, stock, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@unbakeable
def test_what_cannot_be_baked_says_why_and_stays_as_it_was(architecture: Architecture) -> None:
    model = architecture.build()
    mask = some_pairs(model)
    before = state_of(model)
    with pytest.raises(ModelError, match=REFUSED[str(architecture)]):
        bake(model, mask, 0.3)
    assert state_of(model) == before


def test_weights_per_pair_are_baked_too() -> None:
    model = LLAMA.build()
    mask = some_pairs(model)
    random = np.random.default_rng(0)
    weights = {stream: random.random(array.shape) for stream, array in mask.streams().items()}
    with weighted_rope(model, mask, weights):
        weighted = plain(model)
    torch.testing.assert_close(plain(bake(model, mask, weights)), weighted, rtol=1e-4, atol=1e-4)


def test_alpha_one_changes_no_bit() -> None:
    model = LLAMA.build(dtype=torch.bfloat16)
    before = state_of(model)
    bake(model, some_pairs(model), 1.0)
    assert state_of(model) == before


def test_an_empty_selection_needs_nothing_to_be_bakeable() -> None:
    model = QWEN3.build()
    before = state_of(model)
    mask = some_pairs(model)
    bake(model, mask & ~mask, 0.0)
    assert state_of(model) == before


def test_the_saved_checkpoint_opens_in_plain_transformers(tmp_path: Path) -> None:
    model = LLAMA.build()
    mask = some_pairs(model)
    with weighted_rope(model, mask, 0.1):
        weighted = plain(model)
    bake(model, mask, 0.1).save_pretrained(tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(reloaded) is type(model)
    torch.testing.assert_close(plain(reloaded), weighted, rtol=1e-4, atol=1e-4)


def test_bad_alpha_and_foreign_masks_are_refused() -> None:
    model = LLAMA.build()
    mask = some_pairs(model)
    with pytest.raises(InputError, match="alpha got nan"):
        bake(model, mask, float("nan"))
    with pytest.raises(InputError, match="selected on other weights"):
        bake(LLAMA.build(seed=1), mask, 0.5)


def test_wrapped_projections_are_refused() -> None:
    class Packed(nn.Module):
        def __init__(self, inner: nn.Linear) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, hidden: Tensor) -> Any:
            return self.inner(hidden)

    model = LLAMA.build()
    mask = some_pairs(model)
    attention = model.model.layers[0].self_attn
    attention.q_proj = Packed(attention.q_proj)
    with pytest.raises(ModelError, match="q_proj of layer 0 is a Packed, whose weights cannot be scaled"):
        bake(model, mask.for_any_model(), 0.5)


@pytest.mark.models
def test_smollm2_has_the_weighted_perplexity_once_baked(builtin: Any, wikitext: Path, tmp_path: Path) -> None:
    model, tokenizer = builtin
    windows = token_windows(tokenizer, str(wikitext), length=1024, count=2)
    mask = matched_random(select(measure(model, windows[:1]), "spectrum_fe < 0.2"), seed=0)
    with weighted_rope(model, mask, 0.5):
        weighted = perplexity(model, windows).value
    model.save_pretrained(tmp_path)
    copy = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    baked = perplexity(bake(copy, mask, 0.5), windows).value
    assert baked == pytest.approx(weighted, rel=1e-4)
    assert weighted > 1.05 * perplexity(model, windows).value
