"""A key and value cache of transformers whose key tensors are physically smaller; values are kept as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from ropescope.base.errors import InputError
from ropescope.compression.sinks import Sinks

if TYPE_CHECKING:
    from collections.abc import Callable

    from ropescope.compression.forms import Form
    from ropescope.compression.plans import KeyPlan
    from ropescope.compression.turning import Forward


class _Thin(DynamicLayer):
    """A layer that stores what its form makes of keys, and whole keys of the sinks."""

    def __init__(self, *arguments: Any, sinks: int) -> None:
        super().__init__(*arguments)  # type: ignore[no-untyped-call]
        self.sinks = Sinks(sinks)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        form, forward = args
        stored, values = super().update(form.stored(key_states, forward), value_states)
        self.sinks.keep(key_states, forward)
        return form.read(stored, key_states, forward, self.sinks), values

    def key_bytes(self) -> int:
        """Bytes of the stored keys."""
        return sum(tensor.nbytes for tensor in (self.keys, self.sinks.keys) if tensor is not None)

    def reset(self) -> None:
        super().reset()
        self.sinks = Sinks(self.sinks.count)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        super().reorder_cache(beam_idx)
        self.sinks.select(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self.sinks.repeat(repeats)

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self.sinks.select(indices)


class _Sliding(_Thin, DynamicSlidingWindowLayer):
    """The same where only the last tokens are seen."""


class ThinKeyCache(Cache):
    """A cache that stores keys as a :class:`KeyPlan` says, for forwards inside :func:`ropescope.thin_keys`.

    It grows, is cropped, reordered and repeated as transformers' `DynamicCache` is.

    Parameters
    ----------
    plan
        What is kept of every key.

    Attributes
    ----------
    positions
        Of every token, as rotation counts them, int32 (batch, position); None while the cache is empty.
    """

    def __init__(self, plan: KeyPlan) -> None:
        self.plan = plan
        self.positions: Tensor | None = None
        self._forms: Callable[[int, torch.device], Form] | None = None
        self._forward: Forward | None = None
        super().__init__(layers=[_layer(store, plan.sinks) for store in plan.stores])

    def key_bytes(self) -> int:
        """Bytes of all that is stored of keys as it lies in memory, sinks and positions included."""
        index = 0 if self.positions is None else self.positions.nbytes
        return index + sum(layer.key_bytes() for layer in self.layers if isinstance(layer, _Thin))

    def sinks_of(self, layer: int) -> Sinks:
        """Whole keys of a layer's first tokens."""
        kept = self.layers[layer]
        return kept.sinks if isinstance(kept, _Thin) else Sinks(0)

    def begin(self, forms: Callable[[int, torch.device], Form], forward: Forward) -> None:
        """Take the keys of a forward, which begins."""
        self._forms, self._forward = forms, forward

    def end(self) -> None:
        """The forward is over."""
        self._forms = self._forward = None

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if self._forms is None or self._forward is None:
            raise InputError("a cache of thin keys works inside 'with thin_keys(model, plan)' only; open that first")
        form = self._forms(layer_idx, key_states.device)
        found: tuple[Tensor, Tensor] = super().update(key_states, value_states, layer_idx, form, self._forward)
        return found

    def reset(self) -> None:
        super().reset()  # type: ignore[no-untyped-call]
        self.positions = None

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        super().reorder_cache(beam_idx)
        self._choose(lambda positions: positions.index_select(0, beam_idx.to(positions.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self._choose(lambda positions: positions.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._choose(lambda positions: positions[indices.to(positions.device)])

    def crop(self, tokens_to_remove: int) -> None:
        super().crop(tokens_to_remove)
        self._choose(lambda positions: positions[:, : self.get_seq_length()])

    def _choose(self, of: Callable[[Tensor], Tensor]) -> None:
        if self.positions is not None:
            self.positions = of(self.positions)


def _layer(store: str, sinks: int) -> Any:
    from transformers.cache_utils import DummyLayer, LinearAttentionLayer

    kind, _, number = store.partition(" ")
    if kind == "full":
        return _Thin(sinks=sinks)
    if kind == "sliding":
        return _Sliding(int(number), sinks=sinks)
    return LinearAttentionLayer(number_of_states=int(number)) if kind == "linear" else DummyLayer()


def stores_of(config: Any) -> tuple[str, ...]:
    """What the cache of a model keeps for each of its layers, as a plan records it.

    Raises
    ------
    ModelError
        If one keeps more than keys, values or a state.
    """
    from transformers.cache_utils import DynamicCache

    from ropescope.base.errors import ModelError

    found = [_store(layer) for layer in DynamicCache(config=config.get_text_config(decoder=True)).layers]
    for index, (store, layer) in enumerate(found):
        if store is None:
            raise ModelError(
                f"the cache of layer {index} is a {type(layer).__name__}, which keeps more than keys and values; thin "
                "keys are for layers of plain, sliding or linear attention"
            )
    return tuple(str(store) for store, _ in found)


def _store(layer: Any) -> tuple[str | None, Any]:
    from transformers.cache_utils import DummyLayer, LinearAttentionLayer

    if type(layer) is DynamicLayer:
        return "full", layer
    if type(layer) is DynamicSlidingWindowLayer:
        return f"sliding {layer.sliding_window}", layer
    if type(layer) is LinearAttentionLayer:
        return f"linear {layer.number_of_states}", layer
    return ("none" if type(layer) is DummyLayer else None), layer
