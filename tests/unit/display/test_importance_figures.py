"""What figures and the page show of importance, read from axes and text."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from matplotlib.axes import Axes

import ropescope as rs
from drawn import columns, curve
from ropescope.analysis.importance_shares import importance_shares
from ropescope.base.errors import InputError
from ropescope.display.figures.heads import panel
from ropescope.display.figures.importance import importance_scatter
from ropescope.display.figures.maps import variable_map
from ropescope.measurement.joining import joined
from ropescope.measurement.results import mean_over_sequences, stream_data
from synthetic import BAND_HEAD, BAND_PAIRS, UNDEFINED, synthetic_result
from synthetic_worth import synthetic_worth


@pytest.fixture(scope="module")
def result() -> xr.DataTree:
    return synthetic_result(kept=[(0, 1)], cells=64)


@pytest.fixture(scope="module")
def worth(result: xr.DataTree) -> xr.DataTree:
    return synthetic_worth(result, lambda mean: np.exp(-20 * mean["spectrum_fe"]).where(mean["pair"] != 2, 0))


@pytest.fixture(scope="module")
def axes(result: xr.DataTree, worth: xr.DataTree) -> list[Axes]:
    figure = importance_scatter(result, worth)
    figure.draw_without_rendering()
    return figure.axes


def texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_every_pair_is_a_point_those_of_no_importance_on_the_floor(result, worth, axes):
    mean = mean_over_sequences(stream_data(joined(result, worth), "query"))
    sounding = mean["spectrum_fe"].notnull() & (mean["fisher"] > 0)
    drawn = curve(axes[0], "pairs")
    np.testing.assert_allclose(drawn[:, 0], mean["spectrum_fe"].values[sounding.values])
    np.testing.assert_allclose(drawn[:, 1], mean["fisher"].values[sounding.values])
    without = mean["spectrum_fe"].values[(mean["spectrum_fe"].notnull() & (mean["fisher"] == 0)).values]
    floor = curve(axes[0], "importance 0")
    np.testing.assert_allclose(floor[:, 0], without)
    assert len(without) and (floor[:, 1] == 0.02).all() and axes[0].get_yscale() == "log"
    assert "1 silent pair: no SpectrumFE, importance 0" in texts(axes[0])


def test_thresholds_and_the_top_tenth_are_lines(result, worth, axes):
    upright = [line for line in axes[1].get_lines() if np.ptp(line.get_xdata()) == 0]
    assert sorted(line.get_xdata()[0] for line in upright) == [0.2, 0.4]
    mean = mean_over_sequences(stream_data(joined(result, worth), "key"))
    fisher = mean["fisher"].values[mean["mean_norm"].notnull().values]
    (tenth,) = {line.get_ydata()[0] for line in axes[1].get_lines() if line.get_linestyle() == "--"}
    assert (fisher >= tenth).sum() == round(0.1 * fisher.size)
    found = importance_shares(result, worth).auc.sel(stream="key", score="-spectrum_fe")
    value, low, high = found.values
    assert axes[1].get_title() == f"keys\ntop tenth found with AUC {value:.2f} ({low:.2f} to {high:.2f})"


def test_the_curve_adds_up_the_most_important_pairs_and_selections_lie_under_it(result, worth, axes):
    found = importance_shares(result, worth)
    (label,) = [line.get_label() for line in axes[2].get_lines() if line.get_label().startswith("queries: the lesser")]
    held = curve(axes[2], label)
    np.testing.assert_allclose(held[-1], 1)
    assert (np.diff(held[:, 1]) >= 0).all() and (np.diff(held[:, 1], 2) <= 1e-12).all()
    half = held[np.searchsorted(held[:, 0], 0.5), 1]
    assert 1 - half == pytest.approx(float(found.lesser_half.sel(stream="query", estimate="value")), abs=0.02)
    ((pairs, share),) = curve(axes[2], "bands of the queries")
    bands = found.sel(stream="query", selection="bands")
    assert (pairs, share) == (float(bands.pairs), float(bands.importance.sel(estimate="value")))
    assert share <= np.interp(pairs, held[:, 0], held[:, 1]) + 1e-9


def test_the_caption_names_both_texts_and_draws(result, worth):
    assert importance_scatter(result, worth).get_suptitle() == (
        "synthetic/tiny-irope · importance: 6 windows of 1024 tokens of wikitext validation, 2 draws · "
        "SpectrumFE: 2 windows of 4096 tokens of wikitext validation"
    )


def test_a_panel_of_a_result_with_importance_draws_it_under_the_entropies(result, worth):
    figure = panel(joined(result, worth), [BAND_HEAD, UNDEFINED[:2]])
    grid = columns(figure, 2)
    assert [axes.get_ylabel() for axes in grid[:, 0]] == [
        "SpectrumFE",
        "SequenceFE",
        "importance (nat/token)",
        "pair j",
    ]
    mean = mean_over_sequences(stream_data(joined(result, worth), "query")).sel(layer=BAND_HEAD[0], head=BAND_HEAD[1])
    drawn = curve(grid[2, 0], "importance")[:, 1]
    np.testing.assert_allclose(drawn, mean["fisher"].where(mean["fisher"] > 0))
    assert curve(grid[2, 0], "bands")[:, 0].tolist() == list(BAND_PAIRS)
    assert curve(grid[2, 1], "none")[:, 0].tolist() == [2, UNDEFINED[2]]
    assert [axes.get_xlabel() for axes in grid[2]] == ["pair j"] * 2 and len(grid[3, 0].images) == 1
    assert figure.get_suptitle().endswith("importance: 6 windows of 1024 tokens of wikitext validation")
    assert len(columns(panel(result, [BAND_HEAD]), 1)) == 3


def test_a_map_of_importance_is_logarithmic_with_zero_as_dark_as_the_least(result, worth):
    figure = variable_map(joined(result, worth), "fisher", "query")
    mean, highest = (axes.images[0] for axes in figure.axes[:2])
    fisher = worth["query"].fisher.mean("sequence")
    drawn = xr.concat([fisher.mean("head"), fisher.max("head")], "map")
    low, high = float(drawn.where(drawn > 0).min()), float(drawn.max())
    assert (mean.norm.vmin, mean.norm.vmax) == (highest.norm.vmin, highest.norm.vmax) == pytest.approx((low, high))
    assert type(mean.norm).__name__ == "LogNorm"
    assert mean.get_array()[0, 2] == low and mean.get_array()[0, 3] == pytest.approx(float(drawn[0, 0, 3]))
    assert "6 windows of 1024 tokens" in figure.get_suptitle() and "sequences" not in figure.get_suptitle()
    assert type(variable_map(result, "mean_norm").axes[0].images[0].norm).__name__ == "Normalize"


def test_a_map_hatches_and_explains_where_no_head_has_a_value(result):
    result = result.copy()
    result["query"]["mean_norm"] = result["query"]["mean_norm"].where(result["query"]["pair"] > 0)
    figure = variable_map(result, "mean_norm")
    assert figure.axes[0].images[0].get_array().mask[:, 0].all()
    assert figure.axes[0].images[0].get_cmap().get_bad()[3] == 0 and figure.axes[0].patch.get_hatch() == "/////"
    assert "no head has a value" in [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.mark.slow
def test_the_page_says_and_shows_what_importance_follows(result, worth, tmp_path: Path):
    page = rs.report({"tiny": result, "tiny worth": worth}, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Does Frequency Entropy foretell importance?" in page and "of what the loss feels" in page
    pictures = re.findall(r'<img class="picture" src="data:image/png;base64,([^"]+)" alt="([^"]+)">', page)
    assert [text for _, text in pictures] == [
        "Importance against SpectrumFE, and its cumulative share",
        "Map of the importance of queries over layers and pairs",
        "Map of the importance of keys over layers and pairs",
    ]
    assert all(base64.b64decode(source).startswith(b"\x89PNG") for source, _ in pictures)
    assert "importance of pairs, by layer" in page
    without = rs.report({"tiny": result}, tmp_path / "other.html").read_text(encoding="utf-8")
    assert "<img" not in without and "foretell importance" not in without


@pytest.mark.slow
def test_importance_stands_beside_all_measurements_of_its_model_and_its_tables_once(result, worth, tmp_path: Path):
    other = result.copy()
    other.attrs["provenance"] = result.attrs["provenance"].replace("0" * 16, "1" * 16)
    page = rs.report({"a": result, "b": result, "w": worth}, tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("<h2>Does Frequency Entropy foretell importance in ") == 2
    assert page.count("<h2>Importance</h2>") == page.count("<h2>Rotation importance</h2>") == 1
    assert page.count('alt="Importance against SpectrumFE') == 2 and page.count('alt="Map of the importance of') == 2
    page = rs.report({"a": result, "c": other, "w": worth}, tmp_path / "two.html").read_text(encoding="utf-8")
    assert page.count("<h2>Does Frequency Entropy foretell importance in a?") == 1
    page = rs.report({"a": result, "w": worth, "v": worth}, tmp_path / "more.html").read_text(encoding="utf-8")
    assert all(page.count(f"<h2>Does Frequency Entropy foretell importance in {name}?</h2>") == 1 for name in "vw")
    assert page.count("<h2>Importance in v</h2>") == page.count("<h2>Importance in w</h2>") == 1
    with pytest.raises(InputError, match="got 'w', the importance of a model of which there is no measurement"):
        rs.report({"c": other, "w": worth}, tmp_path / "none.html")


def test_a_map_of_both_signs_is_white_at_zero_and_shows_the_head_of_largest_magnitude(result, worth):
    both = joined(result, worth)
    gradient = both["query"]["gradient"]
    both["query"]["gradient"] = gradient * np.random.default_rng(0).choice((-1, 1), gradient.shape)
    mean, furthest = (axes.images[0] for axes in variable_map(both, "gradient", "query").axes[:2])
    assert mean.norm.vmin == -mean.norm.vmax < 0
    assert mean.cmap(mean.norm(0.0))[:3] == pytest.approx((0.97,) * 3, abs=0.01)
    values = both["query"]["gradient"].transpose("layer", "pair", "head").values
    expected = np.take_along_axis(values, np.nan_to_num(np.abs(values)).argmax(-1)[..., None], -1)[..., 0]
    np.testing.assert_array_equal(np.asarray(furthest.get_array()), expected)
    assert (expected < 0).any() and (expected > 0).any()
