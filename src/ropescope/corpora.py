"""Turn a text into token windows: which text, joined how, and cut where are recorded with them."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import random
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ropescope.errors import CorpusError, did_you_mean, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ropescope.axes import TokenIds

BUILTIN = "builtin"
HUB_CORPORA = {"wikitext": ("Salesforce/wikitext", "wikitext-103-raw-v1"), "c4": ("allenai/c4", "en")}
JOIN = "\n\n"
SHUFFLE_BUFFER = 10_000

_TABLES = (".jsonl", ".json", ".parquet")
_TEXTS = (".txt", ".raw", ".md")
_TITLE = re.compile(r" = [^=].* = \n")
_COMMIT = re.compile(r"@([0-9a-f]{40})/")
# A cut changes the tokens next to it; this far behind it, they are those of the whole text.
_SLACK = 256
_CHARACTERS_PER_TOKEN = 4


@dataclass(frozen=True)
class _Request:
    """The text that the caller asked for."""

    name: str
    split: str | None
    config: str | None
    column: str
    separator: str | None
    revision: str | None
    seed: int | None

    @property
    def path(self) -> Path:
        return Path(self.name).expanduser()


@dataclass(frozen=True)
class _Corpus:
    """Documents to read once, how they are joined, and what the protocol says of them."""

    documents: Iterator[str]
    separator: str
    facts: dict[str, object]


def token_windows(
    tokenizer: PreTrainedTokenizerBase,
    corpus: str | os.PathLike[str] = "wikitext",
    *,
    split: str | None = None,
    length: int = 4096,
    count: int | None = None,
    seed: int | None = None,
    config: str | None = None,
    column: str = "text",
    separator: str | None = None,
    bos: bool | str = "auto",
    revision: str | None = None,
) -> TokenWindows:
    """Cut a text into windows of tokens that do not overlap.

    The documents are joined by `separator`, tokenised once without special tokens, and cut; what does not fill a
    window is dropped.

    Parameters
    ----------
    tokenizer
        The tokenizer that belongs to the model.
    corpus
        ``"wikitext"`` (WikiText-103 raw), ``"c4"``, ``"builtin"`` (the language reference inside every CPython), a
        ``.txt``, ``.jsonl`` or ``.parquet`` file, or a data set on the hub or in a folder, which is streamed.
    split
        Part of the data set; ``"validation"`` unless said otherwise. Files have none.
    length
        Tokens in a window, at least 2, a BOS included.
    count
        Windows, at least 1; no more text is read than they need. None is all that there are.
    seed
        Shuffles the documents (articles of WikiText; a buffer of 10,000 documents where a data set is streamed).
    config, revision
        Configuration, and branch, tag or commit, of a data set.
    column
        Where the rows of a data set, ``.jsonl`` or ``.parquet`` file hold the text.
    separator
        Between documents; a blank line by default. WikiText is by default the published file, byte for byte; with a
        separator, its rows (lines) are joined as the data set stores them.
    bos
        Whether each window begins with the beginning-of-sequence token; ``"auto"`` does as the tokenizer does.

    Returns
    -------
    Token ids (sequence, position), int64, whose ``protocol`` says how they came about.

    Raises
    ------
    CorpusError
        When the text cannot be had or is too short; the message says what to do.

    Examples
    --------
    >>> token_windows(tokenizer, "builtin", length=128, count=2).shape  # doctest: +SKIP
    torch.Size([2, 128])
    """
    if length < 2:
        raise CorpusError(f"length={length}: a window needs at least 2 tokens")
    if count is not None and count < 1:
        raise CorpusError(f"count={count}: ask for at least 1 window, or for None to have all")
    name = os.fspath(corpus)
    prefix = _prefix(tokenizer, bos)
    body = length - len(prefix)
    if body < 1:
        raise CorpusError(f"length={length}: the tokenizer puts {len(prefix)} tokens before every text; use more")
    source = _open(_Request(name, split, config, column, separator, revision, seed))
    needed = None if count is None else count * body
    ids, documents = _tokens(_encoder(tokenizer), source.documents, source.separator, needed)
    windows = _cut(name, ids, prefix, length, count)
    chosen = {"corpus": name, "config": None, "split": None, "column": None, "revision": None, **source.facts}
    joined = {"separator": source.separator, "bos": bool(prefix), "bos_ids": prefix, "seed": seed}
    read = {"documents": documents, "tokens": windows.numel(), "tokenizer": _name(tokenizer)}
    return TokenWindows(windows, {**chosen, **_shape_facts(windows), **joined, **read})


def windows_protocol(windows: Tensor) -> dict[str, object]:
    """Say how token windows came about, in values that JSON can hold.

    Parameters
    ----------
    windows
        Token ids (sequence, position), made by `token_windows` or not.

    Returns
    -------
    The ``protocol`` of `TokenWindows`; for a plain tensor only its length, count and SHA-256, the corpus being
    ``"unspecified"``.

    Examples
    --------
    >>> windows_protocol(torch.zeros(2, 8, dtype=torch.int64))["corpus"]
    'unspecified'
    """
    if isinstance(windows, TokenWindows):
        return dict(windows.protocol)
    return {"corpus": "unspecified", **_shape_facts(windows)}


class TokenWindows(torch.Tensor):
    """Token ids (sequence, position) that remember their ``protocol``; whatever is computed from them is plain.

    Examples
    --------
    >>> windows = TokenWindows(torch.zeros(2, 8, dtype=torch.int64), {"corpus": "zeros"})
    >>> windows.protocol["corpus"], type(windows[:1])
    ('zeros', <class 'torch.Tensor'>)
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    protocol: dict[str, object]

    def __new__(cls, ids: TokenIds, protocol: dict[str, object]) -> TokenWindows:
        windows: TokenWindows = torch.Tensor._make_subclass(cls, ids)
        windows.protocol = protocol
        return windows

    def __deepcopy__(self, memo: dict[int, Any]) -> TokenWindows:
        return TokenWindows(self.as_subclass(torch.Tensor).clone(), dict(self.protocol))

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.as_subclass(torch.Tensor).__reduce_ex__(protocol)


