"""What the report's file holds, read from its text: nothing from outside, no lost decision, no live markup."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import xarray as xr

import ropescope as rs
from planted import RUN, importance, look, measurement, sweep
from reported import HOSTILE, renamed, small_sweep
from ropescope import cli
from ropescope.base.entropy import white_noise_entropy
from ropescope.base.errors import InputError
from ropescope.base.tables import Section, Table
from ropescope.display.report import _inside_script, content, render
from ropescope.display.report.cards import card
from ropescope.display.report.encoding import (
    ABSENT,
    BYTE_MISSING,
    CODES_PER_STEP,
    STEPS,
    UNDEFINED,
    encode_entropies,
    encode_log_power,
    encode_norms,
)
from ropescope.evaluation.sweep.dataset import SWEEP
from ropescope.measurement.results import mean_over_sequences, provenance, stream_data
from ropescope.measurement.summary import counts
from synthetic import UNDEFINED as SILENT
from synthetic import synthetic_result


class Page(HTMLParser):
    """Every element with its attributes and, for scripts, its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str, str] = {}
        self.code: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        tag, attributes = self.elements[-1] if self.elements else ("", {})
        if self.cdata_elem == "script" and tag == "script":
            if "type" in attributes:
                self.scripts[str(attributes["id"])] = self.scripts.get(str(attributes["id"]), "") + data
            else:
                self.code.append(data)

    def facts(self) -> dict:
        return json.loads(self.scripts["facts-json"])

    def array(self, name: str, dtype: str) -> np.ndarray:
        return np.frombuffer(gzip.decompress(base64.b64decode(self.scripts[f"packed-{name}"])), dtype=dtype)


def decoded(codes: np.ndarray) -> np.ndarray:
    """As templates/scripts/decode.js does it."""
    step, cell = np.divmod(codes.astype(np.int64), CODES_PER_STEP)
    values = (step + np.where(cell, (cell - 0.5) / (CODES_PER_STEP - 1), 0)) / STEPS
    return np.where(codes >= UNDEFINED, np.nan, values)


@pytest.fixture(scope="module")
def result() -> xr.DataTree:
    return synthetic_result(kept=[(0, 1), (1, 0)], cells=64)


@pytest.fixture(scope="module")
def page(result: xr.DataTree) -> Page:
    return Page(render({"tiny": result}))


def test_no_comparison_with_a_threshold_changes():
    grid = np.arange(STEPS + 1) / STEPS
    near = np.concatenate(
        [grid, np.nextafter(grid, 2), np.nextafter(grid, -1), np.random.default_rng(0).random(20_000)]
    )
    values = near[(near >= 0) & (near <= 1)]
    codes = encode_entropies(values, np.full(values.shape, True)).astype(np.int64)
    for number, threshold in enumerate(grid):
        np.testing.assert_array_equal(codes < number * CODES_PER_STEP, values < threshold)
        np.testing.assert_array_equal(codes > number * CODES_PER_STEP, values > threshold)


def test_entropies_come_back_to_eight_millionths():
    values = np.random.default_rng(1).random(50_000)
    codes = encode_entropies(values, np.full(values.shape, True))
    assert np.abs(decoded(codes) - values).max() < 8e-6


def test_undefined_and_absent_pairs_have_codes_of_their_own():
    codes = encode_entropies(np.array([np.nan, np.nan, 1 + 1e-7, -1e-9]), np.array([True, False, True, True]))
    assert codes.tolist() == [UNDEFINED, ABSENT, STEPS * CODES_PER_STEP, 0]


def test_spectra_keep_their_shape_over_ten_decades():
    values = np.array([1.0, 0.3, 1e-4, 2.5e-9, 0.0, np.nan])
    codes = encode_log_power(values)
    np.testing.assert_allclose(10.0 ** ((codes[:4] / 254 - 1) * 10), values[:4], rtol=0.05)
    assert codes[4] == 0 and codes[5] == BYTE_MISSING


