"""Files as corpora: read as their suffix says, never with braces or commas in the text, and refused in one line."""

from __future__ import annotations

import bz2
import csv
import gzip
import hashlib
import io
import json
import lzma
import os
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from refusals import refused
from ropescope.base.errors import CorpusError
from ropescope.model import text_files
from ropescope.model.corpora import Request, local_file, open_corpus
from ropescope.model.text_files import bare_name, file_digest

TEXTS = ["the lobster, and more", 'two "claws"\nand a tail', "漢字 and\ttabs"]
ROWS = [{"text": text, "number": number} for number, text in enumerate(TEXTS)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
COMPRESSORS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


def read(path: Path | str, column: str = "text", separator: str | None = None) -> list[str]:
    return list(open_corpus(Request(str(path), None, None, column, separator, None, None)).documents)


refusal = partial(refused, CorpusError, read)


def separated(delimiter: str) -> bytes:
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=delimiter).writerows([["number", "text"], *([n, text] for n, text in enumerate(TEXTS))])
    return file.getvalue().encode()


def parquet(table: dict[str, list[object]]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(table), file)
    return file.getvalue()


CONTENT = {
    **dict.fromkeys([".jsonl", ".JSONL", ".ndjson", ".jsonlines", ".json", ".Json"], LINES),
    ".array.json": json.dumps(ROWS, indent=2).encode(),
    ".csv": separated(","),
    ".CSV": separated(","),
    ".tsv": separated("\t"),
    **dict.fromkeys([".parquet", ".PARQUET", ".pq"], parquet({"number": [0, 1, 2], "text": TEXTS})),
}


@pytest.mark.parametrize("suffix", CONTENT)
def test_every_format_with_columns_gives_the_texts_of_its_rows(suffix, tmp_path):
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(CONTENT[suffix])
    assert read(path) == TEXTS


@pytest.mark.parametrize("suffix", [".jsonl", ".NDJSON", ".json", ".csv", ".tsv"])
@pytest.mark.parametrize("compression", [*COMPRESSORS, ".GZ"])
def test_compressed_files_with_columns_give_the_same(suffix, compression, tmp_path):
    path = tmp_path / f"rows{suffix}{compression}"
    path.write_bytes(COMPRESSORS[compression.lower()](CONTENT.get(suffix, LINES)))
    assert read(path) == TEXTS


@pytest.mark.parametrize(
    "name", ["a.txt", "a.TXT", "a.md", "a.raw", "wiki.test.tokens", "enwik8", "a.txt.gz", "enwik8.xz"]
)
def test_plain_text_is_one_document_as_it_stands(name, tmp_path):
    text = "Zeile eins\r\nZeile zwei, {nicht} JSON\n"
    compress = COMPRESSORS.get(Path(name).suffix, bytes)
    (tmp_path / name).write_bytes(compress(text.encode()))
    assert read(tmp_path / name) == [text]


@pytest.mark.parametrize("name", ["a.arrow", "a.jsonl.zst", "a.zip", "a.py", "a.parquet.gz", "a.txt.bak", "a.docx"])
def test_a_suffix_of_no_known_format_is_refused_with_all_that_are_known(name, tmp_path):
    (tmp_path / name).write_text("words and words")
    message = refusal(tmp_path / name)
    for known in (".txt", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".pq", ".gz", "without suffix"):
        assert known in message


@pytest.mark.parametrize("content", [LINES, json.dumps(ROWS).encode(), json.dumps(ROWS[0], indent=2).encode()])
@pytest.mark.parametrize("name", ["rows.txt", "rows", "rows.txt.gz"])
def test_json_under_the_name_of_plain_text_is_not_measured_with_its_braces(content, name, tmp_path):
    (tmp_path / name).write_bytes(gzip.compress(content, mtime=0) if name.endswith(".gz") else content)
    assert refusal(tmp_path / name).endswith("is not plain text but JSON: name it .jsonl (an object a line) or .json")


@pytest.mark.parametrize("text", ["[1] Introduction", "{curly} words", "[] and {}", '"quoted" words', "12 monkeys"])
def test_text_that_only_begins_like_json_is_text(text, tmp_path):
    (tmp_path / "a.txt").write_text(text)
    assert read(tmp_path / "a.txt") == [text]


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".json", ".array.json", ".csv", ".tsv", ".jsonl.gz"])
def test_a_byte_order_mark_is_neither_text_nor_an_error(suffix, tmp_path):
    content = CONTENT.get(suffix, LINES if "json" in suffix else b"words")
    marked = b"\xef\xbb\xbf" + content
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(gzip.compress(marked, mtime=0) if suffix.endswith(".gz") else marked)
    assert read(path) == (["words"] if suffix == ".txt" else TEXTS)


