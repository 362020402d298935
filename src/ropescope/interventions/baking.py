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
from ropescope.interventions.weighting import Alpha, fitting_card, over_dimensions, pair_weights
from ropescope.model.access import input_device, undisturbed, vocabulary_size
from ropescope.model.attention import AttentionCall, intercepted

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from ropescope.interventions.masks import PairMask
    from ropescope.model.probing import LayerRotation, RotaryCard

PROJECTIONS = {QUERY: "q_proj", KEY: "k_proj"}
_TOKENS = 16


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
        them and attention.

    Examples
    --------
    >>> bake(model, mask, alpha=0.1).save_pretrained("smaller-bands")  # doctest: +SKIP
    """
    card = fitting_card(model, mask)
    factors = _row_factors(card, mask, alpha, allow_any_alpha)
    modules = _check_bakeable(model, card, {layer for layer, _ in factors})
    with torch.no_grad():
        for (layer, stream), factor in factors.items():
            projection = getattr(modules[layer], PROJECTIONS[stream])
            rows = factor.to(projection.weight.device)
            projection.weight.mul_(rows[:, None].to(projection.weight.dtype))
            if projection.bias is not None:
                projection.bias.mul_(rows.to(projection.bias.dtype))
    return model


def _row_factors(
    card: RotaryCard, mask: PairMask, alpha: Alpha, allow_any_alpha: bool
) -> dict[tuple[int, str], Tensor]:
    """Factor of every row of a projection, (head * head_dim), by layer and stream; all-one factors are left out."""
    factors = {}
    for row, rotation in enumerate(card.layers):
        for stream in PROJECTIONS:
            weight = pair_weights(mask, alpha, stream, row, rotation, allow_any_alpha)
            if (weight != 1).any():
                factors[rotation.layer, stream] = over_dimensions(weight, rotation).flatten()
    return factors


def _check_bakeable(model: PreTrainedModel, card: RotaryCard, layers: set[int]) -> dict[int, nn.Module]:
    """Attention modules of `layers`, once each has plain projections that reach attention changed by rotation only."""
    decoder = model.get_decoder()
    rotations = {rotation.layer: rotation for rotation in card.layers if rotation.layer in layers}
    modules = {layer: module for module in decoder.modules() if (layer := _attention_layer(module)) in rotations}
    for layer, rotation in rotations.items():
        _check_projections(modules.get(layer), rotation)
    projected: dict[tuple[int, str], Tensor] = {}
    hooks = [
        getattr(module, name).register_forward_hook(
            lambda _module, _args, output, place=(layer, stream): projected.update({place: output})
        )
        for layer, module in modules.items()
        for stream, name in PROJECTIONS.items()
    ]

    def compare(call: AttentionCall) -> None:
        if call.layer in rotations:
            for stream, heads in ((QUERY, call.query), (KEY, call.key)):
                _check_rotation_only(projected[call.layer, stream], heads, rotations[call.layer], stream)

    tokens = torch.arange(_TOKENS)[None] * 7 % vocabulary_size(model)
    try:
        with undisturbed(model), intercepted(model, compare):
            decoder(input_ids=tokens.to(input_device(model)), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return modules


def _attention_layer(module: nn.Module) -> int | None:
    """Layer of an attention module: the module with a layer index that holds the projections, if any has."""
    layer: Any = getattr(module, "layer_idx", None)
    return layer if layer is not None and any(hasattr(module, name) for name in PROJECTIONS.values()) else None


def _check_projections(module: nn.Module | None, rotation: LayerRotation) -> None:
    for stream, name in PROJECTIONS.items():
        projection = getattr(module, name, None)
        heads = rotation.heads if stream == QUERY else rotation.kv_heads
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
