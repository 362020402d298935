"""The words of a model's card, kept beside the copy of its GGUF file: to look again takes no import and no weight.

Importing torch and transformers takes longer than opening such a model and probing it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ropescope.base.errors import ResultError
from ropescope.base.files import written_whole
from ropescope.model.checkpoints import find_checkpoint
from ropescope.model.gguf.conversion import copy_name
from ropescope.model.kept_copies import cache_folder

_DECIDING = ("torch", "transformers", "numpy")


def card_file(source: str, options: Mapping[str, Any]) -> Path | None:
    """Where the words of a card are kept; None for a model that is no GGUF file.

    Parameters
    ----------
    source
        As :func:`load_model` takes it.
    options
        Those of :func:`load_model`. The words belong to them, to the content of the file, to the packages and to the
        very source of ropescope that made them.

    Raises
    ------
    ModelError
        If one look tells that it is no model.
    """
    checkpoint = find_checkpoint(source, options["revision"], options["trust_remote_code"])
    if checkpoint.gguf_file is None:
        return None
    made_by = [repr(sorted(options.items())), *(version(name) for name in _DECIDING), _own_source()]
    key = hashlib.sha256("\n".join(made_by).encode()).hexdigest()[:16]
    return cache_folder() / copy_name(checkpoint) / f"card-{key}.txt"


def kept_card(file: Path) -> str | None:
    """The words that :func:`keep_card` wrote there."""
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def keep_card(file: Path, words: str) -> None:
    """Keep words beside a copy, where there is one that can be written to; else the next look does without."""
    if file.parent.is_dir():
        with suppress(ResultError), written_whole(file) as partial:
            partial.write_text(words, encoding="utf-8")


def _own_source() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
