"""Sections of a page that hold pictures: figures as they are, drawn once."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ropescope.analysis.importance_in_words import importance_foretold
from ropescope.base.axes import STREAM_NAMES, STREAMS
from ropescope.base.errors import InputError
from ropescope.base.tables import Section
from ropescope.display.figures.importance import importance_scatter
from ropescope.display.figures.maps import variable_map
from ropescope.measurement.joining import joined, of_one_model

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

_DPI = 110


@dataclass(frozen=True)
class Picture:
    """A figure on a page.

    Parameters
    ----------
    source
        A PNG file as a data URI.
    text
        What it shows, for those who do not see it.
    """

    source: str
    text: str


@dataclass(frozen=True)
class Illustrated(Section):
    """A section with pictures between its words and its tables.

    Parameters
    ----------
    pictures
        In order.
    """

    pictures: tuple[Picture, ...] = ()


def worth_joined(
    results: Mapping[str, xr.DataTree], importances: Mapping[str, xr.DataTree]
) -> tuple[dict[str, xr.DataTree], list[Section]]:
    """Measurements with the importance of their models joined, and what it says beside each.

    Raises
    ------
    InputError
        If an importance is of none of the models, or of the pairs that another one is of.
    """
    together, sections = dict(results), list[Section]()
    for label, importance in importances.items():
        names = [name for name, result in results.items() if of_one_model(result, importance)]
        if not names:
            raise InputError(f"report got {label!r}, the importance of a model of which there is no measurement")
        for name in names:
            together[name] = joined(together[name], importance)
            sections.append(_foretold(results[name], importance, name if len(results) > 1 else ""))
    return together, sections


def _foretold(result: xr.DataTree, importance: xr.DataTree, name: str) -> Illustrated:
    section, both = importance_foretold(result, importance, name), joined(result, importance)
    pictures = [
        _picture(importance_scatter(result, importance), "Importance against SpectrumFE, and its cumulative share")
    ]
    for stream in STREAMS:
        text = f"Map of the importance of {STREAM_NAMES[stream]} over layers and pairs"
        pictures.append(_picture(variable_map(both, "fisher", stream), text))
    return Illustrated(section.title, section.paragraphs, section.tables, tuple(pictures))


def _picture(figure: Figure, text: str) -> Picture:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=_DPI)
    return Picture(f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode('ascii')}", text)
