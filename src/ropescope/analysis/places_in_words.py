"""Where bands live, in plain words and tables made from the numbers."""

from __future__ import annotations

import numpy as np
import xarray as xr

from ropescope.analysis.places import NOPE, OCTAVE, ROPE, ROTATION, SELECTION, SELECTIONS, localise
from ropescope.analysis.shares import ENTROPIES, ENTROPY, SOURCE
from ropescope.base.axes import LAYER, STREAMS
from ropescope.base.selections import BANDS, PAPER, PERIODIC, VARIABLE_LABELS
from ropescope.base.statistics import ESTIMATE
from ropescope.base.tables import Section, Table
from ropescope.measurement.summary import format_tokens

MEANINGS = {
    "pair": "pair index alone",
    "layer": "layer alone",
    "head": "head, within layer",
    "layer x pair": "layer x pair index",
    "head x pair": "head x pair index, within layer, and noise",
    "windows": "(noise between windows, in the above)",
    "wavelength": "(octave of wavelength, in place of pair index)",
}
# Rows tested on RoPE against NoPE layers; p is Bonferroni-corrected by their number over both streams.
TESTED = (BANDS.name, PERIODIC.name)
_LEVEL = 0.05


def where_bands_live(result: xr.DataTree, name: str = "") -> Section:
    """Answer where bands live, as strongly as the 95 % intervals carry, with the tables behind it.

    Parameters
    ----------
    result
        What :func:`ropescope.measure` gave.
    name
        What to call the result in the title; may be empty.

    Returns
    -------
    Section
        Shares of variance, counts over wavelength and over layers, and RoPE against NoPE layers in mixed models.

    Examples
    --------
    >>> print(where_bands_live(rs.load("qwen3.nc"), "Qwen3").text())  # doctest: +SKIP
    """
    tree = localise(result)
    streams = {stream: tree.children[stream].to_dataset() for stream in STREAMS}
    sentences = [*(_explained(*item) for item in streams.items()), *(_leaning(*item) for item in streams.items())]
    paragraphs = (" ".join([*sentences, _rotation_sentence(streams)]), _HOW_TO_READ)
    tables = [_share_table(streams), _octave_table(streams), _layer_table(streams)]
    if "p" in streams[STREAMS[0]]:
        tables.append(_rotation_table(streams))
    return Section(f"Where do bands live{f' in {name}' if name else ''}?", paragraphs, tuple(tables))


_HOW_TO_READ = (
    "Shares are of the variance, between places of other layer and other pair index, of each entropy's mean over "
    "windows; a part that is not there scores about 0 and may come out below. Brackets are 95 % intervals over layers."
)


def _explained(stream: str, data: xr.Dataset) -> str:
    share = data["share"].sel({ENTROPY: "spectrum_fe"})
    value, low, high = share.sel({SOURCE: "pair"}).values
    subject = f"{stream.capitalize()} SpectrumFE:"
    if np.isnan(low):
        return f"{subject} there are too few layers, or nothing varies, so what explains it cannot be said."
    verdict = (
        "more than half of the variance, against the paper's section 5"
        if low > 0.5
        else "less than half of the variance, as the paper's section 5 has it"
    )
    verdict = verdict if low > 0.5 or high < 0.5 else "a part of the variance that may be more or less than half"
    others = share.sel({SOURCE: ["layer", "head", "layer x pair", "head x pair"]}).sel({ESTIMATE: "value"})
    most = str(others[SOURCE].values[np.nanargmax(others.values)])
    return (
        f"{subject} pair index alone (high or low frequency as such) explains {_percent(value)} "
        f"({_percent(low)} to {_percent(high)}), {verdict}; "
        f"of the other parts {MEANINGS[most]} explains most ({_percent(float(others.max()))})."
    )


def _leaning(stream: str, data: xr.Dataset) -> str:
    members = data["members"].sel({SELECTION: BANDS.name})
    count, pairs = int(members.sum()), int(data["pairs"].sum())
    if not count:
        return f"No {stream} pair is a band."
    layers = int((members.sum(OCTAVE) > 0).sum())
    value, low, high = data["slow_share"].sel({SELECTION: BANDS.name}).values
    start = f"{count} of {pairs} {stream} pairs are bands, in {layers} of {members.sizes[LAYER]} layers"
    if np.isnan(low):
        return f"{start}."
    lean = "they lean to low frequencies" if low > 0.5 else "they lean to high frequencies"
    lean = lean if low > 0.5 or high < 0.5 else "no lean to either end is certain"
    inside = f"{_percent(value)} ({_percent(low)} to {_percent(high)})"
    return f"{start}; {inside} of those that turn are in the slower half of their layer's pairs: {lean}."


