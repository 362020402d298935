"""A sweep in plain words: what turning the selected pairs down did, against the model as it stands and the controls."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ropescope.base.statistics import ESTIMATE
from ropescope.evaluation.sweep.changes import ALL_RANDOM, CONTROL, change
from ropescope.evaluation.sweep.dataset import ALPHA, ARM, LOWEST, SELECTION, STREAM

if TYPE_CHECKING:
    import xarray as xr

CONTROLS = {ALL_RANDOM: "the same number of random pairs"} | {
    arm: f"the same number of pairs of {words}" for arm, words in LOWEST.items()
}


def findings(data: xr.Dataset, *, resamples: int = 10_000) -> list[str]:
    """One sentence for each selection, at the lowest alpha, in words that the 95 % intervals carry.

    Parameters
    ----------
    data
        What :func:`ropescope.sweep` gave.
    resamples
        As in :func:`ropescope.evaluation.sweep.changes.change`.

    Returns
    -------
    list of str
        "raises", "lowers" or "does not measurably change" perplexity; "more than", "less than" or "about as much as"
        each control.
    """
    changes = change(data, resamples=resamples)
    return [_finding(data, changes, str(name)) for name in data[SELECTION].values]


def _finding(data: xr.Dataset, changes: xr.Dataset, name: str) -> str:
    query, key = (int(count) for count in data["selected_pairs"].sel({SELECTION: name}).transpose(STREAM).values)
    subject = f"{name} ({query} query, {key} key pairs)"
    if query + key == 0:
        return f"{subject}: this model has none"
    alpha = float(data[ALPHA].min())
    at = {SELECTION: name, ALPHA: alpha}
    perplexity = data["perplexity"].sel({SELECTION: name, ARM: "selection"})
    before, after = (float(perplexity.sel({ALPHA: place})) for place in (1.0, alpha))
    does = verb(changes["nats_change"].sel({**at, ARM: "selection"}))
    parts = [f"{subject}: alpha {alpha:g} {does} perplexity from {before:.4g} to {after:.4g}"]
    for control in changes[CONTROL].values:
        other = before + float(changes["perplexity_change"].sel({**at, ARM: control, ESTIMATE: "value"}))
        if not math.isnan(other):
            compared = comparison(changes["nats_against"].sel({**at, CONTROL: control}))
            parts.append(f"{compared} {CONTROLS[control]} ({other:.4g})")
    return ", ".join(parts)


def verb(interval: xr.DataArray) -> str:
    """What an interval of changes says of a perplexity."""
    low, high = (float(interval.sel({ESTIMATE: end})) for end in ("low", "high"))
    return "raises" if low > 0 else "lowers" if high < 0 else "does not measurably change"


def comparison(interval: xr.DataArray) -> str:
    """What an interval of differences says of two changes."""
    low, high = (float(interval.sel({ESTIMATE: end})) for end in ("low", "high"))
    return "more than" if low > 0 else "less than" if high < 0 else "about as much as"
