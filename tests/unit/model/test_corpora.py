"""Token windows: the tokens are those of the whole text, cut as the protocol says, from every kind of source."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import random
from functools import partial
from itertools import pairwise
from pydoc_data.topics import topics

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch.utils.data import DataLoader

from checkout import DATA
from refusals import refused
from ropescope.base.errors import CorpusError
from ropescope.model import corpora
from ropescope.model import windows as windows_module
from ropescope.model.windows import TokenWindows, token_windows, windows_protocol

WIKITEXT = DATA / "wikitext" / "wiki.test.raw"
C4 = DATA / "c4" / "c4_en_train_first1000.jsonl"
refusal = partial(refused, CorpusError, token_windows)
DOCUMENTS = [f"Document {number}: the lobster has {number} claws , and more ." for number in range(400)]
needs_wikitext = pytest.mark.skipif(not WIKITEXT.is_file(), reason="WikiText is not at ../shared/data/wikitext")
needs_c4 = pytest.mark.skipif(not C4.is_file(), reason="C4 is not at ../shared/data/c4")


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def wrapped(tokenizer, bos=False):
    from transformers import PreTrainedTokenizerFast

    if bos:
        template = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
        )
        tokenizer.post_processor = template
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", model_max_length=64)


def byte_level(bos=False):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=["<s>"], show_progress=False
    )
    tokenizer.train_from_iterator(DOCUMENTS, trainer)
    return wrapped(tokenizer, bos)


def sentence_pieces():
    """BPE as Llama-2 and Gemma use it: no words, merges over the whole text, bytes for the rest."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("_"), normalizers.Replace(" ", "_")])
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>", "<s>"], show_progress=False)
    tokenizer.train_from_iterator(DOCUMENTS[:50], trainer)
    return wrapped(tokenizer)


