"""A comparison in plain words and tables made from the numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from ropescope.analysis.agreement import ANYWHERE, OTHER, PER_HEAD, PLACEMENT, compare
from ropescope.analysis.comparability import differences, notes
from ropescope.analysis.distributions import DEPTH, RESULT, STREAM, distributions
from ropescope.analysis.places import OCTAVE, SELECTION, SELECTIONS
from ropescope.analysis.places_in_words import octave_name
from ropescope.analysis.shares import ENTROPIES, ENTROPY
from ropescope.base.axes import HEAD_AXIS, LAYER, PAIR, SEQUENCE, STREAMS
from ropescope.base.errors import InputError
from ropescope.base.facts import listed, other_model, other_weights
from ropescope.base.selections import BANDS, LEAST_PAIRS, PAPER, PERIODIC, VARIABLE_LABELS
from ropescope.base.statistics import ESTIMATE
from ropescope.base.tables import Section, Table
from ropescope.measurement.results import provenance, short_name, stream_data, wavelength
from ropescope.measurement.summary import format_tokens

_FACTS = {
    "model": ("model", "id"),
    "weights": ("model", "fingerprint"),
    "dtype": ("model", "dtype"),
    "corpus": ("windows", "corpus"),
    "split": ("windows", "split"),
    "tokens": ("parameters", "length"),
}
_DIGEST = 8


def same_places(results: Mapping[str, xr.DataTree], *, top: int = 10, seed: int = 0) -> tuple[Section, ...]:
    """Answer whether other results have their bands and periodic pairs where the first has them.

    Parameters
    ----------
    results
        As in :func:`ropescope.compare`.
    top
        How many of the pairs that moved most to list, for each stream and entropy, at least 0.
    seed
        Seed of the random placements.

    Returns
    -------
    tuple of Section
        One for each other result: words as strong as the intervals carry; tables of what was compared, of overlap, of
        rank correlation, also by layer, and of the pairs that moved most.

    Raises
    ------
    InputError
        There are fewer than two results, or `top` is negative.
    ResultError
        As in :func:`ropescope.compare`.

    Examples
    --------
    >>> (section,) = same_places({"wikitext": one, "c4": other})  # doctest: +SKIP
    >>> print(section.text())  # doctest: +SKIP
    """
    if top < 0:
        raise InputError(f"got top={top}; the number of pairs to list must be 0 or more")
    tree = compare(results, seed=seed)
    (name, first), *others = results.items()
    return tuple(_section((name, first), other, tree, top) for other in others)


def _section(first: tuple[str, xr.DataTree], other: tuple[str, xr.DataTree], tree: xr.DataTree, top: int) -> Section:
    streams = {stream: tree.children[stream].to_dataset().sel({OTHER: other[0]}) for stream in STREAMS}
    both = dict((first, other))
    facts = _fact_table(both)
    verdicts = [_overlap_sentence(name, *item) for name in SELECTIONS for item in streams.items()]
    correlations = [_correlation_sentence(*item) for item in streams.items()]
    paragraphs = (" ".join([*verdicts, *correlations]), _robustness(both, streams), *notes(both), _HOW_TO_READ)
    tables = [facts, _overlap_table(streams), _correlation_table(streams), _layer_table(streams)]
    tables += [_moved_table(name, *item, first[1], top) for name in ENTROPIES for item in streams.items() if top]
    return Section(f"Does {other[0]} have its bands where {first[0]} has them?", paragraphs, tuple(tables))


_HOW_TO_READ = (
    "Overlap is Jaccard's index, 0 to 1, on means over windows. Chance places sets of the same sizes anywhere, or "
    "keeping the number in every head; brackets are central 95 % ranges. Halves is the overlap of a result's even with "
    "its odd windows, mean over both: what noise between windows leaves of a perfect overlap, at half the windows. The "
    "ceiling of a rank correlation (Spearman, 95 % over layers) is what other windows of the same texts would show; "
    "results of the same windows may lie above it. A changed pair is one that Welch's test calls so at 5 %, which by "
    "chance takes 5 % of them."
)


def _overlap_sentence(name: str, stream: str, data: xr.Dataset) -> str:
    one = data.sel({SELECTION: name})
    sizes = f"{int(one['first_members'])} and {int(one['other_members'])}"
    value, verdict = float(one["jaccard"]), _against_chance(one)
    if np.isnan(value):
        return f"Neither has {stream} {PAPER[name].plural}."
    if not _in_both(one):
        return f"Only one of them has {stream} {PAPER[name].plural} ({sizes})."
    expected = float(one["chance"].sel({PLACEMENT: PER_HEAD, ESTIMATE: "value"}))
    halves = "" if np.isnan(one["halves"]) else f"; halves of one result overlap {float(one['halves']):.2f}"
    start = f"{stream.capitalize()} {PAPER[name].plural} ({sizes})"
    return f"{start} overlap {value:.2f}, {verdict} chance ({expected:.2f}){halves}."


def _in_both(one: xr.Dataset) -> bool:
    return bool(one["first_members"] > 0) and bool(one["other_members"] > 0)


def _against_chance(one: xr.Dataset) -> str:
    _, low, high = one["chance"].sel({PLACEMENT: PER_HEAD}).values
    value = float(one["jaccard"])
    return "more than" if value > high else "less than" if value < low else "no more than"


def _correlation_sentence(stream: str, data: xr.Dataset) -> str:
    parts = []
    for name in ENTROPIES:
        one = data.sel({ENTROPY: name})
        ceiling = "" if np.isnan(one["ceiling"]) else f", ceiling {float(one['ceiling']):.3f}"
        parts.append(f"{VARIABLE_LABELS[name]} {_interval(one['correlation'].values)}{ceiling}")
    return f"Rank correlation of {stream} pairs: {'; '.join(parts)}."


def _robustness(both: Mapping[str, xr.DataTree], streams: Mapping[str, xr.Dataset]) -> str:
    """The paper's claim of appendix A.4, judged where the two results can judge it."""
    first, other = ({name: _fact(result, name) for name in _FACTS} for result in both.values())
    otherwise = other_model(*(provenance(result).get("model", {}) for result in both.values()))
    # What a model or a text is called, and how its path was written, is no difference.
    passed_over = {"model", "corpus"} if one_text(*both.values()) else {"model"}
    differing = [name for name in _FACTS if name not in passed_over and first[name] != other[name]]
    changed = f"The results differ in {', '.join(differing)}." if differing else "The results have the same protocol."
    untested = "so the paper's claim on text and length (A.4) is not tested."
    if other_weights(otherwise):
        return f"{changed} Their weights are not the same, {untested}"
    if otherwise:
        return f"{changed} Their weights are the same but run otherwise ({listed(otherwise)}), {untested}"
    if not {"corpus", "split", "tokens"} & set(differing):
        return f"{changed} Neither text nor length differ, so the paper's claim on them (A.4) is not tested."
    parts = [_claim(name, *item) for name in (BANDS.name, PERIODIC.name) for item in streams.items()]
    return f"{changed} The paper's claim that the places stay the same (A.4): {'; '.join(parts)}."


