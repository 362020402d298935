"""Predicted against true KL divergence of sets of pairs turned down, and the range in which to trust the prediction."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from ropescope.base.axes import SEQUENCE
from ropescope.base.counting import counted
from ropescope.base.errors import InputError
from ropescope.display.figures.style import FAINT, REFERENCE, SMALL, colours, plain
from ropescope.evaluation.set_prediction import FACTOR, SET_VALIDATION, trusted
from ropescope.evaluation.sweep.dataset import ALPHA, SELECTION
from ropescope.measurement.names import model_name
from ropescope.measurement.results import text_of

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes


def set_predictions(check: xr.Dataset) -> Figure:
    """Draw the true KL divergence of every selection and strength over the predicted one, both on logarithmic scales.

    On the diagonal the two are equal; the shaded band is a factor of two to either side, and the dotted line is where
    the range in which the prediction may be trusted ends.

    Parameters
    ----------
    check
        What :func:`ropescope.validate_sets` gave.

    Returns
    -------
    matplotlib.figure.Figure
        One line for each selection, its strengths written beside the points.

    Raises
    ------
    InputError
        If no selection holds pairs that the loss feels.

    Examples
    --------
    >>> set_predictions(rs.load("qwen3-worth-sets-validated.nc")).savefig("sets.png")  # doctest: +SKIP
    """
    predicted, true = check["predicted_kl"], check["kl"].mean(SEQUENCE)
    drawn = (predicted > 0) & (true > 0)
    if not drawn.any():
        raise InputError("set_predictions got no selection that the loss feels; give others")
    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    figure.suptitle(_caption(check), fontsize=SMALL + 1, color=REFERENCE)
    axes = figure.subplots()
    ends = np.concatenate([values.values[drawn.values] for values in (predicted, true)])
    limits = np.array([ends.min() / 3, ends.max() * 3])
    axes.fill_between(
        limits, limits / FACTOR, limits * FACTOR, color=FAINT, alpha=0.35, lw=0, label=f"factor {FACTOR:g}"
    )
    axes.plot(limits, limits, color=REFERENCE, lw=0.9, label="equal")
    for name, colour in zip(check[SELECTION].values, colours(check.sizes[SELECTION]), strict=True):
        at = {SELECTION: name}
        _draw_selection(axes, predicted.sel(at), true.sel(at), str(name), colour)
    limit, _ = trusted(check)
    if np.isfinite(limit):
        axes.axvline(limit, color=REFERENCE, lw=0.9, ls=":", label=f"trusted up to {limit:.2g} nat/token")
    axes.set(xscale="log", yscale="log", xlim=limits, ylim=limits)
    axes.set_xlabel("predicted KL divergence (nat/token)", fontsize=SMALL + 1)
    axes.set_ylabel("true KL divergence (nat/token)", fontsize=SMALL + 1)
    axes.legend(fontsize=SMALL, frameon=False, loc="upper left")
    plain(axes)
    return figure


def _draw_selection(axes: Axes, predicted: xr.DataArray, true: xr.DataArray, name: str, colour: str) -> None:
    drawn = (predicted > 0) & (true > 0)
    place = predicted.values[drawn.values], true.values[drawn.values]
    axes.plot(*place, color=colour, lw=1, marker="o", ms=4, label=name)
    for x, y, alpha in zip(*place, predicted[ALPHA].values[drawn.values], strict=True):
        axes.annotate(f"{alpha:g}", (x, y), (4, -8), textcoords="offset points", fontsize=SMALL - 1, color=colour)


def _caption(check: xr.Dataset) -> str:
    facts = SET_VALIDATION.provenance(check)
    windows, count = facts.get("windows", {}), check.sizes[SEQUENCE]
    length = f" of {windows['length']} tokens" if windows.get("length") else ""
    size = counted(count, "window") + length
    return " · ".join(part for part in (model_name(check), text_of(check), size) if part)
