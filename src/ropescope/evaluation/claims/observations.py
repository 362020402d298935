"""The paper's observations on one measurement: bands, rhythm, layers without rotation, queries against keys."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr

from ropescope.base.axes import HEAD_AXIS, KEY, LAYER, PAIR, QUERY, SEQUENCE
from ropescope.base.counting import counted
from ropescope.base.selections import BANDS, LEAST_PAIRS, PERIODIC, Selection
from ropescope.base.statistics import jackknife
from ropescope.evaluation.claims.evidence import Evidence
from ropescope.evaluation.claims.findings import Control, Finding, above, below, judged, unknown
from ropescope.measurement.periods import RHYTHM, kinds
from ropescope.measurement.red_noise import rhythm_of_red_noise
from ropescope.measurement.results import mean_over_sequences, rotated_layers, stream_data, window_length

# Fewer layers say nothing of others like them.
LEAST_LAYERS = 5
# A norm that is so much above the head's mean counts as loud, at least.
_LOUDER = 0.05
# Pairs of a run: so much longer than shuffled pairs make them counts, at least.
_LONGER = 0.2
# A share of periodic pairs that differs by less is no difference.
_FEW = 0.002


@dataclass(frozen=True)
class Heads:
    """What one stream of a measurement holds, mean over windows: (layer, head, pair), silent and absent pairs aside."""

    layers: np.ndarray
    present: np.ndarray
    norm: np.ndarray
    spectrum_fe: np.ndarray
    sequence_fe: np.ndarray
    windows: int

    @classmethod
    def of(cls, result: xr.DataTree, stream: str) -> Heads:
        """Of a measurement and "query" or "key"."""
        data = stream_data(result, stream)
        mean = mean_over_sequences(data).transpose(LAYER, HEAD_AXIS[stream], PAIR)
        norm = mean["mean_norm"].values
        entropies = {name: mean[name].values for name in (BANDS.variable, PERIODIC.variable)}
        return cls(mean[LAYER].values, np.nan_to_num(norm) > 0, norm, **entropies, windows=data.sizes[SEQUENCE])

    def chosen(self, selection: Selection) -> np.ndarray:
        """The pairs of one of the paper's two entropies' selections."""
        values = {BANDS.variable: self.spectrum_fe, PERIODIC.variable: self.sequence_fe}[selection.variable]
        chosen: np.ndarray = selection.holds(values) & self.present
        return chosen

    def over(self) -> str:
        """What an interval over layers speaks of."""
        return f"{len(self.layers)} layers, means of {counted(self.windows, 'window')}"


def bands_are_loud(evidence: Evidence, stream: str = QUERY) -> Finding:
    """The norm of band pairs over their head's mean, and the share of them that is louder than it."""
    heads, lacking = _judgeable(evidence, stream, BANDS)
    if heads is None:
        return lacking
    band = heads.chosen(BANDS)
    norm = np.where(heads.present, heads.norm, 0)
    number = heads.present.sum(-1, keepdims=True)
    relative = norm / np.maximum(norm.sum(-1, keepdims=True) / np.maximum(number, 1), np.finfo(float).tiny)
    louder = heads.present & (relative > 1)
    expected = band.sum(-1) * louder.sum(-1) / np.maximum(number[..., 0], 1)
    columns = [(relative * band).sum((1, 2)), (louder & band).sum((1, 2)), expected.sum(1), band.sum((1, 2))]
    ratio = jackknife(pooled, columns[0], columns[3])
    excess = jackknife(pooled, columns[1] - columns[2], columns[3])
    share, chance = (float(pooled(column, band)) for column in columns[1:3])
    name, over = f"{stream} bands", heads.over()
    return judged(
        [
            above(
                f"norm of pairs in {name} over their head's mean",
                ratio,
                1.0,
                "random pairs of the same heads",
                over=over,
                least=_LOUDER,
            ),
            above(
                f"share of pairs in {name} that are louder than their head's mean, minus that of random pairs",
                excess,
                0.0,
                Control("random pairs of the same heads", chance),
                over=over,
            ),
        ],
        settles=_more_layers(evidence),
        remark=f"{share:.0%} of the pairs in {name} are louder than their head's mean, {chance:.0%} of random pairs; "
        "that they last is what a low SpectrumFE says.",
    )


def bands_are_runs(evidence: Evidence, stream: str = QUERY) -> Finding:
    """Mean run of neighbouring band pairs against the runs that as many pairs make when they are shuffled.

    Of m pairs among n, shuffled, m (n - m + 1) / n runs are expected.
    """
    heads, lacking = _judgeable(evidence, stream, BANDS)
    if heads is None:
        return lacking
    band = heads.chosen(BANDS)
    starts = band & ~np.pad(band, ((0, 0), (0, 0), (1, 0)))[..., :-1]
    size, number = band.sum(-1), heads.present.sum(-1)
    shuffled = size * (number - size + 1) / np.maximum(number, 1)
    columns = [array.sum(1) for array in (size, starts.sum(-1), shuffled)]

    def longer(members: np.ndarray, runs: np.ndarray, by_chance: np.ndarray) -> np.ndarray:
        return np.asarray(pooled(members, runs) - pooled(members, by_chance))

    runs, by_chance = (float(pooled(columns[0], column)) for column in columns[1:])
    test = above(
        f"mean run of {stream} band pairs, minus that of pairs shuffled within heads",
        jackknife(longer, *columns),
        0.0,
        Control("a run of shuffled pairs", by_chance),
        over=heads.over(),
        unit="pairs",
        least=_LONGER,
    )
    return judged([test], settles=_more_layers(evidence), remark=f"A run has {runs:.2f} pairs on average.")