def _rotation_sentence(streams: dict[str, xr.Dataset]) -> str:
    rotated = streams[STREAMS[0]]["rotated"].values
    if "p" not in streams[STREAMS[0]]:
        kind = "rotate" if rotated.all() else "go without rotation"
        return f"All {len(rotated)} layers {kind}, so there are no RoPE layers to set against NoPE layers."
    parts = [_rotation_part(name, stream, data) for name in TESTED for stream, data in streams.items()]
    return f"NoPE layers ({int((~rotated).sum())} of {len(rotated)}) against RoPE layers: {'; '.join(parts)}."


def _rotation_part(name: str, stream: str, data: xr.Dataset) -> str:
    rope, nope = (float(data["mean_count"].sel({SELECTION: name, ROTATION: kind})) for kind in (ROPE, NOPE))
    p = _corrected(data, name)
    verdict = "no certain difference" if p > _LEVEL else "more" if nope > rope else "fewer"
    subject = PAPER[name].plural
    return f"{verdict} in {stream} {subject} ({nope:.1f} against {rope:.1f} a layer, p {_p(p)})"


def _corrected(data: xr.Dataset, name: str) -> float:
    return min(1.0, float(data["p"].sel({SELECTION: name})) * len(TESTED) * len(STREAMS))


def _share_table(streams: dict[str, xr.Dataset]) -> Table:
    columns = [(stream, entropy) for stream in STREAMS for entropy in ENTROPIES]
    rows = []
    for source, meaning in MEANINGS.items():
        found = [streams[stream]["share"].sel({ENTROPY: entropy, SOURCE: source}).values for stream, entropy in columns]
        if not np.isnan([value[0] for value in found]).all():
            rows.append([meaning, *(_interval(value) for value in found)])
    header = ["explained by", *(f"{stream} {VARIABLE_LABELS[entropy]}" for stream, entropy in columns)]
    return Table(header, rows, "Shares of variance, %")


def _octave_table(streams: dict[str, xr.Dataset]) -> Table:
    rows = []
    for octave in streams[STREAMS[0]][OCTAVE].values:
        entries = [entry for data in streams.values() for entry in _octave_entries(data.sel({OCTAVE: octave}))]
        rows.append([octave_name(float(octave)), *entries])
    counted = ("pairs", BANDS.label, "%")
    header = ["wavelength (tokens)", *(f"{stream} {what}" for stream in STREAMS for what in counted)]
    return Table(header, rows, "Bands by wavelength")


def _octave_entries(data: xr.Dataset) -> list[str]:
    pairs, bands = int(data["pairs"].sum()), int(data["members"].sel({SELECTION: BANDS.name}).sum())
    return [str(pairs), str(bands), f"{100 * bands / pairs:.1f}" if pairs else "-"]


def _layer_table(streams: dict[str, xr.Dataset]) -> Table:
    header = ["layer", "", *(f"{stream} {name}" for stream in STREAMS for name in (*SELECTIONS, "median wavelength"))]
    layers = streams[STREAMS[0]][LAYER].values
    rows = [[str(layer), *_layer_entries([data.sel({LAYER: layer}) for data in streams.values()])] for layer in layers]
    return Table(header, rows, "By layer; the median wavelength is that of its bands, in tokens")


def _layer_entries(streams: list[xr.Dataset]) -> list[str]:
    entries = [ROPE if streams[0]["rotated"] else NOPE]
    for data in streams:
        median = float(data["median_wavelength"].sel({SELECTION: BANDS.name}))
        entries += [str(count) for count in data["members"].sum(OCTAVE).sel({SELECTION: list(SELECTIONS)}).values]
        entries.append("-" if np.isnan(median) else format_tokens(median))
    return entries


def _rotation_table(streams: dict[str, xr.Dataset]) -> Table:
    rows = []
    for stream, data in streams.items():
        for name in SELECTIONS:
            means = data["mean_count"].sel({SELECTION: name}).values
            rows.append(
                [f"{stream} {name}", *(f"{mean:.2f}" for mean in means), _p(float(data["p"].sel(selection=name)))]
            )
    return Table(
        ["mean in a layer", ROPE, NOPE, "p"], rows, "RoPE against NoPE layers, p against shuffled layer labels"
    )


def octave_name(lower: float) -> str:
    """An octave by its ends in tokens, such as 64-128.

    Parameters
    ----------
    lower
        Its lower end, a power of two; infinite where nothing turns.
    """
    return "no rotation" if np.isinf(lower) else f"{_tokens(lower)}-{_tokens(2 * lower)}"


def _tokens(count: float) -> str:
    """Powers of two in binary thousands, as context lengths are written."""
    for size, suffix in ((2**20, "M"), (2**10, "k")):
        if count >= size:
            return f"{count / size:g}{suffix}"
    return f"{count:g}"


def _interval(value: np.ndarray) -> str:
    middle, low, high = (f"{100 * number:.1f}" for number in value)
    return "-" if np.isnan(value[0]) else middle if np.isnan(value[1]) else f"{middle} [{low}, {high}]"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
