"""The words of a card are kept beside the copy of a GGUF file, and belong to all that decided them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gguf_files import random_model, write_gguf
from ropescope import cli

LOOK_AGAIN = """
import sys
from ropescope import cli
cli.main(["inspect", {path!r}])
print(sorted({{"torch", "transformers"}} & set(sys.modules)))
"""


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ROPESCOPE_CACHE", str(tmp_path / "cache"))
    return write_gguf(tmp_path / "model.gguf", random_model("llama"), "llama")


def words(path: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    cli.main(["inspect", str(path), *options])
    return capsys.readouterr().out


def kept(path: Path) -> list[Path]:
    return list((path.parent / "cache").rglob("card-*.txt"))


def test_the_second_look_says_the_same_and_imports_neither_torch_nor_transformers(path, capsys):
    first = words(path, capsys)
    again = subprocess.run(
        [sys.executable, "-c", LOOK_AGAIN.format(path=str(path))], capture_output=True, text=True, check=True
    )
    assert again.stdout == f"{first}[]\n"


def test_a_moved_file_is_known_by_its_content_and_called_by_its_new_name(path, capsys, monkeypatch):
    first = words(path, capsys)
    moved = path.rename(path.with_name("other.gguf"))
    monkeypatch.setattr("ropescope.model.loading.load_bare_model", None)
    assert words(moved, capsys) == first.replace("model.gguf", "other.gguf")


def test_another_dtype_has_words_of_its_own(path, capsys):
    words(path, capsys)
    assert "bfloat16" in words(path, capsys, "--dtype", "bfloat16")
    assert "float32" in words(path, capsys)
    assert len(kept(path)) == 2


def test_a_file_of_other_content_under_the_same_name_is_opened(path, capsys):
    first = words(path, capsys)
    write_gguf(path, random_model("llama"), "llama", rope__freq_base=5e5)
    assert words(path, capsys) != first


@pytest.mark.parametrize("changed", ["_own_source", "version"])
def test_other_code_looks_for_itself(path, capsys, monkeypatch, changed):
    words(path, capsys)
    monkeypatch.setattr(f"ropescope.model.kept_cards.{changed}", lambda *_: "other")
    words(path, capsys)
    assert len(kept(path)) == 2


def test_a_revision_is_still_refused(path, capsys):
    words(path, capsys)
    with pytest.raises(SystemExit):
        words(path, capsys, "--revision", "main")
    assert "only hub ids have revisions" in capsys.readouterr().err


def test_where_no_copy_can_be_kept_the_words_come_all_the_same(path, capsys, monkeypatch):
    (path.parent / "file").touch()
    monkeypatch.setenv("ROPESCOPE_CACHE", str(path.parent / "file" / "cache"))
    assert "half-split" in words(path, capsys)


def test_words_that_cannot_be_read_are_found_again(path, capsys):
    first = words(path, capsys)
    (file,) = kept(path)
    file.write_bytes(b"\xff\xfe\xff")
    assert words(path, capsys) == first


def test_a_folder_keeps_no_words(saved, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("ROPESCOPE_CACHE", str(tmp_path / "cache"))
    words(saved, capsys)
    assert not (tmp_path / "cache").exists()
