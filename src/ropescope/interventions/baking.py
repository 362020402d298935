"""Fold weighted RoPE into the projections, so that any server runs it as an ordinary checkpoint.

Scaling a pair commutes with its rotation, so a weight on a pair is a weight on two rows of q_proj or k_proj. That holds
only if nothing but the rotation comes between the projection and attention, which is checked on the running model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ropescope.base.axes import KEY, QUERY
from ropescope.base.errors import ModelError
from ropescope.base.rotary import pair_norms
from ropescope.interventions.fitting import fitting_card
from ropescope.interventions.weighting import Alpha, over_dimensions, pair_weights
from ropescope.model.access import input_device, undisturbed, vocabulary_size
from ropescope.model.attention import AttentionCall, intercepted
from ropescope.model.decoder import decoder_of

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from ropescope.interventions.masks import PairMask
    from ropescope.model.card import LayerRotation, RotaryCard

PROJECTIONS = {QUERY: "q_proj", KEY: "k_proj"}
_TOKENS = 16
Place = tuple[int, str]


def bake(model: PreTrainedModel, mask: PairMask, alpha: Alpha, *, allow_any_alpha: bool = False) -> PreTrainedModel:
    """Fold the weighting of :func:`ropescope.weighted_rope` into q_proj and k_proj, in place.

    Parameters
    ----------
    model
        The model to change. Nothing is changed if any layer cannot be baked.
    mask, alpha, allow_any_alpha
        As in :func:`ropescope.weighted_rope`.

    Returns
    -------
    PreTrainedModel
        The same model; `save_pretrained` writes an ordinary checkpoint. With alpha 0 the old weights are gone.

    Raises
    ------
    InputError
        If the mask does not fit the model, or alpha is out of range.
    ModelError
        If a selected layer has no separate q_proj and k_proj with plain weights, or something (QK-norm) comes between
        them and attention; if weights that layers share would have to be scaled in several ways; or if the model
        carries adapters.

    Examples
    --------
    >>> bake(model, mask, alpha=0.1).save_pretrained("smaller-bands")  # doctest: +SKIP
    """
    card = fitting_card(model, mask)
    _check_whole(model)
    factors = _row_factors(card, mask, alpha, allow_any_alpha)
    projections = _check_bakeable(model, card, {layer for layer, _ in factors})
    scaled = _scaled_weights(model, projections, factors)
    with torch.no_grad():
        for weight, factor in scaled:
            rows = factor.to(device=weight.device, dtype=weight.dtype)
            weight.mul_(rows.view(-1, *[1] * (weight.ndim - 1)))
    return model


def _check_whole(model: PreTrainedModel) -> None:
    """A model with adapters saves nothing but them."""
    adapted = [name for name, module in model.named_modules() if hasattr(module, "base_layer")]
    if adapted:
        raise ModelError(
            f"the model carries adapters ({len(adapted)}, first {adapted[0]}), so what is baked would not be what "
            "is saved; merge them first (merge_and_unload())"
        )


def _row_factors(card: RotaryCard, mask: PairMask, alpha: Alpha, allow_any_alpha: bool) -> dict[Place, Tensor]:
    """Factor of every row of a projection, (head * head_dim), by layer and stream; all-one factors are left out."""
    factors = {}
    for row, rotation in enumerate(card.layers):
        for stream in PROJECTIONS:
            weight = pair_weights(mask, alpha, stream, row, rotation, allow_any_alpha)
            if (weight != 1).any():
                factors[rotation.layer, stream] = over_dimensions(weight, rotation).flatten()
    return factors


def _check_bakeable(model: PreTrainedModel, card: RotaryCard, layers: set[int]) -> dict[Place, nn.Module]:
    """Projections of every layer, once those of `layers` are plain and reach attention changed by rotation only."""
    projections, outputs, received = _projected(model)
    rotations = {rotation.layer: rotation for rotation in card.layers if rotation.layer in layers}
    for layer, rotation in rotations.items():
        for stream in PROJECTIONS:
            _check_projection(projections.get((layer, stream)), rotation, stream)
    for layer, rotation in rotations.items():
        for stream in PROJECTIONS:
            _check_rotation_only(outputs[layer, stream], received[layer, stream], rotation, stream)
    return projections


def _projected(model: PreTrainedModel) -> tuple[dict[Place, nn.Module], dict[Place, Tensor], dict[Place, Tensor]]:
    """Of every attention call, the projections that ran for it, what they gave, and what attention received."""
    decoder = decoder_of(model)
    latest: dict[str, tuple[nn.Module, Tensor]] = {}
    projections, outputs, received = {}, {}, {}

    def take(call: AttentionCall) -> None:
        for stream, heads in ((QUERY, call.query), (KEY, call.key)):
            received[call.layer, stream] = heads
            if stream in latest:
                projections[call.layer, stream], outputs[call.layer, stream] = latest.pop(stream)

    hooks = [
        getattr(module, name).register_forward_hook(
            lambda projection, _args, output, stream=stream: latest.update({stream: (projection, output)})
        )
        for module in decoder.modules()
        for stream, name in PROJECTIONS.items()
        if hasattr(module, "layer_idx") and getattr(module, name, None) is not None
    ]
    tokens = torch.arange(_TOKENS, device="cpu")[None] * 7 % vocabulary_size(model)
    try:
        with undisturbed(model), intercepted(model, take):
            decoder(input_ids=tokens.to(input_device(model)), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return projections, outputs, received


def _scaled_weights(
    model: PreTrainedModel, projections: dict[Place, nn.Module], factors: dict[Place, Tensor]
) -> list[tuple[Tensor, Tensor]]:
    """Every weight and bias to scale, once, with the factors of its rows; whatever holds it must want the same."""
    scaled = {
        id(parameter): (parameter, place)
        for place in factors
        for parameter in projections[place].parameters(recurse=False)
    }
    ours = {id(projection) for projection in projections.values()}
    others: Any = ((name, module) for name, module in model.named_modules() if id(module) not in ours)
    for place, holder in (*projections.items(), *others):
        for parameter in holder.parameters(recurse=False):
            if id(parameter) in scaled:
                _check_agreement(factors, scaled[id(parameter)][1], place)
    return [(parameter, factors[place]) for parameter, place in scaled.values()]


def _check_agreement(factors: dict[Place, Tensor], place: Place, other: Any) -> None:
    if other not in factors or not torch.equal(factors[place], factors[other]):
        shared = other if isinstance(other, str) else f"{PROJECTIONS[other[1]]} of layer {other[0]}"
        raise ModelError(
            f"{PROJECTIONS[place[1]]} of layer {place[0]} shares its weights with {shared}, which the mask does not "
            "weight alike, so the weighting cannot be folded into them; use weighted_rope at run time"
        )


def _check_projection(projection: nn.Module | None, rotation: LayerRotation, stream: str) -> None:
    name, heads = PROJECTIONS[stream], rotation.heads if stream == QUERY else rotation.kv_heads
    if projection is None:
        raise ModelError(
            f"layer {rotation.layer} has no {name} of its own (its projection is shared), so a weighting cannot be "
            "folded into it; use weighted_rope at run time"
        )
    if kind := _not_plain(projection):
        raise ModelError(
            f"{name} of layer {rotation.layer} is a {kind}, whose weights cannot be scaled in place; load the "
            "model unquantised and whole in memory, or use weighted_rope at run time"
        )
    if projection.out_features != heads * rotation.head_dim:
        raise ModelError(
            f"{name} of layer {rotation.layer} gives {projection.out_features} values for {heads} heads of "
            f"{rotation.head_dim}; only plain projections can be baked; use weighted_rope at run time"
        )


def _not_plain(projection: nn.Module) -> str:
    """What a projection is if it is not a linear layer with all its weights in memory as they are; else nothing."""
    if type(projection) is not nn.Linear:
        return type(projection).__name__
    weights = projection.weight.data
    if weights.is_meta:
        return "Linear with offloaded weights"
    plain = type(weights) is torch.Tensor and weights.is_floating_point()
    return "" if plain else f"Linear with weights of type {type(weights).__name__}, {weights.dtype}"


def _check_rotation_only(projected: Tensor, heads: Tensor, rotation: LayerRotation, stream: str) -> None:
    """Pair norms before and after must agree up to one constant (YaRN's attention scaling)."""
    before = pair_norms(projected.unflatten(-1, (-1, rotation.head_dim)).transpose(1, 2), rotation.pairing)
    after = pair_norms(heads, rotation.pairing)
    # Where all is silent, nothing may come after.
    constant = (before * after).sum() / before.square().sum().clamp_min(torch.finfo(before.dtype).tiny)
    if (after - constant * before).abs().max() > 16 * torch.finfo(heads.dtype).eps * after.max():
        raise ModelError(
            f"layer {rotation.layer} does more than rotate between {PROJECTIONS[stream]} and attention (QK-norm), so a "
            "weighting cannot be folded into the projection; use weighted_rope at run time"
        )
