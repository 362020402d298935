"""Weighted RoPE: selected rotary pairs are turned down while a context is open.

It acts on q where attention receives it, for every forward, `generate` with a cache, and padded batches, nests with
other interventions, and leaves nothing behind.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ropescope.base.arguments import check_share
from ropescope.base.axes import KEY, QUERY
from ropescope.base.errors import InputError
from ropescope.interventions.fitting import fitting_card
from ropescope.interventions.masks import PairMask
from ropescope.model.attention import AttentionCall, Handler, intercepted
from ropescope.model.card import LayerRotation, RotaryCard
from ropescope.model.identity import announced

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

Alpha = float | Mapping[str, Any]
_DIGEST = 8
_PER_PAIR = "a mapping of query and key to arrays of the mask's shape"


@contextmanager
def weighted_rope(
    model: PreTrainedModel, mask: PairMask, alpha: Alpha, *, allow_any_alpha: bool = False
) -> Iterator[None]:
    r"""Scale the selected pairs of q and k by alpha while the context is open (weighted RoPE).

    .. math:: q^{(j)*} = \alpha_q q^{(j)}, \quad k^{(j)*} = \alpha_k k^{(j)}

    with :math:`\alpha` where the stream's own mask selects the pair, else 1, so the part of pair j in a logit is
    scaled by :math:`\alpha_q \alpha_k`. Both factors are folded into the query: q·k is bilinear, so this is exact,
    and cached keys are never written to.

    Parameters
    ----------
    model
        The model that the mask was selected on; :meth:`PairMask.for_any_model` lifts the check of its weights.
    mask
        The pairs to scale.
    alpha
        Weight of the selected pairs, 0 to 1; or weights per pair, a mapping of "query" and "key" to arrays of the
        mask's shape. 1 leaves the logits bit-equal.
    allow_any_alpha
        Take finite weights outside [0, 1] too.

    Yields
    ------
    None
        On exit, after an exception too, the model is as it was.

    Raises
    ------
    InputError
        If the mask does not fit the model, or alpha is out of range.

    References
    ----------
    Frequency Entropy paper, section 4.1, equation 7.

    Examples
    --------
    >>> with weighted_rope(model, mask, alpha=0.1):  # doctest: +SKIP
    ...     model.generate(**inputs)
    """
    scale = scaling(fitting_card(model, mask), mask, alpha, allow_any_alpha)
    what = f"weighted_rope of {mask.digest()[:_DIGEST]} at {_written(alpha)}"
    with announced(model, what), intercepted(model, scale):
        yield


def scaling(card: RotaryCard, mask: PairMask, alpha: Alpha, allow_any_alpha: bool = False) -> Handler:
    """What :func:`weighted_rope` puts at every attention, for a mask that fits the card."""
    weights = query_weights(card, mask, alpha, allow_any_alpha)

    def scale(call: AttentionCall) -> tuple[Tensor, Tensor] | None:
        weight = weights.get(call.layer)
        return None if weight is None else (call.query * _on(weight[call.heads], call.query), call.key)

    return scale


def query_weights(card: RotaryCard, mask: PairMask, alpha: Alpha, allow_any_alpha: bool = False) -> dict[int, Tensor]:
    """Factor of every query dimension, (head, 1, head_dim), by layer; layers where all are 1 are left out."""
    found = {}
    for row, rotation in enumerate(card.layers):
        query, key = (pair_weights(mask, alpha, stream, row, rotation, allow_any_alpha) for stream in (QUERY, KEY))
        groups = rotation.heads // rotation.kv_heads
        weight = over_dimensions(query * key.repeat_interleave(groups, 0), rotation)
        if (weight != 1).any():
            found[rotation.layer] = weight[:, None]
    return found


def pair_weights(
    mask: PairMask, alpha: Alpha, stream: str, row: int, rotation: LayerRotation, allow_any: bool
) -> Tensor:
    """Weight of every pair of a layer, (head, pair)."""
    heads = rotation.heads if stream == QUERY else rotation.kv_heads
    chosen = torch.from_numpy(mask.streams()[stream].values[row, :heads, : rotation.pairing.pairs])
    if not isinstance(alpha, Mapping):
        if np.ndim(alpha):
            raise InputError(f"alpha got an array of shape {np.shape(alpha)}; weights per pair are {_PER_PAIR}")
        _check_alpha(float(alpha), allow_any)
        return torch.where(chosen, float(alpha), 1.0)
    if stream not in alpha:
        raise InputError(
            f"alpha got weights of {', '.join(map(str, alpha)) or 'nothing'}; weights per pair are {_PER_PAIR}"
        )
    values = np.asarray(alpha[stream], dtype=np.float32)
    if values.shape != mask.streams()[stream].shape:
        raise InputError(f"weights of {stream} have shape {values.shape}; the mask's is {mask.streams()[stream].shape}")
    mine = torch.from_numpy(values[row, :heads, : rotation.pairing.pairs])
    for extreme in (float(mine.min()), float(mine.max())):
        _check_alpha(extreme, allow_any)
    return torch.where(chosen, mine, 1.0)


def over_dimensions(weight: Tensor, rotation: LayerRotation) -> Tensor:
    """Spread weights per pair, (head, pair), over the head's dimensions, (head, head_dim); 1 outside the block."""
    pairing = rotation.pairing
    spread = torch.ones(weight.shape[0], rotation.head_dim, device=weight.device)
    both = torch.cat((weight, weight), -1) if pairing.style == "half-split" else weight.repeat_interleave(2, -1)
    spread[:, pairing.start : pairing.stop] = both
    return spread


def _on(weight: Tensor, like: Tensor) -> Tensor:
    return weight.to(device=like.device, dtype=like.dtype)


def _written(alpha: Alpha) -> str:
    """A strength, or a digest of strengths per pair, for the record."""
    if not isinstance(alpha, Mapping):
        return f"{float(alpha)}"
    weights = [np.asarray(alpha[stream], dtype=np.float32) for stream in (QUERY, KEY)]
    return hashlib.sha256(b"".join(array.tobytes() for array in weights)).hexdigest()[:_DIGEST]


def _check_alpha(alpha: float, allow_any: bool) -> None:
    if allow_any and math.isfinite(alpha):
        return
    check_share("alpha", alpha, "; allow_any_alpha=True takes other finite weights")
