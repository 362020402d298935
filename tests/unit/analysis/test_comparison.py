"""Results against each other: planted truths, chance, ceilings, and what cannot be compared."""

from __future__ import annotations

import json
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from ropescope.analysis.agreement import compare, spearman
from ropescope.analysis.comparability import differences, noise_reference, notes, on_scale_of
from ropescope.analysis.comparison_in_words import same_places, spread_compared
from ropescope.analysis.distributions import distributions
from ropescope.analysis.overlap import chance_anywhere, chance_per_head, jaccard
from ropescope.base.entropy import white_noise_entropy
from ropescope.base.errors import InputError, ResultError
from ropescope.interventions.selection import select
from synthetic import synthetic_result

SHAPE: dict[str, Any] = {"layers": 8, "heads": 5, "kv_heads": 2, "pairs": 20, "nope_layers": (), "padded": False}


def changed(result: xr.DataTree, group: str = "query", **variables: Any) -> xr.DataTree:
    """The result with variables of one group replaced."""
    groups = {f"/{name}": node.to_dataset() for name, node in result.children.items()}
    data = groups[f"/{group}"]
    groups[f"/{group}"] = data.assign({name: (data[name].dims, values) for name, values in variables.items()})
    tree = xr.DataTree.from_dict(groups)
    tree.attrs = dict(result.attrs)
    return tree


def protocol(result: xr.DataTree, **facts: dict[str, Any]) -> xr.DataTree:
    """The result with another provenance, given by group."""
    given = json.loads(result.attrs["provenance"])
    for group, values in facts.items():
        given[group] |= values
    tree = result.copy()
    tree.attrs["provenance"] = json.dumps(given)
    return tree


def drawn(seed: int, truth: np.ndarray | None = None, noise: float = 0.0, windows: int = 8) -> xr.DataTree:
    """Query entropies drawn at random, or given with noise over the windows; about a sixth are bands."""
    random = np.random.default_rng(seed)
    result = synthetic_result(sequences=windows, seed=seed, **SHAPE)
    shape = result["query"].to_dataset()["spectrum_fe"].shape
    values = truth if truth is not None else np.broadcast_to(random.uniform(0.14, 0.5, shape[1:]), shape)
    noisy = values + noise * random.normal(size=shape)
    return changed(result, spectrum_fe=noisy, sequence_fe=np.clip(noisy + 0.4, 0, 1))


def pair_of(first: xr.DataTree, other: xr.DataTree, stream: str = "query") -> xr.Dataset:
    return compare({"first": first, "other": other})[stream].to_dataset().sel(other="other")


def test_a_result_agrees_with_itself():
    result = synthetic_result()
    for stream in ("query", "key"):
        data = pair_of(result, result, stream)
        assert (data["jaccard"] == 1).all() and (data["changed_share"] == 0).all()
        np.testing.assert_allclose(data["correlation"], 1, atol=1e-6)
        np.testing.assert_allclose(data["layer_correlation"], 1)
        assert (data["change"].fillna(0) == 0).all()


@pytest.mark.slow
def test_independent_results_overlap_as_chance_would():
    inside, covered, runs = 0, 0, 20
    for seed in range(runs):
        data = pair_of(drawn(seed), drawn(100 + seed)).sel(selection="bands", entropy="spectrum_fe")
        low, high = data["chance"].sel(placement="anywhere", estimate=["low", "high"]).values
        inside += bool(low <= data["jaccard"] <= high)
        covered += bool(data["correlation"][1] < 0 < data["correlation"][2])
    assert inside >= 0.8 * runs and covered >= 0.8 * runs


def test_noise_between_windows_reaches_the_ceiling_and_no_further():
    truth = np.random.default_rng(0).normal(0.3, 0.05, (8, 5, 20))
    data = pair_of(drawn(1, truth, 0.08), drawn(2, truth, 0.08)).sel(entropy="spectrum_fe")
    reliability = 0.05**2 / (0.05**2 + 0.08**2 / 8)
    assert data["ceiling"] == pytest.approx(reliability, abs=0.03)
    assert data["correlation"][1] < data["ceiling"] < data["correlation"][2] + 0.02
    assert data["correlation"][0] == pytest.approx(reliability, abs=0.03)
    assert data["changed_share"] == pytest.approx(0.05, abs=0.025)


