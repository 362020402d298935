"""Which model this is, and all that decides what it computes: weights, config, adapters, hooks, open interventions.

What no config shows (a function that replaced a module's own, a changed attribute) is seen by what the model does: a
short pass over fixed tokens gives two figures for the queries and keys of every layer. Nothing here depends on where
the weights are; where tensor parallelism spreads them, each process must ask.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ropescope.base.axes import KEY, QUERY
from ropescope.model.access import input_device, rotary_frequencies, undisturbed, vocabulary_size
from ropescope.model.attention import AttentionCall, intercepted
from ropescope.model.conventions import attention_of, commit_in, forward_hooks, global_forward_hooks, is_compiled
from ropescope.model.decoder import decoder_of
from ropescope.model.fingerprint import checksum, fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_TOKENS = 24
_SAMPLES = 16
_SAMPLE_TEXT = "  In 1969, it's said:\n\tdef f(x): return x**2  # naïve, 東京, \U0001f680"
# What intercepted puts before the name of the implementation underneath.
_INTERCEPTION = re.compile(r"ropescope-\d+-")
# Of a config: names, what is asked for beside the hidden states, token ids of generation, and what only training reads.
_NOT_OF_THE_FORWARD = {
    *("architectures", "auto_map", "dtype", "torch_dtype", "transformers_version"),
    *("id2label", "label2id", "num_labels", "problem_type", "finetuning_task", "task_specific_params"),
    *("output_attentions", "output_hidden_states", "output_router_logits", "return_dict", "use_cache"),
    *("initializer_range", "initializer_factor", "router_aux_loss_coef", "gradient_checkpointing", "layerdrop"),
}
_NOT_OF_THE_FORWARD_EITHER = re.compile(r"^_|name_or_path|_token_ids?$|dropout|_pdrop$|jitter_noise$")
UNANNOUNCED = "an interception"
_PLUMBING = ("transformers", "accelerate", "torch.distributed", "ropescope")

_announced: WeakKeyDictionary[nn.Module, list[str]] = WeakKeyDictionary()


def model_identity(model: PreTrainedModel) -> dict[str, Any]:
    """Say which model this is, without running it, in values that JSON can hold.

    Parameters
    ----------
    model
        Any transformers model, however it was made.

    Returns
    -------
    ``id`` and ``revision`` (commit, or None): what it is called.
    ``architecture``, ``dtype``, ``dtypes`` (parameters of each), ``attention`` (the implementation, also underneath an
    open intervention), ``config`` (the text config without names, training and generation), ``frequencies`` (up to 16
    of each ``inv_freq`` that the decoder holds) and ``adapters`` (active, merged and scale, as PEFT layers say).
    ``fingerprint``: as :func:`ropescope.model.fingerprint.fingerprint`, a sample of the weights that knows no dtype;
    ``checksum``: of all of them, exact, within one dtype.

    Examples
    --------
    >>> model_identity(model)["architecture"]  # doctest: +SKIP
    'LlamaForCausalLM'
    """
    config = model.config
    return {
        "id": config.name_or_path or None,
        "revision": commit_in(config),
        "architecture": type(model).__name__,
        "dtype": _name(model.dtype),
        "dtypes": dict(sorted(Counter(_name(parameter.dtype) for parameter in model.parameters()).items())),
        "attention": _attention(model)[0],
        "config": _config_facts(config.get_text_config().to_dict()),
        "frequencies": _frequencies(decoder_of(model)),
        "adapters": _adapters(model),
        "fingerprint": fingerprint(model),
        "checksum": checksum(model),
    }


def model_provenance(model: PreTrainedModel) -> dict[str, Any]:
    """Say which model this is and all that decides what it computes now, in values that JSON can hold.

    Parameters
    ----------
    model
        Any transformers model whose attention goes through the attention interface.

    Returns
    -------
    What :func:`model_identity` gives, and ``interventions`` that are open, ``hooks`` by module (forward hooks that are
    not the libraries' own), ``replaced`` forwards by module or class, and ``behaviour``: for queries and keys of every
    layer and for the hidden states at the end, over 24 fixed tokens, their root mean square and a signed sum.

    Raises
    ------
    ModelError
        If the model does not call attention through the interface.

    Examples
    --------
    >>> with weighted_rope(model, mask, 0.1):  # doctest: +SKIP
    ...     model_provenance(model)["interventions"]
    ['weighted_rope of 3f2a91bc at 0.1']
    """
    return {
        **model_identity(model),
        "interventions": open_interventions(model),
        "hooks": _hooks(model),
        "replaced": _replaced(model),
        "behaviour": _behaviour(model),
    }


def tokenizer_identity(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Say how a tokenizer turns text into tokens, whatever it is called: digests, and its special tokens."""
    template: Any = getattr(tokenizer, "chat_template", None)
    return {
        "vocabulary": _sha256(sorted(tokenizer.get_vocab().items())),
        "special_tokens": {name: str(token) for name, token in sorted(tokenizer.special_tokens_map.items())},
        "chat_template": None if template is None else _sha256(template),
        "sample": _sha256(tokenizer(_SAMPLE_TEXT)["input_ids"]),
    }


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@contextmanager
def announced(model: PreTrainedModel, what: str) -> Iterator[None]:
    """Let :func:`model_provenance` say that an intervention is open."""
    decoder = decoder_of(model)
    open_ones = _announced.setdefault(decoder, [])
    open_ones.append(what)
    try:
        yield
    finally:
        open_ones.remove(what)


def _attention(model: PreTrainedModel) -> tuple[str | None, int]:
    """The attention implementation, and how many interceptions lie over it."""
    config: Any = getattr(decoder_of(model), "config", model.config)
    name = attention_of(config)
    if name is None:
        return None, 0
    own = re.sub(rf"^(?:{_INTERCEPTION.pattern})*", "", name)
    return None if own == "None" else own, len(_INTERCEPTION.findall(name))


def open_interventions(model: PreTrainedModel) -> list[str]:
    """What is open on a model, in the order in which it was opened; interceptions that nobody announced come last."""
    known = list(_announced.get(decoder_of(model), []))
    return known + [UNANNOUNCED] * (_attention(model)[1] - len(known))


def _config_facts(entries: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _plain(value)
        for name, value in sorted((str(key), value) for key, value in entries.items())
        if name not in _NOT_OF_THE_FORWARD and not _NOT_OF_THE_FORWARD_EITHER.search(name)
    }


def _plain(value: Any) -> Any:
    """A value as JSON gives it back; what it cannot hold, by its text."""
    if isinstance(value, Mapping):
        return _config_facts(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, bool | int | float | str) else _name(value)


def _name(value: Any) -> str:
    return str(value).removeprefix("torch.")


def _frequencies(decoder: nn.Module) -> dict[str, list[list[float]]]:
    """Samples of every different frequency vector by the name of its buffer, "original" ones aside."""
    found: dict[str, list[list[float]]] = {}
    for _, name, buffer in rotary_frequencies(decoder):
        places = torch.linspace(0, len(buffer) - 1, min(_SAMPLES, len(buffer)), device="cpu").long()
        samples = [float(f"{value:.8g}") for value in buffer.detach().cpu().double()[places].tolist()]
        if not re.search("original|long|short", name) and samples not in found.setdefault(name, []):
            found[name].append(samples)
    return found


def _adapters(model: nn.Module) -> list[dict[str, Any]]:
    """The states of PEFT layers, which say it in attributes of their own, and how many are in each."""
    states = Counter(json.dumps(state, sort_keys=True) for module in model.modules() if (state := _state(module)))
    return [{**json.loads(state), "layers": count} for state, count in sorted(states.items())]


def _state(module: nn.Module) -> dict[str, Any] | None:
    active, disabled = (getattr(module, name, None) for name in ("active_adapters", "disable_adapters"))
    # transformers' own mixin has methods of these names on every model.
    if not isinstance(active, list | tuple | str) or not isinstance(disabled, bool):
        return None
    names = [] if disabled else [active] if isinstance(active, str) else list(active)
    scaling: Any = getattr(module, "scaling", None)
    scales = {name: scaling[name] for name in names if isinstance(scaling, Mapping) and name in scaling}
    return {"active": names, "merged": list(getattr(module, "merged_adapters", ())), "scaling": _plain(scales)}


def _hooks(model: nn.Module) -> dict[str, list[str]]:
    """Forward hooks by the module that they are on; "" is the model, "every module" are torch's global ones."""
    hooked = {
        "every module": global_forward_hooks(),
        **{name: forward_hooks(module) for name, module in model.named_modules()},
    }
    found = {place: [_code(hook) for kind in kinds for hook in kind.values()] for place, kinds in hooked.items()}
    own = {place: [hook for hook in hooks if not hook.startswith(_PLUMBING)] for place, hooks in found.items()}
    return {place: hooks for place, hooks in own.items() if hooks}


def _replaced(model: nn.Module) -> dict[str, str]:
    """Forwards that are not those of the modules' classes: by module where one has its own, else by class."""
    found = {}
    for place, module in model.named_modules():
        kind, forward = type(module), _code(module.forward)
        if forward in (*_forwards(kind), _code(nn.Module.forward)) or is_compiled(module):
            continue
        # accelerate gives a module a forward of its own that bears the name of the one underneath.
        own = "forward" in vars(module) and forward != _code(kind.forward)
        found[place if own else kind.__qualname__] = forward
    return found


def _forwards(kind: type) -> list[str]:
    return [f"{cls.__module__}.{cls.__qualname__}.forward" for cls in kind.__mro__]


def _code(function: Callable[..., Any]) -> str:
    """Where a function is defined; for an object that is called, its class."""
    while hasattr(function, "func") and not hasattr(function, "__qualname__"):
        function = function.func
    named: Any = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def _behaviour(model: PreTrainedModel) -> dict[str, list[float | None]]:
    """Figures of what the model does with fixed tokens, in the order in which it comes to them."""
    found: dict[str, list[float | None]] = {}

    def observe(call: AttentionCall) -> None:
        for stream, heads in ((QUERY, call.query), (KEY, call.key)):
            found[f"layer {call.layer} {stream}"] = _figures(call.all_heads(heads.detach(), 1))

    tokens = (torch.arange(_TOKENS, device="cpu")[None] * 7919 + 3) % vocabulary_size(model)
    with undisturbed(model), intercepted(model, observe):
        output = decoder_of(model)(input_ids=tokens.to(input_device(model)), use_cache=False)
    return {**found, "the last layer": _figures(output[0])}


def _figures(values: Tensor) -> list[float | None]:
    """Root mean square, and a sum under fixed signs that is of the same size and strays as far as the values do."""
    flat = values.detach().cpu().double().flatten()
    signs = 1 - 2 * ((torch.arange(len(flat), device="cpu") * 2654435761 >> 15) & 1).double()
    size, projected = float(flat.square().mean().sqrt()), float((flat * signs).sum()) / math.sqrt(len(flat))
    return [float(f"{figure:.6g}") if math.isfinite(figure) else None for figure in (size, projected)]