def unigram():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["<unk>", "<s>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(DOCUMENTS, trainer)
    return wrapped(tokenizer)


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level()


@pytest.fixture(scope="module")
def bos_tokenizer():
    return byte_level(bos=True)


@pytest.fixture(scope="module", params=[byte_level, sentence_pieces, unigram], ids=lambda made: made.__name__)
def any_tokenizer(request):
    return request.param()


@pytest.fixture
def jsonl(tmp_path):
    path = tmp_path / "documents.jsonl"
    path.write_text("".join(json.dumps({"text": text, "url": "u"}) + "\n" for text in DOCUMENTS))
    return path


@pytest.fixture
def folder(tmp_path):
    """A data set with two splits, as the hub would hold it."""
    path = tmp_path / "dataset"
    path.mkdir()
    for split, texts in (("validation", DOCUMENTS), ("test", DOCUMENTS[::-1])):
        rows = {"text": texts, "number": list(range(len(texts)))}
        pq.write_table(pa.table(rows), path / f"{split}-00000-of-00001.parquet")
    return path


def plain(tokenizer, text):
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def test_windows_are_the_tokens_of_the_whole_text(tokenizer, jsonl):
    windows = token_windows(tokenizer, jsonl, length=32)
    whole = plain(tokenizer, "\n\n".join(DOCUMENTS))
    assert windows.shape == (len(whole) // 32, 32)
    assert windows.dtype == torch.int64
    assert windows.flatten().tolist() == whole[: windows.numel()]


def test_tokenizer_that_prepends_bos(tokenizer, bos_tokenizer, jsonl):
    windows = token_windows(bos_tokenizer, jsonl, length=32, count=3)
    bos = bos_tokenizer.bos_token_id
    assert windows[:, 0].tolist() == [bos] * 3
    body = windows[:, 1:].flatten().tolist()
    assert body == plain(tokenizer, "\n\n".join(DOCUMENTS))[: 3 * 31]
    assert (windows.protocol["bos"], windows.protocol["bos_ids"]) == (True, [bos])


def test_bos_can_be_forced_and_forbidden(tokenizer, bos_tokenizer, jsonl):
    bos = tokenizer.bos_token_id
    assert token_windows(tokenizer, jsonl, length=8, count=1, bos=True)[0, 0] == bos
    assert token_windows(bos_tokenizer, jsonl, length=8, count=1, bos=True)[0, :2].tolist().count(bos) == 1
    assert bos not in token_windows(bos_tokenizer, jsonl, length=8, count=1, bos=False)
    assert token_windows(tokenizer, jsonl, length=8, count=1).protocol["bos"] is False


@pytest.mark.parametrize("length", [2, 7, 64, 500])
def test_few_windows_are_the_first_of_all(any_tokenizer, jsonl, length):
    everything = token_windows(any_tokenizer, jsonl, length=length)
    for count in {1, 2, len(everything) // 2, len(everything)}:
        assert torch.equal(token_windows(any_tokenizer, jsonl, length=length, count=count), everything[:count])


FRAGMENTS = ["Document ", "the lobster", " claws", ",", " ", "  ", "\n", "=", "aaaa", "é", "漢", "_", "1", "23"]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    fragments=st.integers(1, 3000),
    documents=st.integers(1, 5),
    needed=st.integers(1, 300),
    separator=st.sampled_from(["", " ", "\n\n"]),
)
def test_a_growing_prefix_gives_the_tokens_of_the_whole(any_tokenizer, seed, fragments, documents, needed, separator):
    chance = random.Random(seed)
    texts = ["".join(chance.choices(FRAGMENTS, k=fragments)) for _ in range(documents)]
    encode = windows_module._encoder(any_tokenizer)
    text = separator.join(texts)
    whole = encode(text)
    ids, read = windows_module._tokens(encode, iter(texts), separator, needed)
    assert ids == whole[:needed]
    assert read <= len(texts)
    part = encode(text[: chance.randrange(len(text))])
    safe = max(0, len(part) - windows_module._SLACK)
    assert part[:safe] == whole[:safe]


def test_no_more_is_read_than_needed(tokenizer, jsonl):
    few = token_windows(tokenizer, jsonl, length=32, count=1)
    assert few.protocol["documents"] < 60
    assert token_windows(tokenizer, jsonl, length=32).protocol["documents"] == len(DOCUMENTS)


def test_one_long_document_is_read_whole_but_tokenised_in_part(tokenizer):
    encoded = []

    def encode(text):
        encoded.append(len(text))
        return plain(tokenizer, text)

    windows_module._tokens(encode, iter(["the lobster " * 100_000]), "", 100)
    assert max(encoded) < 20_000


def test_protocol(tokenizer, jsonl):
    windows = token_windows(tokenizer, jsonl, length=16, count=2)
    protocol = windows.protocol
    assert json.loads(json.dumps(protocol)) == protocol
    content = hashlib.sha256(windows.numpy().astype("<i8").tobytes()).hexdigest()
    expected = {
        "corpus": jsonl.name,
        "file_sha256": hashlib.sha256(jsonl.read_bytes()).hexdigest(),
        "config": None,
        "split": None,
        "column": "text",
        "revision": None,
        "length": 16,
        "windows": 2,
        "sha256": content,
        "separator": "\n\n",
        "bos": False,
        "bos_ids": [],
        "seed": None,
        "documents": protocol["documents"],
        "tokens": 32,
        "tokenizer": type(tokenizer).__name__,
    }
    assert protocol == expected
    assert windows_protocol(windows) == expected
    plain_windows = windows.clone()
    facts = {"corpus": "unspecified", "length": 16, "windows": 2, "sha256": content}
    assert windows_protocol(plain_windows) == facts


def test_windows_are_a_tensor_whose_results_are_plain(tokenizer, jsonl):
    windows = token_windows(tokenizer, jsonl, length=16, count=4)
    assert isinstance(windows, torch.Tensor)
    for result in (windows[0:2], windows.to(torch.int32), windows + 1, torch.cat([windows]), next(iter(windows))):
        assert type(result) is torch.Tensor
    batches = list(DataLoader(windows, batch_size=2))
    assert [batch.shape for batch in batches] == [(2, 16), (2, 16)]
    assert torch.equal(torch.cat(batches), windows)


def test_windows_can_be_saved_and_copied(tokenizer, jsonl):
    windows = token_windows(tokenizer, jsonl, length=16, count=2)
    file = io.BytesIO()
    torch.save(windows, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert type(loaded) is torch.Tensor
    assert torch.equal(loaded, windows)
    copied = copy.deepcopy(windows)
    assert isinstance(copied, TokenWindows)
    assert copied.protocol == windows.protocol


def test_seed_shuffles_documents(tokenizer, jsonl):
    first = token_windows(tokenizer, jsonl, length=32, seed=1)
    again = token_windows(tokenizer, jsonl, length=32, seed=1)
    other = token_windows(tokenizer, jsonl, length=32, seed=2)
    order = list(DOCUMENTS)
    random.Random(1).shuffle(order)
    assert torch.equal(first, again)
    assert not torch.equal(first[:5], other[:5])
    assert first.flatten().tolist() == plain(tokenizer, "\n\n".join(order))[: first.numel()]
    assert (first.protocol["seed"], first.protocol["shuffle"]) == (1, "all documents")


def test_nothing_is_printed(tokenizer, jsonl, folder, capsys):
    token_windows(tokenizer, jsonl, length=128)
    token_windows(tokenizer, folder, length=128)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("suffix", [".txt", ".md", ".raw", ""])
def test_text_file_is_one_document(tokenizer, tmp_path, suffix):
    path = tmp_path / f"text{suffix}"
    text = "Zeile eins\r\nZeile zwei\n" * 20
    path.write_bytes(text.encode())
    windows = token_windows(tokenizer, path, length=16)
    assert windows.flatten().tolist() == plain(tokenizer, text)[: windows.numel()]
    assert windows.protocol["documents"] == 1


def test_json_lines_and_parquet_of_any_column(tokenizer, tmp_path):
    lines = tmp_path / "rows.json"
    lines.write_text("".join(json.dumps({"body": text}) + "\n\n" for text in DOCUMENTS))
    table = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"body": DOCUMENTS, "other": [0] * len(DOCUMENTS)}), table, row_group_size=37)
    from_lines = token_windows(tokenizer, lines, column="body", length=32)
    from_table = token_windows(tokenizer, table, column="body", length=32)
    assert torch.equal(from_lines, from_table)
    assert from_table.protocol["column"] == "body"


