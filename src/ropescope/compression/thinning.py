"""Run a model on thin keys: with the cache that keeps them, or without one, as that cache would have it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from ropescope.base.errors import InputError, ModelError
from ropescope.base.facts import listed, other_model, other_weights
from ropescope.compression.forms import Form, form_of
from ropescope.compression.plans import KeyPlan
from ropescope.compression.sinks import Sinks
from ropescope.compression.turning import Forward, rotations_of
from ropescope.model.attention import AttentionCall, intercepted
from ropescope.model.identity import UNANNOUNCED, announced, model_identity, open_interventions
from ropescope.model.lm_head import headless
from ropescope.model.probing import probe
from ropescope.run.head_holders import holders

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from ropescope.compression.cache import ThinKeyCache

_DIGEST = 8
_ON_QUERIES = ("weighted_rope ",)
_PASS_ONE = "generate with past_key_values=plan.cache()"


@contextmanager
def thin_keys(model: PreTrainedModel, plan: KeyPlan) -> Iterator[None]:
    """Let a model attend to thin keys while the context is open, whatever runs in it.

    A forward with a cache of the plan stores thin keys; one that would make its own cache is given one of the plan.
    A forward without a cache (perplexity, tasks) attends to what that cache would give. Any other cache is refused.

    Parameters
    ----------
    model
        The model that the plan was made for.
    plan
        What is kept of every key.

    Yields
    ------
    None
        On exit, after an exception too, the model is as it was.

    Raises
    ------
    InputError
        If the plan does not fit the model, or a forward inside runs with another cache, another batch than its cache
        holds, or a mask that does not say where texts begin.
    ModelError
        If the model is spread over processes (tensor parallelism).

    Examples
    --------
    >>> with thin_keys(model, plan):  # doctest: +SKIP
    ...     cache = plan.cache()
    ...     model.generate(**inputs, past_key_values=cache)
    >>> cache.key_bytes()  # doctest: +SKIP
    """
    check_fits(plan, model)
    _check_outside(plan, model)
    run = _Run(model, plan)
    inner = headless(model)
    hooks = (
        inner.register_forward_pre_hook(run.begin, with_kwargs=True),
        inner.register_forward_hook(run.end, always_call=True),
    )
    try:
        with announced(model, f"thin_keys {plan.digest()[:_DIGEST]}"), intercepted(model, run.attend):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def check_fits(plan: KeyPlan, model: PreTrainedModel) -> None:
    """Raise InputError unless the plan was made for this model, ModelError if it cannot be thinned at all."""
    check_whole(model)
    differing = other_model(plan.made_for, model_identity(model))
    if other_weights(differing):
        raise InputError(
            f"the plan was made for other weights ({plan.made_for.get('id')}) than this model's; plan on this model"
        )
    if differing:
        raise InputError(f"the plan was made for these weights run otherwise ({listed(differing)}); plan again")


def check_whole(model: PreTrainedModel) -> None:
    """Raise ModelError if a layer's key heads are not all in this process."""
    if holders(model).size > 1:
        raise ModelError(
            "the model is spread over processes (tensor parallelism), and thin keys need all key heads of a layer in "
            "one; load it on one device, or over several with device_map"
        )


def _check_outside(plan: KeyPlan, model: PreTrainedModel) -> None:
    """Raise InputError if something is open that would then act on heads that lack dimensions."""
    around = open_interventions(model)
    if plan.method == "drop" and around:
        raise InputError(
            f"{around[-1]} is open around thin_keys, whose heads lack the dropped pairs; open thin_keys first"
        )