def _shape_facts(windows: Tensor) -> dict[str, object]:
    ids = windows.detach().to("cpu", torch.int64).contiguous()
    digest = hashlib.sha256(ids.numpy().astype("<i8").tobytes()).hexdigest()
    return {"length": windows.shape[-1], "windows": windows.shape[0], "sha256": digest}


def _name(tokenizer: PreTrainedTokenizerBase) -> str:
    return getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__


def _encoder(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], list[int]]:
    return lambda text: list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _prefix(tokenizer: PreTrainedTokenizerBase, bos: bool | str) -> list[int]:
    """The tokens that begin every window: what the tokenizer itself puts before a text."""
    if not isinstance(bos, bool) and bos != "auto":
        raise CorpusError(f"bos={bos!r}: use True, False or 'auto'")
    if bos is False:
        return []
    plain = _encoder(tokenizer)("a")
    whole = list(tokenizer("a")["input_ids"])
    starts = [start for start in range(len(whole)) if whole[start : start + len(plain)] == plain]
    prefix = whole[: starts[0]] if plain and starts else []
    if prefix or bos == "auto":
        return prefix
    if tokenizer.bos_token_id is None:
        raise CorpusError(f"bos=True, but the tokenizer {_name(tokenizer)!r} has no BOS token: use bos=False")
    return [int(tokenizer.bos_token_id)]


def _tokens(
    encode: Callable[[str], list[int]], documents: Iterator[str], separator: str, needed: int | None
) -> tuple[list[int], int]:
    """The first `needed` tokens of the joined documents (None: all), and how many documents were read for them."""
    parts: list[str] = []
    size, ended = 0, False
    enough = sys.maxsize if needed is None else needed + _SLACK
    target = _CHARACTERS_PER_TOKEN * enough
    while True:
        while size < target and not ended:
            document = next(documents, None)
            ended = document is None
            if document is not None:
                size += len(document) + (len(separator) if parts else 0)
                parts.append(document)
        ids = encode(separator.join(parts)[: min(target, size)])
        if len(ids) >= enough or (ended and size <= target):
            return ids[:needed], len(parts)
        target = int(target * min(16, max(1.25, 1.05 * enough / max(1, len(ids)))))


