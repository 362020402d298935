"""The command compare, from files to words, Markdown and figures."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import xarray as xr

import ropescope as rs
from refusals import refusal
from ropescope import cli
from ropescope.measurement.results import save
from synthetic import synthetic_result


def renamed(result: xr.DataTree, model: str) -> xr.DataTree:
    given = json.loads(result.attrs["provenance"])
    given["model"] |= {"id": model, "fingerprint": model}
    result.attrs["provenance"] = json.dumps(given)
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("results")
    save(synthetic_result(), path / "wikitext.nc")
    save(synthetic_result(seed=1, length=8192, corpus="c4"), path / "c4.nc")
    save(synthetic_result(layers=6, heads=4), path / "wider.nc")
    save(renamed(synthetic_result(layers=6, heads=4), "another"), path / "another.nc")
    (path / "again").mkdir()
    save(synthetic_result(seed=2), path / "again" / "wikitext.nc")
    return path


def compare(folder: Path, names: list[str], output: Path, *options: str) -> None:
    cli.main(["compare", *(str(folder / name) for name in names), "--output-dir", str(output), *options])


@pytest.mark.slow
def test_one_result_says_where_its_bands_live(folder, tmp_path, capsys):
    compare(folder, ["wikitext.nc"], tmp_path / "new")
    printed = capsys.readouterr().out
    assert printed.startswith("Where do bands live in synthetic/tiny-irope?")
    assert {path.name for path in (tmp_path / "new").iterdir()} == {
        "wikitext-compare.md",
        "wikitext-compare-where.png",
    }
    assert str(tmp_path / "new" / "wikitext-compare-where.png") in printed


@pytest.mark.slow
def test_results_of_one_model_are_compared_pair_by_pair(folder, tmp_path, capsys):
    compare(folder, ["wikitext.nc", "c4.nc"], tmp_path, "--heads", "0:0", "--stream", "key", "--top", "3")
    printed = capsys.readouterr().out
    assert printed.startswith("Does c4 validation have its bands where wikitext validation has them?")
    assert "SequenceFE is compared through the white-noise reference" in printed and "Where do bands" not in printed
    written = (tmp_path / "wikitext-compare.md").read_text(encoding="utf-8")
    assert all(f"## {title}" in written for title in ("Does c4", "Where do bands live in wikitext validation?"))
    figures = {"wikitext-compare-key-heads.png", "wikitext-compare-where-1.png", "wikitext-compare-where-2.png"}
    assert {path.name for path in tmp_path.glob("*.png")} == figures


@pytest.mark.slow
def test_where_bands_live_is_printed_too_if_asked(folder, tmp_path, capsys):
    compare(folder, ["wikitext.nc", "c4.nc"], tmp_path, "--where", "--stream", "query", "--format", "svg")
    assert "Where do bands live in c4 validation?" in capsys.readouterr().out
    assert (tmp_path / "wikitext-compare-query-heads.svg").exists()


@pytest.mark.slow
def test_different_models_are_compared_as_distributions(folder, tmp_path, capsys):
    compare(folder, ["wikitext.nc", "another.nc"], tmp_path)
    printed = capsys.readouterr().out
    assert printed.startswith("How bands and periodic pairs spread in synthetic/tiny-irope, another")
    assert "another does not match synthetic/tiny-irope pair by pair: layers: 0 to 3 against 0 to 5" in printed
    assert (tmp_path / "wikitext-compare-spread.png").exists()


@pytest.mark.slow
def test_distributions_can_be_asked_for_and_results_of_one_name_go_by_their_path(folder, tmp_path, capsys):
    compare(folder, ["wikitext.nc", "again/wikitext.nc"], tmp_path, "--view", "distributions")
    names = f"{folder / 'wikitext.nc'}, {folder / 'again' / 'wikitext.nc'}"
    assert capsys.readouterr().out.startswith(f"How bands and periodic pairs spread in {names}")


@pytest.mark.slow
def test_what_cannot_be_compared_is_refused_with_what_differs(folder, tmp_path, capsys):
    first, wider, another = (str(folder / f"{name}.nc") for name in ("wikitext", "wider", "another"))
    for arguments in ([first, wider], [first, another, "--view", "pairs"], [first, another, wider]):
        assert "pair by pair: layers: 0 to 3 against 0 to 5" in refusal(capsys, "compare", *arguments)
    assert "name at least one" in refusal(capsys, "compare")
    assert "the same file twice" in refusal(capsys, "compare", first, first)
    assert "name each head as LAYER:HEAD" in refusal(capsys, "compare", first, "--heads", "*:0")
    assert "name each head as LAYER:HEAD" in refusal(capsys, "compare", first, "--heads", "none")
    assert "does not exist" in refusal(capsys, "compare", str(tmp_path / "none.nc"))
    assert "--view" in refusal(capsys, "compare", first, "--view", "rows")
    assert "top got -1" in refusal(capsys, "compare", first, str(folder / "c4.nc"), "--top", "-1")


def test_help_teaches_with_an_example(capsys):
    cli.main(["compare", "--help"])
    assert "Example: ropescope compare qwen3-wikitext.nc qwen3-c4.nc" in capsys.readouterr().out


@pytest.mark.slow
def test_a_label_names_a_result_in_findings_and_figures(folder, tmp_path, capsys):
    compare(folder, ["wikitext.nc", "c4.nc"], tmp_path, "--label", "Text A", "Text B", "--stream", "query")
    assert "Does Text B have its bands where Text A has them?" in capsys.readouterr().out
    files = [str(folder / name) for name in ("wikitext.nc", "c4.nc")]
    assert "got 1 labels for 2 files" in refusal(capsys, "compare", *files, "--label", "Text A")


@pytest.mark.slow
def test_figures_have_the_width_and_the_font_asked_for(folder, tmp_path, capsys):
    import matplotlib.image

    compare(folder, ["wikitext.nc"], tmp_path, "--stream", "key", "--width", "7", "--font", "DejaVu Serif")
    drawn = list(tmp_path.glob("*.png"))
    assert drawn and all(matplotlib.image.imread(path).shape[1] == 1400 for path in drawn)
    file = str(folder / "wikitext.nc")
    for wrong, words in ((["--width", "41"], "2 to 40 inches"), (["--font", "No Such"], "does not find")):
        assert words in refusal(capsys, "compare", file, *wrong)


@pytest.mark.slow
def test_python_has_in_one_call_what_the_command_prints_and_draws(folder, tmp_path, capsys):
    files = [folder / "wikitext.nc", folder / "c4.nc"]
    compare(folder, [file.name for file in files], tmp_path, "--heads", "0:0", "--stream", "key", "--where")
    printed = capsys.readouterr().out
    found = rs.comparison(files)
    assert found.pairwise and printed.startswith(f"{found.text(where=True)}\n")
    assert found.markdown() == (tmp_path / "wikitext-compare.md").read_text(encoding="utf-8")
    figures = found.figures([(0, 0)], ["key"])
    assert {f"wikitext-compare-{name}.png" for name in figures} == {path.name for path in tmp_path.glob("*.png")}
    in_memory = rs.comparison(dict(zip(found.results, map(rs.load, files), strict=True)))
    assert str(in_memory) == str(found) and found.text() in found._repr_html_().replace("&#x27;", "'")


@pytest.mark.parametrize(
    ("arguments", "options", "expected"),
    [
        ([], {}, "comparison got no result"),
        (["wikitext.nc"], {"view": "pair"}, "view got 'pair': did you mean 'pairs'?"),
        (["wikitext.nc"], {"top": -1}, "top got -1"),
        (["wikitext.nc", "wikitext.nc"], {}, "the same file twice"),
        (["wikitext.nc", "wider.nc"], {"view": "pairs"}, "pair by pair: layers"),
    ],
)
def test_a_comparison_of_bad_input_is_refused(folder, arguments, options, expected):
    with pytest.raises(rs.RopescopeError, match=re.escape(expected)):
        rs.comparison([folder / name for name in arguments], **options)