def _claim(name: str, stream: str, data: xr.Dataset) -> str:
    one = data.sel({SELECTION: name})
    subject = f"{stream} {PAPER[name].plural}"
    value, halves = float(one["jaccard"]), float(one["halves"])
    if np.isnan(value):
        return f"for {subject} it cannot be judged, there are none"
    if not _in_both(one):
        return f"for {subject} it cannot be judged, one result has none"
    numbers = [int(one[name]) for name in ("first_members", "other_members")]
    if min(numbers) < LEAST_PAIRS:
        return f"for {subject} it cannot be judged, {numbers[0]} and {numbers[1]} pairs are too few"
    if _against_chance(one) != "more than":
        return f"for {subject} it does not hold, they overlap no more than chance"
    if np.isnan(halves):
        return f"for {subject} it holds beyond chance, noise between windows is not known"
    if value >= halves:
        return f"for {subject} it holds, they overlap no less than halves of one result"
    return (
        f"for {subject} it holds beyond chance but not fully, {value:.2f} where halves of one result give {halves:.2f}"
    )


def _fact(result: xr.DataTree, name: str) -> str:
    if name == "corpus":
        corpus, content = _corpus(result)
        return f"{corpus} ({content[:_DIGEST]})" if content else corpus
    group, key = _FACTS[name]
    given: Any = provenance(result).get(group, {}).get(key)
    return "-" if given is None else short_name(given) if name == "model" else str(given)