def test_norms_are_relative_to_their_own_head():
    values = np.random.default_rng(0).random((2, 4, 500)) * np.array([1.0, 1000.0])[:, None, None]
    values[1, 3] = np.nan
    limits, codes = encode_norms(values)
    back = codes / 254 * limits[:, None, None]
    below = values < limits[:, None, None]
    np.testing.assert_allclose(back[below], values[below], atol=1000 / 254 / 2)
    np.testing.assert_allclose(back[0][below[0]], values[0][below[0]], atol=1 / 254 / 2)
    assert (codes[1, 3] == BYTE_MISSING).all()


@pytest.mark.parametrize("stream", ["query", "key"])
def test_the_page_holds_the_means_and_the_counts_of_the_summary(page, result, stream):
    codes = page.array(f"0-{stream}-entropies", "<u2").astype(np.int64)
    spectrum, sequence = codes.reshape(2, -1)
    mean = mean_over_sequences(stream_data(result, stream))
    np.testing.assert_allclose(decoded(spectrum), mean["spectrum_fe"].values.ravel(), atol=8e-6)
    np.testing.assert_allclose(decoded(sequence), mean["sequence_fe"].values.ravel(), atol=8e-6)
    expected = counts(result, stream)
    assert (spectrum < 40 * CODES_PER_STEP).sum() == expected.bands
    assert ((spectrum > 80 * CODES_PER_STEP) & (spectrum < UNDEFINED)).sum() == expected.outliers
    assert (sequence < 120 * CODES_PER_STEP).sum() == expected.periodic
    assert (spectrum != ABSENT).sum() == expected.pairs
    assert (spectrum == UNDEFINED).sum() == expected.undefined_spectrum


def test_details_come_in_the_order_that_the_page_reads(page, result):
    size = page.array("0-query-entropies", "<u2").size // 2
    raw = page.array("0-query-details", "<u1").tobytes()
    mean = mean_over_sequences(stream_data(result, "query"))
    for place, name in enumerate(("mean_norm", "dc_share", "dominant_period", "peak_share")):
        values = np.frombuffer(raw, "<f4", size, 4 * size * place)
        np.testing.assert_array_equal(values, mean[name].values.astype("f4").ravel())
    low, high = np.frombuffer(raw, "<u2", 2 * size, 16 * size).reshape(2, -1)
    data = result["query"].spectrum_fe
    np.testing.assert_allclose(decoded(low), data.min("sequence").values.ravel(), atol=8e-6)
    np.testing.assert_allclose(decoded(high), data.max("sequence").values.ravel(), atol=8e-6)


def test_facts_carry_reference_lines_wavelengths_and_the_first_view(page):
    (facts,) = page.facts()["results"]
    assert facts["references"]["spectrum_fe"] == pytest.approx(0.0802, abs=1e-4)
    assert facts["references"]["sequence_fe"] == pytest.approx(white_noise_entropy(2047))
    assert facts["rotated"] == [True, True, True, False]
    assert facts["wavelengths"][0][0] == pytest.approx(2 * np.pi, rel=1e-5) and facts["wavelengths"][3][0] is None
    layer, head, pair = facts["streams"]["query"]["start"]
    assert (layer, head) == (0, 1) and pair in (4, 5, 6)
    assert facts["streams"]["query"]["norms"]["heads"] == [[0, 1], [1, 0]]


