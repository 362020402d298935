"""Does a mask belong to a model? Its rotations, once that is clear."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ropescope.base.axes import KEY, QUERY
from ropescope.base.errors import InputError
from ropescope.base.facts import listed, other_model, other_weights
from ropescope.interventions.masks import PairMask
from ropescope.model.card import RotaryCard
from ropescope.model.identity import model_identity, open_interventions
from ropescope.model.probing import probe

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class _Look:
    """What masks are compared with, looked at when first asked for."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    @cached_property
    def card(self) -> RotaryCard:
        return probe(self.model)

    @cached_property
    def identity(self) -> dict[str, Any]:
        return model_identity(self.model)


# By the id of the model, which the look holds.
_looks: dict[int, _Look] = {}


@contextmanager
def looked_at_once(model: PreTrainedModel) -> Iterator[None]:
    """Compare all masks with one look at the model, which nobody may change while the context is open.

    Under an open intervention it is looked at anew, as without this context.
    """
    before = _looks.get(id(model))
    _looks[id(model)] = before or _Look(model)
    try:
        yield
    finally:
        if before is None:
            del _looks[id(model)]


def fitting_card(model: PreTrainedModel, mask: PairMask) -> RotaryCard:
    """The model's rotations, once it is clear that the mask belongs to it.

    Raises
    ------
    InputError
        If layers, heads, pairing, weights, config, frequencies or adapters are others than those the mask was selected
        on. What a mask does not know, as one of a file from before these facts were kept, is not compared.
    """
    look = _looks.get(id(model))
    if look is None or open_interventions(model):
        look = _Look(model)
    card = look.card
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
    _check_measured_on(look, mask)
    return card


def _check_measured_on(look: _Look, mask: PairMask) -> None:
    if not mask.measured_on:
        return
    differing = other_model(mask.measured_on, look.identity)
    ways = "measure and select on this model (in Python mask.for_any_model() lifts the check)"
    if other_weights(differing):
        raise InputError(
            f"the mask was selected on other weights ({mask.measured_on.get('id')}) than this model's; {ways}"
        )
    if differing:
        raise InputError(f"the mask was selected on these weights run otherwise ({listed(differing)}); {ways}")


def _heads(mask: PairMask, stream: str, row: int) -> int:
    return int(mask.present(stream).values[row].any(-1).sum())
