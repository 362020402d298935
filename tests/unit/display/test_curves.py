"""The curves of a sweep: a panel for each selection, a line for each model, its controls behind."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from ropescope.base.errors import InputError
from ropescope.display.figures.curves import sweep_curves
from ropescope.evaluation.sweep.dataset import labelled
from ropescope.evaluation.sweep.in_words import findings

ALPHAS = [0.0, 0.5, 1.0]
ARMS = ["selection", "random-0", "random-1", "lowest-norm"]


def a_sweep(harm: float = 1.0, selections: tuple[str, ...] = ("bands", "periodic")) -> xr.Dataset:
    """Perplexity 20 at alpha 1; turning bands down multiplies it, turning others down adds little."""
    perplexity = np.full((len(selections), len(ARMS), len(ALPHAS)), 20.0)
    perplexity[0, 0, :2] = [20 + 40 * harm, 20 + 10 * harm]
    perplexity[:, 1, 0], perplexity[:, 2, 0], perplexity[:, 3, 0] = 22.0, 24.0, 21.0
    perplexity[:, 1:, 1] = np.nan
    nats = np.log(perplexity)[..., None] * np.ones(2)
    variables = {
        "nats": nats,
        "perplexity": perplexity,
        "tokens": np.array([1, 1]),
        "selected_pairs": np.array([[30, 12]] * len(selections)),
    }
    places = {"selection": list(selections), "arm": ARMS, "alpha": ALPHAS, "stream": ["query", "key"]}
    return labelled(variables, places, {"model": {"id": "small"}})


def test_a_panel_for_each_selection_with_its_number_of_pairs():
    figure = sweep_curves({"small": a_sweep()})
    assert [axes.get_title() for axes in figure.axes] == ["bands\n42 pairs", "periodic\n42 pairs"]


def test_a_line_for_each_model_with_its_perplexities():
    figure = sweep_curves({"small": a_sweep(), "large": a_sweep(harm=0.5)})
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    np.testing.assert_allclose(lines["small, selected pairs"].get_xydata(), [[0, 60], [0.5, 30], [1, 20]])
    np.testing.assert_allclose(lines["large, selected pairs"].get_xydata(), [[0, 40], [0.5, 25], [1, 20]])
    assert lines["small, selected pairs"].get_color() != lines["large, selected pairs"].get_color()


def test_controls_are_markers_where_they_were_judged_and_no_lines_between():
    axes = sweep_curves({"small": a_sweep()}).axes[1]
    lines = {line.get_label(): line for line in axes.lines}
    lowest = lines["small, lowest norm"]
    np.testing.assert_allclose(lowest.get_xydata(), [[0, 21]])
    assert lowest.get_linestyle() == "None" and lowest.get_marker() == "v"
    (random,) = axes.containers
    assert random.get_label() == "small, random pairs" and random.lines[0].get_linestyle() == "None"
    # what the table says of the random pairs: their mean in nats
    np.testing.assert_allclose(random.lines[0].get_xydata(), [[0, np.sqrt(22 * 24)]])
    assert f"random pairs ({np.sqrt(22 * 24):.4g})" in findings(a_sweep())[1]
    np.testing.assert_allclose(random.lines[2][0].get_segments(), [[[0, 22], [0, 24]]])


def test_a_flat_curve_does_not_look_steep():
    flat = a_sweep(harm=1e-4)
    flat["perplexity"][:, 1:] = 20.0
    low, high = sweep_curves({"small": flat}).axes[0].get_ylim()
    assert high / low == pytest.approx(1.05) and low < 20 < high


def test_a_selection_without_pairs_is_an_empty_panel():
    data = a_sweep()
    data["selected_pairs"].loc[{"selection": "periodic"}] = 0
    bands, periodic = sweep_curves({"small": data}).axes
    assert not periodic.lines and [text.get_text() for text in periodic.texts] == ["no such pairs"]
    assert bands.lines and not bands.texts


def test_a_wide_span_is_logarithmic():
    assert sweep_curves({"small": a_sweep(harm=0.1)}).axes[0].get_yscale() == "linear"
    assert sweep_curves({"small": a_sweep(harm=10)}).axes[0].get_yscale() == "log"


def test_a_sweep_without_controls_is_drawn_too():
    alone = a_sweep().isel(arm=[0])
    assert len(sweep_curves({"small": alone}).axes[0].lines) == 1


def test_nothing_and_other_selections_are_refused():
    with pytest.raises(InputError, match="got no sweep"):
        sweep_curves({})
    with pytest.raises(InputError, match=r"sweep 'large' has selections \['table1'\]"):
        sweep_curves({"small": a_sweep(), "large": a_sweep(selections=("table1",))})