def test_a_byte_order_mark_does_not_hide_the_first_column(tmp_path):
    (tmp_path / "rows.csv").write_bytes(b"\xef\xbb\xbftext,number\r\nwords,1\r\n")
    assert read(tmp_path / "rows.csv") == ["words"]


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".json", ".csv"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"])
def test_other_encodings_are_refused(suffix, encoding, tmp_path):
    path = tmp_path / f"rows{suffix}"
    path.write_bytes('{"text": "é"}\n'.encode(encoding))
    message = refusal(path)
    assert "is not UTF-8 text (byte " in message and message.endswith("): convert it to UTF-8")


def test_zero_bytes_are_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"abc\0def")
    assert refusal(tmp_path / "a.txt") == f"file '{tmp_path}/a.txt' is not UTF-8 text (byte 3): convert it to UTF-8"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (r'{"text": "a \ud800 b"}', "column 'text' holds half of a surrogate pair at character 2"),
        ("[" * 100_000, "is nested too deep: write one flat object a line"),
        ('{"text": ' * 100_000, "is nested too deep: write one flat object a line"),
        ('{"text": "a", "text": "b"}', "is not JSON (an object has 'text' twice)"),
        ('"words"', "is not an object with columns but str"),
        ("null", "is not an object with columns but NoneType"),
        ('{"text": null}', "column 'text' holds NoneType, not text"),
        ('{"text": ["a"]}', "column 'text' holds list, not text"),
        ('{"text": 3}', "column 'text' holds int, not text"),
        ('{"text": ' + "9" * 5000 + "}", "column 'text' holds int, not text"),
        ('{"text": 1e999}', "column 'text' holds float, not text"),
        ('{"text": "a"', "is not JSON ("),
    ],
)
def test_a_line_of_json_that_holds_no_text_is_refused_by_its_number(line, expected, tmp_path):
    (tmp_path / "rows.jsonl").write_text(f'{{"text": "good"}}\n{line}\n')
    message = refusal(tmp_path / "rows.jsonl")
    assert message.startswith(f"line 2 of '{tmp_path}/rows.jsonl'") and expected in message


def test_numbers_of_any_size_beside_the_text_do_not_matter(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"id": ' + "9" * 5000 + ', "x": 1e999, "text": "words"}\r\n\r\n')
    assert read(tmp_path / "rows.jsonl") == ["words"]


