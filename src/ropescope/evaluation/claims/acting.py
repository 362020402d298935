"""What the field says of what pairs do: from a look at a model's attention, and from running it without some."""

from __future__ import annotations

import math

import numpy as np
import xarray as xr

from ropescope.base.axes import HEAD, KEY, LAYER, QUERY, SEQUENCE
from ropescope.base.counting import counted
from ropescope.base.statistics import LEAST_WINDOWS, jackknife, rank_correlation
from ropescope.evaluation.claims.arms import (
    FAST_OFF,
    FAST_STILL,
    LOUD,
    PAST_CONTROL,
    PAST_STILL,
    PLAIN,
    RANDOM,
    SLOW_OFF,
    SLOW_STILL,
    TWICE_PLAIN,
    speeds,
    training_context,
)
from ropescope.evaluation.claims.behaviour_dataset import ARM, BEHAVIOUR, READING, READINGS
from ropescope.evaluation.claims.evidence import Evidence
from ropescope.evaluation.claims.findings import Control, Finding, above, below, judged, unknown
from ropescope.evaluation.claims.observations import LEAST_LAYERS, Heads, twice, unmeasured
from ropescope.evaluation.claims.turned_down import PERPLEXITY_MARGIN

# Pairs that turn within so many tokens are fast.
FAST = 16
_SHUFFLES = 500
_CORRELATED = 0.1
# Windows much shorter than the context hardly turn a slow pair at all.
_SHORT = 4


