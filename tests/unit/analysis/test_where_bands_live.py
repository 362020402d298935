"""Where bands live: planted truths for every share, count and test."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import xarray as xr

from ropescope.analysis.places import localise
from ropescope.analysis.places_in_words import octave_name, where_bands_live
from ropescope.analysis.shares import SOURCES, octaves, variance_shares
from ropescope.interventions.selection import select
from ropescope.measurement.results import wavelength
from synthetic import synthetic_result

LAYERS, HEADS, PAIRS = 16, 6, 24
PARTS = SOURCES[:5]
EFFECTS: dict[str, tuple[int, int, int]] = {
    "pair": (1, 1, PAIRS),
    "layer": (LAYERS, 1, 1),
    "head": (LAYERS, HEADS, 1),
    "layer x pair": (LAYERS, 1, PAIRS),
    "head x pair": (LAYERS, HEADS, PAIRS),
}


def planted(
    values: np.ndarray, result: xr.DataTree | None = None, noise: float = 0.0, entropy: str = "spectrum_fe"
) -> xr.DataTree:
    """A result whose query entropy is what is given (layer, head, pair), with noise over the windows."""
    layers, heads, pairs = values.shape
    tree = result or synthetic_result(layers, heads, 2, pairs, nope_layers=(), padded=False)
    query = tree["query"].to_dataset()
    windows = values + noise * np.random.default_rng(9).normal(size=query[entropy].shape)
    groups = {f"/{name}": node.to_dataset() for name, node in tree.children.items()}
    groups["/query"] = query.assign({entropy: (query[entropy].dims, windows)})
    changed = xr.DataTree.from_dict(groups)
    changed.attrs = tree.attrs
    return changed


def effect(source: str, seed: int = 0) -> np.ndarray:
    shape = (LAYERS, HEADS, PAIRS)
    return np.broadcast_to(np.random.default_rng(seed).normal(size=EFFECTS[source]), shape).copy()


def share(result: xr.DataTree, source: str, entropy: str = "spectrum_fe") -> np.ndarray:
    return variance_shares(result, "query").sel(entropy=entropy, source=source).values


@pytest.mark.slow
@pytest.mark.parametrize("source", PARTS)
@pytest.mark.parametrize("entropy", ["spectrum_fe", "sequence_fe"])
def test_the_only_part_that_matters_explains_nearly_everything(source, entropy):
    result = planted(0.3 + 0.05 * effect(source) + 0.002 * effect("head x pair", 1), entropy=entropy)
    for part in PARTS:
        value, low, high = share(result, part, entropy)
        if part == source:
            assert value > 0.95 and high > 0.99
        else:
            assert abs(value) < 0.05 and low < 0.02


def test_where_nothing_matters_every_part_but_the_rest_is_zero_within_its_interval():
    result = planted(0.3 + 0.05 * effect("head x pair"))
    for part in PARTS[:4]:
        value, low, high = share(result, part)
        assert low < 0 < high and abs(value) < 0.02


def anova(values: np.ndarray) -> dict[str, float]:
    """Variance components of a balanced design from its expected mean squares."""
    layers, heads, pairs = values.shape
    head, cell, layer = values.mean(2), values.mean(1), values.mean((1, 2))
    pair, mean = values.mean((0, 1)), values.mean()
    rest = values - head[:, :, None] - cell[:, None] + layer[:, None, None]
    mean_rest = (rest**2).sum() / (layers * (heads - 1) * (pairs - 1))
    mean_head = pairs * ((head - layer[:, None]) ** 2).sum() / (layers * (heads - 1))
    both = cell - layer[:, None] - pair + mean
    mean_both = heads * (both**2).sum() / ((layers - 1) * (pairs - 1))
    mean_pair = layers * heads * ((pair - mean) ** 2).sum() / (pairs - 1)
    mean_layer = heads * pairs * ((layer - mean) ** 2).sum() / (layers - 1)
    return {
        "pair": (mean_pair - mean_both) / (layers * heads),
        "layer": (mean_layer - mean_head - mean_both + mean_rest) / (heads * pairs),
        "head": (mean_head - mean_rest) / pairs,
        "layer x pair": (mean_both - mean_rest) / heads,
        "head x pair": mean_rest,
    }


def a_mixture(scale: float = 0.03) -> np.ndarray:
    return 0.3 + scale * sum(weight * effect(part, seed) for seed, (part, weight) in enumerate(WEIGHTS.items()))


WEIGHTS = {"pair": 2.0, "layer": 1.0, "head": 0.5, "layer x pair": 1.5, "head x pair": 1.0}


def test_without_gaps_the_shares_are_those_of_the_analysis_of_variance():
    values = a_mixture()
    expected = anova(values.astype(np.float32).astype(np.float64))
    for part in PARTS:
        assert share(planted(values), part)[0] == pytest.approx(expected[part] / sum(expected.values()), abs=1e-5)


def test_gaps_do_not_bias_the_shares():
    values = a_mixture()
    full = planted(values)
    values[np.random.default_rng(5).random(values.shape) < 0.2] = np.nan
    values[3, 4:], values[7, :, 16:] = np.nan, np.nan
    for part in PARTS:
        assert share(planted(values), part)[0] == pytest.approx(share(full, part)[0], abs=0.03)


@pytest.mark.slow
def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    """Of the finite set of layers, pair effects are the same ones each time: the truth is their own variance."""
    random, covered, runs = np.random.default_rng(3), 0, 60
    pairs = random.normal(size=(1, 1, PAIRS))
    truth = pairs.var(ddof=1) / (pairs.var(ddof=1) + 2)
    empty = synthetic_result(LAYERS, HEADS, 1, PAIRS, 1, nope_layers=(), padded=False)
    for _ in range(runs):
        values = pairs + random.normal(size=(LAYERS, 1, PAIRS)) + random.normal(size=(LAYERS, HEADS, PAIRS))
        _, low, high = share(planted(values, empty), "pair")
        covered += bool(low < truth < high)
    assert covered >= 0.85 * runs


def test_noise_between_windows_is_told_apart():
    result = planted(0.3 + 0.03 * effect("pair"), noise=0.03)
    windows = result["query"].to_dataset().sizes["sequence"]
    variance = (0.03 * effect("pair")[0, 0]).var(ddof=1)
    assert share(result, "windows")[0] == pytest.approx(0.03**2 / windows / (variance + 0.03**2 / windows), rel=0.05)
    assert share(result, "windows")[0] == pytest.approx(share(result, "head x pair")[0], abs=0.02)


def test_a_shift_of_a_whole_window_is_no_noise_between_places():
    result = planted(a_mixture())
    query = result["query"].to_dataset()
    shift = xr.DataArray([0.0, 0.3], dims="sequence")
    result["query"] = xr.DataTree(query.assign(spectrum_fe=query["spectrum_fe"] + shift))
    assert share(result, "windows")[0] == pytest.approx(0, abs=1e-6)


def test_one_window_has_no_noise_to_tell():
    one = synthetic_result(LAYERS, HEADS, 1, PAIRS, 1, nope_layers=(), padded=False)
    assert np.isnan(share(planted(a_mixture(), one), "windows")).all()


def test_one_head_counts_to_its_layer():
    values = 0.3 + 0.03 * effect("head")[:, :1]
    result = planted(np.broadcast_to(values, (LAYERS, 1, PAIRS)).copy())
    assert share(result, "layer")[0] == pytest.approx(1, abs=1e-6)
    assert np.isnan(share(result, "head")).all() and np.isnan(share(result, "head x pair")).all()


@pytest.mark.parametrize("values", [np.full((1, HEADS, PAIRS), 0.3), np.full((LAYERS, HEADS, PAIRS), 0.3)])
def test_one_layer_or_no_variance_has_no_shares(values):
    if len(values) == 1:
        values = 0.3 + 0.1 * np.random.default_rng(0).random(values.shape)
    result = planted(values)
    assert np.isnan(variance_shares(result, "query").sel(entropy="spectrum_fe", source=list(PARTS))).all()
    assert "cannot be said" in where_bands_live(result).paragraphs[0]


def with_frequencies(result: xr.DataTree, frequency: np.ndarray) -> xr.DataTree:
    rotary = result["rotary"].to_dataset()
    result["rotary"] = xr.DataTree(rotary.assign(frequency=(rotary["frequency"].dims, frequency)))
    return result


def test_wavelength_is_told_from_pair_index_where_layers_turn_differently():
    frequency = np.tile(2.0 ** -np.arange(PAIRS), (LAYERS, 1))
    frequency[::2] = frequency[::2, ::-1]
    result = with_frequencies(planted(np.zeros((LAYERS, HEADS, PAIRS))), frequency)
    by_octave = np.log2(octaves(result).values)
    height = 0.02 * np.random.default_rng(0).normal(size=40)[by_octave.astype(int)]
    noisy = 0.3 + height[:, None] + 0.001 * effect("head x pair")
    result = planted(noisy, result)
    assert share(result, "wavelength")[0] > 0.95
    assert share(result, "pair")[0] < 0.7
    assert any("octave" in row[0] for row in where_bands_live(result).tables[0].rows)


def test_layers_that_turn_alike_need_no_wavelength():
    assert np.isnan(share(planted(a_mixture()), "wavelength")).all()


def test_octaves_hold_their_wavelengths():
    result = synthetic_result()
    turns, lower = wavelength(result).values, octaves(result).values
    turning = np.isfinite(turns)
    assert ((lower <= turns) & (turns < 2 * lower))[turning].all() and np.isinf(lower[~turning]).all()
    assert [octave_name(edge) for edge in (4.0, 512.0, 2.0**20, np.inf)] == ["4-8", "512-1k", "1M-2M", "no rotation"]


@pytest.mark.parametrize("stream", ["query", "key"])
def test_every_member_is_counted_once_in_its_layer(stream):
    result = synthetic_result()
    members = localise(result)[stream].to_dataset()["members"]
    for name in members["selection"].values:
        counts = select(result, str(name)).counts()[stream]
        assert members.sel(selection=name).sum("octave").values.tolist() == counts.values.tolist()


def test_bands_are_counted_in_the_octave_of_their_wavelength():
    result = synthetic_result()
    data = localise(result)["query"].to_dataset()
    turns = wavelength(result).values[0, 4:7]
    counted = data["members"].sel(selection="bands", layer=0)
    assert counted.sum() == 3
    for turn in turns:
        assert counted.sel(octave=2.0 ** np.floor(np.log2(turn))) >= 1
    assert data["median_wavelength"].sel(selection="bands", layer=0) == pytest.approx(np.median(turns))
    assert data["members"].sel(selection="bands", layer=3, octave=np.inf) == 24


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "expected", "words"),
    [
        (slice(PAIRS // 2, None), 1.0, "lean to low"),
        (slice(0, PAIRS // 2), 0.0, "lean to high"),
        (slice(0, None), 0.5, "no lean"),
    ],
)
def test_a_lean_to_slow_or_fast_pairs_is_seen(place, expected, words):
    values = np.full((LAYERS, HEADS, PAIRS), 0.3)
    values[:, :2, place] = 0.1
    result = planted(values)
    assert localise(result)["query"].slow_share.sel(selection="bands", estimate="value") == expected
    assert words in where_bands_live(result).paragraphs[0]


def mixed(more: int) -> xr.DataTree:
    """Twelve layers, four of them without rotation, with so many more bands in each of these."""
    nope = (2, 5, 8, 11)
    result = synthetic_result(12, 4, 2, 16, nope_layers=(), padded=False)
    rotary = result["rotary"].to_dataset()
    unturned = rotary["layer"].isin(nope)
    result["rotary"] = xr.DataTree(
        rotary.assign(rotated=rotary["rotated"] & ~unturned, frequency=rotary["frequency"].where(~unturned))
    )
    values = np.full((12, 4, 16), 0.3)
    random = np.random.default_rng(0)
    for layer in range(12):
        values[layer, 0, : random.integers(1, 4) + (more if layer in nope else 0)] = 0.1
    return planted(values, result)


def test_more_bands_in_layers_without_rotation_are_told_from_shuffled_labels():
    data = localise(mixed(8))["query"].to_dataset()
    assert data["p"].sel(selection="bands") == pytest.approx(1 / 495)
    section = where_bands_live(mixed(8))
    assert "NoPE layers (4 of 12) against RoPE layers: more in query bands" in section.paragraphs[0]
    assert section.tables[-1].header == ["mean in a layer", "RoPE", "NoPE", "p"]


def test_no_difference_is_not_told():
    assert localise(mixed(0))["query"].p.sel(selection="bands") > 0.05
    assert "no certain difference in query bands" in where_bands_live(mixed(0)).paragraphs[0]


def test_a_model_of_one_kind_of_layer_has_no_test():
    result = synthetic_result(nope_layers=())
    assert "p" not in localise(result)["query"].to_dataset()
    assert "All 4 layers rotate" in where_bands_live(result).paragraphs[0]


WORDS: list[tuple[Callable[[], np.ndarray], str]] = [
    (lambda: 0.3 + 0.05 * effect("pair") + 0.01 * effect("head x pair", 1), ", more than half of the variance"),
    (lambda: 0.3 + 0.05 * effect("head x pair", 1), ", less than half of the variance"),
]


@pytest.mark.parametrize(("values", "words"), WORDS)
def test_the_words_follow_the_interval(values, words):
    assert words in where_bands_live(planted(values())).paragraphs[0]


def test_an_interval_across_half_is_left_open():
    values = 0.3 + 0.05 * effect("pair")[:4] + 0.05 * effect("layer x pair", 4)[:4]
    assert "may be more or less than half" in where_bands_live(planted(values)).paragraphs[0]


def test_the_section_renders_with_its_title():
    section = where_bands_live(synthetic_result(), "tiny")
    assert section.text().startswith("Where do bands live in tiny?\n====")
    assert section.markdown().startswith("## Where do bands live in tiny?\n") and "| 64-128 |" in section.markdown()
