"""Does a mask belong to a model? Its rotations, once that is clear."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ropescope.base.axes import KEY, QUERY
from ropescope.base.errors import InputError
from ropescope.base.facts import listed, other_model, other_weights
from ropescope.interventions.masks import PairMask
from ropescope.model.card import RotaryCard
from ropescope.model.identity import model_identity
from ropescope.model.probing import probe

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def fitting_card(model: PreTrainedModel, mask: PairMask) -> RotaryCard:
    """The model's rotations, once it is clear that the mask belongs to it.

    Raises
    ------
    InputError
        If layers, heads, pairing, weights, config, frequencies or adapters are others than those the mask was selected
        on. What a mask does not know, as one of a file from before these facts were kept, is not compared.
    """
    card = probe(model)
    layers = [rotation.layer for rotation in card.layers]
    if layers != mask.layers:
        raise InputError(
            f"the mask is for {len(mask.layers)} layers, {mask.layers[0]} to {mask.layers[-1]}, the model has "
            f"{len(layers)}, {layers[0]} to {layers[-1]}; select on this model"
        )
    for row, rotation in enumerate(card.layers):
        wanted = (rotation.heads, rotation.kv_heads, str(rotation.pairing))
        got = (_heads(mask, QUERY, row), _heads(mask, KEY, row), mask.pairing[row])
        if got != wanted:
            raise InputError(
                f"layer {rotation.layer} has {wanted[0]} query and {wanted[1]} key heads paired {wanted[2]}, but the "
                f"mask is for {got[0]} and {got[1]} paired {got[2]}; select on this model"
            )
    _check_measured_on(model, mask)
    return card


def _check_measured_on(model: PreTrainedModel, mask: PairMask) -> None:
    if not mask.measured_on:
        return
    differing = other_model(mask.measured_on, model_identity(model))
    ways = "measure and select on this model (in Python mask.for_any_model() lifts the check)"
    if other_weights(differing):
        raise InputError(
            f"the mask was selected on other weights ({mask.measured_on.get('id')}) than this model's; {ways}"
        )
    if differing:
        raise InputError(f"the mask was selected on these weights run otherwise ({listed(differing)}); {ways}")


def _heads(mask: PairMask, stream: str, row: int) -> int:
    return int(mask.present(stream).values[row].any(-1).sum())
