"""The one seam into transformers: see or replace q and k where attention receives them, and put everything back.

transformers calls every attention by a name in the model's config. Inside :func:`intercepted` the model's decoder
carries a name of our own, registered with the mask function of the implementation that it had (without one the causal
mask is silently dropped). Our function calls the handler and then delegates to that implementation. On exit the name
is gone and every config is as it was; other models in the process never see it.
"""

from __future__ import annotations

import itertools
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ropescope.base.axes import KEY, QUERY
from ropescope.base.errors import ModelError, NonFiniteError
from ropescope.model.conventions import attention_of, bears_attention, registered, set_attention
from ropescope.model.decoder import decoder_of
from ropescope.run.head_holders import Holders, holders

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PretrainedConfig, PreTrainedModel

_serial = itertools.count()
_ALONE = Holders()


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """What one attention layer is about to use.

    Parameters
    ----------
    layer
        Index of the layer in the model; where several attentions bear one index (shared blocks, repeated layers), the
        number of the call in its forward, from 0.
    query
        Shape (batch, head, position, head_dim), after every bias, norm, rotation and scaling before the dot product.
    key
        Shape (batch, kv_head, key position, head_dim), not expanded to the query heads; with a cache it holds all
        positions so far.
    arguments
        Whatever else the model passes to its attention (position ids, sliding window, soft cap, ...).
    holders
        The processes that hold the layer's heads between them, in order of rank, an equal part each (tensor
        parallelism); by default this one holds them all.
    """

    layer: int
    query: Tensor
    key: Tensor
    arguments: dict[str, Any]
    holders: Holders = _ALONE

    @property
    def heads(self) -> slice:
        """Which of the layer's query heads the call holds."""
        return self._held(self.query)

    @property
    def kv_heads(self) -> slice:
        """Which of the layer's key heads the call holds."""
        return self._held(self.key)

    def all_heads(self, values: Tensor, dim: int) -> Tensor:
        """Values of all heads of the layer, from those of the heads that each process holds along `dim`."""
        return self.holders.concatenated(values, dim)

    def _held(self, heads: Tensor) -> slice:
        start = self.holders.rank * heads.shape[1]
        return slice(start, start + heads.shape[1])

    def check_finite(self) -> None:
        """Raise NonFiniteError, naming layer, head and position, if a query or key is NaN or infinite."""
        for stream, heads, held in ((QUERY, self.query, self.heads), (KEY, self.key, self.kv_heads)):
            bad = (~heads.isfinite()).any(-1).nonzero()
            if len(bad):
                sequence, head, position = bad[0].tolist()
                raise NonFiniteError(
                    f"{stream} of layer {self.layer}, head {held.start + head} is not finite at position {position} "
                    f"(sequence {sequence} of its batch); check the weights, or use dtype float32 or bfloat16"
                )


Handler = Callable[[AttentionCall], "tuple[Tensor, Tensor] | None"]


@contextmanager
def intercepted(model: PreTrainedModel, handler: Handler) -> Iterator[None]:
    """Call `handler` at every attention of the model's decoder while the context is open.

    Parameters
    ----------
    model
        Any transformers model whose attention goes through the attention interface.
    handler
        Gets an :class:`AttentionCall`; returns None to observe, or a (query, key) of the same shapes to use instead.

    Raises
    ------
    ModelError
        If the model does not call attention through the interface (Falcon, GPT-J, Bloom, MPT), its calls cannot be
        told apart, or its heads are spread over processes unevenly.

    Examples
    --------
    >>> norms = {}
    >>> def observe(call):
    ...     norms[call.layer] = call.query.norm()
    >>> with intercepted(model, observe):  # doctest: +SKIP
    ...     model(input_ids)
    """
    decoder = decoder_of(model)
    _check_goes_through_seam(decoder)
    # Another model can hold the very same config object.
    ours = {id(module) for module in decoder.modules()}
    sharing, numbering = holders(model), _Numbering(decoder)
    previous = {id(config): (config, attention_of(config)) for config in _attention_configs(decoder)}
    names: dict[str | None, str] = {}
    try:
        for config, implementation in previous.values():
            if implementation not in names:
                names[implementation] = _register(implementation, ours, handler, sharing, numbering)
            set_attention(config, names[implementation])
        with numbering.following(decoder):
            yield
    finally:
        for config, implementation in previous.values():
            set_attention(config, implementation)
        for name in names.values():
            _unregister(name)


def _check_goes_through_seam(decoder: nn.Module) -> None:
    classes = {type(module) for module in decoder.modules() if getattr(module, "layer_idx", None) is not None}
    if not any(hasattr(sys.modules[cls.__module__], "ALL_ATTENTION_FUNCTIONS") for cls in classes):
        raise ModelError(
            f"{type(decoder).__name__} does not call attention through transformers' attention interface, so its "
            "queries and keys cannot be seen; use a model that does (Llama, Qwen, Gemma, Mistral, GPT-NeoX, Phi, ...)"
        )


