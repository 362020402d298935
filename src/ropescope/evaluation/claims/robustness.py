"""Whether bands and periodic pairs sit in the same places: in many heads, another model, text and length, frequency."""

from __future__ import annotations

from itertools import product

import numpy as np
import xarray as xr

from ropescope.analysis.comparability import check_frames, on_scale_of
from ropescope.analysis.overlap import chance_anywhere, jaccard
from ropescope.analysis.places import SELECTION, localise
from ropescope.analysis.shares import ENTROPY, SOURCE, octaves
from ropescope.base.axes import HEAD_AXIS, KEY, LAYER, PAIR, QUERY, SEQUENCE, STREAMS
from ropescope.base.selections import BANDS, LEAST_PAIRS, PERIODIC, Selection
from ropescope.base.statistics import LEAST_WINDOWS, jackknife
from ropescope.evaluation.claims.evidence import Evidence, Named
from ropescope.evaluation.claims.findings import Control, Finding, Test, above, below, inside, judged, unknown
from ropescope.evaluation.claims.observations import Heads, measuring, pooled, unmeasured
from ropescope.measurement.results import stream_data, window_length

# How much of an overlap may be lost beside what windows of one text already lose.
PLACES_MARGIN = 0.1
# A slower half that holds so little more than half of the bands leans to neither side.
HALF_MARGIN = 0.1
# Shares of an octave's pairs that differ by less are the same.
_APART = 0.02
_SHUFFLES = 500


def bands_in_many_heads(evidence: Evidence, stream: str = QUERY) -> Finding:
    """The share of heads with at least one band pair; "many" is taken as more than half."""
    result = evidence.measured
    if result is None:
        return unmeasured()
    heads = Heads.of(result, stream)
    there = heads.present.any(-1)
    holding = heads.chosen(BANDS).any(-1)
    share = jackknife(pooled, holding.sum(1), there.sum(1))
    test = above(f"share of {stream} heads with a band", share, 0.5, "half of the heads", over=heads.over())
    return judged([test], settles=measuring(evidence))


def other_model_has_them_elsewhere(evidence: Evidence, stream: str = QUERY) -> Finding:
    """How far shares of bands over octaves of wavelength differ between models, against shuffled layers."""
    first, other = evidence.measured, evidence.other_model()
    if first is None:
        return unmeasured()
    if other is None:
        return unknown("Only one model was measured.", "ropescope measure OTHER_MODEL --count 8, given beside this one")
    check_frames({"first": first, other[0]: other[1]})
    members, pairs, of_first = _by_octave([first, other[1]], stream)

    def apart(chosen: np.ndarray, there: np.ndarray, mine: np.ndarray) -> np.ndarray:
        sides = [(chosen[side].sum(0), there[side].sum(0)) for side in (mine, ~mine)]
        common = (sides[0][1] > 0) & (sides[1][1] > 0)
        rates = [own[common] / present[common] for own, present in sides]
        return np.asarray(np.abs(rates[0] - rates[1]).mean() if common.any() else np.nan)

    random = np.random.default_rng(0)
    shuffled = [float(apart(members, pairs, random.permutation(of_first))) for _ in range(_SHUFFLES)]
    test = above(
        f"mean difference of the share of {stream} bands in an octave of wavelength, to {other[0]}",
        jackknife(apart, members, pairs, of_first),
        float(np.nanquantile(shuffled, 0.975)),
        "layers shuffled between the models, 97.5 % of which stay below",
        over=f"{len(of_first)} layers of both",
        least=_APART,
    )
    return judged([test], settles="models with more layers, measured")


def other_text_leaves_places(evidence: Evidence) -> Finding:
    """Overlap of bands and of periodic pairs with another text, beside the overlap of windows of one text."""
    return _same_places(evidence, evidence.other_text(), "text", "--corpus c4")


def other_length_leaves_places(evidence: Evidence) -> Finding:
    """Overlap of bands and of periodic pairs at another length, beside the overlap of windows of one length."""
    return _same_places(evidence, evidence.other_length(), "length", "--length 8192")


