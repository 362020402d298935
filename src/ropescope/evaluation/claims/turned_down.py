"""What turning pairs down does: perplexity in a sweep, scores of tasks, and what importance foretells."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import xarray as xr

from ropescope.base.axes import HEAD_AXIS, LAYER, PAIR, QUERY, SEQUENCE, STREAMS
from ropescope.base.selections import BANDS, LEAST_PAIRS, NAMED, OUTLIERS, PERIODIC, Selection
from ropescope.base.statistics import ESTIMATE, LEAST_WINDOWS, jackknife
from ropescope.evaluation.claims.evidence import Evidence
from ropescope.evaluation.claims.findings import (
    CANNOT,
    Control,
    Finding,
    Test,
    above,
    below,
    inside,
    judged,
    unknown,
)
from ropescope.evaluation.claims.observations import Heads, pooled, too_few, twice, unmeasured
from ropescope.evaluation.importance_validation import KIND, LEAST
from ropescope.evaluation.sweep.changes import ALL_RANDOM, CONTROL, change
from ropescope.evaluation.sweep.dataset import ALPHA, ARM, SELECTION, SWEEP, WINDOW
from ropescope.evaluation.sweep.in_words import MARGIN
from ropescope.evaluation.tasks.table import Row, compared
from ropescope.measurement.joining import joined
from ropescope.measurement.results import stream_data

# Perplexity that changes by less, in percent, has not changed; a score, in points.
PERPLEXITY_MARGIN = 100 * MARGIN
SCORE_MARGIN = 2.0
# More documents than that many times those that were scored are not advised.
_MOST_DOCUMENTS = 100
_TABLE_1 = "table1"
_SCORES = ("acc_norm", "acc", "exact_match")


def bands_are_essential(evidence: Evidence) -> Finding:
    """Perplexity without the bands, and against as many random pairs."""
    place, lacking = _swept(evidence, BANDS)
    if place is None:
        return lacking
    data, alpha, name = place
    own, against, random = _changes(data, alpha, name)
    over = f"{data.sizes[WINDOW]} windows"
    return judged(
        [
            above(
                f"change of perplexity with bands at {alpha:g}",
                own,
                PERPLEXITY_MARGIN,
                Control("as many random pairs", random),
                over=over,
                unit="%",
            ),
            above(
                f"perplexity with bands at {alpha:g} over that with as many random pairs, minus 1",
                against,
                0.0,
                "as many random pairs of the same heads",
                over=over,
                unit="%",
            ),
        ],
        settles=_sweeping(evidence, BANDS, data.sizes[WINDOW]),
    )


def redundant(evidence: Evidence, selection: Selection) -> Finding:
    """Perplexity without the pairs of a selection: redundant where the whole interval is below the margin."""
    place, lacking = _swept(evidence, selection)
    if place is None:
        return lacking
    data, alpha, name = place
    own, against, random = _changes(data, alpha, name)
    test = below(
        f"change of perplexity with {selection.plural} at {alpha:g}",
        own,
        PERPLEXITY_MARGIN,
        Control("as many random pairs", random),
        over=f"{data.sizes[WINDOW]} windows",
        unit="%",
    )
    return judged([test], settles=_sweeping(evidence, selection, data.sizes[WINDOW]), remark=_special(against))


def outliers_are_redundant(evidence: Evidence) -> Finding:
    """Of the spectrum outliers."""
    return redundant(evidence, OUTLIERS)


def periodic_are_redundant(evidence: Evidence) -> Finding:
    """Of the periodic pairs."""
    return redundant(evidence, PERIODIC)


def tasks_are_unchanged(evidence: Evidence) -> Finding:
    """Scores with table 1's pairs turned down minus those of the plain model, in points: all inside the margin."""
    settles = f"ropescope tasks {evidence.model} RESULT.nc --select table1 --alpha 0.1"
    if not evidence.weighted_tasks:
        return unknown("No scores of tasks were given.", settles)
    asked = (_TABLE_1, NAMED[_TABLE_1])
    rows = [row for data in evidence.weighted_tasks for row in _scores(data) if row.selection in asked]
    if not rows:
        return unknown("No tasks were run with the pairs of the paper's table 1 turned down.", settles)
    tests = [
        inside(
            f"{row.task} ({row.metric}) with the pairs of table 1 at {row.alpha:g}, minus plain",
            [100 * number for number in _estimate(row)],
            (-SCORE_MARGIN, SCORE_MARGIN),
            Control("plain, on the same documents", 100 * row.plain),
            over=f"{row.documents} documents",
            unit="points",
        )
        for row in rows
    ]
    found = judged(tests, settles=f"more documents: {settles} without --limit")
    if found.verdict != CANNOT or not (more := _more_documents(tests)):
        return found
    return judged(
        tests, found.settles, f"If the differences stay, about {more} times as many documents would settle it."
    )


def _more_documents(tests: Sequence[Test]) -> int | None:
    """Times the documents that decide every open test, as intervals shrink with their root; None: too many to try."""
    undecided = [test for test in tests if test.verdict == CANNOT]
    widths = np.array([(test.high - test.low) / 2 for test in undecided])
    spare = np.abs(SCORE_MARGIN - np.abs([test.value for test in undecided]))
    times = np.max((widths / np.maximum(spare, 1e-9)) ** 2)
    return math.ceil(times) if times <= _MOST_DOCUMENTS else None


