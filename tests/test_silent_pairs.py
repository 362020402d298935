"""Pairs that are exactly zero hide nothing: pairing, frequencies and rotation are those of the untouched model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from architectures import ARCHITECTURES, COHERE2, DEEPSEEK, GEMMA3, LLAMA, LLAMA4, Architecture, tokens
from ropescope.model.probing import RotaryCard, probe
from trained_like import KINDS, Silence, silence, zero_pairs

pytestmark = pytest.mark.usefixtures("one_thread")

every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES, ids=str)
few_architectures = pytest.mark.parametrize("architecture", [COHERE2, DEEPSEEK, GEMMA3, LLAMA, LLAMA4], ids=str)
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


def silenced(architecture: Architecture, kind: Silence, where: slice, dtype: torch.dtype) -> PreTrainedModel:
    model = architecture.build(dtype)
    for layer in architecture.expected()[where]:
        silence(model, layer, kind)
    return model


def check_card(card: RotaryCard, untouched: RotaryCard, silent: dict[int, dict[str, Tensor]]) -> None:
    for rotation, before in zip(card.layers, untouched.layers, strict=True):
        assert rotation.same_rotation(before), (rotation, before)
        assert torch.equal(rotation.rotated, before.rotated)
        for stream, flags in silent[rotation.layer].items():
            assert torch.equal(rotation.silent[stream], flags)
    assert str(card).startswith(f"{untouched}\nsilent (zero whatever the input): ")


@few_architectures
@every_kind
def test_a_layer_with_silent_pairs_is_read_as_without(architecture: Architecture, kind: Silence) -> None:
    model = silenced(architecture, kind, slice(-1, None), torch.float32)
    check_card(probe(model), probe(architecture.shared()), zero_pairs(model, architecture, tokens()))


@pytest.mark.slow
@every_architecture
@every_kind
@every_dtype
@pytest.mark.parametrize("where", [slice(0, 1), slice(-1, None), slice(None)], ids=["first", "last", "every layer"])
def test_silent_pairs_hide_nothing_in_any_architecture(
    architecture: Architecture, kind: Silence, dtype: torch.dtype, where: slice
) -> None:
    model = silenced(architecture, kind, where, dtype)
    silent = zero_pairs(model, architecture, tokens())
    if not any(flags.any() for streams in silent.values() for flags in streams.values()):
        pytest.skip("the layer takes its keys from another one")
    check_card(probe(model), probe(architecture.shared(dtype)), silent)
