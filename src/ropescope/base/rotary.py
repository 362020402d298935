"""Rotary pairs: which two dimensions of a head turn together, and how to turn them.

Convention: a pair (a, b) at angle t becomes (a cos t - b sin t, b cos t + a sin t).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from ropescope.base.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from ropescope.base.axes import Angles, Heads, PairNorms

Style = Literal["half-split", "interleaved"]
STYLES: tuple[Style, ...] = ("half-split", "interleaved")


@dataclass(frozen=True, slots=True)
class Pairing:
    """The rotary block of a head and how its dimensions pair up.

    Parameters
    ----------
    style
        "half-split": dimension i turns with i + r/2 (Llama, Qwen, Gemma). "interleaved": 2i turns with 2i + 1
        (Llama-4, Cohere, GLM).
    start
        First dimension of the rotary block (DeepSeek's comes after an unrotated one).
    size
        Rotary dimensions r, even and at least 2.

    Examples
    --------
    >>> str(Pairing("half-split", 0, 64))
    'half-split[0:64]'
    >>> Pairing.parse("interleaved[64:128]").pairs
    32
    """

    style: Style
    start: int
    size: int

    def __post_init__(self) -> None:
        if self.style not in STYLES or self.start < 0 or self.size < 2 or self.size % 2:
            raise InputError(
                f"no such pairing: style {self.style!r}, start {self.start}, size {self.size}; "
                f"style is one of {', '.join(STYLES)}, start at least 0, size even and at least 2"
            )

    @property
    def pairs(self) -> int:
        """Number of rotary pairs, r/2."""
        return self.size // 2

    @property
    def stop(self) -> int:
        """One past the last dimension of the rotary block."""
        return self.start + self.size

    def __str__(self) -> str:
        return f"{self.style}[{self.start}:{self.stop}]"

    @classmethod
    def parse(cls, text: str) -> Pairing:
        """The pairing that `str` wrote."""
        match = re.fullmatch(r"(half-split|interleaved)\[(\d+):(\d+)\]", text)
        if match is None:
            raise InputError(f"got pairing {text!r}; it reads like 'half-split[0:64]' or 'interleaved[0:64]'")
        style, start, stop = match.groups()
        return cls("half-split" if style == "half-split" else "interleaved", int(start), int(stop) - int(start))


def split_pairs(heads: Heads, pairing: Pairing) -> tuple[Tensor, Tensor]:
    """The two components of every pair, as views.

    Parameters
    ----------
    heads
        Queries or keys, shape (..., head_dim).
    pairing
        Which dimensions pair up; its block must lie inside head_dim.

    Returns
    -------
    tuple of Tensor
        First and second components, each (..., pair).

    Raises
    ------
    InputError
        If the rotary block does not fit into head_dim.
    """
    if pairing.stop > heads.shape[-1]:
        raise InputError(f"pairing {pairing} does not fit into a head of {heads.shape[-1]} dimensions")
    block = heads[..., pairing.start : pairing.stop]
    if pairing.style == "half-split":
        first, second = block.chunk(2, dim=-1)
        return first, second
    return block[..., 0::2], block[..., 1::2]


def pair_norms(heads: Heads, pairing: Pairing) -> PairNorms:
    r"""Euclidean norm of every rotary pair, :math:`s_j[n] = \|x_n^{(j)}\|_2`, in float32.

    Parameters
    ----------
    heads
        Queries or keys, shape (..., position, head_dim).
    pairing
        Which dimensions pair up.

    Returns
    -------
    Tensor
        Shape (..., position, pair). A rotation leaves it unchanged.

    References
    ----------
    Frequency Entropy paper, equation 2.
    """
    first, second = split_pairs(heads, pairing)
    return torch.hypot(first.float(), second.float())


def rotate(heads: Heads, angle: Angles, pairing: Pairing) -> Heads:
    """Turn every rotary pair by its angle; dimensions outside the rotary block stay as they are.

    Parameters
    ----------
    heads
        Queries or keys, shape (..., position, head_dim).
    angle
        Radians, broadcastable to (..., position, pair). The negative angle undoes the rotation.
    pairing
        Which dimensions pair up.

    Returns
    -------
    Tensor
        Shape and dtype of `heads`; the arithmetic is float32.

    Raises
    ------
    InputError
        If the angles do not fit the heads.

    References
    ----------
    Su et al., RoFormer, 2021; Frequency Entropy paper, equation 1.
    """
    if angle.shape[-1] != pairing.pairs or angle.ndim > heads.ndim:
        raise InputError(f"angle of shape {tuple(angle.shape)} does not fit {tuple(heads.shape)} paired as {pairing}")
    return turn(heads, angle.cos(), angle.sin(), pairing)


def turn(heads: Heads, cos: Angles, sin: Angles, pairing: Pairing) -> Heads:
    """:func:`rotate` by angles whose cosine and sine are at hand."""
    cos, sin = cos.float(), sin.float()
    first, second = split_pairs(heads.float(), pairing)
    turned = first * cos - second * sin, second * cos + first * sin
    block = torch.cat(turned, -1) if pairing.style == "half-split" else torch.stack(turned, -1).flatten(-2)
    before, after = heads[..., : pairing.start], heads[..., pairing.stop :]
    return torch.cat((before, block.to(heads.dtype), after), dim=-1)
