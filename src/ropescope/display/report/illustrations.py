"""Sections of a page that hold pictures: figures as they are, drawn once."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ropescope.analysis.importance_in_words import importance_foretold
from ropescope.analysis.joined_variables import further_sections
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


def worth_sections(results: Mapping[str, xr.DataTree], importances: Mapping[str, xr.DataTree]) -> list[Section]:
    """What importance says beside each measurement of its model, then its variables, once, whatever it stands beside.

    Raises
    ------
    InputError
        If an importance is of none of the models.
    """
    foretold, further = list[Section](), list[Section]()
    for label, importance in importances.items():
        beside = {name: result for name, result in results.items() if of_one_model(result, importance)}
        if not beside:
            raise InputError(f"report got {label!r}, the importance of a model of which there is no measurement")
        alike = [other for other in importances.values() if of_one_model(importance, other)]
        for place, (name, result) in enumerate(beside.items()):
            parts = (name if len(results) > 1 else "", label if len(alike) > 1 else "")
            section = importance_foretold(result, importance, ", ".join(filter(None, parts)))
            pictures = (_scatter(result, importance), *(_maps(result, importance) if place == 0 else ()))
            foretold.append(Illustrated(section.title, section.paragraphs, section.tables, pictures))
        further += further_sections(importance, label if len(importances) > 1 else "")
    return [*foretold, *further]


def _scatter(result: xr.DataTree, importance: xr.DataTree) -> Picture:
    return _picture(importance_scatter(result, importance), "Importance against SpectrumFE, and its cumulative share")


def _maps(result: xr.DataTree, importance: xr.DataTree) -> Iterator[Picture]:
    both = joined(result, importance)
    for stream in STREAMS:
        text = f"Map of the importance of {STREAM_NAMES[stream]} over layers and pairs"
        yield _picture(variable_map(both, "fisher", stream), text)


def _picture(figure: Figure, text: str) -> Picture:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=_DPI)
    return Picture(f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode('ascii')}", text)