def test_data_set_folder(tokenizer, folder, jsonl):
    windows = token_windows(tokenizer, folder, length=32)
    assert torch.equal(windows, token_windows(tokenizer, jsonl, length=32))
    assert windows.protocol["split"] == "validation"
    test = token_windows(tokenizer, str(folder), split="test", separator=" ", length=32)
    assert test.flatten().tolist() == plain(tokenizer, " ".join(DOCUMENTS[::-1]))[: test.numel()]
    assert test.protocol["separator"] == " "


def test_data_set_is_shuffled_by_datasets(tokenizer, folder, monkeypatch):
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)
    for shard in range(4):
        rows = pa.table({"text": DOCUMENTS[shard::4], "number": list(range(100))})
        pq.write_table(rows, folder / f"train-0000{shard}-of-00004.parquet")
    first = token_windows(tokenizer, folder, split="train", length=32, seed=1)
    for count in (len(first), 2):
        again = token_windows(tokenizer, folder, split="train", length=32, seed=1, count=count)
        assert torch.equal(first[:count], again)
    assert not torch.equal(first[:5], token_windows(tokenizer, folder, split="train", length=32)[:5])
    assert first.protocol["shuffle"] == "buffer of 10000"


def test_the_only_split_is_the_default(tokenizer, folder):
    (folder / "validation-00000-of-00001.parquet").unlink()
    assert token_windows(tokenizer, folder, length=32).protocol["split"] == "test"


def test_builtin_is_the_language_reference(tokenizer):
    windows = token_windows(tokenizer, "builtin", length=256)
    texts = [topics[key] for key in sorted(topics)]
    whole = plain(tokenizer, "\n\n".join(texts[::2]))
    assert windows.flatten().tolist() == whole[: windows.numel()]
    assert windows.protocol["split"] == "validation"
    assert windows.protocol["text_sha256"] == hashlib.sha256("".join(texts[::2]).encode()).hexdigest()
    test = token_windows(tokenizer, "builtin", split="test", length=256, count=1)
    assert test[0].tolist() == plain(tokenizer, texts[1])[:256]


def published(path):
    return path.read_bytes().decode("utf-8")


def stored(text):
    """WikiText's lines as Salesforce/wikitext stores them."""
    return [line if line.strip() else "" for line in text.splitlines(keepends=True)]