def test_cells_are_joined_where_many_heads_are_kept(monkeypatch):
    data = stream_data(synthetic_result(kept=[(0, 1), (1, 0)], cells=32), "query")
    norms, position = data["norm"].values, data["position"].values
    monkeypatch.setattr(content, "_NORM_VALUES", norms.size // 3 + 1)
    values, starts = content._coarse_norms(data)
    np.testing.assert_allclose(values[..., 1], norms[..., 3:6].mean(-1), rtol=1e-6)
    np.testing.assert_allclose(values[..., -1], norms[..., 30:].mean(-1), rtol=1e-6)
    np.testing.assert_array_equal(starts, position[::3])


def test_a_result_without_kept_norms_has_no_norms():
    page = Page(render({"tiny": synthetic_result()}))
    assert page.facts()["results"][0]["streams"]["query"]["norms"] is None
    assert "packed-0-query-norms" not in page.scripts


def test_nothing_comes_from_outside_and_only_the_two_own_scripts_may_run(page):
    policy = next(dict(a)["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; ") and "unsafe-eval" not in policy
    allowed = re.findall(r"'sha256-([^']+)'", policy)
    assert allowed == [base64.b64encode(hashlib.sha256(code.encode()).digest()).decode() for code in page.code]
    assert len(allowed) == 2 and "script-src 'unsafe-inline'" not in policy
    assert not [tag for tag, attributes in page.elements if {"src", "srcset"} & attributes.keys() or tag == "link"]
    assert not [tag for tag, attributes in page.elements for name in attributes if name.startswith("on")]


def named_page(name: str) -> Page:
    """A page with `name` at every place that a file or a person may have filled."""
    section = Section(name, (name,), (Table([name], [[name]], name),))
    result = renamed(synthetic_result(), name)
    return Page(render({name: result, "b": result}, sweeps={name: small_sweep(name)}, sections=[section]))


def test_names_with_markup_stay_text():
    page = named_page(HOSTILE)
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in named_page("plain").elements]
    assert page.facts()["results"][0]["name"] == page.facts()["sweeps"][0][0]["name"] == HOSTILE
    assert "\u2028" not in page.scripts["facts-json"]


def test_a_script_cannot_end_its_own_element():
    code = _inside_script("a = '</Script>'; b = '<!-- '; c = x < /script/;")
    assert code == "a = '\\x3c/Script>'; b = '\\x3c!-- '; c = x < /script/;"


def test_the_card_names_model_rotation_and_origin(result):
    shown = card(result, "tiny")
    assert shown.title == "synthetic/tiny-irope" and shown.subtitle == "wikitext validation · 2 windows of 4096 tokens"
    model = dict(shown.model)
    assert model["layers without rotation (NoPE)"] == "3" and model["pairing"] == "half-split[0:32]"
    assert model["heads"] == "3 query, 1 key" and model["wavelengths"] == "6.3 to 35k tokens"
    assert model["silent pairs (always zero)"] == "1 query, 1 key"
    assert dict(shown.origin)["created"] == "2026-01-01T00:00:00+00:00" and "revision" not in model


def test_a_sweep_brings_its_words_curves_and_table(result):
    text = render({"tiny": result}, sweeps={"mine": small_sweep()})
    (selection,) = Page(text).facts()["sweeps"][0]
    assert selection["pairs"] == 10 and selection["alphas"] == [0.0, 0.5, 1.0]
    assert selection["random_low"] == selection["random_mean"] == selection["random_high"]
    assert "bands (7 query, 3 key pairs): alpha 0" in text and "Turning pairs down: mine" in text
    assert re.search(r'<th scope="row">bands</th><td data-label="pairs">10</td><td data-label="alpha">0.5</td>', text)


def test_a_page_of_no_result_is_refused():
    with pytest.raises(InputError, match=r"report got no measurement; give at least one file"):
        render({})


def test_a_silent_pair_is_undefined_and_not_absent(page):
    codes = page.array("0-query-entropies", "<u2").reshape(2, 4, 3, 16)
    assert codes[0][SILENT] == UNDEFINED and codes[0, 2, 2, 0] == ABSENT


@pytest.mark.slow
def test_the_command_writes_one_file_of_results_and_sweeps(result, tmp_path, capsys):
    rs.save(result, tmp_path / "one.nc")
    SWEEP.save(small_sweep(), tmp_path / "sweep.nc")
    target = tmp_path / "page.html"
    cli.main(["report", str(tmp_path / "one.nc"), str(tmp_path / "sweep.nc"), "--output", str(target)])
    assert re.fullmatch(rf"report: {re.escape(str(target))} \(\d\.\d MB\)\n", capsys.readouterr().out)
    text = target.read_text(encoding="utf-8")
    assert "Turning pairs down: sweep" in text and "Where do bands live?" in text
    assert {path.name for path in tmp_path.iterdir()} == {"one.nc", "sweep.nc", "page.html"}


def test_the_command_says_what_is_wrong_and_keeps_what_exists(result, tmp_path, capsys):
    rs.save(result, tmp_path / "one.nc")
    SWEEP.save(small_sweep(), tmp_path / "sweep.nc")
    (tmp_path / "page.html").write_text("precious")
    one, sweep, page = (str(tmp_path / name) for name in ("one.nc", "sweep.nc", "page.html"))
    new = str(tmp_path / "new.html")
    for arguments, words in {
        (one, "--output", page): "it exists",
        (one, one, "--output", new): "the same file twice",
        (sweep, "--output", new): "report got no measurement",
    }.items():
        with pytest.raises(SystemExit) as stopped:
            cli.main(["report", *arguments])
        assert stopped.value.code == 2 and words in capsys.readouterr().err
    assert (tmp_path / "page.html").read_text() == "precious" and not (tmp_path / "new.html").exists()


def test_the_way_to_a_corpus_that_an_older_result_holds_is_not_published():
    result = synthetic_result(corpus="/home/someone/private/novel.txt")
    facts = provenance(result)
    facts["windows"]["tokenizer"] = "/home/someone/private/tiny"
    result.attrs["provenance"] = json.dumps(facts)
    page = render({"tiny": result})
    assert "novel.txt" in page and "someone" not in page


@pytest.mark.slow
def test_sections_and_claims_go_by_model_and_text_or_by_the_labels_given(tmp_path):
    SWEEP.save(sweep("bands", 0.5, 0.1), tmp_path / "q.nc")
    rs.save(measurement(RUN), tmp_path / "r.nc")
    files = [tmp_path / "r.nc", tmp_path / "q.nc"]
    text = rs.report(files, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<h2>Turning pairs down: synthetic/tiny-irope</h2>" in text and "down: q<" not in text
    text = rs.report(files, tmp_path / "named.html", labels=["Tiny", "Tiny"]).read_text(encoding="utf-8")
    assert "<h2>Turning pairs down: Tiny</h2>" in text and "<h1>Tiny</h1>" in text and "claims on Tiny, " in text
    rs.save(measurement(RUN, corpus="c4"), tmp_path / "c.nc")
    labels = ["WikiText", "C4", "Tiny"]
    text = rs.report([files[0], tmp_path / "c.nc", files[1]], tmp_path / "both.html", labels=labels).read_text("utf-8")
    assert "claims on synthetic/tiny-irope, " in text and "claims on WikiText" not in text
    with pytest.raises(InputError, match="got 1 labels for 2 files"):
        rs.report(files, tmp_path / "other.html", labels=["Tiny"])


@pytest.mark.slow
def test_claims_stand_on_top_in_a_paragraph_and_below_with_their_numbers(tmp_path):
    contents = {"one": measurement(RUN), "sweep": sweep("bands", 0.5, 0.1), "look": look(), "worth": importance(RUN, 9)}
    verdicts = rs.claims(contents)
    text = rs.report(contents, tmp_path / "page.html").read_text(encoding="utf-8")
    top, _, rest = text.partition("<main>")
    assert f'<p class="lead verdict">{verdicts.summary()}</p>' in top
    section = rest[rest.index("What is claimed, and what this model says") :]
    assert verdicts["few-pairs-choose-tokens"].tests[0].what in html.unescape(section)
    assert all(claim.source.url in section for claim, _ in verdicts.findings) and 'class="scroll words fold"' in section
    with pytest.raises(InputError, match="report got 'none', which is no measurement, importance, sweep"):
        rs.report({"one": contents["one"], "none": xr.Dataset()}, tmp_path / "other.html")
