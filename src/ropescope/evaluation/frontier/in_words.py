"""A frontier in plain words: what fewer bytes of keys did to perplexity, also beside baselines of the same bytes."""

from __future__ import annotations

import numpy as np
import xarray as xr

from ropescope.base.key_plans import BASELINES
from ropescope.base.statistics import ESTIMATE, LEAST_WINDOWS
from ropescope.base.tables import Section
from ropescope.evaluation.frontier.changes import (
    OTHER,
    as_table,
    bytes_share,
    compared,
    number,
    percent,
    value_percent,
)
from ropescope.evaluation.frontier.dataset import PLAN, STOCK
from ropescope.evaluation.sweep.in_words import change_of, comparison

WAYS = {"latent": "latents of keys before rotation", "drop": "pairs of highest Fisher importance"} | BASELINES


def findings(data: xr.Dataset) -> list[str]:
    """One sentence for each plan that is no baseline, in words that the 95 % intervals carry.

    Parameters
    ----------
    data
        What :func:`ropescope.frontier` gave.

    Returns
    -------
    list of str
        What the intervals carry of perplexity and of every baseline of the same share, in the words of a sweep; with
        fewer than five windows numbers alone.
    """
    changes = compared(data)
    own = [str(plan) for plan in data[PLAN].values if str(_method(data, plan)) not in (STOCK, *BASELINES)]
    return [_finding(data, changes, plan) for plan in own]


def section(data: xr.Dataset, name: str) -> Section:
    """Findings and table of a frontier, for a page."""
    few = data.sizes["window"] < LEAST_WINDOWS
    note = f" of fewer than {LEAST_WINDOWS} windows there are no intervals." if few else ""
    ways = [str(way) for way in dict.fromkeys(data["method"].values) if str(way) in WAYS]
    kinds = "; ".join(f"{way}: {WAYS[way]}" for way in ways)
    intro = f"Bytes are of the stored keys, sinks and positions included; values are as they were.{note} {kinds}."
    return Section(f"{name}: thin keys", (intro, *findings(data)), (as_table(data),))


def _finding(data: xr.Dataset, changes: xr.DataArray, plan: str) -> str:
    share, stock = float(bytes_share(data).sel({PLAN: plan})), data["perplexity"].sel({PLAN: STOCK})
    before, after = (float(value) for value in (stock, data["perplexity"].sel({PLAN: plan})))
    change = changes.sel({PLAN: plan, OTHER: STOCK})
    subject = f"{plan}: {share:.1%} of the key bytes"
    if np.isnan(change.sel({ESTIMATE: "low"})):
        return f"{subject}, perplexity {number(before)} to {number(after)} ({percent(change.values)})"
    logs = xr.DataArray(np.log1p(change.values), change.coords)
    parts = [f"{subject} {change_of(logs, before, after)}, {percent(change.values)}"]
    for other in _baselines(data, plan):
        words = comparison(changes.sel({PLAN: plan, OTHER: other}))
        theirs = changes.sel({PLAN: other, OTHER: STOCK, ESTIMATE: "value"})
        parts.append(f"{words} with {_method(data, other)} ({value_percent(float(theirs))})")
    return ", ".join(parts)


def _baselines(data: xr.Dataset, plan: str) -> list[str]:
    keep = data["keep"].sel({PLAN: plan})
    same = data[PLAN].values[(data["keep"] == keep).values]
    return [str(other) for other in same if str(_method(data, other)) in BASELINES]


def _method(data: xr.Dataset, plan: str) -> str:
    return str(data["method"].sel({PLAN: plan}).values)