class _Run:
    """What is known of the forward that runs now, and what becomes of its keys."""

    def __init__(self, model: PreTrainedModel, plan: KeyPlan) -> None:
        self.model, self.plan = model, plan
        self.rotations = rotations_of(model, probe(model))
        self.outside = len(open_interventions(model))
        self.plans = {layer.layer: layer for layer in plan.layers}
        self.forms: dict[tuple[int, torch.device], Form] = {}
        self.forward: Forward | None = None
        self.cache: ThinKeyCache | None = None

    def begin(self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Before the decoder: which cache it runs with, and where its tokens stand."""
        self._check_inside()
        given = _named(decoder, args, kwargs)
        cache = self._cache_of(decoder, given)
        tokens = given.get("input_ids")
        self.forward = _forward(given, given["inputs_embeds"] if tokens is None else tokens, cache)
        self.cache = cache
        if cache is None:
            return args, kwargs
        cache.begin(self._form, self.forward)
        return (), {**given, "past_key_values": cache}

    def end(self, *_: Any) -> None:
        """After the decoder, also when it failed."""
        if self.cache is not None:
            self.cache.end()
        self.forward = self.cache = None

    def attend(self, call: AttentionCall) -> tuple[Tensor, Tensor]:
        """What attention uses instead of a query and its keys."""
        if self.forward is None:
            raise InputError("thin keys need forwards of the whole decoder, which say where its tokens stand")
        source = self.plan.shared.get(call.layer, call.layer)
        form, key = self._form(source, call.key.device), call.key
        if self.cache is not None:
            sinks = self.cache.sinks_of(source)
        else:
            # What the cache would give.
            sinks = Sinks(self.plan.sinks)
            sinks.keep(key, self.forward)
            key = form.read(form.stored(key, self.forward), key, self.forward, sinks)
        return form.narrowed(call.query, key, call.arguments, sinks), key

    def _check_inside(self) -> None:
        """Keys must come to be thinned as the model made them: only weights, which act on queries, come before."""
        inside = open_interventions(self.model)[self.outside + 1 :]
        other = [name for name in inside if not name.startswith((*_ON_QUERIES, UNANNOUNCED))]
        if other:
            raise InputError(f"{other[0]} is open inside thin_keys, which it would give other keys; open it around it")

    def _form(self, layer: int, device: torch.device) -> Form:
        if (layer, device) not in self.forms:
            self.forms[layer, device] = form_of(self.plans[layer], self.rotations[layer], device)
        return self.forms[layer, device]

    def _cache_of(self, decoder: nn.Module, given: Mapping[str, Any]) -> ThinKeyCache | None:
        from ropescope.compression.cache import ThinKeyCache

        cache, use = given.get("past_key_values"), given.get("use_cache")
        if cache is None:
            wanted = getattr(decoder.config, "use_cache", False) if use is None else use
            return self.plan.cache() if wanted else None
        if not isinstance(cache, ThinKeyCache):
            raise InputError(f"got a {type(cache).__name__} inside thin_keys, which keeps whole keys; {_PASS_ONE}")
        if cache.plan is not self.plan:
            raise InputError(f"got a cache of another plan than the one that is open; {_PASS_ONE} of that very plan")
        return cache


def _named(decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a forward by name."""
    signature = inspect.signature(decoder.forward)
    bound = signature.bind_partial(*args, **kwargs).arguments
    loose = [name for name, parameter in signature.parameters.items() if parameter.kind is parameter.VAR_KEYWORD]
    return {name: value for name, value in bound.items() if name not in loose} | {
        name: value for kind in loose for name, value in bound.get(kind, {}).items()
    }


def _forward(given: Mapping[str, Any], tokens: Tensor, cache: ThinKeyCache | None) -> Forward:
    """Where the tokens of a forward stand; the cache comes to know it, too."""
    batch, length = tokens.shape[:2]
    past = 0 if cache is None else cache.get_seq_length()
    positions = _positions(given.get("position_ids"), past, length, tokens.device).to(torch.int32)
    if cache is not None:
        positions = positions.expand(batch, -1)
        if cache.positions is not None:
            positions = torch.cat((_of_batch(cache.positions, batch), positions), 1)
        cache.positions = positions.contiguous()
    alike = bool((positions == positions[:1]).all())
    return Forward(positions[:1] if alike else positions, _begins(given.get("attention_mask")), past)


def _positions(given: Tensor | None, past: int, length: int, device: torch.device) -> Tensor:
    if given is None:
        return torch.arange(past, past + length, device=device)[None]
    if given.ndim != 2:
        raise InputError(f"position_ids got shape {tuple(given.shape)}; thin keys take (batch, position)")
    return given


def _of_batch(positions: Tensor, batch: int) -> Tensor:
    if len(positions) != batch:
        raise InputError(f"got a batch of {batch} with a cache of {len(positions)} rows; make a new plan.cache()")
    return positions


def _begins(mask: Any) -> list[tuple[slice, int]]:
    """Rows of a batch, and how many padded places they begin with."""
    if mask is None:
        return [(slice(None), 0)]
    if getattr(mask, "ndim", None) != 2:
        raise InputError(
            "got an attention mask that is not (batch, position), which does not say where texts begin; give one of 0 "
            "and 1 for every token"
        )
    padded = (mask.cumsum(1) == 0).sum(1).tolist()
    return [(slice(row, row + 1), count) for row, count in enumerate(padded)] if any(padded) else [(slice(None), 0)]
