"""The language-model head: logits of hidden states, a few positions at a time, never those of a whole window."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ropescope.base.errors import InputError, ModelError
from ropescope.model.access import check_windows
from ropescope.model.decoder import check_head, decoder_of, with_forward

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from ropescope.base.arguments import BatchSize
    from ropescope.base.axes import TokenIds

# Logits held at once: on a CPU 16 MiB, which the heap uses again and again; an accelerator wants larger products.
_LOGITS = {"cpu": 2**22, "accelerator": 2**26}
# Of a large vocabulary more, for at least so many positions: a product of fewer reads all of the head for little.
# Never more than a quarter of a window.
_POSITIONS = 128


def check_next_tokens(model: PreTrainedModel, windows: TokenIds, batch_size: BatchSize = 1) -> None:
    """Raise InputError or ModelError unless the model can predict next tokens of the windows."""
    check_windows(model, windows, batch_size)
    check_head(model)
    if windows.shape[1] < 2:
        raise InputError("windows got 1 position; a next token needs at least 2 in a window")


def headless(model: PreTrainedModel) -> Any:
    """The module whose output the head takes; transformers gives Llama-4's with its head as the decoder."""
    from transformers import PreTrainedModel

    decoder = decoder_of(model)
    if decoder.get_output_embeddings() is None:
        return decoder
    return next((child for child in decoder.children() if isinstance(child, PreTrainedModel)), decoder)


def positions_at_once(hidden: Tensor, vocabulary: int, scored: int, arrays: int = 1) -> int:
    """Positions whose logits are held at once, fewer by a caller who holds several arrays of them."""
    limit = _LOGITS["cpu" if hidden.device.type == "cpu" else "accelerator"]
    return max(1, min(max(limit // vocabulary, _POSITIONS // arrays), scored // 4))


def logits_of(model: PreTrainedModel, output: Any, hidden: Tensor, ids: Tensor) -> Tensor:
    """The model's own logits for hidden states that its decoder gave, (position, vocabulary)."""
    with _decoder_giving(model, replace(output, last_hidden_state=hidden[None])) as calls:
        logits: Tensor = model(input_ids=ids[None], use_cache=False, return_dict=True).logits
    if len(calls) != 1 or logits.shape[:2] != (1, len(hidden)):
        raise ModelError(f"{type(model).__name__} does not make its logits from its decoder's output alone")
    return logits[0]


@contextmanager
def _decoder_giving(model: PreTrainedModel, output: Any) -> Iterator[list[None]]:
    """Let the decoder return `output` without running: what remains of the model's forward is its head.

    That keeps soft caps, scales and biases of heads where they are written, in the model.
    """
    calls: list[None] = []

    def give(*_args: Any, **_kwargs: Any) -> Any:
        calls.append(None)
        return output

    with with_forward(headless(model), give):
        yield calls
