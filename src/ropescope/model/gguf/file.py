"""What a GGUF file says of itself: its metadata and its tensors, without their values."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from ropescope.base.errors import ModelError

SOURCE_FIX = "use the model's safetensors checkpoint"
MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_ALIGNMENT = 32
_VOCABULARY = tuple(f"tokenizer.ggml.{name}" for name in ("tokens", "scores", "token_type", "merges"))


@dataclass(frozen=True)
class GgufTensor:
    """A tensor of the file: `shape` in the order of torch, `kind` as ggml numbers its types."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int

    @property
    def elements(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class GgufFile:
    """Metadata and tensors of a file; `entries` says where each entry of the metadata lies in it."""

    path: Path
    metadata: dict[str, Any]
    entries: dict[str, slice]
    tensors: tuple[GgufTensor, ...]
    table: slice

    @property
    def architecture(self) -> str:
        return str(self.metadata["general.architecture"])

    @property
    def data_start(self) -> int:
        return _aligned(self.table.stop, self.metadata)

    def get(self, key: str, default: Any = None) -> Any:
        """What the metadata say of the architecture under `key`."""
        return self.metadata.get(f"{self.architecture}.{key}", default)

    def values(self, name: str) -> list[float] | None:
        """The values of a tensor that is stored in float32, or None if the file has no such tensor."""
        found = next((tensor for tensor in self.tensors if tensor.name == name), None)
        if found is None:
            return None
        if found.kind != 0:
            raise ModelError(f"tensor {name} of {str(self.path)!r} is no float32 (type {found.kind}): {SOURCE_FIX}")
        with self.path.open("rb") as file:
            file.seek(self.data_start + found.offset)
            return [_short(value) for value in struct.unpack(f"<{found.elements}f", file.read(4 * found.elements))]


def read_gguf(path: Path, source: str) -> GgufFile:
    """Read metadata and tensor names of the GGUF file that the user calls `source`.

    Raises
    ------
    ModelError
        If the file is no GGUF file, or one of another version, or ends before its last tensor does.
    """
    with path.open("rb") as file:
        magic = file.read(4)
        if magic != MAGIC:
            raise ModelError(f"{source!r} is not a GGUF file (it starts with {magic!r})")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            try:
                found = _parsed(path, source, content)
            except (struct.error, IndexError, KeyError, UnicodeDecodeError) as error:
                raise _truncated(source, "its header is cut off or damaged") from error
            ends = [tensor.offset + _bytes(tensor, source) for tensor in found.tensors]
            needed = found.data_start + max(ends, default=0)
            if needed > len(content):
                raise _truncated(source, f"it has {len(content)} of {needed} bytes")
    return found


def without_vocabulary(gguf: GgufFile, path: Path) -> None:
    """Write the file again without its vocabulary, which readers that go through it entry by entry are slow at."""
    kept = {key: entry for key, entry in gguf.entries.items() if key not in _VOCABULARY}
    with gguf.path.open("rb") as source, path.open("wb") as target:
        source.seek(0)
        target.write(source.read(16) + struct.pack("<Q", len(kept)))
        for entry in (*kept.values(), gguf.table):
            source.seek(entry.start)
            target.write(source.read(entry.stop - entry.start))
        target.write(bytes(_aligned(target.tell(), gguf.metadata) - target.tell()))
        source.seek(gguf.data_start)
        while block := source.read(1 << 24):
            target.write(block)


def _truncated(source: str, what: str) -> ModelError:
    return ModelError(f"{source!r} cannot be read as GGUF ({what}): fetch it again, it may be truncated")


def _bytes(tensor: GgufTensor, source: str) -> int:
    from gguf import GGML_QUANT_SIZES

    sizes = {int(kind): size for kind, size in GGML_QUANT_SIZES.items()}
    if tensor.kind not in sizes:
        raise ModelError(
            f"tensor {tensor.name} of {source!r} has type {tensor.kind}, which is not known here: pip install -U gguf"
        )
    elements, width = sizes[tensor.kind]
    return tensor.elements // elements * width


def _aligned(position: int, metadata: dict[str, Any]) -> int:
    return position + -position % int(metadata.get("general.alignment", _ALIGNMENT))


def _parsed(path: Path, source: str, content: mmap.mmap) -> GgufFile:
    version, tensor_count, entry_count = struct.unpack_from("<IQQ", content, 4)
    if version not in _VERSIONS:
        raise ModelError(f"{source!r} is a GGUF file of version {version}, not 2 or 3 (little-endian): {SOURCE_FIX}")
    cursor = _Cursor(content, 24)
    metadata, entries = {}, {}
    for _ in range(entry_count):
        start = cursor.position
        key = cursor.string()
        metadata[key] = cursor.value(cursor.unpack("I"))
        entries[key] = slice(start, cursor.position)
    start = cursor.position
    tensors = tuple(cursor.tensor() for _ in range(tensor_count))
    if "general.architecture" not in metadata:
        raise ModelError(f"{source!r} does not say its architecture (general.architecture): {SOURCE_FIX}")
    return GgufFile(path, metadata, entries, tensors, slice(start, cursor.position))


class _Cursor:
    """A place in a file, moved on by what is read there."""

    def __init__(self, content: mmap.mmap, position: int) -> None:
        self.content, self.position = content, position

    def unpack(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self.content, self.position)
        self.position += struct.calcsize("<" + code)
        return _short(value) if code == "f" else value

    def string(self) -> str:
        length = self.unpack("Q")
        end = self.position + length
        if end > len(self.content):
            raise IndexError(end)
        text = self.content[self.position : end].decode()
        self.position = end
        return text

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            inner, count = self.unpack("I"), self.unpack("Q")
            read: Callable[[], Any] = self.string if inner == _STRING else lambda: self.value(inner)
            return [read() for _ in range(count)]
        return self.unpack(_SCALARS[kind])

    def tensor(self) -> GgufTensor:
        name = self.string()
        shape = tuple(self.unpack("Q") for _ in range(self.unpack("I")))
        return GgufTensor(name, shape[::-1], self.unpack("I"), self.unpack("Q"))


def _short(value: float) -> float:
    """The shortest decimal that a float32 stands for: 1e-06, not 9.999999974752427e-07."""
    import numpy as np

    return float(str(np.float32(value)))
