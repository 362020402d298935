"""Texts: documents of a hub data set, a local file, or the language reference that every CPython carries."""

from __future__ import annotations

import hashlib
import logging
import platform
import random
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ropescope.base.errors import CorpusError, did_you_mean, first_line
from ropescope.base.extras import require
from ropescope.model.text_files import bare_name, documents_of, file_digest, text_of

BUILTIN = "builtin"
HUB_CORPORA = {"wikitext": ("Salesforce/wikitext", "wikitext-103-raw-v1"), "c4": ("allenai/c4", "en")}
JOIN = "\n\n"
SHUFFLE_BUFFER = 10_000

_TITLE = re.compile(r" = [^=].* = \n")
_DATA_SET = re.compile(r"[\w.-]+(/[\w.-]+)?")
_HALVES = {"validation": 0, "test": 1}
_COMMIT = re.compile(r"@([0-9a-f]{40})/")


@dataclass(frozen=True)
class Request:
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
class Corpus:
    """Documents to read once, how they are joined, and what the protocol says of them."""

    documents: Iterator[str]
    separator: str
    facts: dict[str, object]


def open_corpus(request: Request) -> Corpus:
    """The documents of a text, read as they are asked for.

    Raises
    ------
    CorpusError
        When the text cannot be had; the message says what to do.
    """
    check_request(request)
    corpus = _local(request) if request.name == BUILTIN or local_file(request.name) else _dataset(request)
    documents = _with_text(request.name, corpus.documents, as_stored=request.separator is not None)
    return replace(corpus, documents=documents)


def local_file(name: str) -> bool:
    """Whether a corpus is a file of this machine; a data set's own name comes first.

    Raises
    ------
    CorpusError
        When it looks like a path, but of no file: there is nothing, or a pipe or device.
    """
    path = Path(name).expanduser()
    try:
        is_file, is_there = path.is_file(), path.exists()
    except OSError as error:
        raise CorpusError(
            f"{name!r} cannot be looked at ({first_line(error)}): give a file that you may read"
        ) from error
    if name in HUB_CORPORA or (is_there and path.is_dir()):
        return False
    if is_there and not is_file:
        raise CorpusError(
            f"{name!r} is a pipe or device, which cannot be read twice: write its content to a file first"
        )
    if not is_there and (bare_name(name) != Path(name).name or name.startswith(("/", ".", "~")) or name.count("/") > 1):
        raise CorpusError(f"no such file or folder: {name!r}")
    return is_file


def check_request(request: Request) -> None:
    """Say of a text what can be said before anything of it is read.

    Raises
    ------
    CorpusError
        When the name can be none of a text, or an option does not go with it.
    """
    name, split = request.name, request.split
    if request.seed is not None and request.seed < 0:
        raise CorpusError(f"seed={request.seed}: a seed is a whole number from 0, or None for the order of the text")
    if name == BUILTIN:
        _refuse_data_set_options(request)
        if split is not None and split not in _HALVES:
            raise CorpusError(f"unknown split {split!r} of {BUILTIN!r}: {did_you_mean(split, _HALVES)}")
    elif local_file(name):
        _refuse_data_set_options(request)
        if split is not None:
            fix = "leave it out, or give the file of that split"
            raise CorpusError(f"split={split!r}: the file {name!r} has no splits; {fix}")
    elif not name or not (request.path.is_dir() or _DATA_SET.fullmatch(name)):
        known = ", ".join([*HUB_CORPORA, BUILTIN])
        raise CorpusError(f"no text is called {name!r}: give {known}, a data set of the hub (owner/name), or a file")


def _refuse_data_set_options(request: Request) -> None:
    for option in ("config", "revision"):
        value = getattr(request, option)
        if value is not None:
            raise CorpusError(f"{option}={value!r} applies to data sets only, not to {request.name!r}: leave it out")


def _local(request: Request) -> Corpus:
    documents, facts = _language_reference(request) if request.name == BUILTIN else _file(request)
    if request.seed is not None:
        documents, facts["shuffle"] = _shuffled(documents, request.seed), "all documents"
    return Corpus(iter(documents), JOIN if request.separator is None else request.separator, facts)


def _shuffled(documents: Iterable[str], seed: int) -> Iterator[str]:
    held = list(documents)
    random.Random(seed).shuffle(held)
    yield from held


def _language_reference(request: Request) -> tuple[Iterable[str], dict[str, object]]:
    from pydoc_data.topics import topics

    split = request.split or "validation"
    texts = [topics[key] for key in sorted(topics)][_HALVES[split] :: 2]
    digest = hashlib.sha256("".join(texts).encode()).hexdigest()
    return texts, {"split": split, "python": platform.python_version(), "text_sha256": digest}


def _file(request: Request) -> tuple[Iterable[str], dict[str, object]]:
    documents, facts = documents_of(request.path, request.column)
    return documents, {"corpus": request.path.name, **facts}


def _with_text(name: str, documents: Iterable[str], *, as_stored: bool) -> Iterator[str]:
    """The documents with more in them than white space: to join the others would make windows of separators.

    Where the caller gave the separator, rows may be lines, so blank ones stay; but not where there is nothing else.
    """
    found, blank = 0, list[str]()
    for document in documents:
        if not document or document.isspace():
            blank.append(document)
            continue
        found += 1
        yield from blank if as_stored else ()
        blank.clear()
        yield document
    if not found:
        held = f"all of its {len(blank)} documents are empty" if blank else "there are no documents"
        raise CorpusError(f"corpus {name!r} holds no text, {held}: give another text or column")
    yield from blank if as_stored else ()


def _dataset(request: Request) -> Corpus:
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
    elif request.path.is_dir():
        facts |= {"corpus": request.path.resolve().name, "file_sha256": _digest(files.get(split, ()))}
    if location == HUB_CORPORA["wikitext"][0] and request.separator is None:
        documents = _articles(_rows(name, rows, request.column))
        if seed is not None:
            documents, facts["shuffle"] = _shuffled(documents, seed), "all articles"
        return Corpus(documents, "", facts)
    if seed is not None:
        rows, facts["shuffle"] = rows.shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER), f"buffer of {SHUFFLE_BUFFER}"
    join = JOIN if request.separator is None else request.separator
    return Corpus(_rows(name, rows, request.column), join, facts)


def _digest(files: Iterable[str]) -> str | None:
    """SHA-256 over the files of a split; None where they are not of this machine."""
    digest, paths = hashlib.sha256(), [Path(str(file)) for file in files]
    for path in paths:
        if not path.is_file():
            return None
        digest.update(file_digest(path).encode())
    return digest.hexdigest() if paths else None


def _splits(name: str, location: str, config: str | None, revision: str | None) -> tuple[Any, Any]:
    """The addresses and the rows of each split; nothing is fetched before the rows are read."""
    require("hub", "reading data sets of the hub")
    import datasets

    try:
        with _quiet():
            builder = datasets.load_dataset_builder(location, config, revision=revision)
            return builder.config.data_files or {}, builder.as_streaming_dataset()
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise CorpusError(_unavailable(name, location, config, revision, error)) from error


def _unavailable(name: str, location: str, config: str | None, revision: str | None, error: Exception) -> str:
    import datasets

    own_file = "or give the path of a .txt, .jsonl, .csv or .parquet file"
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
            yield text_of(row, column, f"row {number} of data set {name!r}")
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