def neither_fast_nor_slow(evidence: Evidence) -> Finding:
    """Whether bands lean to the slower half of the turning pairs, and how much pair index explains of SpectrumFE."""
    result = evidence.measured
    if result is None:
        return unmeasured()
    found = localise(result)
    tests: list[Test] = []
    for stream in STREAMS:
        heads = Heads.of(result, stream)
        if heads.chosen(BANDS).sum() < LEAST_PAIRS:
            continue
        localised = found.children[stream].to_dataset()
        slow = localised["slow_share"].sel({SELECTION: BANDS.name}).values
        tests.append(
            inside(
                f"share of {stream} bands in the slower half of the turning pairs",
                slow,
                (0.5 - HALF_MARGIN, 0.5 + HALF_MARGIN),
                Control("random pairs", 0.5),
                over=heads.over(),
            )
        )
        share = localised["share"].sel({ENTROPY: BANDS.variable, SOURCE: "pair"}).values
        tests.append(
            below(
                f"share of the variance of {stream} SpectrumFE that pair index explains",
                share,
                0.5,
                "all else together",
                over=heads.over(),
            )
        )
    if not tests:
        return unknown("There are hardly any bands.", "another model, measured")
    return judged(tests, settles=measuring(evidence))


def _by_octave(results: list[xr.DataTree], stream: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bands and pairs of every layer by octave of wavelength, (layer, octave), and which layers are the first's."""
    lower = [octaves(result).transpose(LAYER, PAIR).values for result in results]
    edges = np.unique(np.concatenate([octave[np.isfinite(octave)] for octave in lower]))
    counts = []
    for result, octave in zip(results, lower, strict=True):
        heads = Heads.of(result, stream)
        flags = octave[..., None] == edges
        both = (heads.chosen(BANDS).sum(1), heads.present.sum(1))
        counts.append([np.einsum("lj,ljo->lo", each, flags) for each in both])
    members, pairs = (np.concatenate([each[column] for each in counts]) for column in (0, 1))
    return members, pairs, np.arange(len(members)) < len(lower[0])


def _same_places(evidence: Evidence, other: Named | None, what: str, more: str) -> Finding:
    first = evidence.measured
    if first is None:
        return unmeasured()
    if other is None:
        return unknown(
            f"No measurement of the same weights on another {what} was given.",
            f"ropescope measure {evidence.model} {more}",
        )
    again = f"both on more windows: {measuring(evidence)}; {measuring(evidence, more)}"
    if min(result[QUERY].sizes[SEQUENCE] for result in (first, other[1])) < LEAST_WINDOWS:
        return unknown(
            f"Fewer than {LEAST_WINDOWS} windows do not say what windows of one text alone would change.", again
        )
    check_frames({"first": first, other[0]: other[1]})
    judgeable = {
        f"{stream} {selection.plural}": _kept_places(first, other, selection, stream)
        for selection, stream in product((BANDS, PERIODIC), (QUERY, KEY))
    }
    tests = [test for test in judgeable.values() if test is not None]
    few = [subject for subject, test in judgeable.items() if test is None]
    if not tests:
        return unknown("Either measurement has hardly any bands or periodic pairs.", "another model, measured")
    remark = f"Too few to judge: {', '.join(few)}." if few else ""
    lengths = [window_length(result) for result in (first, other[1])]
    if what == "text" and lengths[0] != lengths[1]:
        remark = f"{remark} The length differs, too ({lengths[0]} and {lengths[1]} tokens).".strip()
    return judged(tests, settles=again, remark=remark)


def _kept_places(first: xr.DataTree, other: Named, selection: Selection, stream: str) -> Test | None:
    """Overlap across minus overlap within, both of half the windows; None where there are too few pairs."""
    name, placed = other[0], on_scale_of(first, other[1])
    values = [
        stream_data(result, stream)[selection.variable].transpose(SEQUENCE, LAYER, HEAD_AXIS[stream], PAIR).values
        for result in (first, placed)
    ]
    halves = [[selection.holds(_mean(each[start::2])) for start in (0, 1)] for each in values]
    if min(half.sum() for side in halves for half in side) < LEAST_PAIRS:
        return None
    layers_first = [np.stack(side, axis=1) for side in halves]  # (layer, half, head, pair)

    def change(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
        across = [jaccard(ours[:, i], theirs[:, j]) for i, j in product((0, 1), (0, 1))]
        within = [jaccard(side[:, 0], side[:, 1]) for side in (ours, theirs)]
        return np.asarray(np.mean(across) - np.mean(within))

    within = float(np.mean([jaccard(*side) for side in halves]))
    sizes = [int(half.sum()) for side in halves for half in side]
    chance = float(chance_anywhere(halves[0][0].size, sizes[0], sizes[2])[0])
    return above(
        f"overlap (Jaccard) of {stream} {selection.plural} with {name}, minus that of halves of one result",
        jackknife(change, *layers_first),
        -PLACES_MARGIN,
        Control(f"by chance {chance:.2f}, halves of one result", within),
        over=f"{len(layers_first[0])} layers",
    )


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over windows where defined; NaN where nowhere."""
    known = ~np.isnan(values)
    total = np.where(known, values, 0).sum(0)
    return np.where(known.any(0), total / np.maximum(known.sum(0), 1), np.nan)
