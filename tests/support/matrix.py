"""What tests over the matrix of architectures have in common: its parameters, and the plainest runs."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn

from architectures import ARCHITECTURES, Architecture, tokens
from ropescope.model.card import RotaryCard
from ropescope.model.probing import probe

every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES, ids=str)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


def plain(model: nn.Module) -> Tensor:
    """Logits of two sequences, without a cache."""
    return model(tokens(2), use_cache=False).logits


@functools.cache
def untouched(architecture: Architecture, dtype: torch.dtype = torch.float32) -> RotaryCard:
    """The card of the shared model, for tests that change another one."""
    return probe(architecture.shared(dtype))


def left_padding(sequences: int, length: int) -> Tensor:
    """Attention mask whose rows begin with 0, 7, 14, ... padded positions."""
    return (torch.arange(length) >= 7 * torch.arange(sequences)[:, None]).long()
