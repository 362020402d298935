"""Named arrays with what they mean in one safetensors file, written whole, which tells when it is damaged."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ropescope.base.errors import ResultError, first_line
from ropescope.base.files import check_target, written_whole

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class RecordKind:
    """One kind of record.

    Parameters
    ----------
    format, version
        Under which the file says what it is.
    noun, what
        What errors call one, as in "the mask" and "a mask".
    make, again
        How to have one, and what to do to have it anew.
    """

    format: str
    version: int
    noun: str
    what: str
    make: str
    again: str

    def save(self, path: str | os.PathLike[str], facts: str, arrays: Arrays, *, overwrite: bool) -> Path:
        """Write a record, whole or not at all; `facts` are JSON.

        Raises
        ------
        ResultError
            If the file cannot be written.
        """
        metadata = {"format": self.format, "version": str(self.version), "ropescope": facts}
        target = check_target(Path(path), overwrite=overwrite)
        write_arrays(target, arrays, metadata, facts)
        return target

    def load(
        self, path: str | os.PathLike[str], names: Sequence[str] | None = None
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Read facts and arrays, those of the names given or all.

        Raises
        ------
        ResultError
            If the file is missing, damaged, of another kind, or of another version.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                self._check(metadata, str(path))
                arrays = {name: file.get_tensor(name) for name in names or file.keys()}
                facts = metadata["ropescope"]
        except (OSError, SafetensorError, KeyError) as error:
            raise ResultError(f"cannot read the {self.noun} {path}: {first_line(error)}; {self.again}") from error
        if metadata.get("sha256") != digest(arrays, facts):
            raise ResultError(f"the {self.noun} {path} is damaged: it does not hold what was saved; {self.again}")
        return json.loads(facts), arrays

    def _check(self, metadata: Mapping[str, str], source: str) -> None:
        if metadata.get("format") != self.format:
            raise ResultError(f"{source} is not {self.what}; {self.make}")
        if metadata.get("version") != str(self.version):
            raise ResultError(
                f"{source} is a {self.noun} of version {metadata.get('version')}; this ropescope reads version "
                f"{self.version}: {self.again}"
            )


def write_arrays(target: Path, arrays: Arrays, metadata: Mapping[str, str], facts: str = "") -> None:
    """Write arrays, bit for bit, with their digest among the metadata."""
    from safetensors.numpy import save

    content = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    with written_whole(target) as partial:
        partial.write_bytes(save(content, {**metadata, "sha256": digest(content, facts)}))


def intact_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays that :func:`write_arrays` wrote; None if the file is missing or damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
            kept = (file.metadata() or {}).get("sha256")
    except (OSError, SafetensorError):
        return None
    return arrays if kept == digest(arrays) else None


def format_of(path: str | os.PathLike[str]) -> str | None:
    """The kind that a file says it is of; None where it says none, or cannot be read."""
    from safetensors import SafetensorError, safe_open

    with suppress(OSError, SafetensorError), safe_open(path, framework="numpy") as file:
        return (file.metadata() or {}).get("format")
    return None


def digest(arrays: Arrays, facts: str = "") -> str:
    """SHA-256 of facts and arrays, their names, types and shapes included."""
    found = hashlib.sha256(facts.encode())
    for name, array in sorted(arrays.items()):
        found.update(f"{name}{array.dtype}{array.shape}".encode() + array.tobytes())
    return found.hexdigest()