def low_sequence_fe_is_rhythm(evidence: Evidence, stream: str = QUERY) -> Finding:
    """The share of periodic pairs that beat with a rhythm, against red noise of the same SequenceFE."""
    heads, lacking = _judgeable(evidence, stream, PERIODIC)
    result = evidence.measured
    if heads is None or result is None:
        return lacking
    length = window_length(result)
    if length is None or heads.windows < 2:
        return unknown(
            "A rhythm is a period that windows share: it takes two windows of known length.", measuring(evidence)
        )
    kind = kinds(stream_data(result, stream)["dominant_period"], length).transpose(LAYER, HEAD_AXIS[stream], PAIR)
    periodic = heads.chosen(PERIODIC)
    rhythm = periodic & (kind.values == RHYTHM)
    share = jackknife(pooled, rhythm.sum((1, 2)), periodic.sum((1, 2)))
    noise = rhythm_of_red_noise(length, heads.windows, float(np.median(heads.sequence_fe[periodic])))
    bound = max(0.5, noise)
    test = above(
        f"share of periodic {stream} pairs whose norm beats with a rhythm",
        share,
        bound,
        Control("red noise of the same SequenceFE, AR(1)", noise),
        over=heads.over(),
    )
    return judged(
        [test],
        settles=measuring(evidence),
        remark=f"{int(rhythm.sum())} of {int(periodic.sum())} periodic {stream} pairs beat.",
    )


def nope_has_bands_not_periods(evidence: Evidence, stream: str = QUERY) -> Finding:
    """Shares of bands and of periodic pairs in layers without rotation, minus those in layers with it."""
    result = evidence.measured
    if result is None:
        return unmeasured()
    turns = rotated_layers(result).values
    if turns.all() or not turns.any():
        which = "without" if turns.all() else "with"
        return unknown(
            f"This model has no layer {which} rotation to compare.",
            "a model that mixes RoPE and NoPE layers, such as Llama-4 or SmolLM3, measured",
        )
    heads = Heads.of(result, stream)
    pairs = np.maximum(heads.present.sum((1, 2)), 1)

    def excess(share: np.ndarray, turning: np.ndarray) -> np.ndarray:
        if turning.all() or not turning.any():
            return np.array(np.nan)
        return np.asarray(share[~turning].mean() - share[turning].mean())

    tests = []
    for selection, compared in ((BANDS, above), (PERIODIC, below)):
        share = heads.chosen(selection).sum((1, 2)) / pairs
        tests.append(
            compared(
                f"share of {stream} pairs that are {selection.plural} in NoPE layers, minus that in RoPE layers",
                jackknife(excess, share, turns),
                0.0,
                Control("the RoPE layers", float(share[turns].mean())),
                over=heads.over(),
                least=_FEW,
            )
        )
    return judged(tests, settles="a model with more layers of both kinds, measured")


def keys_are_more_periodic(evidence: Evidence) -> Finding:
    """Share of periodic pairs among keys minus that among queries, layer by layer."""
    result = evidence.measured
    if result is None:
        return unmeasured()
    sides = [Heads.of(result, stream) for stream in (QUERY, KEY)]
    counts = [side.chosen(PERIODIC).sum((1, 2)) for side in sides]
    if (number := sum(int(count.sum()) for count in counts)) < LEAST_PAIRS:
        return too_few("Query and key", PERIODIC, number)
    pairs = [side.present.sum((1, 2)) for side in sides]

    def excess(query: np.ndarray, key: np.ndarray, queries: np.ndarray, keys: np.ndarray) -> np.ndarray:
        return np.asarray(pooled(key, keys) - pooled(query, queries))

    test = above(
        "share of periodic key pairs minus that of periodic query pairs",
        jackknife(excess, *counts, *pairs),
        0.0,
        Control("queries", float(pooled(counts[0], pairs[0]))),
        over=sides[0].over(),
        least=_FEW,
    )
    return judged([test], settles=_more_layers(evidence))


def pooled(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """The sum of one over that of the other; NaN over nothing."""
    total = whole.sum()
    return np.asarray(part.sum() / total if total else np.nan)


def measuring(evidence: Evidence, more: str = "") -> str:
    """The command that measures the judged model on twice as many windows as were measured."""
    windows = 0 if evidence.measured is None else evidence.measured[QUERY].sizes[SEQUENCE]
    return f"ropescope measure {evidence.model} {twice(windows)} {more}".strip()


def twice(windows: int) -> str:
    """The option that asks for twice as many windows as there were, eight at least."""
    return f"--count {max(8, 2 * windows)}"


def unmeasured() -> Finding:
    """Nothing was measured."""
    return unknown("No measurement was given.", "ropescope measure MODEL --count 8")


def too_few(streams: str, selection: Selection, number: int) -> Finding:
    """What a claim about a selection's pairs cannot be judged by."""
    return unknown(
        f"{streams} pairs with {selection.rule}: {number}; the least to judge by is {LEAST_PAIRS}.",
        "another model or text, measured: this one has hardly any such pair",
    )


def _judgeable(evidence: Evidence, stream: str, selection: Selection) -> tuple[Heads | None, Finding]:
    """The stream's heads, where there are enough layers and pairs in question, else why it cannot be said."""
    result = evidence.measured
    if result is None:
        return None, unmeasured()
    heads = Heads.of(result, stream)
    number = int(heads.chosen(selection).sum())
    if number < LEAST_PAIRS:
        return None, too_few(stream.capitalize(), selection, number)
    if len(heads.layers) < LEAST_LAYERS:
        why = f"{len(heads.layers)} layers give no interval; the least is {LEAST_LAYERS}."
        return None, unknown(why, "a model with more layers, measured")
    return heads, unmeasured()


def _more_layers(evidence: Evidence) -> str:
    return f"more windows ({measuring(evidence)}), or a model with more layers"