@pytest.fixture
def wikitext_folder(tmp_path, monkeypatch):
    """The data set on the hub, rebuilt from the published file."""
    path = tmp_path / "wikitext"
    (path / "raw").mkdir(parents=True)
    pq.write_table(pa.table({"text": stored(published(WIKITEXT))}), path / "raw" / "test.parquet")
    pq.write_table(pa.table({"text": ["unused"]}), path / "raw" / "validation.parquet")
    files = [f"  - split: {split}\n    path: raw/{split}.parquet\n" for split in ("validation", "test")]
    header = f"configs:\n- config_name: wikitext-103-raw-v1\n  data_files:\n{''.join(files)}"
    (path / "README.md").write_text(f"---\n{header}---\n")
    monkeypatch.setitem(corpora.HUB_CORPORA, "wikitext", (str(path), "wikitext-103-raw-v1"))
    return path


@needs_wikitext
@pytest.mark.parametrize("name", ["wiki.test.raw", "wiki.valid.raw"])
def test_wikitext_is_the_published_file_byte_for_byte(name):
    text = published(WIKITEXT.with_name(name))
    articles = list(corpora._articles(stored(text)))
    assert "".join(articles) == text
    assert len(articles) == 60
    assert all(article.startswith(" \n = ") for article in articles)


@pytest.mark.slow
@needs_wikitext
def test_wikitext_tokens_are_those_of_the_published_file(tokenizer, wikitext_folder):
    from_set = token_windows(tokenizer, "wikitext", split="test", length=1024)
    from_file = token_windows(tokenizer, WIKITEXT, length=1024)
    assert torch.equal(from_set, from_file)
    protocol = from_set.protocol
    assert (protocol["config"], protocol["split"]) == ("wikitext-103-raw-v1", "test")
    assert (protocol["documents"], protocol["separator"]) == (60, "")
    few = token_windows(tokenizer, "wikitext", split="test", length=1024, count=2)
    assert torch.equal(few, from_file[:2])
    assert few.protocol["documents"] < 10


@needs_wikitext
def test_wikitext_shuffles_articles(tokenizer, wikitext_folder):
    windows = token_windows(tokenizer, "wikitext", split="test", length=1024, count=1, seed=3)
    articles = list(corpora._articles(stored(published(WIKITEXT))))
    random.Random(3).shuffle(articles)
    assert windows[0].tolist() == plain(tokenizer, "".join(articles[:2]))[:1024]
    assert windows.protocol["shuffle"] == "all articles"


@needs_wikitext
def test_wikitext_rows_joined_by_a_separator(tokenizer, wikitext_folder):
    windows = token_windows(tokenizer, "wikitext", split="test", length=1024, count=1, separator="\n\n")
    assert windows[0].tolist() == plain(tokenizer, "\n\n".join(stored(published(WIKITEXT))[:60]))[:1024]


@needs_c4
def test_c4_joins_documents_by_a_blank_line(tokenizer, tmp_path, monkeypatch):
    path = tmp_path / "c4"
    path.mkdir()
    (path / "validation.jsonl").write_bytes(C4.read_bytes())
    monkeypatch.setitem(corpora.HUB_CORPORA, "c4", (str(path), None))
    windows = token_windows(tokenizer, "c4", length=512, count=20)
    assert torch.equal(windows, token_windows(tokenizer, C4, length=512, count=20))
    assert windows.protocol["separator"] == "\n\n"


def test_commit_is_read_off_the_address_of_the_files():
    commit = "0123456789abcdef0123456789abcdef01234567"
    assert corpora._COMMIT.search(f"hf://datasets/a/b@{commit}/x.parquet")[1] == commit
    assert corpora._COMMIT.search("folder/x.parquet") is None


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"length": 1}, "length=1: a window needs at least 2 tokens"),
        ({"count": 0}, "count=0: ask for at least 1 window, or for None to have all"),
        ({"bos": "maybe"}, "bos='maybe': use True, False or 'auto'"),
    ],
)
def test_numbers_out_of_bounds(tokenizer, options, expected):
    assert refusal(tokenizer, "builtin", **options) == expected


def test_bos_that_the_tokenizer_lacks(jsonl):
    from transformers import PreTrainedTokenizerFast

    without = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?")))
    expected = f"bos=True, but the tokenizer '{type(without).__name__}' has no BOS token: use bos=False"
    assert refusal(without, jsonl, bos=True) == expected


def test_prefix_longer_than_a_window(tokenizer, monkeypatch):
    monkeypatch.setattr(windows_module, "_prefix", lambda tokenizer, bos: [1, 2])
    expected = "length=2: the tokenizer puts 2 tokens before every text; use more"
    assert refusal(tokenizer, "builtin", length=2) == expected


