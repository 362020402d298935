"""Does Frequency Entropy foretell importance? In plain words and tables made from the numbers."""

from __future__ import annotations

import numpy as np
import xarray as xr

from ropescope.analysis.importance_scores import NORM_PRODUCT, SCORES, SPECTRUM
from ropescope.analysis.importance_shares import SCORE, SELECTION, STREAM, importance_shares
from ropescope.base.axes import STREAMS
from ropescope.base.selections import BANDS, PAPER
from ropescope.base.statistics import ESTIMATE, ESTIMATES, LEAST_WINDOWS
from ropescope.base.tables import Section, Table

_LEVEL = 0.05


def importance_foretold(result: xr.DataTree, importance: xr.DataTree, name: str = "") -> Section:
    """Answer whether Frequency Entropy foretells importance, with what plain norms would have foretold.

    Parameters
    ----------
    result
        What :func:`ropescope.measure` gave.
    importance
        What :func:`ropescope.importance` gave for the same model.
    name
        What to call the model in the title; may be empty.

    Returns
    -------
    Section
        What each of the paper's selections holds of the importance, and how well scores find the tenth of the pairs
        that matter most, against chance and against their own shuffles within heads.

    Raises
    ------
    InputError
        If the two are of other models or pairs.

    Examples
    --------
    >>> print(importance_foretold(rs.load("qwen3.nc"), rs.load("qwen3-worth.nc")).text())  # doctest: +SKIP
    """
    found = importance_shares(result, importance)
    title = f"Does Frequency Entropy foretell importance{f' in {name}' if name else ''}?"
    held = " ".join([*(_held(found, stream) for stream in STREAMS), _lesser(found)])
    areas = " ".join(_areas(found.sel({STREAM: stream}), stream) for stream in STREAMS)
    tables = (_share_table(found), *(_area_table(found, stream) for stream in STREAMS))
    return Section(title, (held, areas, _how_to_read(found)), tables)


def bands_sentence(found: xr.Dataset, stream: str) -> str:
    """What bands are of a stream's pairs, and what they hold, of :func:`ropescope.importance_shares`."""
    return f"Bands are {_part(found.sel({STREAM: stream, SELECTION: BANDS.name}), f'the {stream} pairs')}."


def _held(found: xr.Dataset, stream: str) -> str:
    parts: list[str] = []
    for name, selection in PAPER.items():
        data = found.sel({STREAM: stream, SELECTION: name})
        if float(data["pairs"]):
            whole = f"the {stream} pairs" if not parts else "them"
            parts.append(f"{selection.plural} are {_part(data, whole, first=not parts)}")
    if not parts:
        return f"The paper's selections hold none of the {stream} pairs."
    return f"{_begun('; '.join(parts))}."


def _begun(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]


def _part(data: xr.Dataset, whole: str, first: bool = True) -> str:
    what = " of what the loss feels" if first else ""
    return f"{percent(float(data['pairs']))} of {whole} and hold {share_text(data['importance'])}{what}"


def _lesser(found: xr.Dataset) -> str:
    query, key = (share_text(found["lesser_half"].sel({STREAM: stream})) for stream in STREAMS)
    return f"The lesser half of the query pairs holds {query}, of the key pairs {key}."


def _areas(found: xr.Dataset, stream: str) -> str:
    auc, beyond = (found[name].sel({SCORE: SPECTRUM}) for name in ("auc", "beyond_heads"))
    shuffled = float(found["shuffled_auc"].sel({SCORE: SPECTRUM, ESTIMATE: "value"}))
    others = ", ".join(
        f"the {SCORES[name]} {area_text(found['auc'].sel({SCORE: name}))}" for name in ("mean_norm", NORM_PRODUCT)
    )
    return (
        f"{_begun(SCORES[SPECTRUM])} finds the tenth of the {stream} pairs that matter most with AUC {area_text(auc)}; "
        f"shuffled within heads it keeps {shuffled:.2f}, so "
        f"{_verdict(beyond, float(found['p'].sel({SCORE: SPECTRUM})))}. Without any spectrum: {others}."
    )


def _verdict(beyond: xr.DataArray, p: float) -> str:
    value = float(beyond.sel({ESTIMATE: "value"}))
    if p > _LEVEL:
        return f"it does not measurably tell pairs of one head apart (p {p:.3f})"
    if value > 0:
        return f"{area_text(beyond)} come from telling pairs of one head apart (p {p:.3f})"
    return f"among the pairs of one head it points the wrong way, by {area_text(beyond)} (p {p:.3f})"


def _how_to_read(found: xr.Dataset) -> str:
    windows = found.attrs["windows"]
    intervals = (
        f"Brackets are 95 % intervals over the {windows} windows of the importance."
        if windows >= LEAST_WINDOWS
        else f"There are no intervals: the importance is of {windows} windows, and they take {LEAST_WINDOWS}."
    )
    return (
        f"{intervals} AUC is how often a pair of the most important tenth has the higher score than another pair: 1 "
        f"always, 0.5 by chance. Shuffled within heads, a score knows only which head a pair is of; p is against "
        f"{found.attrs['shuffles']} shuffles. The norm product is the mean norm of a pair's queries times that of its "
        "keys, the score of ThinK (Xu et al., ICLR 2025) for pairs."
    )


def _share_table(found: xr.Dataset) -> Table:
    header = ["selection", *(f"{stream} {what}, %" for stream in STREAMS for what in ("pairs", "importance"))]
    rows = []
    for name, selection in PAPER.items():
        data = found.sel({SELECTION: name})
        rows.append([selection.rule, *(entry for stream in STREAMS for entry in _entries(data.sel({STREAM: stream})))])
    return Table(header, rows, "Shares of the pairs and of the importance")


def _entries(data: xr.Dataset) -> list[str]:
    return [f"{100 * float(data['pairs']):.3g}", _bracketed(100 * data["importance"].values, ".3g")]


def _area_table(found: xr.Dataset, stream: str) -> Table:
    columns = {"auc": "AUC", "shuffled_auc": "shuffled", "beyond_heads": "beyond heads"}
    rows = []
    for name, label in SCORES.items():
        data = found.sel({SCORE: name, STREAM: stream})
        areas = [_bracketed(data[variable].values, ".2f") for variable in columns]
        rows.append([label, *areas, f"{float(data['p']):.3f}"])
    return Table(["score", *columns.values(), "p"], rows, f"Finding the most important tenth of the {stream} pairs")


def _bracketed(estimate: np.ndarray, form: str) -> str:
    value, low, high = (f"{number:{form}}" for number in estimate)
    return value if np.isnan(estimate[1]) else f"{value} [{low}, {high}]"


def share_text(estimate: xr.DataArray) -> str:
    """A share in percent, with its interval where there is one."""
    value, low, high = (float(estimate.sel({ESTIMATE: end})) for end in ESTIMATES)
    return percent(value) + ("" if np.isnan(low) else f" ({percent(low)} to {percent(high)})")


def area_text(estimate: xr.DataArray) -> str:
    """An area under a curve, with its interval where there is one."""
    value, low, high = (float(estimate.sel({ESTIMATE: end})) for end in ESTIMATES)
    return f"{value:.2f}" + ("" if np.isnan(low) else f" ({low:.2f} to {high:.2f})")


def percent(share: float) -> str:
    """A share in percent, to two figures; near the whole to a tenth, and never rounded up to it."""
    number = 100 * share
    if 99 < number < 100:
        return f"{min(number, 99.9):.1f} %"
    return f"{number:.0f} %" if number >= 10 else f"{number:.2g} %"
