"""What a figure shows, read from its axes."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure


def columns(figure: Figure, count: int) -> np.ndarray:
    """The grid of axes (row, column), without colour bars."""
    axes = [one for one in figure.axes if one.get_label() != "<colorbar>"]
    return np.array(axes, dtype=object).reshape(-1, count)


def curve(axes: Axes, label: str) -> np.ndarray:
    """Abscissa and value of the points (point, 2) of the line of that name."""
    (line,) = [line for line in axes.get_lines() if line.get_label() == label]
    return np.array(line.get_xydata(), dtype=float)