def test_an_array_is_no_line_and_a_row_of_it_is_named(tmp_path):
    (tmp_path / "rows.json").write_text('[{"text": "a"},\n {"txt": "b"}]')
    assert refusal(tmp_path / "rows.json").startswith(f"row 2 of '{tmp_path}/rows.json' has no column 'text'")
    (tmp_path / "rows.json").write_text('[{"text": "a"},\n')
    assert refusal(tmp_path / "rows.json").startswith(f"file '{tmp_path}/rows.json' is not JSON (")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("text,text\na,b\n", "has 2 columns 'text': leave one of that name"),
        ("words\na\n", "has no column 'text': allowed: words"),
        ("text,n\na\n", "line 2 of '{path}' has 1 fields, but the first line 2"),
        ("text,n\na,1,2\n", "line 2 of '{path}' has 3 fields, but the first line 2"),
        ('text,n\n"a" b,1\n', "line 2 of '{path}' has no clear columns ("),
        ('text,n\n"a,1\n', "line 2 of '{path}' has no clear columns ("),
    ],
)
def test_columns_that_are_not_clear_are_refused(content, expected, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(content)
    assert expected.format(path=path) in refusal(path)


def test_a_field_may_be_as_long_as_a_book(tmp_path):
    before = csv.field_size_limit()
    (tmp_path / "rows.csv").write_text(f"text,n\n{'words ' * 50_000},1\n")
    assert read(tmp_path / "rows.csv") == ["words " * 50_000]
    assert csv.field_size_limit() == before


def test_parquet_that_holds_no_text_is_refused(tmp_path):
    path = tmp_path / "rows.parquet"
    path.write_bytes(parquet({"text": [b"\xff"]}))
    assert refusal(path) == f"row 1 of '{path}': column 'text' holds bytes, not text"
    path.write_bytes(parquet({"text": [1.5]}))
    assert refusal(path) == f"row 1 of '{path}': column 'text' holds float, not text"
    not_utf8 = pa.Array.from_buffers(pa.string(), 1, pa.array([b"a\xff"]).buffers())
    pq.write_table(pa.table({"text": not_utf8}), path)
    assert refusal(path).startswith(f"'{path}' cannot be read as Parquet: ")
    whole = parquet({"text": ["words"] * 1000})
    path.write_bytes(whole[: len(whole) // 2])
    assert refusal(path).startswith(f"'{path}' cannot be read as Parquet: ")
    twice = pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(twice, path)
    assert refusal(path) == f"'{path}' has 2 columns 'text': leave one of that name"


@pytest.mark.parametrize("suffix", [".txt.gz", ".jsonl.gz", ".csv.bz2", ".jsonl.xz", ".txt.bz2", ".txt.xz"])
@pytest.mark.parametrize("fault", ["cut", "other"])
def test_a_compressed_file_that_is_cut_short_or_is_none_is_refused(suffix, fault, tmp_path):
    path = tmp_path / f"rows{suffix}"
    noise = os.urandom(3000).hex()
    content = json.dumps({"text": noise}) if "json" in suffix else f"text\n{noise}"
    whole = COMPRESSORS[path.suffix](content.encode())
    path.write_bytes(whole[:-20] if fault == "cut" else b"text and no compression")
    assert refusal(path).startswith(f"file '{path}' cannot be read to its end (")


@pytest.mark.parametrize("raised", [PermissionError(13, "Permission denied"), OSError(5, "Input/output error")])
def test_a_file_that_may_not_or_cannot_be_read_is_named(raised, tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("words")
    monkeypatch.setattr(Path, "open", lambda *_, **__: (_ for _ in ()).throw(raised))
    assert refusal(path).startswith(f"file '{path}' cannot be read to its end (")


@pytest.mark.parametrize(
    ("name", "content", "held"),
    [
        ("rows.jsonl", b'{"text": ""}\n{"text": " \\n"}\n', "all of its 2 documents are empty"),
        ("rows.csv", b"text,n\n,1\n,2\n,3\n", "all of its 3 documents are empty"),
        ("rows.csv", b"text,n\n", "there are no documents"),
        ("rows.parquet", parquet({"text": pa.array([], pa.string())}), "there are no documents"),
        ("rows.jsonl", b"\n\n", "there are no documents"),
        ("rows.json", b"[]", "there are no documents"),
        ("a.txt", b" \n\n", "all of its 1 documents are empty"),
        ("a.txt", b"\xef\xbb\xbf", "all of its 1 documents are empty"),
        ("a.txt.gz", gzip.compress(b"", mtime=0), "all of its 1 documents are empty"),
    ],
)
@pytest.mark.parametrize("separator", [None, "\n"])
def test_a_corpus_without_text_is_refused_whatever_joins_it(name, content, held, separator, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorpusError) as caught:
        read(tmp_path / name, separator=separator)
    assert str(caught.value) == f"corpus '{tmp_path}/{name}' holds no text, {held}: give another text or column"


def test_empty_documents_add_no_separators_but_lines_stay_lines(tmp_path):
    texts = ["", "one", " ", "two", ""]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    assert read(tmp_path / "rows.jsonl") == ["one", "two"]
    assert read(tmp_path / "rows.jsonl", separator="\n") == texts


def test_pipes_and_devices_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    for name in (str(tmp_path / "pipe.txt"), "/dev/null"):
        assert (
            refusal(name)
            == f"{name!r} is a pipe or device, which cannot be read twice: write its content to a file first"
        )
    assert refusal("x" * 5000).startswith(f"'{'x' * 5000}' cannot be looked at (")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    assert refusal(tmp_path / "gone.txt") == f"no such file or folder: '{tmp_path}/gone.txt'"


def test_a_data_set_goes_before_a_file_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("wikitext", "text"):
        (tmp_path / name).write_text("words")
    assert local_file("text") and not local_file("wikitext")


def test_names_without_the_suffixes_of_formats():
    names = {
        "a/c4.JSONL.gz": "c4",
        "wiki.test.raw": "wiki.test",
        "x.csv": "x",
        "Qwen/Qwen3-0.6B": "Qwen3-0.6B",
        "c4/": "c4",
    }
    assert {name: bare_name(name) for name in names} == names


def test_a_huge_file_is_known_by_its_ends_and_its_length(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "_GIBIBYTE", 4)
    path, digests = tmp_path / "a.txt", []
    for content in ("abcdXefgh", "abcdYefgh", "abcdXXefgh", "Xbcdxefgh", "abcdxefgX", "abcdefgh"):
        path.write_text(content)
        digests.append(file_digest(path))
    assert digests[0] == digests[1] and len(set(digests)) == 5
    assert digests[5] == hashlib.sha256(b"abcdefgh").hexdigest()