def test_one_window_has_no_ceiling_and_no_errors():
    data = pair_of(drawn(0, windows=1), drawn(1, windows=8))
    for name in ("ceiling", "standard_error", "changed_share"):
        assert np.isnan(data[name]).all()
    assert np.isnan(data["halves"]).all()


def test_halves_are_the_overlap_of_even_with_odd_windows():
    results = [drawn(seed, np.random.default_rng(0).uniform(0.1, 0.5, (8, 5, 20)), 0.05) for seed in (1, 2)]
    expected = []
    for result in results:
        windows = result["query"].to_dataset()["spectrum_fe"].astype(float)
        even, odd = (windows.isel(sequence=slice(start, None, 2)).mean("sequence") < 0.2 for start in (0, 1))
        expected.append(float((even & odd).sum() / (even | odd).sum()))
    assert pair_of(*results)["halves"].sel(selection="bands") == pytest.approx(np.mean(expected))


def test_changes_are_tested_as_scipy_does():
    truth = np.random.default_rng(0).normal(0.3, 0.02, (8, 5, 20))
    ours, theirs = drawn(1, truth, 0.02, windows=6), drawn(2, truth + 0.02, 0.05, windows=4)
    a, b = (result["query"].to_dataset()["spectrum_fe"].values.astype(float) for result in (ours, theirs))
    data = pair_of(ours, theirs).sel(entropy="spectrum_fe")
    expected = stats.ttest_ind(b, a, axis=0, equal_var=False)
    assert data["changed_share"] == pytest.approx((expected.pvalue < 0.05).mean())
    np.testing.assert_allclose(data["change"] / data["standard_error"], expected.statistic, rtol=1e-6)


def test_rank_correlation_is_scipys_over_what_both_define():
    random = np.random.default_rng(0)
    a = random.normal(size=(4, 30)).round(1)
    b = (a + random.normal(size=a.shape)).round(1)
    a[0, :5], b[1, 3:9] = np.nan, np.nan
    expected = stats.spearmanr(a.ravel(), b.ravel(), nan_policy="omit").statistic
    assert spearman(a, b) == pytest.approx(expected)
    assert np.isnan(spearman(a, np.ones_like(a))) and np.isnan(spearman(a[:1, 5:7], b[:1, 5:7]))


def test_chance_is_that_of_every_placement():
    places, first, other = 7, 3, 4
    fixed = np.arange(places) < first
    every = [jaccard(fixed, np.isin(np.arange(places), chosen)) for chosen in combinations(range(places), other)]
    mean, low, high = chance_anywhere(places, first, other)
    assert mean == pytest.approx(np.mean(every))
    assert [low, high] == pytest.approx(np.quantile(every, (0.025, 0.975), method="inverted_cdf").tolist())


def test_chance_within_heads_is_that_of_every_placement_within_them():
    present = np.ones((2, 5), dtype=bool)
    present[1, 4] = False
    first, other = np.zeros_like(present), np.zeros_like(present)
    first[0, :3], first[1, :2], other[0, 1:3], other[1, 2] = True, True, True, True
    common = [len({0, 1, 2} & set(a)) + len({0, 1} & {b}) for a in combinations(range(5), 2) for b in range(4)]
    expected = np.array(common) / (first.sum() + other.sum() - np.array(common))
    assert chance_per_head(present, first, other)[0] == pytest.approx(expected.mean(), abs=0.01)
    np.testing.assert_array_equal(chance_per_head(present, first, other), chance_per_head(present, first, other))


def test_selections_that_both_lack_have_no_overlap():
    nothing = np.zeros((2, 3), dtype=bool)
    assert np.isnan(jaccard(nothing, nothing))
    assert np.isnan(chance_anywhere(6, 0, 0)).all() and np.isnan(chance_per_head(~nothing, nothing, nothing)).all()
    assert chance_anywhere(6, 0, 2).tolist() == [0, 0, 0]


@pytest.mark.parametrize("stream", ["query", "key"])
def test_the_sets_are_those_of_select(stream):
    first, other = synthetic_result(), synthetic_result(seed=3)
    data = pair_of(first, other, stream)
    for name in ("bands", "spectrum-outliers", "periodic"):
        a, b = (select(result, name).streams()[stream].values for result in (first, other))
        one = data.sel(selection=name)
        assert (int(one["first_members"]), int(one["other_members"])) == (a.sum(), b.sum())
        assert one["jaccard"] == pytest.approx((a & b).sum() / (a | b).sum())