def _cut(name: str, ids: list[int], prefix: list[int], length: int, count: int | None) -> Tensor:
    body = length - len(prefix)
    available = len(ids) // body
    if available < (count or 1):
        asked = f"{count or 1} window{'s' if (count or 1) > 1 else ''} of {length} tokens"
        fix = f"ask for count={available} or fewer" if available else f"use length={len(ids) + len(prefix)} or less"
        raise CorpusError(
            f"corpus {name!r} holds {len(ids)} tokens, {available} windows, but {asked} asked for: {fix}, or more text"
        )
    rows = torch.tensor(ids[: (count or available) * body], dtype=torch.int64).view(-1, body)
    first = torch.tensor(prefix, dtype=torch.int64).expand(len(rows), -1)
    return torch.cat([first, rows], dim=1)


def _open(request: _Request) -> _Corpus:
    name, path = request.name, request.path
    if name == BUILTIN or (path.is_file() and name not in HUB_CORPORA):
        return _local(request)
    looks_like_path = path.suffix in (*_TABLES, *_TEXTS) or name.startswith(("/", ".", "~")) or name.count("/") > 1
    if looks_like_path and not path.exists():
        raise CorpusError(f"no such file or folder: {name!r}")
    return _dataset(request)


def _local(request: _Request) -> _Corpus:
    for option in ("config", "revision"):
        value = getattr(request, option)
        if value is not None:
            raise CorpusError(f"{option}={value!r} applies to data sets only, not to {request.name!r}: leave it out")
    documents, facts = _language_reference(request) if request.name == BUILTIN else _file(request)
    if request.seed is not None:
        documents, facts["shuffle"] = _shuffled(documents, request.seed), "all documents"
    return _Corpus(iter(documents), JOIN if request.separator is None else request.separator, facts)


def _shuffled(documents: Iterable[str], seed: int) -> Iterator[str]:
    held = list(documents)
    random.Random(seed).shuffle(held)
    yield from held


def _language_reference(request: _Request) -> tuple[Iterable[str], dict[str, object]]:
    from pydoc_data.topics import topics

    halves = {"validation": 0, "test": 1}
    split = request.split or "validation"
    if split not in halves:
        raise CorpusError(f"unknown split {split!r} of {BUILTIN!r}: {did_you_mean(split, halves)}")
    texts = [topics[key] for key in sorted(topics)][halves[split] :: 2]
    digest = hashlib.sha256("".join(texts).encode()).hexdigest()
    return texts, {"split": split, "python": platform.python_version(), "text_sha256": digest}


def _file(request: _Request) -> tuple[Iterable[str], dict[str, object]]:
    path, column = request.path, request.column
    if request.split is not None:
        fix = "leave it out, or give the file of that split"
        raise CorpusError(f"split={request.split!r}: the file {request.name!r} has no splits; {fix}")
    if path.stat().st_size == 0:
        raise CorpusError(f"file '{path}' is empty")
    if path.suffix in (".jsonl", ".json"):
        return _json_lines(path, column), {"column": column}
    if path.suffix == ".parquet":
        return _parquet(path, column), {"column": column}
    return [_decoded(path.read_bytes(), f"file '{path}'")], {}