def bands_hold_importance(evidence: Evidence) -> Finding:
    """The share of the Fisher information that bands hold, against their share of the pairs."""
    result, worth = evidence.measured, evidence.worth
    if result is None:
        return unmeasured()
    windows = 0 if worth is None else worth[QUERY].sizes[SEQUENCE]
    settles = f"ropescope importance {evidence.model} {twice(windows)}"
    if worth is None or worth[QUERY].sizes[SEQUENCE] < LEAST_WINDOWS:
        return unknown(f"No importance over {LEAST_WINDOWS} windows or more was given.", settles)
    if untrusted(evidence):
        return unknown(
            f"The validation given says that importance foretells too little (rank correlation under {LEAST:g}).",
            f"{settles} --validate 150",
        )
    joined(result, worth)
    tests = []
    for stream in STREAMS:
        heads, fisher = Heads.of(result, stream), fisher_of(worth, stream)
        band, windows = heads.chosen(BANDS), fisher.shape[0]
        if not band.any():
            return unknown(f"No {stream} pair is a band ({BANDS.rule}).", "another model, measured")
        held = jackknife(pooled, fisher[:, band].sum(1), fisher.sum((1, 2, 3)))
        tests.append(
            above(
                f"share of the importance that {stream} bands hold",
                held,
                float(band.sum() / heads.present.sum()),
                "their share of the pairs",
                over=f"{windows} windows",
            )
        )
    return judged(tests, settles=settles)


def fisher_of(worth: xr.DataTree, stream: str) -> np.ndarray:
    """Importance of every pair in every window, (sequence, layer, head, pair); 0 where there is no pair."""
    fisher = stream_data(worth, stream)["fisher"].transpose(SEQUENCE, LAYER, HEAD_AXIS[stream], PAIR)
    return np.nan_to_num(fisher.values.astype(np.float64))


def untrusted(evidence: Evidence) -> bool:
    """Whether a validation says that importance does not say what losing a pair costs."""
    return any(
        float(data["kl_correlation"].sel({KIND: "scale", ESTIMATE: "value"})) < LEAST for data in evidence.validations
    )


def _swept(evidence: Evidence, selection: Selection) -> tuple[tuple[xr.Dataset, float, str] | None, Finding]:
    """A sweep with the selection and random controls, its strongest weighting and what it calls the selection."""
    settles = _sweeping(evidence, selection)
    lacking = unknown(f"No sweep of {selection.plural} was given.", settles)
    for data in evidence.weighted_sweeps:
        recorded = SWEEP.provenance(data).get("selections", {})
        for name in map(str, data[SELECTION].values):
            known = {name, str(recorded.get(name, {}).get("selection"))}
            if not known & {selection.name, selection.expression}:
                continue
            if (pairs := int(data["selected_pairs"].sel({SELECTION: name}).sum())) < LEAST_PAIRS:
                lacking = too_few("Query and key", selection, pairs)
            elif data.sizes[WINDOW] < LEAST_WINDOWS:
                why = f"{data.sizes[WINDOW]} windows give no interval; the least is {LEAST_WINDOWS}."
                lacking = unknown(why, settles)
            elif (alpha := _controlled_alpha(data, name)) is None:
                lacking = unknown("The sweep has no random controls below alpha 1.", settles)
            else:
                return (data, alpha, name), lacking
    return None, lacking


def _controlled_alpha(data: xr.Dataset, name: str) -> float | None:
    """The strongest weighting at which there are random controls."""
    arms = [arm for arm in data[ARM].values if str(arm).startswith(ALL_RANDOM)]
    if not arms:
        return None
    known = data["perplexity"].sel({SELECTION: name, ARM: arms}).notnull().all(ARM)
    alphas = data[ALPHA].values[known.values & (data[ALPHA].values < 1)]
    return float(alphas.min()) if alphas.size else None


def _changes(data: xr.Dataset, alpha: float, name: str) -> tuple[np.ndarray, np.ndarray, float]:
    """Changes of perplexity in percent: of the selection, of it against random pairs, and of these."""
    found, place = change(data), {SELECTION: name, ALPHA: alpha}
    own = found["nats_change"].sel({**place, ARM: SELECTION}).values
    against = found["nats_against"].sel({**place, CONTROL: ALL_RANDOM}).values
    random = found["nats_change"].sel({**place, ARM: ALL_RANDOM, ESTIMATE: "value"}).values
    return _percent(own), _percent(against), float(_percent(random))


def _percent(nats: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        percent: np.ndarray = 100 * np.expm1(nats)
    return percent


def _special(against: np.ndarray) -> str:
    """Whether the pairs matter less than random ones, since redundancy alone is nothing special."""
    _, low, high = against
    if high < 0:
        return "They matter less than as many random pairs."
    if low > 0:
        return "As many random pairs matter less still."
    return "That as many random pairs matter more is not shown."


def _sweeping(evidence: Evidence, selection: Selection, windows: int = 0) -> str:
    return f"ropescope sweep {evidence.model} RESULT.nc --select {selection.name} --alphas 0 {twice(windows)}"


def _scores(data: xr.Dataset) -> list[Row]:
    """One accuracy of every task or group, those in a group aside."""
    inside_groups = {name for members in data["members"].values for name in str(members).split()}
    rows = [row for row in compared(data) if row.difference and row.metric in _SCORES and row.task not in inside_groups]
    best: dict[tuple[str, str, float], Row] = {}
    for row in sorted(rows, key=lambda row: _SCORES.index(row.metric)):
        best.setdefault((row.task, row.selection, row.alpha), row)
    return [*best.values()]


def _estimate(row: Row) -> tuple[float, float, float]:
    found = row.difference
    return (math.nan, math.nan, math.nan) if found is None else (found.value, found.low, found.high)
