"""What the figures show, read from their axes."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import torch
import xarray as xr
from matplotlib import colormaps
from matplotlib.axes import Axes

from drawn import columns, curve
from ropescope.base.entropy import spectrum_fe, white_noise_entropy
from ropescope.base.errors import InputError
from ropescope.display.figures.heads import panel
from ropescope.display.figures.maps import overview
from ropescope.display.figures.style import selecting_colours
from ropescope.measurement.heads import default_heads, key_heads
from ropescope.measurement.results import load, mean_over_sequences, save, stream_data
from synthetic import BAND_HEAD, OUTLIER_PAIR, PERIODIC_HEAD, PERIODIC_PAIRS, UNDEFINED, synthetic_result

HEADS = [BAND_HEAD, PERIODIC_HEAD, (3, 2)]
KEPT = [(0, 1), (1, 0)]


@pytest.fixture(scope="module")
def result() -> xr.DataTree:
    return synthetic_result(kept=KEPT, cells=64)


def heights(axes: Axes) -> list[float]:
    """Where the horizontal lines across the axes are."""
    lines = [np.array(line.get_xydata()) for line in axes.get_lines()]
    return sorted(float(line[0, 1]) for line in lines if len(line) == 2 and line[:, 0].tolist() == [0, 1])


def texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def top_labels(axes: Axes) -> list[str]:
    (upper,) = axes.child_axes
    return [label.get_text() for label in upper.get_xticklabels()]


@pytest.fixture(scope="module")
def grid(result: xr.DataTree) -> np.ndarray:
    figure = panel(result, HEADS)
    figure.draw_without_rendering()
    return columns(figure, len(HEADS))


class TestPanel:
    def test_one_column_per_head(self, grid: np.ndarray) -> None:
        titles = [axes.get_title() for axes in grid[0]]
        assert titles == ["layer 0, head 1 (RoPE)", "layer 1, head 0 (RoPE)", "layer 3, head 2 (NoPE)"]
        assert [axes.get_ylabel() for axes in grid[:, 0]] == ["SpectrumFE", "SequenceFE", "pair j"]
        assert [axes.get_xlabel() for axes in grid[1]] == ["pair j"] * 3

    def test_many_heads_wrap_below_each_other(self) -> None:
        result = synthetic_result(heads=5, kv_heads=5, padded=False, kept=[(0, 1)])
        figure = panel(result, [(0, head) for head in range(5)] + [(1, 0)])
        figure.draw_without_rendering()
        titles = [axes for axes in figure.axes if axes.get_title().startswith("layer")]
        tops = [round(axes.get_position().y1, 2) for axes in titles]
        assert len(titles) == 6 and len(set(tops[:4])) == 1 and tops[4] == tops[5] < tops[0] - 0.3
        assert figure.get_figwidth() == pytest.approx(1.2 + 4 * 3.6)

    def test_curves_are_means_over_sequences(self, result: xr.DataTree, grid: np.ndarray) -> None:
        mean = mean_over_sequences(stream_data(result, "query"))
        for column, (layer, head) in zip(grid.T, HEADS, strict=True):
            one = mean.sel(layer=layer, head=head)
            drawn = curve(column[0], "SpectrumFE")
            np.testing.assert_array_equal(drawn[:, 0], np.arange(16))
            np.testing.assert_allclose(drawn[:, 1], one["spectrum_fe"])
            np.testing.assert_allclose(curve(column[1], "SequenceFE")[:, 1], one["sequence_fe"])

    def test_the_range_over_sequences_is_shaded(self, result: xr.DataTree, grid: np.ndarray) -> None:
        (shade,) = grid[0, 0].collections
        values = stream_data(result, "query")["spectrum_fe"].sel(layer=0, head=1)
        drawn = shade.get_paths()[0].vertices[:, 1]
        assert drawn.min() == pytest.approx(float(values.min()))
        assert drawn.max() == pytest.approx(float(values.max()))

    def test_selected_pairs_stand_out(self, grid: np.ndarray) -> None:
        assert curve(grid[0, 1], "selected")[:, 0].tolist() == [OUTLIER_PAIR]
        assert curve(grid[1, 1], "selected")[:, 0].tolist() == list(PERIODIC_PAIRS)
        assert curve(grid[1, 0], "selected").size == 0

    def test_reference_lines(self, grid: np.ndarray) -> None:
        floor = float(spectrum_fe(torch.ones(1024)))
        assert heights(grid[0, 0]) == pytest.approx([floor, 0.2, 0.4])
        assert heights(grid[1, 0]) == pytest.approx([0.6, white_noise_entropy(2047)])
        assert texts(grid[0, -1]) == ["bands < 0.2", "outliers > 0.4", "constant 0.080"]
        assert texts(grid[1, -1]) == ["periodic < 0.6", "white noise 0.945"]

    def test_wavelengths_above_the_pairs(self, grid: np.ndarray) -> None:
        assert top_labels(grid[0, 0]) == ["6.3", "63", "628", "3.5k", "35k"]
        assert grid[0, 0].child_axes[0].get_xticks().tolist() == grid[1, 0].get_xticks().tolist() == [0, 4, 8, 11, 15]
        assert top_labels(grid[0, 2]) == ["∞"]

    def test_norms_where_kept(self, result: xr.DataTree, grid: np.ndarray) -> None:
        (image,) = grid[2, 1].images
        np.testing.assert_allclose(image.get_array(), stream_data(result, "query")["norm"][1])
        assert image.get_extent() == [0, 4096, -0.5, 15.5]
        assert grid[2, 1].get_xlabel() == "position n (tokens)"
        assert texts(grid[2, 2]) == ["norms not kept when layer 3,\nhead 2 was measured"]
        assert not grid[2, 2].images

    def test_caption(self, result: xr.DataTree) -> None:
        caption = panel(result, HEADS).get_suptitle()
        assert caption == (
            "synthetic/tiny-irope · wikitext validation · queries · mean and range of 2 sequences of 4096 tokens"
        )

    def test_one_sequence(self, result: xr.DataTree) -> None:
        figure = panel(result, [(0, 1)], sequence=1)
        grid = columns(figure, 1)
        values = stream_data(result, "query")["spectrum_fe"].sel(layer=0, head=1, sequence=1)
        np.testing.assert_allclose(curve(grid[0, 0], "SpectrumFE")[:, 1], values)
        assert not grid[0, 0].collections
        assert "sequence 1 of" in figure.get_suptitle()
        assert texts(grid[2, 0]) == ["norms kept for sequence 0 only"]

    def test_keys_index_key_heads(self) -> None:
        result = synthetic_result(kv_heads=2, kept=[(1, 0)])
        grid = columns(panel(result, [(1, 1), (1, 0)], "key"), 2)
        values = mean_over_sequences(stream_data(result, "key"))["spectrum_fe"].sel(layer=1, kv_head=1)
        np.testing.assert_allclose(curve(grid[0, 0], "SpectrumFE")[:, 1], values)
        assert (len(grid[2, 0].images), len(grid[2, 1].images)) == (0, 1)

    def test_undefined_pairs_are_marked_and_padding_is_not(self, result: xr.DataTree) -> None:
        layer, head, pair = UNDEFINED
        grid = columns(panel(result, [(layer, head), (2, 0)]), 2)
        for axes in grid[:2, 0]:
            assert curve(axes, "undefined")[:, 0].tolist() == [pair]
        assert "undefined" in texts(grid[0, 0])
        assert not [line for line in grid[0, 1].get_lines() if line.get_label() == "undefined"]
        assert grid[1, 1].get_xticks().tolist() == [0, 3, 6, 8, 11]

    def test_values_beyond_the_usual_range_stay_inside(self) -> None:
        result = synthetic_result()
        result["query"]["spectrum_fe"][0, 0, 1, 0] = 0.97
        axes = columns(panel(result, [(1, 0)]), 1)[0, 0]
        assert axes.get_ylim()[1] > 0.97

    def test_other_frames_move_the_floor(self) -> None:
        result = synthetic_result()
        result.attrs["provenance"] = (
            '{"parameters": {"length": 512, "frame_length": 64, "hop_length": 8, "window": "rectangular"}}'
        )
        grid = columns(panel(result, [(0, 0)]), 1)
        assert heights(grid[0, 0]) == pytest.approx([0, 0.2, 0.4], abs=1e-6)
        assert heights(grid[1, 0]) == pytest.approx([0.6, white_noise_entropy(255)])

    def test_without_parameters_no_reference_is_invented(self) -> None:
        result = synthetic_result()
        result.attrs["provenance"] = "{}"
        grid = columns(panel(result, [(0, 0)]), 1)
        assert (heights(grid[0, 0]), heights(grid[1, 0])) == ([0.2, 0.4], [0.6])


class TestOverview:
    def test_maps(self, result: xr.DataTree) -> None:
        mean = mean_over_sequences(stream_data(result, "query"))
        axes = overview(result).axes
        expected = {
            "SpectrumFE, mean over heads": mean["spectrum_fe"].mean("head"),
            "SpectrumFE, minimum over heads: strongest band": mean["spectrum_fe"].min("head"),
            "SequenceFE, mean over heads": mean["sequence_fe"].mean("head"),
            "SequenceFE, minimum over heads: most periodic": mean["sequence_fe"].min("head"),
        }
        maps = {one.get_title(): one.images[0] for one in axes if one.images}
        assert maps.keys() == expected.keys()
        for title, image in maps.items():
            drawn = image.get_array()
            np.testing.assert_allclose(drawn.filled(np.nan), expected[title])
            assert drawn.mask[2, 12:].all()
            assert image.get_clim() == ((0, 0.6) if "Spectrum" in title else (0.4, 1))
            # what has no value lets the hatching behind it through
            assert image.get_cmap().get_bad()[3] == 0 and image.axes.patch.get_hatch() == "/////"

    def test_colours_are_full_only_where_a_threshold_selects(self) -> None:
        colours, full = selecting_colours("spectrum_fe"), colormaps["viridis"]
        for value, selected in ((0.19, True), (0.21, False), (0.39, False), (0.41, True)):
            place = int(256 * value / 0.6)
            assert (colours(place) == full(place)) is selected

    def test_layers_without_rotation_are_marked(self, result: xr.DataTree) -> None:
        figure = overview(result)
        for axes in (one for one in figure.axes if one.images):
            assert curve(axes, "layer without rotation (NoPE)")[:, 1].tolist() == [3]
        assert [text.get_text() for text in figure.legends[0].get_texts()] == [
            "layer without rotation (NoPE)",
            "no head has a value: none has the pair, or its norm is always 0 or flat",
        ]
        (turning,) = overview(synthetic_result(nope_layers=())).legends
        assert [text.get_text()[:18] for text in turning.get_texts()] == ["no head has a valu"]
        whole = synthetic_result(nope_layers=(), padded=False)
        whole["key"]["spectrum_fe"] = whole["key"]["spectrum_fe"].fillna(0.3)
        assert not overview(whole, "key").legends

    def test_axes(self, result: xr.DataTree) -> None:
        figure = overview(synthetic_result(padded=False))
        upper = figure.axes[0].child_axes[0]
        assert upper.get_xlabel() == "wavelength (tokens)"
        assert top_labels(figure.axes[0]) == ["6.3", "63", "628", "3.5k", "35k"]
        assert figure.axes[0].get_ylabel() == "layer"
        assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["0", "1", "2", "3"]
        assert overview(result).axes[0].child_axes[0].get_xlabel() == "wavelength in layer 0 (tokens)"

    def test_model_layers_label_the_rows(self) -> None:
        part = synthetic_result(layers=30, nope_layers=()).isel(layer=slice(4, 30, 2))
        labels = [label.get_text() for label in overview(part).axes[0].get_yticklabels()]
        assert labels == ["4", "8", "12", "16", "20", "24", "28"]

    def test_no_rotation_at_all(self) -> None:
        figure = overview(synthetic_result(nope_layers=range(4)))
        assert not figure.axes[0].child_axes

    def test_caption_without_corpus(self) -> None:
        caption = overview(synthetic_result(corpus=None, sequences=1), "key").get_suptitle()
        assert caption == "synthetic/tiny-irope · validation · keys · sequence 0 of 4096 tokens"

    def test_caption_names_a_local_file_without_its_folder(self) -> None:
        caption = overview(synthetic_result(corpus="/somewhere/deep/novel.txt")).get_suptitle()
        assert "· novel.txt validation ·" in caption


class TestKeyHeads:
    def test_query_heads_of_a_group_have_one_key_head(self) -> None:
        result = synthetic_result(kv_heads=2, heads=4, padded=False)
        assert key_heads(result, [(0, 0), (0, 1), (0, 3), (2, 2)]) == [(0, 0), (0, 1), (2, 1)]

    def test_a_place_that_is_not_there_stays_for_the_figure_to_refuse(self) -> None:
        assert key_heads(synthetic_result(), [(99, 1), (0, 99)]) == [(99, 1), (0, 99)]


class TestDefaultHeads:
    def test_band_periodic_and_nope(self) -> None:
        first, second, third = default_heads(synthetic_result())
        assert (first, second) == (BAND_HEAD, PERIODIC_HEAD)
        assert third[0] == 3

    def test_outlier_where_every_layer_rotates(self) -> None:
        result = synthetic_result(nope_layers=())
        result["query"]["spectrum_fe"][:, 3, 2, 5] = 0.9
        assert default_heads(result) == [BAND_HEAD, PERIODIC_HEAD, (3, 2)]

    def test_what_is_worth_seeing_does_not_depend_on_whose_norms_were_kept(self) -> None:
        kept = synthetic_result(kept=[(0, 0), (2, 1), (3, 0)])
        assert default_heads(kept) == default_heads(synthetic_result())

    def test_the_head_of_most_outliers_stands_before_one_of_a_single_higher_one(self) -> None:
        result = synthetic_result(nope_layers=())
        result["query"]["spectrum_fe"][:, 3, 2, 5] = 0.9
        result["query"]["spectrum_fe"][:, 1, 2, 4:7] = 0.5
        assert default_heads(result)[2] == (1, 2)

    def test_no_head_twice(self) -> None:
        result = synthetic_result(layers=1, heads=2, nope_layers=(), padded=False)
        assert sorted(default_heads(result)) == [(0, 0), (0, 1)]
        assert default_heads(result, "key") == [(0, 0)]

    def test_no_rotation_at_all(self) -> None:
        assert default_heads(synthetic_result(nope_layers=range(4)))[0] == BAND_HEAD

    def test_all_can_be_drawn(self, result: xr.DataTree) -> None:
        for stream in ("query", "key"):
            panel(result, default_heads(result, stream), stream)


class TestErrors:
    @pytest.mark.parametrize("draw", [overview, default_heads, lambda result, stream: panel(result, [(0, 0)], stream)])
    def test_unknown_stream(self, result: xr.DataTree, draw: object) -> None:
        with pytest.raises(InputError, match=r"got stream 'queries': did you mean 'query'\?"):
            draw(result, "queries")  # type: ignore[operator]

    def test_unknown_layer(self, result: xr.DataTree) -> None:
        with pytest.raises(InputError, match="got layer 4; the result holds layer 0 to 3: choose one of these"):
            panel(result, [(0, 0), (4, 0)])

    def test_unknown_head(self, result: xr.DataTree) -> None:
        with pytest.raises(InputError, match="got head -1; the result holds head 0 to 2"):
            panel(result, [(0, -1)])
        with pytest.raises(InputError, match="got kv_head 1; the result holds kv_head 0: choose"):
            panel(result, [(0, 1)], "key")

    def test_unknown_layer_of_a_part(self, result: xr.DataTree) -> None:
        with pytest.raises(InputError, match="the result holds layer 0, 3: choose"):
            panel(result.isel(layer=[0, 3]), [(1, 0)])

    def test_unknown_sequence(self, result: xr.DataTree) -> None:
        with pytest.raises(InputError, match="got sequence 2; the result holds sequence 0 to 1"):
            panel(result, [(0, 0)], sequence=2)

    def test_head_that_only_other_layers_have(self, result: xr.DataTree) -> None:
        with pytest.raises(InputError, match="layer 2 has no query head 2; other layers have more"):
            panel(result, [(2, 2)])

    def test_no_heads(self, result: xr.DataTree) -> None:
        with pytest.raises(InputError, match="got no heads to draw; give at least one"):
            panel(result, [])


def test_nothing_global_is_touched(result: xr.DataTree) -> None:
    before, imported = mpl.rcParams.copy(), "matplotlib.pyplot" in sys.modules
    panel(result, HEADS)
    overview(result)
    assert mpl.rcParams.copy() == before
    assert ("matplotlib.pyplot" in sys.modules) == imported


@pytest.mark.slow
def test_drawing_a_loaded_result_changes_nothing(result: xr.DataTree, tmp_path: Path) -> None:
    loaded = load(save(result, tmp_path / "result.nc"))
    panel(loaded, HEADS).savefig(tmp_path / "panel.png", dpi=40)
    overview(loaded, "key").savefig(tmp_path / "overview.svg")
    assert loaded.identical(result)
