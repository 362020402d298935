"""What the field says of slow pairs, where the band sits, and how few pairs matter: from measurements alone."""

from __future__ import annotations

import numpy as np
import xarray as xr

from ropescope.base.axes import KEY, QUERY, SEQUENCE, STREAMS
from ropescope.base.statistics import LEAST_WINDOWS, jackknife
from ropescope.evaluation.claims.arms import BAND_ANGLE, contexts, contexts_in_words, speeds
from ropescope.evaluation.claims.evidence import Evidence
from ropescope.evaluation.claims.findings import Control, Finding, above, below, judged, unknown
from ropescope.evaluation.claims.observations import LEAST_LAYERS, Heads, measuring, pooled, twice, unmeasured
from ropescope.evaluation.claims.turned_down import fisher_of, untrusted

# How near the band must be to where it is foretold, as a share of the pairs.
_NEAR = 0.1
# A small part of the pairs, and the most of something.
_PART, _MOST = 0.1, 0.5


def slow_pairs_are_loud(evidence: Evidence) -> Finding:
    """The slower half of a head's turning pairs holds more of its norm, queries and keys."""
    result = evidence.measured
    if result is None:
        return unmeasured()
    speed, tests = speeds(result), []
    if not speed.any():
        return unknown("No layer of this model turns its pairs.", "a model with rotary layers, measured")
    slower = np.zeros_like(speed, dtype=bool)
    for row, own in zip(slower, speed, strict=True):
        row[own > 0] = own[own > 0] < np.median(own[own > 0]) if own.any() else False
    for stream in STREAMS:
        heads = Heads.of(result, stream)
        turning = heads.present & (speed > 0)[:, None]
        norm = np.where(turning, heads.norm, 0)
        held = (norm * slower[:, None]).sum((1, 2)) / np.maximum(norm.sum((1, 2)), np.finfo(float).tiny)
        there = (turning & slower[:, None]).sum((1, 2)) / np.maximum(turning.sum((1, 2)), 1)
        use = turning.any((1, 2))
        tests.append(
            above(
                f"share of the norm of {stream} heads in the slower half of their pairs, minus that of the pairs",
                jackknife(lambda norms, pairs: (norms - pairs).mean(), held[use], there[use]),
                0.0,
                "random pairs",
                over=heads.over(),
                least=0.02,
            )
        )
    return judged(tests, settles=measuring(evidence))


def band_sits_where_the_context_ends(evidence: Evidence) -> Finding:
    """How far each query head's loudest pair is from the one that turns by 3.66 rad in the context of the training."""
    result = evidence.measured
    if result is None:
        return unmeasured()
    context = contexts(result)
    if context is None:
        return unknown("The configuration names no context that the model was trained on.", "a model that names one")
    heads, foretold = Heads.of(result, QUERY), _foretold(result, context)
    use = np.isfinite(foretold)
    if use.sum() < LEAST_LAYERS:
        return unknown(
            f"In {int(use.sum())} layers a pair turns by {BAND_ANGLE:g} rad in {contexts_in_words(context)}; the least "
            f"is {LEAST_LAYERS}.",
            "a model of more layers, or with slower pairs",
        )
    away, chance_away, hit, chance_hit, size = _near_the_band(heads, foretold, use)
    over = f"{int(use.sum())} layers of a context of {contexts_in_words(context)}"
    return judged(
        [
            below(
                "pairs between a query head's loudest pair and the foretold one",
                jackknife(pooled, away, size),
                float(pooled(chance_away, size)),
                "random pairs of the same heads",
                over=over,
                unit="pairs",
            ),
            above(
                f"share of query heads whose loudest pair is within {_NEAR:.0%} of the pairs of the foretold one, "
                "minus that of random pairs",
                jackknife(pooled, hit - chance_hit, size),
                0.0,
                Control("random pairs", float(pooled(chance_hit, size))),
                over=over,
                least=0.05,
            ),
        ],
        settles=measuring(evidence),
        remark=f"Foretold is pair {np.median(foretold[use]):.1f} of {speeds(result).shape[1]} in the median layer.",
    )