def _attention_configs(decoder: nn.Module) -> list[PretrainedConfig]:
    configs: list[Any] = [getattr(module, "config", None) for module in decoder.modules()]
    return list({id(config): config for config in configs if bears_attention(config)}.values())


class _Numbering:
    """Which layer a call is: its module's index, or, where several modules bear one, its number in the forward."""

    def __init__(self, decoder: nn.Module) -> None:
        self.counts = _share_indices(decoder)
        self.calls: list[int] | None = None

    @contextmanager
    def following(self, decoder: nn.Module) -> Iterator[None]:
        """Begin anew with every forward of the decoder."""
        hooks = (
            decoder.register_forward_pre_hook(lambda *_: self._begin([])),
            decoder.register_forward_hook(lambda *_: self._begin(None), always_call=True),
        )
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _begin(self, calls: list[int] | None) -> None:
        self.calls = calls

    def layer(self, module: nn.Module) -> int:
        layer = self._next(module) if self.counts else _layer_index(module)
        if self.calls is None:
            return layer
        if layer in self.calls:
            raise ModelError(
                f"layer {layer} of this model calls attention more than once in one forward (a block that runs in a "
                "loop, or cross-attention), so its queries and keys cannot be placed"
            )
        self.calls.append(layer)
        return layer

    def _next(self, module: nn.Module) -> int:
        if self.calls is None:
            raise ModelError(
                f"{type(module).__name__} was called outside a forward of its decoder (gradient checkpointing does "
                "that), and layer indices do not tell this model's attentions apart, only their order in a forward does"
            )
        return len(self.calls)


def _share_indices(decoder: nn.Module) -> bool:
    """Whether several attentions of the decoder bear one layer index, or one bears none."""
    places: dict[tuple[type, Any], set[str]] = defaultdict(set)
    for name, module in decoder.named_modules(remove_duplicate=False):
        if hasattr(module, "layer_idx"):
            # Self- and cross-attention of one block share its index, and only one of them may run.
            places[type(module), module.layer_idx].add(name.rpartition(".")[0])
    return any(index is None or len(blocks) > 1 for (_, index), blocks in places.items())


def _register(
    implementation: str | None, ours: set[int], handler: Handler, sharing: Holders, numbering: _Numbering
) -> str:
    """Enter a name for our function and for the mask function of `implementation`."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    masks = registered(ALL_MASK_ATTENTION_FUNCTIONS)
    # The implementation's own name stays inside ours: transformers looks for "flash" in it.
    name = f"ropescope-{next(_serial)}-{implementation}"

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **arguments: Any
    ) -> Any:
        if id(module) in ours:
            every = {"attention_mask": attention_mask, **arguments}
            call = AttentionCall(numbering.layer(module), query, key, every, _holding(module, query, sharing))
            query, key = handler(call) or (query, key)
        with _carrying(module.config, implementation):
            original = _implementation_of(module, implementation)
            return original(module, query, key, value, attention_mask, **arguments)

    ALL_ATTENTION_FUNCTIONS.register(name, attend)
    if implementation is not None and implementation in masks:
        ALL_MASK_ATTENTION_FUNCTIONS.register(name, masks[implementation])
    return name


def _unregister(name: str) -> None:
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    for registry in (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS):
        registered(registry).pop(name, None)


def _layer_index(module: nn.Module) -> int:
    layer = getattr(module, "layer_idx", None)
    if layer is None:
        raise ModelError(f"{type(module).__name__} has no layer_idx, so its queries and keys cannot be placed")
    return int(layer)


def _holding(module: nn.Module, query: Tensor, sharing: Holders) -> Holders:
    """The processes that hold a layer's heads between them: all, or none where each has been given all heads."""
    if sharing.size == 1:
        return _ALONE
    config: Any = module.config
    heads, held = config.num_attention_heads, query.shape[1]
    if held == heads:
        return _ALONE
    if held * sharing.size != heads:
        raise ModelError(
            f"layer {_layer_index(module)} has {heads} query heads, of which process {sharing.rank} of {sharing.size} "
            f"holds {held}; use a number of processes that divides the query and the key heads"
        )
    return sharing


@contextmanager
def _carrying(config: Any, implementation: str | None) -> Iterator[None]:
    """Some implementations (flash) read their own name from the config while they run."""
    ours = attention_of(config)
    set_attention(config, implementation)
    try:
        yield
    finally:
        set_attention(config, ours)


def _implementation_of(module: nn.Module, implementation: str | None) -> Callable[..., Any]:
    """The function that the module would have called; "eager" is a function of the module's own file."""
    for cls in type(module).__mro__:
        source = sys.modules[cls.__module__]
        if hasattr(source, "ALL_ATTENTION_FUNCTIONS"):
            eager = getattr(source, "eager_attention_forward", None)
            found: Callable[..., Any] | None = source.ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager)
            if found is not None:
                return found
    raise ModelError(f"{type(module).__name__} runs {implementation!r} attention, but its file does not define it")
