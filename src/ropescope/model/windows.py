"""Turn a text into token windows: which text, joined how, and cut where are recorded with them."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ropescope.base.arguments import check_cut
from ropescope.base.counting import counted
from ropescope.base.errors import CorpusError
from ropescope.model.corpora import Request, open_corpus

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ropescope.base.axes import TokenIds

# A cut changes the tokens next to it; this far behind it, they are those of the whole text.
_SLACK = 256
_CHARACTERS_PER_TOKEN = 4


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
        file, or a data set on the hub or in a folder, which is streamed. A file is read as its suffix says: plain
        text (``.txt``, ``.md``, ``.raw``, ... or none), JSON (``.jsonl``, ``.ndjson``, ``.jsonlines``, ``.json``),
        ``.csv`` or ``.tsv`` with a line of names, ``.parquet`` or ``.pq``; all but Parquet also compressed (``.gz``,
        ``.bz2``, ``.xz``). Others are refused.
    split
        Part of the data set; ``"validation"`` unless said otherwise. Files have none.
    length
        Tokens in a window, at least 2, a BOS included.
    count
        Windows, at least 1; no more text is read than they need. None is all that there are.
    seed
        Shuffles the documents (articles of WikiText; a buffer of 10,000 documents where a data set is streamed).
    config
        Configuration of a data set.
    column
        Where the rows of a data set or of a file with columns hold the text.
    separator
        Between documents; a blank line by default, and empty documents are left out. WikiText is by default the
        published file, byte for byte. With a separator, rows (WikiText's are lines) are joined as they are stored.
    bos
        Whether each window begins with the beginning-of-sequence token; ``"auto"`` does as the tokenizer does.
    revision
        Branch, tag or commit of a data set.

    Returns
    -------
    TokenWindows
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
    check_cut(length, count)
    name = os.fspath(corpus)
    prefix = _prefix(tokenizer, bos)
    body = length - len(prefix)
    if body < 1:
        raise CorpusError(f"length={length}: the tokenizer puts {len(prefix)} tokens before every text; use more")
    source = open_corpus(Request(name, split, config, column, separator, revision, seed))
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
    """A hub name as it is, a file or folder without the way to it."""
    name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
    return Path(name).name if Path(name).exists() else name


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
        asked = f"{counted(count or 1, 'window')} of {length} tokens"
        room = len(ids) + len(prefix)
        fewer = f"ask for count={available} or fewer, or" if available else f"use length={room} or less, or"
        fix = f"{fewer} more text" if room > max(1, len(prefix)) else "give more text"
        raise CorpusError(
            f"corpus {name!r} holds {len(ids)} tokens, {counted(available, 'window')}, but {asked} asked for: {fix}"
        )
    rows = torch.tensor(ids[: (count or available) * body], dtype=torch.int64).view(-1, body)
    first = torch.tensor(prefix, dtype=torch.int64).expand(len(rows), -1)
    return torch.cat([first, rows], dim=1)
