"""What is asked of a model in memory: where token ids go, whether windows fit it, and to run without a trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ropescope.base.arguments import check_batch_size
from ropescope.base.errors import InputError
from ropescope.model.conventions import put_back, runs_on
from ropescope.model.decoder import check_model, decoder_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ropescope.base.arguments import BatchSize
    from ropescope.base.axes import TokenIds
    from ropescope.model.card import LayerRotation


def input_device(model: PreTrainedModel) -> torch.device:
    """Where token ids go: the device that the input embedding runs on, wherever its weights are kept meanwhile."""
    embedding: Any = model.get_input_embeddings()
    return runs_on(embedding) or embedding.weight.device


def vocabulary_size(model: PreTrainedModel) -> int:
    """Rows of the input embedding: token ids run from 0 to one less."""
    embedding: Any = model.get_input_embeddings()
    return int(embedding.weight.shape[0])


def check_windows(model: PreTrainedModel, windows: TokenIds, batch_size: BatchSize = 1) -> None:
    """Raise InputError unless `windows` are token ids of this model, (sequence, position), to be run in batches.

    That of a model that cannot be taken is a ModelError.
    """
    check_model(model)
    if windows.ndim != 2 or windows.is_floating_point() or windows.dtype == torch.bool or windows.numel() == 0:
        raise InputError(
            f"windows got shape {tuple(windows.shape)}, {windows.dtype}; it takes token ids of shape "
            "(sequence, position) with at least one of each"
        )
    check_batch_size(batch_size)
    vocabulary = vocabulary_size(model)
    low, high = int(windows.min()), int(windows.max())
    if low < 0 or high >= vocabulary:
        raise InputError(
            f"windows hold token ids from {low} to {high}, but the model's vocabulary is 0 to {vocabulary - 1}; "
            "make the windows with the model's own tokenizer"
        )


@contextmanager
def undisturbed(model: PreTrainedModel) -> Iterator[None]:
    """Run a model without gradients, dropout and autocast, and leave it as it was.

    Autocast would run it in another dtype than its own, which is the one that results name.

    Rotary modules whose frequencies follow the length (dynamic NTK, LongRoPE) write to themselves when they run; they
    and every module's mode are put back on exit.
    """
    training = [module for module in model.modules() if module.training]
    rotary = {id(module): module for module, _, _ in rotary_frequencies(model)}.values()
    state = [(m, dict(m.__dict__), {n: (b, b.clone()) for n, b in m.named_buffers(recurse=False)}) for m in rotary]
    model.eval()
    try:
        with torch.no_grad(), _no_autocast():
            yield
    finally:
        for module, attributes, buffers in state:
            module.__dict__.clear()
            module.__dict__.update(attributes)
            for name, (buffer, content) in buffers.items():
                put_back(module, name, buffer.copy_(content))
        for module in training:
            module.training = True


@contextmanager
def _no_autocast() -> Iterator[None]:
    accelerator = torch.accelerator.current_accelerator()
    with ExitStack() as off:
        for device in {"cpu", accelerator.type if accelerator else "cpu"}:
            off.enter_context(torch.autocast(device, enabled=False))
        yield


def rotary_frequencies(model: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Every frequency vector that the model keeps for its rotary embeddings: module, name of the buffer, values."""
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name.endswith("inv_freq") and buffer.ndim == 1:
                yield module, name, buffer


def frequency_in_force(model: PreTrainedModel, rotation: LayerRotation) -> Callable[[], Tensor]:
    """What gives a layer's frequencies as they are while the model runs: the model's own buffer, where it has one."""
    sign = -1 if (rotation.frequency < 0).any() else 1
    buffers = [
        (module, name, torch.equal(sign * buffer.cpu().double(), rotation.frequency))
        for module, name, buffer in rotary_frequencies(decoder_of(model))
        if "orig" not in name and len(buffer) == rotation.pairing.pairs
    ]
    # Rotations of several kinds keep fixed frequencies; one that follows the length need not be at the probe's.
    own = [found for found in buffers if found[2]] or (buffers if len(buffers) == 1 else [])
    if not rotation.matched or not own:
        return lambda: rotation.frequency
    module, name, _ = own[0]
    return lambda: sign * module.get_buffer(name).double()
