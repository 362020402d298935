"""Which models are taken, and where in them the decoder is.

What stands around a model, or only looks like one, would be measured as something else or end in an error of another
library, so it is refused here, in one line, before anything runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn

from ropescope.base.errors import ModelError
from ropescope.model.conventions import is_placed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ASKED_OF_A_MODEL = ("config", "get_decoder", "get_input_embeddings")


def decoder_of(model: PreTrainedModel) -> Any:
    """The module that turns token ids into hidden states, without the head."""
    from transformers import PreTrainedModel

    found: Any = model.get_decoder()
    # ModernBERT's decoder calls its head by that name.
    return found if isinstance(found, PreTrainedModel) else model.base_model


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The decoder's layers in order, each of which takes hidden states and gives them on.

    Raises
    ------
    ModelError
        If it has none that transformers marks as such.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers: list[nn.Module] = [
        module for module in decoder_of(model).modules() if isinstance(module, GradientCheckpointingLayer)
    ]
    if not layers:
        raise ModelError(f"{type(model).__name__} has no layers that can be run by themselves; leave checkpointing out")
    return layers


@contextmanager
def with_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let a module run another forward while the context is open."""
    own = vars(module).get("forward")
    vars(module)["forward"] = forward
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            vars(module)["forward"] = own


def check_model(model: PreTrainedModel) -> None:
    """Raise ModelError unless `model` is a transformers model, itself, that runs on token ids alone."""
    inner = getattr(model, "module", None)
    if isinstance(inner, nn.Module):
        raise ModelError(
            f"got a {type(model).__name__} around a {type(inner).__name__}; give the model itself, without it (.module)"
        )
    if not all(hasattr(model, name) for name in _ASKED_OF_A_MODEL):
        has_one = isinstance(getattr(model, "model", None), nn.Module)
        raise ModelError(
            f"got a {type(model).__name__}, which is no transformers model; give "
            f"{'the model that it holds (.model)' if has_one else 'one, as ropescope.load_model returns it'}"
        )
    if (method := prompt_learning(model)) is not None:
        raise ModelError(
            f"the {method} adapter of this model puts tokens of its own before the text, outside the decoder, so no "
            "measurement of the decoder holds with it; take the model without it (get_base_model())"
        )
    if model.config.is_encoder_decoder:
        raise ModelError(
            f"{type(model).__name__} reads its text with an encoder, beside which its decoder cannot run alone; use a "
            "decoder-only model"
        )
    embedding: Any = model.get_input_embeddings()
    if embedding.weight.is_meta and not is_placed(embedding):
        raise ModelError(f"the weights of this {type(model).__name__} are not loaded (device meta); load them first")


def prompt_learning(model: PreTrainedModel) -> str | None:
    """The PEFT method that puts learned tokens before the text (prompt, prefix, P-tuning), if one is active."""
    active: Any = getattr(model, "active_peft_config", None)
    if not getattr(active, "is_prompt_learning", False):
        return None
    return str(getattr(active.peft_type, "value", active.peft_type))


def check_head(model: PreTrainedModel) -> None:
    """Raise ModelError unless `model` predicts next tokens."""
    if model.get_output_embeddings() is None:
        raise ModelError(
            f"{type(model).__name__} has no language-model head, so it gives tokens no probability; load the "
            "checkpoint as a causal language model (AutoModelForCausalLM)"
        )
    causal = [module.is_causal for module in decoder_of(model).modules() if hasattr(module, "is_causal")]
    if causal and not any(causal):
        raise ModelError(
            f"{type(model).__name__} sees the tokens that it would have to predict; a perplexity needs a causal "
            "language model"
        )
