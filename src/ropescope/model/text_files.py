"""Documents of a local file, read as its suffix says: plain text, JSON, separated columns or Parquet.

A file that holds columns is never taken for plain text: its braces and commas would be measured with it.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import hashlib
import json
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePath
from typing import IO, Any

from ropescope.base.errors import CorpusError, did_you_mean, first_line
from ropescope.base.extras import require

TEXT = (".txt", ".text", ".md", ".rst", ".raw", ".tokens")
JSON_LINES = (".jsonl", ".ndjson", ".jsonlines")
SEPARATED = {".csv": ",", ".tsv": "\t"}
PARQUET = (".parquet", ".pq")
COMPRESSED: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
SUFFIXES = (*TEXT, *JSON_LINES, ".json", *SEPARATED, *PARQUET)

_MARK = "\ufeff"
_GIBIBYTE = 2**30
_LONGEST_FIELD = 2**31 - 1


def documents_of(path: Path, column: str) -> tuple[Iterable[str], dict[str, object]]:
    """The documents of a file, read as they are asked for, and what the protocol says of them.

    Plain text (a known suffix, or none) is one document; every row of the other formats is one, in `column`. A
    byte-order mark at the beginning is left out.

    Parameters
    ----------
    path
        A regular file; its suffix, in any case, says how to read it. ``.gz``, ``.bz2`` and ``.xz`` may follow.
    column
        Where rows hold the text.

    Raises
    ------
    CorpusError
        When the suffix is of no known format, or the file is empty, damaged, not UTF-8, or without that column.

    Examples
    --------
    >>> documents, facts = documents_of(Path("c4.jsonl.gz"), "text")  # doctest: +SKIP
    """
    read = _reader(path)
    with _reading(path):
        if path.stat().st_size == 0:
            raise CorpusError(f"file '{path}' is empty")
        facts: dict[str, object] = {"file_sha256": file_digest(path)}
    if read is _plain:
        return _plain(path), facts
    return read(path, column), {"column": column, **facts}


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes; of more than two GiB, of the first, the last and the length: no long wait."""
    with path.open("rb") as file:
        size = path.stat().st_size
        if size <= 2 * _GIBIBYTE:
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256(file.read(_GIBIBYTE))
        file.seek(size - _GIBIBYTE)
        digest.update(file.read(_GIBIBYTE) + str(size).encode())
        return digest.hexdigest()


def bare_name(name: str) -> str:
    """The last part of a path without the suffixes of a known format."""
    last = PurePath(name.rstrip("/")).name
    for known in (COMPRESSED, SUFFIXES):
        if PurePath(last).suffix.lower() in known:
            last = PurePath(last).stem
    return last


