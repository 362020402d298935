"""A sweep in plain words: what turning the selected pairs down did, against the model as it stands and the controls."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ropescope.base.statistics import ESTIMATE, LEAST_WINDOWS
from ropescope.base.strengths import strength_of
from ropescope.evaluation.sweep.changes import ALL_RANDOM, CONTROL, change
from ropescope.evaluation.sweep.dataset import ALPHA, ARM, LOWEST, SELECTION, STREAM, SWEEP, WINDOW

if TYPE_CHECKING:
    import xarray as xr

# Of log perplexity: a change inside it counts as none.
MARGIN = 0.01
CONTROLS = {ALL_RANDOM: "the same number of random pairs"} | {
    arm: f"the same number of pairs of {words}" for arm, words in LOWEST.items()
}


def findings(data: xr.Dataset) -> list[str]:
    """One sentence for each selection, at the lowest alpha, in words that the 95 % intervals carry.

    Parameters
    ----------
    data
        What :func:`ropescope.sweep` gave.

    Returns
    -------
    list of str
        "raises" or "lowers" where the interval excludes 0, "keeps ... within 1 %" where it lies inside that margin;
        and the perplexity with the selection is "higher than", "lower than" or, inside the margin, "about the same as"
        with each control. Anything else cannot be said, and the sentence says so.
    """
    changes = change(data)
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
    does = change_of(changes["nats_change"].sel({**at, ARM: "selection"}), before, after)
    parts = [f"{subject}: {strength_of(SWEEP.provenance(data)).subject} {alpha:g} {does}"]
    for control in changes[CONTROL].values:
        other = before + float(changes["perplexity_change"].sel({**at, ARM: control, ESTIMATE: "value"}))
        if not math.isnan(other):
            compared = comparison(changes["nats_against"].sel({**at, CONTROL: control}))
            parts.append(f"{compared} with {CONTROLS[control]} ({_number(other)})")
    few = f"; fewer than {LEAST_WINDOWS} windows give no intervals" if data.sizes[WINDOW] < LEAST_WINDOWS else ""
    return ", ".join(parts) + few


def change_of(interval: xr.DataArray, before: float, after: float) -> str:
    """What an interval of log ratios says of two perplexities."""
    low, high = (float(interval.sel({ESTIMATE: end})) for end in ("low", "high"))
    numbers = f"from {_number(before)} to {_number(after)}"
    if low > 0 or high < 0:
        return f"{'raises' if low > 0 else 'lowers'} perplexity {numbers}"
    if low > -MARGIN and high < MARGIN:
        return f"keeps perplexity within {MARGIN:.0%} ({numbers})"
    unknown = "" if math.isnan(low) else ", which these windows cannot tell from no change"
    return f"takes perplexity {numbers}{unknown}"


def _number(perplexity: float) -> str:
    return f"{perplexity:.4g}" if perplexity < 10_000 else f"{perplexity:,.0f}"


def comparison(interval: xr.DataArray) -> str:
    """What an interval of differences of log ratios says of the first perplexity against the other."""
    low, high = (float(interval.sel({ESTIMATE: end})) for end in ("low", "high"))
    if low > 0 or high < 0:
        return "higher than" if low > 0 else "lower than"
    if low > -MARGIN and high < MARGIN:
        return "about the same as"
    return "beside that" if math.isnan(low) else "perhaps higher, perhaps lower than"
