"""What selections hold of importance is a plain sum; a score is judged as SciPy judges it, and by its shuffles."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from scipy.stats import mannwhitneyu

from architectures import LLAMA, tokens
from ropescope.analysis.importance_in_words import bands_sentence, importance_foretold
from ropescope.analysis.importance_scores import SCORES, Finding, highest, scores_of
from ropescope.analysis.importance_shares import importance_shares
from ropescope.base.errors import InputError
from ropescope.measurement.importance import importance
from ropescope.measurement.measure import measure
from ropescope.measurement.worth_in_words import cumulative_share, lesser_half
from synthetic import NARROW_LAYER, synthetic_result
from synthetic_worth import synthetic_worth

pytestmark = pytest.mark.usefixtures("one_thread")

SPECTRUM = "-spectrum_fe"


@pytest.fixture(scope="module")
def result() -> xr.DataTree:
    return synthetic_result(layers=6, heads=8, kv_heads=4, pairs=32, padded=False)


def falling(mean: xr.Dataset) -> xr.DataArray:
    return np.exp(-20 * mean["spectrum_fe"])


def test_shares_are_sums_over_the_pairs_of_a_selection() -> None:
    result = measure(LLAMA.shared(), tokens(2, 96), frame_length=32, hop_length=16)
    result["key"].spectrum_fe.values[:, 1, 0] = 0.1
    worth = importance(LLAMA.shared(), tokens(5, 24))
    found = importance_shares(result, worth)
    chosen = (result["key"].spectrum_fe.mean("sequence") < 0.2).values
    fisher = worth["key"].fisher.values.astype(np.float64)
    bands = found.sel(stream="key", selection="bands")
    assert float(bands.pairs) == chosen.mean() and 0 < chosen.sum() < chosen.size
    value, low, high = bands.importance.values
    assert value == pytest.approx(fisher[:, chosen].sum() / fisher.sum()) and low < value < high
    assert (found.auc.sel(estimate="value") > 0).all() and (found.auc <= 1).all()
    with pytest.raises(InputError, match="cannot join"):
        importance_shares(result, importance(LLAMA.build(seed=1), tokens(1, 24)))


def test_importance_that_follows_an_entropy_is_found_whole_and_within_heads(result: xr.DataTree) -> None:
    found = importance_shares(result, synthetic_worth(result, falling)).sel(score=SPECTRUM)
    for stream in ("query", "key"):
        data = found.sel(stream=stream)
        assert data.auc.values.tolist() == [1, 1, 1]
        assert 0.5 < float(data.shuffled_auc.sel(estimate="value")) < 0.95
        np.testing.assert_allclose(data.beyond_heads, data.auc - data.shuffled_auc)
        assert float(data.p) == 1 / 1001


def test_importance_that_follows_nothing_is_found_by_chance() -> None:
    result = synthetic_result(layers=8, heads=8, kv_heads=8, pairs=64, nope_layers=(), padded=False)
    random = np.random.default_rng(5)
    worth = synthetic_worth(result, lambda mean: mean["mean_norm"] * 0 + random.lognormal(size=mean["mean_norm"].shape))
    found = importance_shares(result, worth)
    # 410 pairs to find: a standard error of 0.014.
    np.testing.assert_allclose(found.auc.sel(estimate="value"), 0.5, atol=0.045)
    np.testing.assert_allclose(found.shuffled_auc.sel(estimate="value"), 0.5, atol=0.02)
    assert (found.p > 0.01).all()


def test_a_score_that_tells_heads_apart_alone_keeps_all_of_it_when_shuffled(result: xr.DataTree) -> None:
    flat = result.copy(deep=True)
    for stream in ("query", "key"):
        norm = flat[stream]["mean_norm"]
        norm.values[:] = xr.where(norm.notnull(), norm.mean("pair"), norm).transpose(*norm.dims).values
    worth = synthetic_worth(flat, lambda mean: mean["mean_norm"] * np.exp(-mean["spectrum_fe"]))
    found = importance_shares(flat, worth).sel(score="mean_norm")
    assert (found.auc.sel(estimate="value") > 0.6).all()
    np.testing.assert_allclose(found.auc, found.shuffled_auc)
    np.testing.assert_allclose(found.beyond_heads, 0, atol=1e-12)
    assert (found.p == 1).all()


def test_a_score_that_points_the_wrong_way_within_heads_is_told(result: xr.DataTree) -> None:
    worth = synthetic_worth(result, lambda mean: np.exp(20 * mean["spectrum_fe"]))
    found = importance_shares(result, worth).sel(score=SPECTRUM, estimate="value")
    assert (found.auc < 0.05).all() and (found.beyond_heads < 0).all()
    assert "among the pairs of one head it points the wrong way, by -0." in importance_foretold(result, worth).text()


def test_intervals_are_over_the_windows_of_the_importance_and_take_five(result: xr.DataTree) -> None:
    worth = synthetic_worth(result, falling, windows=8, spread=1.0)
    found = importance_shares(result, worth)
    low, value, high = (found.auc.sel(score=SPECTRUM, estimate=end) for end in ("low", "value", "high"))
    assert (low < value).all() and (value <= high).all() and found.attrs["windows"] == 8
    few = importance_shares(result, worth.isel(sequence=slice(4)))
    for name in ("importance", "lesser_half", "auc", "shuffled_auc", "beyond_heads"):
        assert (
            few[name].sel(estimate="value").notnull().all() and few[name].sel(estimate=["low", "high"]).isnull().all()
        )


def test_shuffles_are_among_the_pairs_of_each_head() -> None:
    random = np.random.default_rng(0)
    heads = np.repeat([0, 1, 2], [20, 30, 50])
    score, fisher = heads + 2 * random.random(100), heads + 2 * random.random(100)
    finding, top = Finding(score[None], heads), highest(fisher)
    areas, drawn = finding.areas(top), []
    for _ in range(400):
        shuffled = score.copy()
        for head in range(3):
            shuffled[heads == head] = random.permutation(shuffled[heads == head])
        drawn.append(area(shuffled, top))
    assert areas[0, 0] == pytest.approx(area(score, top))
    assert areas[1, 0] == pytest.approx(np.mean(drawn), abs=0.01)
    extreme = abs(np.array(drawn) - areas[1, 0]) >= abs(areas[2, 0])
    assert finding.p(top)[0] == pytest.approx(extreme.mean(), abs=0.06)


def area(score: np.ndarray, top: np.ndarray) -> float:
    return float(mannwhitneyu(score[top], score[~top]).statistic / (top.sum() * (~top).sum()))


def test_the_area_under_the_curve_counts_equal_scores_half() -> None:
    random = np.random.default_rng(0)
    fisher, score = random.random(200), random.integers(0, 9, 200).astype(float)
    top = highest(fisher)
    np.testing.assert_array_equal(top, fisher >= np.sort(fisher)[-20])
    found = Finding(np.stack((score, fisher, np.zeros(200))), np.zeros(200, dtype=int)).areas(top)[0]
    np.testing.assert_allclose(found, [area(score, top), 1, 0.5])


def test_the_norm_product_is_of_the_queries_and_the_keys_of_a_group(result: xr.DataTree) -> None:
    query = result["query"].mean_norm.astype(float).mean("sequence").values
    key = result["key"].mean_norm.astype(float).mean("sequence").values
    of_query, of_key = (scores_of(result, stream)["norm_product"] for stream in ("query", "key"))
    for head in range(8):
        np.testing.assert_allclose(of_query[0, head], query[0, head] * key[0, head // 2])
    np.testing.assert_allclose(of_key[0, 1], (query[0, 2] + query[0, 3]) / 2 * key[0, 1])
    assert list(scores_of(result, "key")) == list(SCORES)


def test_a_layer_with_fewer_heads_has_its_own_groups() -> None:
    result = synthetic_result(layers=3, heads=4, kv_heads=2, nope_layers=(), padded=False)
    result["query"].mean_norm.values[:, NARROW_LAYER, 2:] = np.nan
    result["key"].mean_norm.values[:, NARROW_LAYER, 1:] = np.nan
    query, key = (result[stream].mean_norm.astype(float).mean("sequence").values for stream in ("query", "key"))
    product = scores_of(result, "query")["norm_product"][NARROW_LAYER]
    np.testing.assert_allclose(product[1], query[NARROW_LAYER, 1] * key[NARROW_LAYER, 0])
    assert np.isnan(product[2:]).all()


def test_the_lesser_half_and_the_cumulative_share_have_closed_forms(result: xr.DataTree) -> None:
    count = 41
    values = np.random.default_rng(0).permutation(np.arange(count, dtype=float))
    total = count * (count - 1) / 2
    assert lesser_half(values) == pytest.approx(20 * 19 / 2 / total)
    best = np.arange(1, count + 1)
    np.testing.assert_allclose(cumulative_share(values), (best * (count - 1) - best * (best - 1) / 2) / total)
    even = synthetic_worth(result, lambda mean: mean["mean_norm"] * 0 + 1)
    pairs = int((even["key"].fisher.isel(sequence=0) > 0).sum())
    silent = int((even["key"].fisher.isel(sequence=0) == 0).sum())
    found = importance_shares(result, even).lesser_half.sel(stream="key", estimate="value")
    assert silent and float(found) == pytest.approx(((pairs + silent) // 2 - silent) / pairs)


def test_the_words_say_what_bands_hold_and_what_norms_would_have_found(result: xr.DataTree) -> None:
    worth = synthetic_worth(result, falling)
    found, text = importance_shares(result, worth), importance_foretold(result, worth, "Tiny").text()
    bands = found.sel(stream="query", selection="bands")
    held = 100 * float(bands.importance.sel(estimate="value"))
    pairs = 100 * float(bands.pairs)
    expected = f"{pairs:.2g} % of the query pairs and hold {held:.0f} % ({held:.0f} % to {held:.0f} %)"
    assert f"Bands are {expected} of what the loss feels" in text
    assert bands_sentence(found, "query") == f"Bands are {expected} of what the loss feels."
    assert text.startswith("Does Frequency Entropy foretell importance in Tiny?")
    assert "Low SpectrumFE finds the tenth of the query pairs that matter most with AUC 1.00 (1.00 to 1.00)" in text
    assert "Without any spectrum: the mean norm 0." in text and "over the 6 windows of the importance" in text
    few = importance_foretold(result, worth.isel(sequence=[0, 1])).text()
    assert "There are no intervals: the importance is of 2 windows, and they take 5." in few and "(1.00 to" not in few


def test_a_score_without_effect_is_not_said_to_have_one() -> None:
    result = synthetic_result(layers=8, heads=8, kv_heads=8, pairs=64, nope_layers=(), padded=False)
    random = np.random.default_rng(5)
    worth = synthetic_worth(result, lambda mean: mean["mean_norm"] * 0 + random.lognormal(size=mean["mean_norm"].shape))
    assert "so it does not measurably tell pairs of one head apart (p 0." in importance_foretold(result, worth).text()


def test_equal_scores_share_their_mean_rank_and_none_is_the_lowest() -> None:
    found = Finding(np.array([[5.0, np.nan, 5.0, 7.0]]), np.zeros(4, dtype=int))
    assert found.ranks.tolist() == [[2.5, 1.0, 2.5, 4.0]]
