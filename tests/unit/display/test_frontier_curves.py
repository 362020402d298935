"""The curves of thin keys: a panel for each frontier, a line for each way, markers where it was measured."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from ropescope.base.errors import InputError
from ropescope.display.figures.frontier import frontier_curves
from ropescope.evaluation.frontier.dataset import STOCK, labelled


def a_frontier(worse: float = 1.0) -> xr.Dataset:
    """Latents of two sizes and norms of one; 100 tokens in each of six windows."""
    nats = np.full((4, 6), 300.0) + worse * np.array([0.0, 5.0, 1.0, 200.0])[:, None]
    nothing = np.full((4, 2, 1), np.nan)
    variables = {
        "method": np.array([STOCK, "latent", "latent", "norm"]),
        "keep": np.array([1.0, 0.25, 0.5, 0.5]),
        "key_bytes": np.array([1000, 250, 500, 501]),
        "nats": nats,
        "perplexity": np.exp(nats.sum(1) / 600),
        "tokens": np.full(6, 100),
        "prefill_seconds": nothing,
        "decode_seconds": nothing,
        "extra_bytes": nothing[..., 0],
    }
    return labelled(variables, ["latent 0.25", "latent 0.5", "norm 0.5"], 6, {})


def test_a_line_for_each_way_with_markers_at_what_was_measured() -> None:
    (axes,) = frontier_curves({"small": a_frontier()}).axes
    drawn = {each.get_label(): each.lines[0] for each in axes.containers}
    assert list(drawn) == ["latent", "norm"] and axes.get_title() == "small"
    np.testing.assert_allclose(drawn["latent"].get_xdata(), [25, 50])
    np.testing.assert_allclose(drawn["latent"].get_ydata(), 100 * np.expm1([0.05, 0.01]))
    assert drawn["latent"].get_marker() == "o" and drawn["norm"].get_linestyle() == "--"
    assert axes.get_yscale() == "symlog"
    stock = next(line for line in axes.lines if line.get_label() == "stock cache")
    assert set(stock.get_ydata()) == {0}


def test_a_panel_for_each_frontier_on_one_scale_and_one_colour_for_a_way() -> None:
    figure = frontier_curves({"small": a_frontier(), "large": a_frontier(0.5)})
    small, large = figure.axes
    assert small.get_ylim() == large.get_ylim()
    for one, other in zip(small.containers, large.containers, strict=True):
        assert one.lines[0].get_color() == other.lines[0].get_color()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["stock cache", "latent", "norm"]


def test_nothing_to_draw_is_refused() -> None:
    with pytest.raises(InputError, match="got no frontier; give at least one"):
        frontier_curves({})
