"""What transformers, accelerate and torch keep under names of their own, each name in one place with its reason.

None of it is promised by its library; when a version changes a name, this is the file to mend.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

    HooksOfOneKind = Mapping[int, Callable[..., Any]]


def is_placed(module: nn.Module) -> bool:
    """Whether accelerate moves inputs or weights around this module's forward.

    It leaves its hook on the module as `_hf_hook`, beside a forward of its own, and tells nobody else.
    """
    return hasattr(module, "_hf_hook")


def runs_on(module: nn.Module) -> torch.device | None:
    """The device that accelerate runs a module on; None where it does not. The weights may lie on "meta" meanwhile."""
    device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    return None if device is None else torch.device(device)


def kept_values(module: nn.Module) -> Mapping[str, Tensor] | None:
    """By their names within the module, the weights that accelerate keeps on the CPU or the disk; None without it."""
    kept: Mapping[str, Tensor] | None = getattr(getattr(module, "_hf_hook", None), "weights_map", None)
    return kept


def bears_attention(config: Any) -> bool:
    """Whether a config names an attention implementation; what stands for another kind of module has none."""
    return hasattr(config, "_attn_implementation")


def attention_of(config: Any) -> str | None:
    """The name under which transformers looks up attention each time it is called; only this attribute has it."""
    name: str | None = config._attn_implementation
    return name


def set_attention(config: Any, name: str | None) -> None:
    """Name another attention implementation.

    The attribute behind the property is written, since the property sets the configs inside this one as well, and
    `set_attn_implementation` of a model refuses names that the model's class does not know.
    """
    config._attn_implementation_internal = name


def registered(registry: Any) -> MutableMapping[str, Callable[..., Any]]:
    """What is registered in one of transformers' tables of functions.

    `register` writes to the class, and `del` reaches only what one table overrides, so a name is taken out here.
    """
    mapping: MutableMapping[str, Callable[..., Any]] = registry._global_mapping
    return mapping


def commit_in(config: Any) -> str | None:
    """The commit of the hub's repository, which transformers writes down in the config alone."""
    commit: str | None = getattr(config, "_commit_hash", None)
    return commit


def set_commit(config: Any, commit: str | None) -> None:
    """Write the commit where :func:`commit_in` and transformers look for it; a converted file's config has none."""
    config._commit_hash = commit


def is_saved(module: nn.Module, buffer: str) -> bool:
    """Whether a buffer is part of the module's state; `state_dict` would tell, but copies and calls hooks."""
    unsaved: Any = module._non_persistent_buffers_set
    return buffer not in unsaved


def put_back(module: nn.Module, buffer: str, value: Tensor) -> None:
    """Give a module a buffer again; an attribute that was put in its place would be kept by a plain assignment."""
    module._buffers[buffer] = value


def forward_hooks(module: nn.Module) -> tuple[HooksOfOneKind, HooksOfOneKind]:
    """Hooks before and after a module's forward; torch registers them and never lists them."""
    return module._forward_pre_hooks, module._forward_hooks


def global_forward_hooks() -> tuple[HooksOfOneKind, HooksOfOneKind]:
    """Hooks before and after every module's forward."""
    everywhere: Any = torch.nn.modules.module
    return everywhere._global_forward_pre_hooks, everywhere._global_forward_hooks


def is_compiled(module: nn.Module) -> bool:
    """Whether this is what `torch.compile` put around a module, which it holds by this name."""
    return hasattr(module, "_orig_mod")
