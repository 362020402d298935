"""What the figures of comparison show, read from their axes."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import xarray as xr

from drawn import columns, curve
from planted import RUN, measurement
from ropescope.analysis.comparability import noise_reference
from ropescope.analysis.distributions import distributions
from ropescope.analysis.places import localise
from ropescope.base.entropy import white_noise_entropy
from ropescope.base.errors import InputError, ResultError
from ropescope.display.figures.side_by_side import side_by_side
from ropescope.display.figures.spread import bands_over_wavelength, spread_curves
from ropescope.measurement.results import NORM, mean_over_sequences, stream_data
from synthetic import BAND_HEAD, PERIODIC_HEAD, synthetic_result

HEADS = [BAND_HEAD, PERIODIC_HEAD, (3, 1)]


@pytest.fixture(scope="module")
def results() -> dict[str, xr.DataTree]:
    first = synthetic_result(kept=[(0, 1), (1, 0)], cells=64)
    return {"short": first, "long": synthetic_result(seed=1, length=8192, kept=[(0, 1)], cells=64)}


@pytest.fixture(scope="module")
def grid(results: dict[str, xr.DataTree]) -> np.ndarray:
    figure = side_by_side(results, HEADS)
    figure.draw_without_rendering()
    return columns(figure, len(HEADS))


class TestSideBySide:
    def test_a_column_for_each_head_and_norms_for_each_result(self, grid):
        titles = [axes.get_title() for axes in grid[0]]
        assert titles == [
            "layer 0, query head 1 (RoPE)",
            "layer 1, query head 0 (RoPE)",
            "layer 3, query head 1 (NoPE)",
        ]
        labels = ["SpectrumFE", "SequenceFE,\nat 4096 tokens", "pair j", "pair j"]
        assert [axes.get_ylabel() for axes in grid[:, 0]] == labels
        assert [axes.get_title("left") for axes in grid[2:, 0]] == ["short, norms", "long, norms"]

    def test_a_line_for_each_result_on_the_scale_of_the_first(self, grid, results):
        factor = noise_reference(results["short"]) / white_noise_entropy(4095)
        for name, scale in (("short", 1), ("long", factor)):
            mean = mean_over_sequences(stream_data(results[name], "query")).sel(layer=1, head=0)
            np.testing.assert_allclose(curve(grid[0, 1], name)[:, 1], mean["spectrum_fe"], rtol=1e-6)
            np.testing.assert_allclose(curve(grid[1, 1], name)[:, 1], mean["sequence_fe"] * scale, rtol=1e-6)

    def test_norms_stand_under_their_head_or_are_said_to_be_missing(self, grid, results):
        kept = stream_data(results["long"], "query")[NORM].values[0]
        np.testing.assert_allclose(grid[3, 0].get_images()[0].get_array(), kept)
        assert not grid[3, 1].get_images() and [text.get_text() for text in grid[3, 1].texts] == ["norms not kept"]

    def test_every_value_is_inside_the_axes(self, results):
        data = stream_data(results["short"], "query")
        spectrum = data["spectrum_fe"].copy()
        spectrum.loc[{"layer": 0, "head": 1, "pair": 2}] = 0.9
        tall = xr.DataTree.from_dict({f"/{k}": node.to_dataset() for k, node in results["short"].children.items()})
        tall["query"] = xr.DataTree(data.assign(spectrum_fe=spectrum))
        tall.attrs = results["short"].attrs
        assert columns(side_by_side({"a": tall, "b": results["short"]}, HEADS), 3)[0, 2].get_ylim()[1] > 0.9

    def test_results_without_norms_have_no_room_for_them(self):
        plain = {"one": synthetic_result(), "two": synthetic_result(seed=1)}
        assert len(columns(side_by_side(plain, [(0, 0)], "key"), 1)) == 2

    def test_bad_heads_and_results(self, results):
        with pytest.raises(InputError, match="got no heads"):
            side_by_side(results, [])
        with pytest.raises(InputError, match="got layer 9; the result holds layer 0 to 3: choose one of these"):
            side_by_side(results, [(9, 0)])
        with pytest.raises(InputError, match="got stream 'value'"):
            side_by_side(results, HEADS, "value")
        with pytest.raises(ResultError, match="cannot compare"):
            side_by_side({"one": results["short"], "two": synthetic_result(layers=5)}, HEADS)


class TestSpread:
    def test_lines_are_the_shares(self):
        results = {"one": synthetic_result(), "two": synthetic_result(layers=6, pairs=12)}
        data, grid = distributions(results), columns(spread_curves(results), 3)
        assert [axes.get_title() for axes in grid[0]] == ["bands", "spectrum outliers", "periodic pairs"]
        for row, axis in zip(grid, ("depth", "octave"), strict=True):
            expected = data[f"share_by_{axis}"].sel(result="two", stream="key", selection="bands")
            np.testing.assert_allclose(curve(row[0], "two, keys")[:, 1], expected)

    def test_the_octave_without_rotation_is_marked(self):
        figure = spread_curves({"one": synthetic_result(), "two": synthetic_result(nope_layers=())})
        assert [label.get_text() for label in columns(figure, 3)[1, 0].get_xticklabels()][-1] == "∞"


class TestBandsOverWavelength:
    def test_the_map_is_the_share_in_each_layer_and_octave(self):
        result = synthetic_result()
        grid = columns(bands_over_wavelength(result, "tiny"), 2)
        data = localise(result)["query"].to_dataset()
        bands, pairs = data["members"].sel(selection="bands"), data["pairs"]
        image = grid[1, 0].get_images()[0].get_array()
        np.testing.assert_allclose(np.ma.filled(image, -1), (bands / pairs.where(pairs > 0)).fillna(-1))
        heights = [bar.get_height() for bar in grid[0, 0].patches]
        np.testing.assert_allclose(heights, bands.sum("layer") / pairs.sum("layer"))

    def test_it_says_what_it_shows(self):
        figure = bands_over_wavelength(synthetic_result(), "tiny")
        assert figure.get_suptitle() == "tiny"
        assert [axes.get_title() for axes in columns(figure, 2)[0]] == ["bands among queries", "bands among keys"]

    def test_octaves_in_which_a_layer_has_no_pair_are_hatched_and_explained(self):
        missing = bands_over_wavelength(synthetic_result(), "tiny")
        for axes in columns(missing, 2)[1]:
            assert axes.images[0].get_array().mask.any()
            assert axes.images[0].get_cmap().get_bad()[3] == 0 and axes.patch.get_hatch() == "/////"
        (words,) = [text.get_text() for text in missing.legends[0].get_texts()]
        assert words == "the layer has no pair of this wavelength"
        everywhere = bands_over_wavelength(measurement(RUN), "tiny")
        assert not columns(everywhere, 2)[1, 0].images[0].get_array().mask.any() and not everywhere.legends


def test_no_figure_touches_pyplot(results):
    side_by_side(results, HEADS)
    assert "matplotlib.pyplot" not in sys.modules
