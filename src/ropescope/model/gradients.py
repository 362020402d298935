"""Gradients through a model whose weights need none: autograd on, layers run again where memory is short, no dead end.

Everything is put back on exit: which weights require gradients, every layer's forward, every hook.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ropescope.base.errors import ModelError, first_line
from ropescope.model.access import rotary_frequencies
from ropescope.model.decoder import decoder_layers, with_forward

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NO_WAY = "gradients need a model that autograd can go through: load it in float32 or bfloat16, without such kernels"


@contextmanager
def differentiable(model: PreTrainedModel, *, checkpointing: bool = False) -> Iterator[None]:
    """Let gradients flow through a model, none of them to its weights.

    Parameters
    ----------
    model
        The model; run it in evaluation mode.
    checkpointing
        Keep only what enters a decoder layer, and run the layer again in the backward pass.

    Raises
    ------
    ModelError
        If a module that holds weights lets no gradient through (kernels made for inference alone), the model has no
        layers that can be run again, or an operation has no derivative.
    """
    wanting = [weight for weight in model.parameters() if weight.requires_grad]
    hooks = [module.register_forward_hook(_refuse_dead_end) for module in _holding_weights(model)]
    try:
        for weight in wanting:
            weight.requires_grad_(False)
        with torch.enable_grad(), _run_again(decoder_layers(model) if checkpointing else []):
            yield
    except (NotImplementedError, RuntimeError) as error:
        if not _no_derivative(error):
            raise
        raise ModelError(f"an operation of this model has no derivative ({first_line(error)}); {_NO_WAY}") from error
    finally:
        for weight in wanting:
            weight.requires_grad_(True)
        for hook in hooks:
            hook.remove()


def no_gradient(what: str) -> ModelError:
    """What to raise where a gradient should have come through and did not."""
    return ModelError(f"no gradient comes through {what}; {_NO_WAY}")


@contextmanager
def _run_again(layers: list[nn.Module]) -> Iterator[None]:
    """Let each layer keep its input alone."""
    from torch.utils.checkpoint import checkpoint

    with ExitStack() as stack:
        for layer in layers:
            again = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
            stack.enter_context(with_forward(layer, again))
        yield


def _holding_weights(model: nn.Module) -> list[nn.Module]:
    rotary = {id(module) for module, _, _ in rotary_frequencies(model)}
    return [
        module
        for module in model.modules()
        if id(module) not in rotary and any(True for _ in chain(module.parameters(False), module.buffers(False)))
    ]


def _refuse_dead_end(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
    """A residual stream would carry the gradient around such a module, and the sum would be wrong without a sign."""
    if torch.is_grad_enabled() and _flows(inputs) is True and _flows(output) is False:
        raise no_gradient(f"{type(module).__name__}")


def _flows(values: Any) -> bool | None:
    """Whether any tensor of numbers requires a gradient; None where there is no such tensor."""
    tensors = values if isinstance(values, tuple | list) else (values,)
    floating = [value for value in tensors if isinstance(value, Tensor) and value.is_floating_point()]
    return any(tensor.requires_grad for tensor in floating) if floating else None


def _no_derivative(error: BaseException) -> bool:
    return any(sign in str(error) for sign in ("derivative for", "does not require grad", "not differentiable"))
