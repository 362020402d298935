"""A result in numbers and words: how many pairs are bands, outliers or periodic, and which bands stand out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from ropescope.base.axes import HEAD_AXIS, LAYER, PAIR, SEQUENCE, STREAMS
from ropescope.base.counting import counted
from ropescope.base.errors import InputError
from ropescope.base.selections import BANDS, OUTLIERS, PERIODIC, SILENT
from ropescope.measurement.joining import further_variables
from ropescope.measurement.periods import DRIFT, DRIFT_RULE, RHYTHM, RHYTHM_RULE, kinds
from ropescope.measurement.red_noise import expected_rhythms
from ropescope.measurement.results import mean_over_sequences, stream_data, wavelength, window_length


@dataclass(frozen=True)
class Counts:
    """How many pairs of a stream each selection holds.

    Parameters
    ----------
    pairs : int
        Pairs that the model has; padding is left out.
    bands, outliers, periodic : int
        Pairs that the selections of these names hold by their means over sequences.
    rhythm, drift : int
        Of the periodic ones those that beat, and those that rather follow the text (:func:`kinds` of
        ``measurement.periods``); both 0 where the result does not hold the length of its windows.
    undefined_spectrum, undefined_sequence : int
        Pairs without a SpectrumFE (silent) and without a SequenceFE (silent or flat) in every sequence.
    silent : int
        Pairs that are exactly zero at every position. That says nothing about their rotation.
    """

    pairs: int
    bands: int
    outliers: int
    periodic: int
    rhythm: int
    drift: int
    undefined_spectrum: int
    undefined_sequence: int
    silent: int


@dataclass(frozen=True)
class Band:
    """Neighbouring pairs of one head whose norms stay steady along the sequence, all of the selection `bands`.

    Parameters
    ----------
    layer, head : int
        Model layer, and query head or key head.
    first_pair, last_pair : int
        The run of pairs, both ends included.
    spectrum_fe : float
        Lowest SpectrumFE in the run, mean over sequences.
    relative_norm : float
        Mean norm in the run over the mean norm of the head's pairs; above 1 is louder than the head.
    shortest_wavelength, longest_wavelength : float
        Tokens in one turn of the fastest and slowest pair of the run; infinite where nothing turns.
    """

    layer: int
    head: int
    first_pair: int
    last_pair: int
    spectrum_fe: float
    relative_norm: float
    shortest_wavelength: float
    longest_wavelength: float


def counts(result: xr.DataTree, stream: str = "query") -> Counts:
    """Count the pairs in each of the paper's selections, on the mean over sequences.

    A pair without a value is in no selection. A place without a mean norm is padding, not a pair.

    Parameters
    ----------
    result : xarray.DataTree
    stream : {"query", "key"}

    Returns
    -------
    Counts

    Raises
    ------
    InputError
        ``stream`` is neither.

    References
    ----------
    Frequency Entropy paper, section 4.
    """
    data = stream_data(result, stream)
    mean, kind = mean_over_sequences(data), kinds(data["dominant_period"], window_length(result))
    present = mean["mean_norm"].notnull()
    spectrum, sequence = mean["spectrum_fe"], mean["sequence_fe"]
    periodic = present & PERIODIC.holds(sequence)
    return Counts(
        pairs=int(present.sum()),
        bands=int((present & BANDS.holds(spectrum)).sum()),
        outliers=int((present & OUTLIERS.holds(spectrum)).sum()),
        periodic=int(periodic.sum()),
        rhythm=int((periodic & (kind == RHYTHM)).sum()),
        drift=int((periodic & (kind == DRIFT)).sum()),
        undefined_spectrum=int((present & spectrum.isnull()).sum()),
        undefined_sequence=int((present & sequence.isnull()).sum()),
        silent=int(SILENT.holds(mean["mean_norm"]).sum()),
    )


def bands(result: xr.DataTree, stream: str = "query") -> list[Band]:
    """List the bands of a stream, strongest first.

    A band is a run of neighbouring pairs in one head whose SpectrumFE, mean over sequences, is that of `bands`.
    Strength is ``relative_norm``, ties by lower SpectrumFE: SpectrumFE ignores scale, so a pair that is steady but
    hardly there scores as low as a loud one, and what the paper calls a band is persistently loud.

    Parameters
    ----------
    result : xarray.DataTree
    stream : {"query", "key"}

    Returns
    -------
    list of Band

    Raises
    ------
    InputError
        ``stream`` is neither.

    References
    ----------
    Frequency Entropy paper, section 3.4, observation 1.
    """
    mean = mean_over_sequences(stream_data(result, stream))
    turns = wavelength(result)
    found = [
        band
        for layer in mean[LAYER].values.tolist()
        for head in mean[HEAD_AXIS[stream]].values.tolist()
        for band in _head_bands(layer, head, mean.sel({LAYER: layer, HEAD_AXIS[stream]: head}), turns.sel(layer=layer))
    ]
    return sorted(found, key=lambda band: (-band.relative_norm, band.spectrum_fe))


def summary_text(result: xr.DataTree, strongest: int = 5) -> str:
    """Tell a result as plain text: counts of each selection, then the strongest bands, per stream.

    Parameters
    ----------
    result
        What :func:`ropescope.measure` gave, alone or with others joined to it.
    strongest
        Bands listed per stream, at least 0.

    Returns
    -------
    str
        Lines of ASCII without a newline at the end.

    Raises
    ------
    InputError
        `strongest` is negative.

    Examples
    --------
    >>> print(summary_text(rs.load("qwen3.nc"), strongest=3))  # doctest: +SKIP
    """
    if strongest < 0:
        raise InputError(f"got strongest={strongest}; the number of bands to list must be 0 or more")
    return "\n\n".join(
        "\n".join(
            [
                *_counts_lines(result, stream),
                *_bands_lines(result, stream, strongest),
                *_further_lines(result, stream),
            ]
        )
        for stream in STREAMS
    )


def format_tokens(tokens: float) -> str:
    """Write a wavelength in at most two or three digits: 6.3, 63, 628, 3.5k, 63k, 1.2M, inf, ? if not known.

    Parameters
    ----------
    tokens : float
        Positive, may be infinite or NaN.
    """
    if not math.isfinite(tokens):
        return "?" if math.isnan(tokens) else "inf"
    steps = ((1e6, "M"), (1e3, "k"), (0.0, ""))
    scale, suffix = next(step for step in steps if float(f"{tokens:.3g}") >= step[0])
    scaled = tokens / max(scale, 1.0)
    return (f"{scaled:.1f}" if scaled < 9.95 else f"{scaled:.0f}") + suffix


def _head_bands(layer: int, head: int, data: xr.Dataset, turns: xr.DataArray) -> Iterator[Band]:
    spectrum, norm, pair = data["spectrum_fe"].values, data["mean_norm"].values, data[PAIR].values
    for run in _runs(BANDS.holds(spectrum) & ~np.isnan(norm)):
        yield Band(
            layer=layer,
            head=head,
            first_pair=int(pair[run[0]]),
            last_pair=int(pair[run[-1]]),
            spectrum_fe=float(spectrum[run].min()),
            relative_norm=float(norm[run].mean() / np.nanmean(norm)),
            shortest_wavelength=float(turns.values[run].min()),
            longest_wavelength=float(turns.values[run].max()),
        )


def _runs(selected: np.ndarray) -> list[np.ndarray]:
    places = np.flatnonzero(selected)
    return [run for run in np.split(places, np.flatnonzero(np.diff(places) > 1) + 1) if run.size]


def _counts_lines(result: xr.DataTree, stream: str) -> list[str]:
    total = counts(result, stream)
    sizes = stream_data(result, stream).sizes
    kinds_of_periodic = [(f"- {RHYTHM}", RHYTHM_RULE, total.rhythm), (f"- {DRIFT}", DRIFT_RULE, total.drift)]
    rows = [
        (BANDS.label, BANDS.rule, total.bands),
        (OUTLIERS.label, OUTLIERS.rule, total.outliers),
        (PERIODIC.label, PERIODIC.rule, total.periodic),
        *(kinds_of_periodic if total.periodic else ()),
        ("undefined", "SpectrumFE", total.undefined_spectrum),
        ("undefined", "SequenceFE", total.undefined_sequence),
        (SILENT.label, SILENT.words, total.silent),
    ]
    title = (
        f"{stream}: {total.pairs} pairs in {counted(sizes[LAYER], 'layer')} x "
        f"{counted(sizes[HEAD_AXIS[stream]], 'head')}, mean over {counted(sizes[SEQUENCE], 'sequence')}"
    )
    lines = [_count_line(name, rule, n, total.pairs) for name, rule, n in rows]
    if (red := expected_rhythms(result, stream)) is not None:
        # What has the same SequenceFE and no rhythm of its own passes for one so often.
        lines.insert(3 + len(kinds_of_periodic), _count_line("- red noise", " passes for rhythm", red, total.pairs))
    return [title, *lines]


def _count_line(name: str, rule: str, number: float, pairs: int) -> str:
    shown = f"{number:.1f}" if isinstance(number, float) else str(number)
    return f"  {name:<11}{rule:<18}{shown:>8}{number / max(pairs, 1):>8.1%}"


def _bands_lines(result: xr.DataTree, stream: str, strongest: int) -> list[str]:
    if not strongest:
        return []
    listed = bands(result, stream)[:strongest]
    if not listed:
        return ["  no bands"]
    header = ("layer", "head", "pairs", "wavelength (tokens)", "SpectrumFE", "norm / head mean")
    return ["  strongest bands", *_table(header, [_band_row(band) for band in listed])]


def _further_lines(result: xr.DataTree, stream: str) -> list[str]:
    """Median and range of the variables that other measurements have joined."""
    data = stream_data(result, stream)
    lines = []
    for variable in further_variables(data):
        known = data[variable.name].values[data[variable.name].notnull().values]
        low, middle, high = np.quantile(known, (0.1, 0.5, 0.9)) if known.size else (np.nan,) * 3
        unit = "" if variable.unit == "1" else f" {variable.unit}"
        lines.append(f"  {variable.label}: median {middle:.3g}{unit}, 80 % of pairs from {low:.3g} to {high:.3g}{unit}")
    return lines


def _band_row(band: Band) -> tuple[str, ...]:
    return (
        str(band.layer),
        str(band.head),
        _span(str(band.first_pair), str(band.last_pair)),
        _span(format_tokens(band.shortest_wavelength), format_tokens(band.longest_wavelength)),
        f"{band.spectrum_fe:.3f}",
        f"{band.relative_norm:.2f}",
    )


def _span(first: str, last: str) -> str:
    return first if first == last else f"{first}-{last}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(entry) for entry in column) for column in zip(header, *rows, strict=True)]
    lines = [header, *rows]
    return ["  " + "  ".join(entry.rjust(width) for entry, width in zip(line, widths, strict=True)) for line in lines]