def test_more_windows_than_there_are(tokenizer, tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("Document 7")
    held = len(plain(tokenizer, "Document 7"))
    expected = f"corpus {str(path)!r} holds {held} tokens, {held // 2} window, but 9 windows of 2 tokens asked for: "
    assert refusal(tokenizer, path, length=2, count=9) == f"{expected}ask for count={held // 2} or fewer, or more text"
    expected = f"corpus {str(path)!r} holds {held} tokens, 0 windows, but 1 window of 99 tokens asked for: "
    assert refusal(tokenizer, path, length=99) == f"{expected}use length={held} or less, or more text"


def test_options_that_files_do_not_have(tokenizer, jsonl):
    message = refusal(tokenizer, jsonl, split="test")
    fix = "leave it out, or give the file of that split"
    assert message == f"split='test': the file {str(jsonl)!r} has no splits; {fix}"
    message = refusal(tokenizer, jsonl, config="en")
    assert message == f"config='en' applies to data sets only, not to {str(jsonl)!r}: leave it out"
    message = refusal(tokenizer, "builtin", revision="main")
    assert message == "revision='main' applies to data sets only, not to 'builtin': leave it out"


@pytest.mark.parametrize("name", ["nope.txt", "./nope", "/nope/x", "~/nope/x", "nope/x/y", "nope.parquet"])
def test_file_that_does_not_exist(tokenizer, name):
    assert refusal(tokenizer, name) == f"no such file or folder: {name!r}"


def test_empty_and_undecodable_files(tokenizer, tmp_path):
    path = tmp_path / "file.txt"
    path.touch()
    assert refusal(tokenizer, path) == f"file '{path}' is empty"
    path.write_bytes(b"abc\xff")
    assert refusal(tokenizer, path) == f"file '{path}' is not UTF-8 text (byte 3): convert it to UTF-8"


def test_json_lines_errors(tokenizer, tmp_path):
    path = tmp_path / "rows.jsonl"
    good = json.dumps({"text": "a", "title": "b"})
    path.write_text(f"{good}\n\n{{nope\n")
    assert refusal(tokenizer, path).startswith(f"line 3 of '{path}' is not JSON (")
    path.write_text(f"{good}\n")
    expected = f"line 1 of '{path}' has no column 'test': did you mean 'text'? (allowed: text, title)"
    assert refusal(tokenizer, path, column="test") == expected
    path.write_text(f'{good}\n{{"text": 3}}\n')
    assert refusal(tokenizer, path) == f"line 2 of '{path}': column 'text' holds int, not text"
    path.write_text("[1]\n")
    assert refusal(tokenizer, path) == f"line 1 of '{path}' is not an object with columns but list"
    path.write_bytes(b'{"text": "\xff"}\n')
    assert refusal(tokenizer, path) == f"line 1 of '{path}' is not UTF-8 text (byte 10): convert it to UTF-8"


def test_parquet_errors(tokenizer, tmp_path):
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"not parquet at all")
    assert refusal(tokenizer, path).startswith(f"'{path}' cannot be read as Parquet: ")
    pq.write_table(pa.table({"text": ["a", None]}), path)
    assert refusal(tokenizer, path) == f"row 2 of '{path}': column 'text' holds NoneType, not text"
    expected = f"'{path}' has no column 'txt': did you mean 'text'? (allowed: text)"
    assert refusal(tokenizer, path, column="txt") == expected


def test_data_set_errors(tokenizer, folder):
    name = repr(str(folder))
    message = refusal(tokenizer, folder, split="tests")
    assert message == f"data set {name} has no split 'tests': did you mean 'test'? (allowed: validation, test)"
    message = refusal(tokenizer, folder, config="en")
    assert message == f"data set {name}: unknown config 'en': allowed: default"
    message = refusal(tokenizer, folder, column="txt")
    assert message == f"row 1 of data set {name} has no column 'txt': did you mean 'text'? (allowed: text, number)"
    message = refusal(tokenizer, folder, column="number")
    assert message == f"row 1 of data set {name}: column 'number' holds int, not text"
    (folder / "validation-00000-of-00001.parquet").write_bytes(b"PAR1 not parquet PAR1")
    assert refusal(tokenizer, folder).startswith(f"data set {name} cannot be opened: ")


