"""Sweeps -> the perplexity curves of the paper's figure 3, as a Matplotlib figure; no file is touched."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from ropescope.base.errors import InputError
from ropescope.base.strengths import strength_of
from ropescope.display.figures.style import colours, draw_nothing
from ropescope.evaluation.sweep.changes import mean_perplexity
from ropescope.evaluation.sweep.dataset import ALPHA, ARM, LOWEST, RANDOM, SELECTION, STREAM, SWEEP

# A flat curve must not look like a steep one: so much from the lowest to the highest is always shown.
_LEAST_SPAN = 1.05

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes


def sweep_curves(sweeps: Mapping[str, xr.Dataset]) -> Figure:
    """Draw perplexity over alpha: a panel for each selection, a line for each model, its controls behind.

    The panels have scales of their own, logarithmic where one spans more than a factor of five, and none spans less
    than five per cent. Controls are markers at the strengths they were judged at: squares are the mean loss of the
    random ones, their bars reach from the lowest to the highest, triangles are the controls of lowest norm or
    importance. A selection without pairs is an empty panel.

    Parameters
    ----------
    sweeps
        What :func:`ropescope.sweep` gave, by the name to show; all panels are those of the first.

    Returns
    -------
    matplotlib.figure.Figure
        One row of panels.

    Raises
    ------
    InputError
        If there is no sweep, or the sweeps have different selections.

    References
    ----------
    Frequency Entropy paper, figure 3.

    Examples
    --------
    >>> sweep_curves({"Qwen3": rs.load("qwen3-sweep.nc")}).savefig("curves.png")  # doctest: +SKIP
    """
    if not sweeps:
        raise InputError("sweep_curves got no sweep; give at least one")
    first = next(iter(sweeps.values()))
    names = [str(name) for name in first[SELECTION].values]
    for label, data in sweeps.items():
        if [str(name) for name in data[SELECTION].values] != names:
            raise InputError(f"sweep {label!r} has selections {data[SELECTION].values.tolist()}, the first has {names}")
    strengths = {strength_of(SWEEP.provenance(data)).name for data in sweeps.values()}
    strength = strengths.pop() if len(strengths) == 1 else "alpha"
    figure = Figure(figsize=(1 + 3.2 * len(names), 4.0), layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        axes.set_title(_title(name, sweeps), fontsize="medium")
        drawn = {label: data.sel({SELECTION: name}) for label, data in sweeps.items()}
        if not any(data["selected_pairs"].any() for data in drawn.values()):
            draw_nothing(axes, "no such pairs")
            axes.set_yticks([])
            continue
        for (label, data), colour in zip(drawn.items(), colours(len(sweeps)), strict=True):
            if data["selected_pairs"].any():
                _draw(axes, data, label, colour)
        axes.set_xlabel(strength)
        values = np.concatenate([data["perplexity"].sel({SELECTION: name}).values.ravel() for data in sweeps.values()])
        low, high = float(np.nanmin(values)), float(np.nanmax(values))
        if high > 5 * low:
            axes.set_yscale("log")
        elif high < _LEAST_SPAN * low:
            middle = math.sqrt(low * high)
            axes.set_ylim(middle / math.sqrt(_LEAST_SPAN), middle * math.sqrt(_LEAST_SPAN))
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("perplexity")
    shown = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=3, frameon=False, fontsize="small")
    return figure


def _draw(axes: Axes, data: xr.Dataset, label: str, colour: str) -> None:
    perplexity = data["perplexity"]
    arms = [str(arm) for arm in perplexity[ARM].values]
    random = perplexity.isel({ARM: [i for i, arm in enumerate(arms) if arm.startswith(RANDOM)]})
    asked = random.sel({ALPHA: random[ALPHA] < 1}).dropna(ALPHA, how="all")
    if asked.size:
        mean = mean_perplexity(asked)
        # of draws that agree the mean may be above or below all by a rounding
        bars = ((mean - asked.min(ARM)).clip(0), (asked.max(ARM) - mean).clip(0))
        axes.errorbar(asked[ALPHA], mean, bars, color=colour, fmt="s", ms=4, capsize=3, label=f"{label}, random pairs")
    for arm, marker in zip(LOWEST, ("v", "^"), strict=True):
        if arm in arms:
            lowest = perplexity.sel({ARM: arm, ALPHA: perplexity[ALPHA] < 1}).dropna(ALPHA)
            style: dict[str, Any] = {"color": colour, "ls": "", "marker": marker, "mfc": "none", "ms": 6}
            axes.plot(lowest[ALPHA], lowest, label=f"{label}, {LOWEST[arm]}", **style)
    own = perplexity.sel({ARM: SELECTION})
    axes.plot(own[ALPHA], own, color=colour, marker="o", ms=4, label=f"{label}, selected pairs")


def _title(name: str, sweeps: Mapping[str, xr.Dataset]) -> str:
    """The selection, and how many pairs it holds in each model."""
    counts = [int(data["selected_pairs"].sel({SELECTION: name}).sum(STREAM)) for data in sweeps.values()]
    return f"{name}\n{', '.join(map(str, counts))} {'pair' if counts == [1] else 'pairs'}"