def _corpus(result: xr.DataTree) -> tuple[str, str]:
    """Name of the text, without the way to it that older files hold, and hash; empty where a result has none."""
    windows = provenance(result).get("windows", {})
    name = str(windows.get("corpus") or "-").replace("\\", "/")
    return name.rsplit("/", 1)[-1], str(windows.get("file_sha256") or windows.get("text_sha256") or "")


def one_text(first: xr.DataTree, other: xr.DataTree) -> bool:
    """Whether two corpora are one, under whatever names; a result without hash goes by the name."""
    (name, content), (other_name, other_content) = _corpus(first), _corpus(other)
    return content == other_content if content and other_content else name == other_name


def _fact_table(results: Mapping[str, xr.DataTree]) -> Table:
    rows = [[name, *(_fact(result, name) for result in results.values())] for name in _FACTS]
    shown = [[name, *(fact[:_DIGEST] if name == "weights" else fact for fact in facts)] for name, *facts in rows]
    sizes = [str(stream_data(result, STREAMS[0]).sizes[SEQUENCE]) for result in results.values()]
    return Table(["", *results], [*shown, ["windows", *sizes]], "What was compared")


def _overlap_table(streams: Mapping[str, xr.Dataset]) -> Table:
    header = ["selection", "first", "other", "overlap", "chance per head", "chance anywhere", "halves"]
    rows = []
    for stream, data in streams.items():
        for name in SELECTIONS:
            one = data.sel({SELECTION: name})
            chance = [_interval(one["chance"].sel({PLACEMENT: place}).values) for place in (PER_HEAD, ANYWHERE)]
            sizes = [str(int(one[f"{side}_members"])) for side in ("first", "other")]
            rows.append([f"{stream} {name}", *sizes, _number(one["jaccard"]), *chance, _number(one["halves"])])
    return Table(header, rows, "Overlap of selections (Jaccard)")


def _correlation_table(streams: Mapping[str, xr.Dataset]) -> Table:
    rows = []
    for stream, data in streams.items():
        for name in ENTROPIES:
            one = data.sel({ENTROPY: name})
            layers = one["layer_correlation"].values
            span = [_number(end(layers)) if np.isfinite(layers).any() else "-" for end in (np.nanmin, np.nanmax)]
            changed = "-" if np.isnan(one["changed_share"]) else f"{100 * float(one['changed_share']):.1f}"
            entries = [_interval(one["correlation"].values), _number(one["ceiling"]), *span, changed]
            rows.append([f"{stream} {VARIABLE_LABELS[name]}", *entries])
    header = ["entropy", "all pairs", "ceiling", "lowest layer", "highest layer", "changed pairs, %"]
    return Table(header, rows, "Rank correlation (Spearman)")


def _layer_table(streams: Mapping[str, xr.Dataset]) -> Table:
    columns = [(stream, name) for stream in STREAMS for name in ENTROPIES]
    values = [streams[stream]["layer_correlation"].sel({ENTROPY: name}).values for stream, name in columns]
    layers = streams[STREAMS[0]][LAYER].values
    rows = [[str(layer), *map(_number, entries)] for layer, *entries in zip(layers, *values, strict=True)]
    header = ["layer", *(f"{stream} {VARIABLE_LABELS[name]}" for stream, name in columns)]
    return Table(header, rows, "Rank correlation by layer")