def test_places_that_one_result_does_not_define_do_not_count():
    first, other = drawn(0), drawn(0)
    values = other["query"].to_dataset()["spectrum_fe"].values.copy()
    values[:, 2] = np.nan
    data = pair_of(first, changed(other, spectrum_fe=values)).sel(selection="bands")
    assert data["jaccard"] == 1 and data["places"] == 7 * 5 * 20


def longer(result: xr.DataTree, length: int = 8192) -> xr.DataTree:
    """As the result would be with the same structure over longer windows: SequenceFE follows the white noise."""
    factor = white_noise_entropy(length // 2 - 1) / noise_reference(result)
    for stream in ("query", "key"):
        result = changed(result, stream, sequence_fe=result[stream].to_dataset()["sequence_fe"].values * factor)
    return protocol(result, parameters={"length": length})


def test_other_lengths_are_compared_through_white_noise():
    first = synthetic_result()
    values = first["query"].to_dataset()["sequence_fe"].values.copy()
    values[:, 0, 1, 3] = 0.599  # periodic, but at 8192 tokens above 0.6 before it is put on scale
    first = changed(first, sequence_fe=values)
    other = longer(first)
    assert other["query"].to_dataset()["sequence_fe"].values[0, 0, 1, 3] > 0.6
    data = pair_of(first, other)
    assert abs(data["change"].sel(entropy="sequence_fe")).max() < 1e-6
    assert data["jaccard"].sel(selection="periodic") == 1
    (note,) = notes({"short": first, "long": other})
    assert "compared through the white-noise reference (short 4096 tokens 0.9446, long 8192 tokens 0.9492)" in note
    assert note in same_places({"short": first, "long": other})[0].paragraphs


def test_one_length_needs_no_scale():
    result = synthetic_result()
    assert on_scale_of(result, result) is result and notes({"a": result, "b": result}) == []


def reshaped(**other: Any) -> xr.DataTree:
    return synthetic_result(**{**SHAPE, **other})


def repaired() -> xr.DataTree:
    rotary = reshaped()["rotary"].to_dataset()
    pairing = [*rotary["pairing"].values[:-2], *["interleaved[0:40]"] * 2]
    return changed(reshaped(), "rotary", pairing=np.array(pairing))


UNLIKE = [
    (lambda: reshaped(layers=6), "layers: 0 to 7 against 0 to 5"),
    (lambda: reshaped(heads=6), "query heads: 0 to 4 against 0 to 5"),
    (lambda: reshaped(kv_heads=1), "key heads: 0 to 1 against 0"),
    (lambda: reshaped(pairs=16), "pairs: 0 to 19 against 0 to 15"),
    (lambda: repaired(), "pairing: half-split[0:40] against interleaved[0:40] in 2 layers (6 to 7)"),
    (lambda: reshaped(nope_layers=(3,)), "rotated pairs differ in 1 layer (3)"),
    (lambda: reshaped(padded=True), "query heads or pairs differ in 1 layer (2)"),
]


@pytest.mark.parametrize(("build", "expected"), UNLIKE)
def test_results_of_other_shape_are_refused_with_what_differs(build, expected):
    with pytest.raises(ResultError) as caught:
        compare({"one": reshaped(), "two": build()})
    assert str(caught.value).startswith("cannot compare two with one pair by pair: ")
    assert expected in str(caught.value) and "--view distributions" in str(caught.value)


@pytest.mark.parametrize("call", [compare, distributions])
def test_other_frames_and_single_results_are_refused(call):
    other = protocol(reshaped(), parameters={"frame_length": 512, "hop_length": 256})
    with pytest.raises(ResultError, match="frame_length 1024 against 512, hop_length 512 against 256; measure both"):
        call({"one": reshaped(), "two": other})
    with pytest.raises(InputError, match="got 1 result to compare"):
        call({"one": reshaped()})


def test_a_result_that_does_not_say_its_length_is_refused():
    silent = protocol(reshaped(), parameters={"length": None})
    with pytest.raises(ResultError, match="does not say how many tokens"):
        compare({"one": reshaped(), "two": silent})


def test_other_frequencies_are_said_and_matched_by_index():
    slower = changed(reshaped(), "rotary", frequency=reshaped()["rotary"].to_dataset()["frequency"].values / 2)
    assert differences(reshaped(), slower) == []
    (note,) = notes({"one": reshaped(), "two": slower})
    assert "frequencies differ from one's; pairs are matched by index" in note


def test_the_pair_that_moved_most_comes_first():
    first = drawn(0, np.full((8, 5, 20), 0.3), 0.001)
    truth = np.full((8, 5, 20), 0.3)
    truth[5, 2, 7] = 0.4
    (section,) = same_places({"one": first, "two": drawn(1, truth, 0.001)}, top=2)
    table = next(table for table in section.tables if table.title == "Query pairs whose SpectrumFE moved most")
    assert len(table.rows) == 2 and table.rows[0][:3] == ["5", "2", "7"]
    assert float(table.rows[0][6]) == pytest.approx(0.1, abs=0.002) and float(table.rows[0][7]) < 0.002


def test_no_list_of_moved_pairs_and_a_bad_one():
    results = {"one": reshaped(), "two": reshaped(seed=1)}
    assert not any("moved" in table.title for table in same_places(results, top=0)[0].tables)
    with pytest.raises(InputError, match="got top=-1"):
        same_places(results, top=-1)


def verdict(first: xr.DataTree, other: xr.DataTree) -> tuple[str, str]:
    (section,) = same_places({"one": first, "two": other})
    return section.paragraphs[0], section.paragraphs[1]


def c4(result: xr.DataTree) -> xr.DataTree:
    return protocol(result, windows={"corpus": "c4"})


def test_words_where_places_stay():
    truth = np.random.default_rng(0).uniform(0.1, 0.5, (8, 5, 20))
    words, claim = verdict(drawn(1, truth, 0.001), c4(drawn(2, truth, 0.001)))
    assert "more than chance" in words and "The results differ in corpus." in claim
    assert "for query bands it holds" in claim and "not" not in claim.split("for query bands")[1].split(";")[0]


def test_words_where_places_change():
    words, claim = verdict(drawn(1), c4(drawn(2)))
    assert "no more than chance" in words and "for query bands it does not hold" in claim


def test_words_where_places_change_in_part():
    truth = np.random.default_rng(0).uniform(0.1, 0.5, (8, 5, 20))
    moved = truth.copy()
    moved[:3] = truth[:3][:, :, ::-1]
    _, claim = verdict(drawn(1, truth), c4(drawn(2, moved)))
    assert "for query bands it holds beyond chance but not fully" in claim


def test_words_where_there_is_nothing_to_judge():
    flat = np.full((8, 5, 20), 0.3)
    words, claim = verdict(drawn(1, flat), c4(drawn(2, flat)))
    assert "Neither has query bands." in words and "for query bands it cannot be judged" in claim


def test_words_where_a_few_pairs_say_nothing():
    truth = np.full((8, 5, 20), 0.3)
    few, moved = truth.copy(), truth.copy()
    few[0, 0, :3], moved[1, 0, :4] = 0.1, 0.1
    _, claim = verdict(drawn(1, few, 0.001), c4(drawn(2, moved, 0.001)))
    assert "for query bands it cannot be judged, 3 and 4 pairs are too few" in claim


def test_words_where_only_one_result_has_them():
    truth = np.random.default_rng(0).uniform(0.1, 0.5, (8, 5, 20))
    words, claim = verdict(drawn(1, truth), c4(drawn(2, np.full((8, 5, 20), 0.3))))
    assert "Only one of them has query bands (" in words
    assert "for query bands it cannot be judged, one result has none" in claim


def test_the_papers_claim_is_left_to_results_that_can_test_it():
    result = reshaped()
    assert "Neither text nor length differ" in verdict(result, result)[1]
    other = protocol(result, model={"fingerprint": "1" * 16}, windows={"corpus": "c4"})
    assert "weights are not the same" in verdict(result, other)[1]


def test_a_section_for_each_other_result():
    sections = same_places({"one": reshaped(), "two": reshaped(seed=1), "three": reshaped(seed=2)})
    assert [section.title.split()[1] for section in sections] == ["two", "three"]
    assert "| query bands |" in sections[0].markdown()


def test_a_corpus_file_is_named_without_the_way_to_it():
    text = protocol(reshaped(), windows={"corpus": "/home/someone/private/text.txt"})
    assert "text.txt" in (shown := same_places({"one": reshaped(), "two": text})[0].text()) and "someone" not in shown


@pytest.mark.parametrize(
    ("one", "two", "differ"),
    [
        ({"corpus": "a.txt", "file_sha256": "1" * 64}, {"corpus": "b.txt", "file_sha256": "1" * 64}, False),
        ({"corpus": "a.txt", "file_sha256": "1" * 64}, {"corpus": "a.txt", "file_sha256": "2" * 64}, True),
        ({"corpus": "a.txt", "file_sha256": "1" * 64}, {"corpus": "/somewhere/a.txt"}, False),
        ({"corpus": "a.txt", "file_sha256": "1" * 64}, {"corpus": "/somewhere/b.txt"}, True),
        ({"corpus": "builtin", "text_sha256": "1" * 64}, {"corpus": "builtin", "text_sha256": "2" * 64}, True),
    ],
)
def test_corpora_are_one_where_their_content_is_whatever_their_names(one, two, differ):
    results = {"one": protocol(reshaped(), windows=one), "two": protocol(reshaped(), windows=two)}
    (section,) = same_places(results)
    assert section.paragraphs[1].startswith("The results differ in corpus." if differ else "The results have the same")
    assert "(11111111)" in section.text()


class TestDistributions:
    def test_shares_are_found_at_the_depth_and_wavelength_where_they_were_planted(self):
        values = np.full((20, 3, 16), 0.3)
        values[10:12, :, 4] = 0.1
        deep = synthetic_result(20, 3, 1, 16, 1, nope_layers=(), padded=False)
        data = distributions({"deep": changed(deep, spectrum_fe=values[None]), "other": reshaped(layers=30)})
        one = data.sel(result="deep", stream="query", selection="bands")
        assert one["share_by_depth"].values.tolist() == [0, 0, 0, 0, 0, 1 / 16, 0, 0, 0, 0]
        turn = 2 * np.pi * 10**1  # pair 4 of 16 at base 10000
        lower = 2.0 ** np.floor(np.log2(turn))
        assert one["share_by_octave"].sel(octave=lower) == pytest.approx(0.1 / float(16 * data_share(deep, lower)))
        assert one["share"] == pytest.approx(6 / 960)
        assert (one["pairs_by_depth"] == 96).all() and one["pairs_by_octave"].sum() == 960

    def test_octaves_that_a_model_lacks_are_undefined(self):
        data = distributions({"rope": reshaped(), "mixed": reshaped(nope_layers=(1,))})
        nowhere = data.sel(result="rope", octave=np.inf)
        assert np.isnan(nowhere["share_by_octave"]).all() and (nowhere["pairs_by_octave"] == 0).all()
        assert data.sel(result="mixed", octave=np.inf, stream="query")["pairs_by_octave"] == 100

    def test_other_lengths_are_put_on_the_scale_of_the_first(self):
        first = synthetic_result()
        data = distributions({"short": first, "long": longer(first)})
        for name in ("median_by_depth", "median_by_octave"):
            values = data[name].sel(entropy="sequence_fe")
            np.testing.assert_allclose(values.sel(result="long"), values.sel(result="short"), rtol=1e-6)

    def test_medians_are_of_the_defined_pairs(self):
        result = synthetic_result()
        data = distributions({"one": result, "two": reshaped()}).sel(result="one", stream="query")
        first = result["query"].to_dataset()["spectrum_fe"].values.astype(float).mean(0)[0]
        assert data.sizes["depth"] == 4
        assert data["median_by_depth"].sel(entropy="spectrum_fe")[0] == pytest.approx(np.nanmedian(first))

    def test_the_section_says_shares_and_why_pairs_are_not_matched(self):
        section = spread_compared({"one": synthetic_result(), "two": reshaped()})
        assert section.paragraphs[0].startswith("Bands among query pairs: one 16.1 %")
        assert "two does not match one pair by pair: layers: 0 to 3 against 0 to 7" in section.paragraphs[1]
        assert any(row[0] == "no rotation" for table in section.tables for row in table.rows)


def data_share(result: xr.DataTree, lower: float) -> float:
    """Share of a layer's pairs in an octave."""
    turns = 2 * np.pi / result["rotary"].to_dataset()["frequency"].values[0]
    return float(((turns >= lower) & (turns < 2 * lower)).mean())
