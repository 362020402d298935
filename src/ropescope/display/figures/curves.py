"""Sweeps -> the perplexity curves of the paper's figure 3, as a Matplotlib figure; no file is touched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from ropescope.base.errors import InputError
from ropescope.display.figures.style import colours
from ropescope.evaluation.sweep.dataset import ALPHA, ARM, LOWEST, RANDOM, SELECTION, STREAM

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes


def sweep_curves(sweeps: Mapping[str, xr.Dataset]) -> Figure:
    """Draw perplexity over alpha: a panel for each selection, a line for each model, its controls behind.

    The panels have scales of their own, logarithmic where one spans more than a factor of five. The shaded band spans
    the random controls, the dashed line is the control of lowest mean norm.

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
    figure = Figure(figsize=(1 + 3.2 * len(names), 4.0), layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        for (label, data), colour in zip(sweeps.items(), colours(len(sweeps)), strict=True):
            _draw(axes, data.sel({SELECTION: name}), label, colour)
        axes.set_title(_title(name, sweeps), fontsize="medium")
        axes.set_xlabel("alpha")
        values = np.concatenate([data["perplexity"].sel({SELECTION: name}).values.ravel() for data in sweeps.values()])
        if np.nanmax(values) > 5 * np.nanmin(values):
            axes.set_yscale("log")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("perplexity")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize="small")
    return figure


def _draw(axes: Axes, data: xr.Dataset, label: str, colour: str) -> None:
    perplexity = data["perplexity"]
    arms = [str(arm) for arm in perplexity[ARM].values]
    random = perplexity.isel({ARM: [i for i, arm in enumerate(arms) if arm.startswith(RANDOM)]})
    asked = random.dropna(ALPHA, how="all")
    if asked.size:
        span = asked.min(ARM), asked.max(ARM)
        axes.fill_between(asked[ALPHA], *span, color=colour, alpha=0.2, lw=0, label=f"{label}, random pairs")
        axes.plot(asked[ALPHA], asked.mean(ARM), color=colour, lw=0.8, alpha=0.6)
    for arm, style in zip(LOWEST, ("--", ":"), strict=True):
        if arm in arms:
            lowest = perplexity.sel({ARM: arm}).dropna(ALPHA)
            axes.plot(lowest[ALPHA], lowest, color=colour, ls=style, lw=1, label=f"{label}, {LOWEST[arm]}")
    own = perplexity.sel({ARM: SELECTION})
    axes.plot(own[ALPHA], own, color=colour, marker="o", ms=4, label=f"{label}, selected pairs")


def _title(name: str, sweeps: Mapping[str, xr.Dataset]) -> str:
    """The selection, and how many pairs it holds in each model."""
    counts = [int(data["selected_pairs"].sel({SELECTION: name}).sum(STREAM)) for data in sweeps.values()]
    return f"{name}\n{', '.join(str(count) for count in counts)} pairs"