def _near_the_band(heads: Heads, foretold: np.ndarray, use: np.ndarray) -> tuple[np.ndarray, ...]:
    """Sums over the heads of each layer: pairs from the loudest pair to the foretold one, and whether it is near.

    Each is followed by what random pairs would give; last is the number of heads.
    """
    there = heads.present[use]
    some, number = there.any(-1), np.maximum(there.sum(-1), 1)
    away = np.broadcast_to(np.abs(np.arange(there.shape[-1]) - foretold[use][:, None])[:, None], there.shape)
    loudest = np.where(there, heads.norm[use], -np.inf).argmax(-1)[..., None]
    sums = []
    for values in (away, (away <= _NEAR * there.shape[-1]).astype(float)):
        own, by_chance = np.take_along_axis(values, loudest, -1)[..., 0], (values * there).sum(-1) / number
        sums += [(each * some).sum(1) for each in (own, by_chance)]
    return *sums, some.sum(1)


def loud_keys_turn_less_than_once(evidence: Evidence) -> Finding:
    """Whether the loudest pair of a key head turns less than once in the context, more often than random pairs do."""
    result = evidence.measured
    if result is None:
        return unmeasured()
    context = contexts(result)
    if context is None:
        return unknown("The configuration names no context that the model was trained on.", "a model that names one")
    heads, speed = Heads.of(result, KEY), speeds(result)
    turning = heads.present & (speed > 0)[:, None]
    partial = turning & (speed * context[:, None] < 2 * np.pi)[:, None]
    some = turning.any(-1)
    loudest = np.where(turning, heads.norm, -np.inf).argmax(-1)
    hit = (np.take_along_axis(partial, loudest[..., None], -1)[..., 0] & some).sum(1)
    chance = (partial.sum(-1) / np.maximum(turning.sum(-1), 1)).sum(1)
    if not chance.any():
        return unknown(f"No pair turns less than once in {contexts_in_words(context)}.", "a model with slower pairs")
    test = above(
        "share of key heads whose loudest pair turns less than once in the context, minus that of random pairs",
        jackknife(pooled, hit - chance, some.sum(1)),
        0.0,
        Control("random pairs", float(pooled(chance, some.sum(1)))),
        over=f"{len(heads.layers)} layers of a context of {contexts_in_words(context)}",
        least=0.05,
    )
    return judged([test], settles=measuring(evidence))


def few_pairs_hold_importance(evidence: Evidence) -> Finding:
    """The share of the importance that the top tenth of pairs holds, chosen on other windows than it is judged on."""
    worth = evidence.worth
    windows = LEAST_WINDOWS if worth is None else worth[QUERY].sizes[SEQUENCE]
    settles = f"ropescope importance {evidence.model} {twice(max(LEAST_WINDOWS, windows))}"
    if worth is None or worth[QUERY].sizes[SEQUENCE] < 2 * LEAST_WINDOWS - 1:
        return unknown(f"No importance over {2 * LEAST_WINDOWS - 1} windows or more was given.", settles)
    if untrusted(evidence):
        return unknown("The validation given says that importance foretells too little.", f"{settles} --validate 150")
    tests = []
    for stream in STREAMS:
        fisher = fisher_of(worth, stream)
        flat = fisher.reshape(len(fisher), -1)
        flat = flat[:, flat.any(0)]
        choosing, judging = flat[1::2].mean(0), flat[::2]
        top = np.argsort(-choosing, kind="stable")[: max(1, round(_PART * flat.shape[1]))]
        held = jackknife(pooled, judging[:, top].sum(1), judging.sum(1))
        tests.append(
            above(
                f"share of the importance that the top {_PART:.0%} of {stream} pairs hold in other windows",
                held,
                _MOST,
                Control("random pairs", _PART),
                over=f"{len(judging)} windows",
            )
        )
    return judged(tests, settles=settles)


def _foretold(result: xr.DataTree, context: np.ndarray) -> np.ndarray:
    """The place among the pairs that turns by the band's angle in the context; NaN where none does, (layer)."""
    found = np.full(len(speeds(result)), np.nan)
    for row, (speed, length) in enumerate(zip(speeds(result), context, strict=True)):
        turning = np.flatnonzero(speed > 0)
        angles = np.log(speed[turning] * length / BAND_ANGLE)
        if len(turning) > 1 and angles.min() <= 0 <= angles.max() and (np.diff(angles) < 0).all():
            found[row] = np.interp(0.0, -angles, turning)
    return found