def fast_pairs_make_positional_heads(evidence: Evidence) -> Finding:
    """Rank correlation over heads of attention by position with the share of the norm in fast pairs."""
    result, look = evidence.measured, evidence.behaviour
    if result is None:
        return unmeasured()
    if look is None:
        return _unseen(evidence)
    fast = _share_of_fast(result)
    tests = []
    for name, what in (("previous", "attention to the token before"), ("diagonal", "attention that distance explains")):
        seen = look[name].mean(SEQUENCE).transpose(LAYER, HEAD).values
        known = np.isfinite(seen) & np.isfinite(fast)
        rows = known.any(1)
        if rows.sum() < LEAST_LAYERS:
            return unknown(f"{int(rows.sum())} layers give no interval; the least is {LEAST_LAYERS}.", "more layers")

        def over_heads(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
            both = np.isfinite(ours) & np.isfinite(theirs)
            return np.asarray(rank_correlation(ours[both], theirs[both]))

        random = np.random.default_rng(0)
        shuffled = [over_heads(fast[rows], random.permuted(seen[rows], axis=1)) for _ in range(_SHUFFLES)]
        tests.append(
            above(
                f"rank correlation over heads of {what} with the share of the norm in pairs of {FAST} tokens a turn",
                jackknife(over_heads, fast[rows], seen[rows]),
                max(0.0, float(np.mean(shuffled))),
                "heads shuffled within layers",
                over=f"{int(rows.sum())} layers, {_windows(look)}",
                least=_CORRELATED,
            )
        )
    return judged(tests, settles=_looking(evidence, twice(look.sizes[SEQUENCE])))


def slow_pairs_carry_content(evidence: Evidence) -> Finding:
    """What the slowest quarter of pairs is worth beyond its rotation, and its rotation beside that of the fastest."""
    look = evidence.behaviour
    if look is None:
        return _unseen(evidence)
    if (few := _too_few(evidence, look)) is not None:
        return few
    nats = {name: look["nats"].sel({ARM: name}).values for name in (PLAIN, SLOW_OFF, SLOW_STILL, FAST_OFF, FAST_STILL)}
    over = _windows(look)
    still = {name: float((nats[name] - nats[PLAIN]).mean()) for name in nats}
    return judged(
        [
            above(
                "loss without the slowest quarter of pairs, minus that without its rotation",
                _mean(nats[SLOW_OFF] - nats[SLOW_STILL]),
                0.0,
                Control("the loss of their rotation alone", still[SLOW_STILL]),
                over=over,
                unit="nats a token",
                least=0.01,
            ),
            below(
                "loss without the rotation of the slowest quarter, minus that without the rotation of the fastest",
                _mean(nats[SLOW_STILL] - nats[FAST_STILL]),
                0.0,
                Control("the loss of the fastest quarter's rotation", still[FAST_STILL]),
                over=over,
                unit="nats a token",
                least=0.01,
            ),
        ],
        settles=_looking(evidence, twice(look.sizes[SEQUENCE])),
    )


def pairs_past_the_band_need_no_rotation(evidence: Evidence) -> Finding:
    """Perplexity with the pairs slower than the band derotated: inside the margin, beside as many random pairs."""
    look, result = evidence.behaviour, evidence.measured
    if look is None:
        return _unseen(evidence)
    if (few := _too_few(evidence, look)) is not None:
        return few
    if PAST_STILL not in look[ARM]:
        return unknown("No pair of this model is slower than the band is foretold to be.", "a model with slower pairs")
    facts = BEHAVIOUR.provenance(look)
    context = facts["parameters"]["context"] or (training_context(result) if result is not None else None)
    length = int(facts["windows"]["length"])
    if context is not None and length * _SHORT < context:
        return unknown(
            f"In windows of {length} tokens the pairs in question hardly turn: the context is {context} tokens.",
            _looking(evidence, f"--length {math.ceil(context / _SHORT)}"),
        )
    nats = {name: look["nats"].sel({ARM: name}).values for name in (PLAIN, PAST_STILL, PAST_CONTROL)}
    test = below(
        "change of perplexity without the rotation of the pairs slower than the band",
        _percent(_mean(nats[PAST_STILL] - nats[PLAIN])),
        PERPLEXITY_MARGIN,
        Control("as many random pairs", float(_percent(nats[PAST_CONTROL] - nats[PLAIN]).mean())),
        over=f"{_windows(look)} of {length} tokens",
        unit="%",
    )
    return judged([test], settles=_looking(evidence, twice(look.sizes[SEQUENCE])))


def few_pairs_choose_tokens(evidence: Evidence) -> Finding:
    """The share of the highest tokens that a quarter of each head's pairs chooses, beside a random quarter."""
    look = evidence.behaviour
    if look is None:
        return _unseen(evidence)
    if (few := _too_few(evidence, look)) is not None:
        return few
    best, random = (look[name].mean([LAYER, HEAD]).values for name in ("best", "random"))
    over = _windows(look)
    return judged(
        [
            above(
                "share of a head's highest tokens that the best quarter of its pairs chooses",
                _mean(best),
                0.5,
                "half of them",
                over=over,
            ),
            above(
                "the same minus that of a random quarter",
                _mean(best - random),
                0.0,
                Control("random pairs", float(random.mean())),
                over=over,
                least=0.05,
            ),
        ],
        settles=_looking(evidence, twice(look.sizes[SEQUENCE])),
    )


def loud_pairs_serve_the_context(evidence: Evidence) -> Finding:
    """What a second reading loses beyond the first without the loudest pairs, beside random pairs.

    As many random pairs cost less altogether, so random pairs that cost the first reading as much are taken, too.
    """
    look = evidence.behaviour
    if look is None:
        return _unseen(evidence)
    if (few := _too_few(evidence, look)) is not None:
        return few
    loud, first_alike, as_many = _second_readings(look)
    over = _windows(look)
    return judged(
        [
            above(
                "loss that the second reading gains beyond the first with the loudest sixteenth of pairs halved, minus "
                "that with as many random pairs halved",
                _mean(as_many),
                0.0,
                "as many random pairs",
                over=over,
                unit="nats a token",
                least=0.01,
            ),
            above(
                "loss of the second reading with the loudest pairs halved, minus that without random pairs that cost "
                "the first reading as much",
                first_alike,
                0.0,
                "random pairs of equal cost",
                over=over,
                unit="nats a token",
                least=0.01,
            ),
        ],
        settles=_looking(evidence, twice(look.sizes[SEQUENCE])),
        remark=f"With the loudest pairs halved the first reading loses {loud[0].mean():.2f} nats a token, the second "
        f"{loud[1].mean():.2f}.",
    )


def _second_readings(look: xr.Dataset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the loud pairs cost, (reading, sequence), and the second reading beside random pairs.

    These are of equal cost at the first reading, an estimate, and as many, a number for each window.
    """
    plain = _readings(look, TWICE_PLAIN)
    loud, random = _readings(look, LOUD) - plain, [_readings(look, name) - plain for name in RANDOM.values()]
    alike = jackknife(_at_equal_cost, loud.T, np.stack([change.T for change in random], 1))
    return loud, alike, (loud[1] - loud[0]) - (random[0][1] - random[0][0])


def _at_equal_cost(loud: np.ndarray, random: np.ndarray) -> np.ndarray:
    """Loss of the second reading beyond that of random pairs of equal loss at the first; NaN beyond all of them.

    From changes (sequence, reading) and (sequence, arm, reading).
    """
    first, second = loud.mean(0)
    known = np.concatenate((np.zeros((1, 2)), random.mean(0)))
    known = known[np.argsort(known[:, 0], kind="stable")]
    if not known[0, 0] <= first <= known[-1, 0]:
        return np.array(np.nan)
    return np.asarray(second - np.interp(first, known[:, 0], known[:, 1]))


def _share_of_fast(result: xr.DataTree) -> np.ndarray:
    """The share of what bounds a head's logits that lies in fast pairs, (layer, head); NaN where nothing turns."""
    query, key = Heads.of(result, QUERY), Heads.of(result, KEY)
    number = np.maximum(query.present.any(-1).sum(1), 1) // np.maximum(key.present.any(-1).sum(1), 1)
    group = [np.minimum(np.arange(query.norm.shape[1]) // max(1, each), key.norm.shape[1] - 1) for each in number]
    own = np.where(query.present, query.norm, 0)
    theirs = np.stack([np.where(key.present, key.norm, 0)[row, heads] for row, heads in enumerate(group)])
    bound, speed = own * theirs, speeds(result)
    fast = (speed > 2 * np.pi / FAST)[:, None]
    whole = (bound * (speed > 0)[:, None]).sum(-1)
    return np.where(whole > 0, (bound * fast).sum(-1) / np.maximum(whole, np.finfo(float).tiny), np.nan)


def _readings(look: xr.Dataset, arm: str) -> np.ndarray:
    """Nats per token, (reading, sequence)."""
    values: np.ndarray = look["readings"].sel({ARM: arm}).sel({READING: list(READINGS)}).values
    return values


def _mean(values: np.ndarray) -> np.ndarray:
    return jackknife(np.mean, values)


def _percent(nats: np.ndarray) -> np.ndarray:
    percent: np.ndarray = 100 * np.expm1(nats)
    return percent


def _windows(look: xr.Dataset) -> str:
    return counted(look.sizes[SEQUENCE], "window")


def _too_few(evidence: Evidence, look: xr.Dataset) -> Finding | None:
    if look.sizes[SEQUENCE] >= LEAST_WINDOWS:
        return None
    why = f"{_windows(look)} give no interval; the least is {LEAST_WINDOWS}."
    return unknown(why, _looking(evidence, twice(look.sizes[SEQUENCE])))


def _unseen(evidence: Evidence) -> Finding:
    return unknown("The model itself was not looked at.", _looking(evidence))


def _looking(evidence: Evidence, more: str = "") -> str:
    return f"ropescope claims RESULT.nc --model {evidence.model} {more}".strip()
