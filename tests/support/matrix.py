"""What tests over the matrix of architectures have in common: its parameters, and the plainest runs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from architectures import ARCHITECTURES, tokens

every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES, ids=str)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


def plain(model: nn.Module) -> Tensor:
    """Logits of two sequences, without a cache."""
    return model(tokens(2), use_cache=False).logits


def left_padding(sequences: int, length: int) -> Tensor:
    """Attention mask whose rows begin with 0, 7, 14, ... padded positions."""
    return (torch.arange(length) >= 7 * torch.arange(sequences)[:, None]).long()