def test_data_set_whose_config_must_be_named(tokenizer, folder):
    configs = "".join(f"- config_name: {name}\n  data_files: {name}-*.parquet\n" for name in ("validation", "test"))
    (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    message = refusal(tokenizer, folder)
    assert message == f"data set {str(folder)!r}: a config must be given: allowed: validation, test"


def test_folder_without_data(tokenizer, tmp_path):
    (tmp_path / "bare").mkdir()
    message = refusal(tokenizer, tmp_path / "bare")
    assert message.startswith(f"data set {str(tmp_path / 'bare')!r} cannot be opened: ")


def test_data_set_out_of_reach(tokenizer):
    message = refusal(tokenizer, "nobody/none")
    assert message.startswith("data set 'nobody/none': the hub cannot be reached (")
    assert message.endswith("); go online, or give the path of a .txt, .jsonl, .csv or .parquet file")
    assert "wikitext" in refusal(tokenizer)


def test_data_set_that_does_not_exist(tokenizer, monkeypatch):
    from datasets.exceptions import DatasetNotFoundError

    def refuse(*args, **kwargs):
        raise DatasetNotFoundError("Dataset 'a/b' doesn't exist on the Hub or cannot be accessed.\nmore")

    monkeypatch.setattr("datasets.load_dataset_builder", refuse)
    message = refusal(tokenizer, "a/b")
    assert message.startswith("no data set 'a/b': Dataset 'a/b' doesn't exist on the Hub")
    assert message.endswith("check the name, or give the path of a .txt, .jsonl, .csv or .parquet file")


def test_unknown_split_of_builtin(tokenizer):
    expected = "unknown split 'tests' of 'builtin': did you mean 'test'? (allowed: validation, test)"
    assert refusal(tokenizer, "builtin", split="tests") == expected


def test_windows_do_not_overlap(tokenizer, tmp_path):
    path = tmp_path / "count.txt"
    path.write_text(" ".join(str(number) for number in range(2000)))
    windows = token_windows(tokenizer, path, length=64)
    text = "".join(tokenizer.decode(window) for window in windows)
    numbers = [int(number) for number in text.split()[:-1]]
    assert all(after == before + 1 for before, after in pairwise(numbers))


@pytest.mark.parametrize("text", ["a", "D"])
def test_a_text_too_short_for_any_window_is_not_told_to_use_a_shorter_one(tokenizer, tmp_path, text):
    path = tmp_path / "short.txt"
    path.write_text(text)
    expected = f"corpus {str(path)!r} holds 1 tokens, 0 windows, but 1 window of 9 tokens asked for: give more text"
    assert refusal(tokenizer, path, length=9) == expected


def test_protocol_names_content_and_not_the_way_to_it(tokenizer, tmp_path):
    """What decides whether two corpora are one is their content, wherever each machine keeps it."""
    facts = []
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        path = tmp_path / place / "novel.txt"
        path.write_text(" ".join(DOCUMENTS))
        facts.append(token_windows(tokenizer, path, length=32).protocol)
    assert facts[0] == facts[1]
    (tmp_path / "there" / "novel.txt").write_text(" ".join(DOCUMENTS) + "!")
    other = token_windows(tokenizer, tmp_path / "there" / "novel.txt", length=32, count=1).protocol
    assert (other["corpus"], other["file_sha256"] == facts[0]["file_sha256"]) == ("novel.txt", False)


def test_protocol_of_a_folder_names_its_content(tokenizer, folder, tmp_path):
    first = token_windows(tokenizer, folder, length=32, count=1).protocol
    moved = folder.rename(tmp_path / "else")
    again = token_windows(tokenizer, moved, length=32, count=2).protocol
    test = token_windows(tokenizer, moved, length=32, count=1, split="test").protocol
    assert (first["corpus"], again["corpus"]) == ("dataset", "else")
    assert first["file_sha256"] == again["file_sha256"] != test["file_sha256"]


def test_protocol_names_a_tokenizer_without_the_way_to_it(jsonl, tmp_path):
    from transformers import AutoTokenizer

    byte_level().save_pretrained(tmp_path / "secret" / "tiny")
    saved = AutoTokenizer.from_pretrained(tmp_path / "secret" / "tiny")
    protocol = token_windows(saved, jsonl, length=32, count=1).protocol
    assert protocol["tokenizer"] == "tiny" and str(tmp_path) not in json.dumps(protocol)
    saved.name_or_path = "someone/model"
    assert token_windows(saved, jsonl, length=32, count=1).protocol["tokenizer"] == "someone/model"
