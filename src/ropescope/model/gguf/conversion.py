"""A GGUF file becomes an ordinary checkpoint once; its copy in the user's cache is what is opened, then and later."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from ropescope.base.errors import ModelError, first_line
from ropescope.model.checkpoints import Checkpoint, load_config, load_tokenizer, load_weights
from ropescope.model.gguf.file import GgufFile, read_gguf, without_vocabulary
from ropescope.model.kept_copies import digest_of, found_copy, keep_copy

# Raise it when what a copy holds changes for the same file and packages.
_FORMAT = 1
_BARE = "bare.gguf"
_TOKENIZER_BYTES = 1 << 26


def copied(checkpoint: Checkpoint) -> Checkpoint:
    """The converted copy of a GGUF file, made now if there is none of the same content by the same packages.

    Raises
    ------
    ModelError
        If the file cannot be read, or the model could not do what it says.
    OSError
        If no copy can be kept.
    """
    name = copy_name(checkpoint)
    folder = found_copy(name) or _converted(checkpoint, name)
    return Checkpoint(checkpoint.source, str(folder), original=checkpoint)


def copy_name(checkpoint: Checkpoint) -> str:
    """What the copy of a GGUF file is called: the content it is of, and what makes it."""
    made_by = "-".join(f"{name}{version(name)}" for name in ("transformers", "gguf"))
    return f"{digest_of(_path(checkpoint))}-{made_by}-{_FORMAT}"


def uncopied(checkpoint: Checkpoint) -> Checkpoint:
    """The GGUF file itself, with what it says of itself."""
    return replace(checkpoint, gguf=read_gguf(_path(checkpoint), checkpoint.source))


def _path(checkpoint: Checkpoint) -> Path:
    return Path(checkpoint.location) / str(checkpoint.gguf_file)


def _converted(checkpoint: Checkpoint, name: str) -> Path:
    gguf = read_gguf(_path(checkpoint), checkpoint.source)
    # weights in float32, for a while the file without its vocabulary, the tokenizer
    room = 4 * sum(tensor.elements for tensor in gguf.tensors) + gguf.path.stat().st_size + _TOKENIZER_BYTES
    return keep_copy(name, room, lambda folder: _convert(replace(checkpoint, gguf=gguf), gguf, folder))


def _convert(checkpoint: Checkpoint, gguf: GgufFile, folder: Path) -> None:
    """Write model and tokenizer of a GGUF file to a folder. transformers goes through a vocabulary at each reading."""
    import torch
    from safetensors import SafetensorError

    config = load_config(checkpoint)
    bare = folder / _BARE
    without_vocabulary(gguf, bare)
    model = load_weights(replace(checkpoint, location=str(folder), gguf_file=_BARE), config=config, dtype=torch.float32)
    bare.unlink()
    model.config.name_or_path = ""
    try:
        model.save_pretrained(folder)
    except SafetensorError as error:
        raise OSError(first_line(error)) from error
    # A model can be looked at without its tokenizer; who wants it is told what is wrong with it.
    with suppress(ModelError):
        load_tokenizer(checkpoint).save_pretrained(folder)