def text_of(row: object, column: str, where: str) -> str:
    """The text of a row that came from anywhere.

    Raises
    ------
    CorpusError
        When it has no such column, or the column holds something else than text.
    """
    if not isinstance(row, dict):
        raise CorpusError(f"{where} is not an object with columns but {type(row).__name__}")
    if column not in row:
        raise CorpusError(f"{where} has no column {column!r}: {did_you_mean(column, row)}")
    text = row[column]
    if not isinstance(text, str):
        raise CorpusError(f"{where}: column {column!r} holds {type(text).__name__}, not text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        fault = f"half of a surrogate pair at character {error.start}"
        raise CorpusError(f"{where}: column {column!r} holds {fault}, which is no text; leave that row out") from error
    return text


def _reader(path: Path) -> Callable[..., Iterable[str]]:
    suffix = path.suffix.lower()
    compressed = suffix in COMPRESSED
    inner = PurePath(path.stem).suffix.lower() if compressed else suffix
    readers: dict[str, Callable[..., Iterable[str]]] = {
        **dict.fromkeys(("", *TEXT), _plain),
        **dict.fromkeys(JSON_LINES, _json_lines),
        ".json": _json,
        **{name: partial(_separated, delimiter=delimiter) for name, delimiter in SEPARATED.items()},
        **({} if compressed else dict.fromkeys(PARQUET, _parquet)),
    }
    if inner not in readers:
        raise CorpusError(
            f"file '{path}': {inner + suffix * compressed} is no format of texts; taken are {', '.join(SUFFIXES)} and "
            f"names without suffix, all but Parquet also with {', '.join(COMPRESSED)}: convert the file, or name it "
            "after what it holds"
        )
    return readers[inner]


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise CorpusError(
            f"file '{path}' cannot be read to its end ({first_line(error)}): check that it is whole and that you may "
            "read it"
        ) from error


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    with _reading(path), COMPRESSED.get(path.suffix.lower(), open)(path, "rb") as file:
        yield file


def _decoded(raw: bytes, where: str) -> str:
    """UTF-8; a zero byte is a character of it, but no text has one: it tells of UTF-16 or of no text at all."""
    zero = raw.find(b"\0")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        zero = error.start
    if zero >= 0:
        raise CorpusError(f"{where} is not UTF-8 text (byte {zero}): convert it to UTF-8")
    return text


def _whole(path: Path) -> str:
    with _opened(path) as file:
        return _decoded(file.read(), f"file '{path}'").removeprefix(_MARK)


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Every line, after what to call it."""
    with _opened(path) as file:
        for number, raw in enumerate(file, start=1):
            where = f"line {number} of '{path}'"
            line = _decoded(raw, where)
            yield where, line.removeprefix(_MARK) if number == 1 else line


def _plain(path: Path) -> list[str]:
    text = _whole(path)
    if _begins_with_object(text):
        raise CorpusError(f"file '{path}' is not plain text but JSON: name it .jsonl (an object a line) or .json")
    return [text]


def _begins_with_object(text: str) -> bool:
    try:
        value, _ = json.JSONDecoder(parse_int=len).raw_decode(text.lstrip())
    except (ValueError, RecursionError):
        return False
    first = value[0] if isinstance(value, list) and value else value
    return isinstance(first, dict) and bool(first)


def _json(path: Path, column: str) -> Iterator[str]:
    """An array of objects, or an object a line."""
    first = next((line for _, line in _lines(path) if line.strip()), "")
    if not first.lstrip().startswith("["):
        yield from _json_lines(path, column)
        return
    rows = _parsed(_whole(path), column, f"file '{path}'")
    for number, row in enumerate(rows, start=1):
        yield text_of(row, column, f"row {number} of '{path}'")


def _json_lines(path: Path, column: str) -> Iterator[str]:
    for where, line in _lines(path):
        if line.strip():
            yield text_of(_parsed(line, column, where), column, where)


def _parsed(text: str, column: str, where: str) -> Any:
    def without_doubt(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if sum(key == column for key, _ in pairs) > 1:
            raise ValueError(f"an object has {column!r} twice")
        return dict(pairs)

    try:
        # only whether a value is a number matters, and Python reads no number of thousands of digits
        return json.loads(text, parse_int=len, object_pairs_hook=without_doubt)
    except RecursionError as error:
        raise CorpusError(f"{where} is nested too deep: write one flat object a line") from error
    except ValueError as error:
        reason = getattr(error, "msg", None) or first_line(error)
        raise CorpusError(f"{where} is not JSON ({reason}): write one object a line") from error


def _separated(path: Path, column: str, delimiter: str) -> Iterator[str]:
    before = csv.field_size_limit(_LONGEST_FIELD)
    rows = csv.reader((line for _, line in _lines(path)), delimiter=delimiter, strict=True)
    try:
        header = next(rows, [])
        place = _place(column, header, path)
        for row in rows:
            if row and len(row) != len(header):
                found = f"{len(row)} fields, but the first line {len(header)}"
                raise CorpusError(f"line {rows.line_num} of '{path}' has {found}: quote what holds a separator")
            if row:
                yield row[place]
    except csv.Error as error:
        fix = "quote what holds a separator, a quote or a line end"
        raise CorpusError(f"line {rows.line_num} of '{path}' has no clear columns ({error}): {fix}") from error
    finally:
        csv.field_size_limit(before)


def _place(column: str, names: list[str], path: Path) -> int:
    if column not in names:
        raise CorpusError(f"'{path}' has no column {column!r}: {did_you_mean(column, names)}")
    if names.count(column) > 1:
        raise CorpusError(f"'{path}' has {names.count(column)} columns {column!r}: leave one of that name")
    return names.index(column)


def _parquet(path: Path, column: str) -> Iterator[str]:
    require("hub", "reading Parquet files")
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            _place(column, file.schema_arrow.names, path)
            rows = (row for batch in file.iter_batches(columns=[column]) for row in batch.to_pylist())
            for number, row in enumerate(rows, start=1):
                yield text_of(row, column, f"row {number} of '{path}'")
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"'{path}' cannot be read as Parquet: {first_line(error)}") from error