def _moved_table(name: str, stream: str, data: xr.Dataset, first: xr.DataTree, top: int) -> Table:
    one, head, turns = data.sel({ENTROPY: name}), HEAD_AXIS[stream], wavelength(first)
    size = abs(one["change"].transpose(LAYER, head, PAIR)).fillna(-1)
    order = np.argsort(-size.values, axis=None, kind="stable")[: min(top, int((size >= 0).sum()))]
    rows = []
    for place in zip(*np.unravel_index(order, size.shape), strict=True):
        where = dict(zip((LAYER, head, PAIR), place, strict=True))
        at = one.isel(where)
        before, change, error = (float(at[what]) for what in ("first", "change", "standard_error"))
        turn = format_tokens(float(turns.isel({LAYER: where[LAYER], PAIR: where[PAIR]})))
        labels = [str(int(at[axis])) for axis in (LAYER, head, PAIR)]
        rows.append([*labels, turn, *(f"{x:.3f}" for x in (before, before + change)), f"{change:+.3f}", _number(error)])
    header = ["layer", "head", "pair", "wavelength", "first", "other", "change", "standard error"]
    return Table(header, rows, f"{stream.capitalize()} pairs whose {VARIABLE_LABELS[name]} moved most")


def spread_compared(results: Mapping[str, xr.DataTree]) -> Section:
    """Say how bands and periodic pairs of any models spread over depth and wavelength.

    Parameters
    ----------
    results
        At least two results of :func:`ropescope.measure` by name, of any models.

    Returns
    -------
    Section
        Shares of each model's own pairs over relative depth and over octaves of wavelength, and what does not match.

    Raises
    ------
    InputError
        There are fewer than two results.
    ResultError
        Frames of SpectrumFE differ.

    Examples
    --------
    >>> print(spread_compared({"qwen3": one, "llama3": other}).text())  # doctest: +SKIP
    """
    data = distributions(results)
    sentences = [_spread_sentence(data, name, stream) for name in SELECTIONS for stream in STREAMS]
    tables = [_fact_table(results)]
    for name in SELECTIONS:
        tables += [
            _spread_table(data, name, axis) for axis in (DEPTH, OCTAVE) if data["share"].sel(selection=name).any()
        ]
    paragraphs = (" ".join(sentences), *_mismatches(results), *notes(results), _SPREAD_HOW_TO_READ)
    return Section(f"How bands and periodic pairs spread in {', '.join(results)}", paragraphs, tuple(tables))


def _mismatches(results: Mapping[str, xr.DataTree]) -> list[str]:
    (name, first), *others = results.items()
    found = {other: differences(first, result) for other, result in others}
    return [f"{other} does not match {name} pair by pair: {'; '.join(what)}." for other, what in found.items() if what]


_SPREAD_HOW_TO_READ = (
    "Pairs are not matched with each other here: shares are of each model's own pairs in a bin of relative "
    "depth (0 is the first layer, 1 the last) or in an octave of wavelength."
)


def _spread_sentence(data: xr.Dataset, name: str, stream: str) -> str:
    parts = []
    for result in data[RESULT].values:
        one = data.sel({RESULT: result, STREAM: stream, SELECTION: name})
        share = float(one["share"])
        peak = "" if not share else f" (most at depth {_peak(one, DEPTH):.2f}; {octave_name(_peak(one, OCTAVE))})"
        parts.append(f"{result} {100 * share:.1f} %{peak}")
    return f"{PAPER[name].plural.capitalize()} among {stream} pairs: {'; '.join(parts)}."


def _peak(one: xr.Dataset, axis: str) -> float:
    return float(one[axis][int(np.nanargmax(one[f"share_by_{axis}"].values))])


def _spread_table(data: xr.Dataset, name: str, axis: str) -> Table:
    columns = [(result, stream) for result in data[RESULT].values for stream in STREAMS]
    shares = data[f"share_by_{axis}"].sel({SELECTION: name})
    rows = []
    for place in data[axis].values:
        entries = [float(shares.sel({RESULT: result, STREAM: stream, axis: place})) for result, stream in columns]
        label = f"{place:.2f}" if axis == DEPTH else octave_name(float(place))
        rows.append([label, *("-" if np.isnan(entry) else f"{100 * entry:.1f}" for entry in entries)])
    first = "relative depth" if axis == DEPTH else "wavelength (tokens)"
    return Table(
        [first, *(f"{result} {stream}" for result, stream in columns)], rows, f"{PAPER[name].plural.capitalize()}, %"
    )


def _interval(value: np.ndarray) -> str:
    middle, low, high = map(_number, value)
    return middle if low == "-" else f"{middle} [{low}, {high}]"


def _number(value: Any) -> str:
    return "-" if np.isnan(value) else f"{float(value):.3f}"