def _decoded(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CorpusError(f"{where} is not UTF-8 text (byte {error.start}): convert it to UTF-8") from error


def _text(row: object, column: str, where: str) -> str:
    if not isinstance(row, dict):
        raise CorpusError(f"{where} is not an object with columns but {type(row).__name__}")
    if column not in row:
        raise CorpusError(f"{where} has no column {column!r}: {did_you_mean(column, row)}")
    if not isinstance(row[column], str):
        raise CorpusError(f"{where}: column {column!r} holds {type(row[column]).__name__}, not text")
    return str(row[column])


def _json_lines(path: Path, column: str) -> Iterator[str]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            where = f"line {number} of '{path}'"
            line = _decoded(raw, where)
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise CorpusError(f"{where} is not JSON ({error.msg}): write one object a line") from error
            yield _text(row, column, where)


def _parquet(path: Path, column: str) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if column not in names:
                raise CorpusError(f"'{path}' has no column {column!r}: {did_you_mean(column, names)}")
            rows = (row for batch in file.iter_batches(columns=[column]) for row in batch.to_pylist())
            for number, row in enumerate(rows, start=1):
                yield _text(row, column, f"row {number} of '{path}'")
    except pa.ArrowException as error:
        raise CorpusError(f"'{path}' cannot be read as Parquet: {first_line(error)}") from error


def _dataset(request: _Request) -> _Corpus:
    """A data set on the hub or in a folder, streamed."""
    name, seed = request.name, request.seed
    location, preset = HUB_CORPORA.get(name, (str(request.path) if request.path.is_dir() else name, None))
    config = request.config or preset
    files, splits = _splits(name, location, config, request.revision)
    split = _chosen(name, splits, request.split)
    rows, commit = splits[split], _COMMIT.search(str(files.get(split, "")))
    facts: dict[str, object] = {"config": config, "split": split, "column": request.column}
    facts["revision"] = commit[1] if commit else request.revision
    if name in HUB_CORPORA:
        facts["id"] = location
    if location == HUB_CORPORA["wikitext"][0] and request.separator is None:
        documents = _articles(_rows(name, rows, request.column))
        if seed is not None:
            documents, facts["shuffle"] = _shuffled(documents, seed), "all articles"
        return _Corpus(documents, "", facts)
    if seed is not None:
        rows, facts["shuffle"] = rows.shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER), f"buffer of {SHUFFLE_BUFFER}"
    join = JOIN if request.separator is None else request.separator
    return _Corpus(_rows(name, rows, request.column), join, facts)


def _splits(name: str, location: str, config: str | None, revision: str | None) -> tuple[Any, Any]:
    """The addresses and the rows of each split; nothing is fetched before the rows are read."""
    import datasets

    try:
        with _quiet():
            builder = datasets.load_dataset_builder(location, config, revision=revision)
            return builder.config.data_files or {}, builder.as_streaming_dataset()
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise CorpusError(_unavailable(name, location, config, revision, error)) from error


def _unavailable(name: str, location: str, config: str | None, revision: str | None, error: Exception) -> str:
    import datasets

    own_file = "or give the path of a .txt, .jsonl or .parquet file"
    if isinstance(error, ConnectionError):
        return f"data set {name!r}: the hub cannot be reached ({first_line(error)}); go online, {own_file}"
    if isinstance(error, datasets.exceptions.DatasetNotFoundError):
        return f"no data set {name!r}: {first_line(error)}; check the name, {own_file}"
    if isinstance(error, ValueError) and "onfig" in str(error):
        names = datasets.get_dataset_config_names(location, revision=revision)
        asked = f"unknown config {config!r}" if config else "a config must be given"
        return f"data set {name!r}: {asked}: {did_you_mean(config or '', names)}"
    return f"data set {name!r} cannot be opened: {first_line(error)}"


def _chosen(name: str, splits: Iterable[str], split: str | None) -> str:
    """The split asked for: by default validation, or the only one there is."""
    names = list(splits)
    chosen = split or (names[0] if len(names) == 1 else "validation")
    if chosen not in names:
        raise CorpusError(f"data set {name!r} has no split {chosen!r}: {did_you_mean(chosen, names)}")
    return chosen


def _rows(name: str, rows: Any, column: str) -> Iterator[str]:
    import datasets

    try:
        for number, row in enumerate(rows, start=1):
            yield _text(row, column, f"row {number} of data set {name!r}")
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise CorpusError(f"data set {name!r} broke off while being read: {first_line(error)}") from error


def _articles(rows: Iterable[str]) -> Iterator[str]:
    """WikiText's articles as published: a blank line (stored as "") is " \\n", and one comes before each title."""
    article: list[str] = []
    for row in rows:
        line = row or " \n"
        article.append(line)
        opens = len(article) > 3 and line == article[-3] == " \n" and _TITLE.fullmatch(article[-2])
        if opens:
            yield "".join(article[:-3])
            article = article[-3:]
    yield "".join(article)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the log messages and progress bars of datasets."""
    import datasets

    loggers = [logging.getLogger(name) for name in ("datasets", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    bars = not datasets.are_progress_bars_disabled()
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            datasets.enable_progress_bars()
