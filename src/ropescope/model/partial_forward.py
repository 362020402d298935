"""The decoder run again from a layer on, the layers below giving what they gave before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ropescope.model.access import input_device, undisturbed
from ropescope.model.attention import AttentionCall, Handler, intercepted
from ropescope.model.decoder import decoder_layers, with_forward
from ropescope.model.lm_head import headless

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from ropescope.base.axes import TokenIds


@dataclass(frozen=True, slots=True)
class Recorded:
    """A pass over windows as the model stands, and what of it is needed to run the upper layers again.

    Parameters
    ----------
    model
        Left as it was.
    ids
        Token ids, (window, position), on the model's device.
    output
        What the decoder gave.
    layers, outputs
        Decoder layers in order, and what each of them gave.
    places
        In which of them each attention layer is.
    resumable
        Whether the last layer run alone gives the same bits; not so where layers hand on more than hidden states.
    """

    model: PreTrainedModel
    ids: Tensor
    output: Any
    layers: list[nn.Module]
    outputs: list[Any]
    places: dict[int, int]
    resumable: bool

    def hidden_states(self, layer: int, handler: Handler) -> Tensor:
        """Last hidden states with `handler` at every attention from that attention layer on, (window, position, ...).

        The handler must change nothing below it.
        """
        first = self.places[layer] if self.resumable else 0
        with undisturbed(self.model), _giving(self.layers[:first], self.outputs), intercepted(self.model, handler):
            hidden: Tensor = _run(self.model, self.ids).last_hidden_state
        return hidden


def recorded(model: PreTrainedModel, windows: TokenIds) -> Recorded:
    """Run the decoder over windows and keep what every layer gives."""
    layers, ids = decoder_layers(model), windows.to(input_device(model))
    outputs: list[Any] = []
    places: dict[int, int] = {}

    def observe(call: AttentionCall) -> None:
        places[call.layer] = len(outputs)

    hooks = [layer.register_forward_hook(lambda _module, _given, output: outputs.append(output)) for layer in layers]
    try:
        with undisturbed(model), intercepted(model, observe):
            output = _run(model, ids)
    finally:
        for hook in hooks:
            hook.remove()
    again = _last_layer_again(model, ids, layers, outputs)
    resumable = again is not None and torch.equal(again, output.last_hidden_state)
    return Recorded(model, ids, output, layers, outputs, places, resumable)


def _last_layer_again(
    model: PreTrainedModel, ids: Tensor, layers: list[nn.Module], outputs: list[Any]
) -> Tensor | None:
    """What the last layer alone leads to; None where it misses what the layers below hand to it aside."""
    try:
        with undisturbed(model), _giving(layers[:-1], outputs):
            hidden: Tensor = _run(model, ids).last_hidden_state
    except (KeyError, AttributeError, TypeError):
        return None
    return hidden


def _run(model: PreTrainedModel, ids: Tensor) -> Any:
    return headless(model)(input_ids=ids, use_cache=False, return_dict=True)


@contextmanager
def _giving(layers: list[nn.Module], outputs: list[Any]) -> Iterator[None]:
    with ExitStack() as stack:
        for layer, output in zip(layers, outputs, strict=False):
            stack.enter_context(with_forward(layer, partial(_given, output)))
        yield


def _given(output: Any, *_args: Any, **_kwargs: Any) -> Any:
    return output
