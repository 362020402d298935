"""Results of one architecture against each other, pair by pair."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import xarray as xr
from scipy.stats import t as student

from ropescope.analysis.comparability import check_pairwise, on_scale_of
from ropescope.analysis.overlap import chance_anywhere, chance_per_head, jaccard
from ropescope.analysis.places import SELECTION
from ropescope.analysis.shares import ENTROPIES, ENTROPY
from ropescope.base.axes import HEAD_AXIS, LAYER, PAIR, SEQUENCE, STREAMS
from ropescope.base.selections import PAPER, Selection
from ropescope.base.statistics import ESTIMATE, ESTIMATES, jackknife, rank_correlation
from ropescope.measurement.results import stream_data

OTHER, PLACEMENT = "other", "placement"
ANYWHERE, PER_HEAD = "anywhere", "per head"
_LEVEL = 0.05
_NEARLY_ONE = 1 - 1e-12


def compare(results: Mapping[str, xr.DataTree], *, seed: int = 0) -> xr.DataTree:
    """Ask whether bands and periodic pairs of other results sit where those of the first one do.

    Entropies are means over sequences; a place counts where both results define it. SequenceFE of another length is
    put on the first result's scale through the white-noise reference, and so is the threshold of periodic pairs.
    These are the numbers; :func:`ropescope.comparison` says them in words and draws the figures.

    Parameters
    ----------
    results
        At least two results of :func:`ropescope.measure` by name, with the same layers, heads, pairs, pairing and
        rotation. The first is the one that every other is compared with.
    seed
        Seed of the random placements.

    Returns
    -------
    xarray.DataTree
        Groups `query` and `key` over `other`, `entropy`, `layer`, `head` (`kv_head`), `pair`, `selection`:

        - `first` and `change` (other minus first) of each entropy; `standard_error` of the change from the spread
          over sequences, NaN with fewer than two in either; `changed_share`, places that Welch's test at 5 % calls
          changed, 0.05 by chance.
        - `correlation` (estimate), Spearman's over all places, 95 % over layers; `layer_correlation`; and `ceiling`,
          what measurements of other windows of the same two texts would show if nothing differed but the windows.
        - `jaccard`, the overlap of each selection, NaN where both are empty; `chance` (placement, estimate), that of
          sets of the same sizes placed anywhere, or keeping the number in every head, with central 95 % ranges;
          `halves`, the overlap of even with odd windows of one result, mean over the two; `first_members`,
          `other_members`, `places`.

    Raises
    ------
    InputError
        There are fewer than two results.
    ResultError
        A result has other layers, heads, pairs, pairing or rotation than the first, or other frames.

    References
    ----------
    Frequency Entropy paper, appendix A.4. Spearman, The proof and measurement of association between two things,
    American Journal of Psychology 15 (1904).

    Examples
    --------
    >>> compare({"wikitext": one, "c4": another})["query"].correlation  # doctest: +SKIP
    """
    check_pairwise(results)
    first, *others = results.values()
    names = list(results)[1:]
    placed = [on_scale_of(first, other) for other in others]
    groups = {}
    for stream in STREAMS:
        data = [_pairwise(stream_data(first, stream), stream_data(other, stream), stream, seed) for other in placed]
        groups[f"/{stream}"] = xr.concat(data, xr.Variable(OTHER, names)).assign(first=data[0]["first"])
    tree = xr.DataTree.from_dict(groups)
    tree.attrs = {"first": next(iter(results)), "seed": seed}
    return tree


def _pairwise(first: xr.Dataset, other: xr.Dataset, stream: str, seed: int) -> xr.Dataset:
    ours, theirs = ({name: _windows(data, name) for name in ENTROPIES} for data in (first, other))
    means = [{name: _mean(values) for name, values in side.items()} for side in (ours, theirs)]
    place = (LAYER, HEAD_AXIS[stream], PAIR)
    moved = [_moved(ours[name], theirs[name]) for name in ENTROPIES]
    agreement = [_agreement(ours[name], theirs[name]) for name in ENTROPIES]
    overlap = [_overlap(selection, ours, theirs, seed) for selection in PAPER.values()]
    variables = {
        "first": ((ENTROPY, *place), np.stack([means[0][name] for name in ENTROPIES])),
        "change": ((ENTROPY, *place), np.stack([means[1][name] - means[0][name] for name in ENTROPIES])),
        "standard_error": ((ENTROPY, *place), np.stack([error for error, _ in moved])),
        "changed_share": (ENTROPY, [share for _, share in moved]),
        "correlation": ((ENTROPY, ESTIMATE), np.stack([whole for whole, _, _ in agreement])),
        "layer_correlation": ((ENTROPY, LAYER), np.stack([layers for _, layers, _ in agreement])),
        "ceiling": (ENTROPY, [ceiling for _, _, ceiling in agreement]),
        **{name: (dims, np.stack([one[name] for one in overlap])) for name, dims in _OVERLAP.items()},
    }
    coords = {name: first[name].values for name in place}
    labels = {ENTROPY: list(ENTROPIES), SELECTION: list(PAPER), ESTIMATE: list(ESTIMATES)}
    return xr.Dataset(variables, coords={**coords, **labels, PLACEMENT: [ANYWHERE, PER_HEAD]})


_OVERLAP = {
    "jaccard": (SELECTION,),
    "halves": (SELECTION,),
    "chance": (SELECTION, PLACEMENT, ESTIMATE),
    "first_members": (SELECTION,),
    "other_members": (SELECTION,),
    "places": (SELECTION,),
}


def _windows(data: xr.Dataset, name: str) -> np.ndarray:
    return data[name].transpose(SEQUENCE, LAYER, ..., PAIR).values.astype(np.float64)


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over windows where defined; NaN where nowhere."""
    return _moments(values)[1]


def _moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Number, mean and unbiased variance over windows; NaN where there are too few."""
    known = ~np.isnan(values)
    count = known.sum(0)
    mean = np.where(count > 0, np.where(known, values, 0).sum(0) / np.maximum(count, 1), np.nan)
    square = (np.where(known, values - mean, 0) ** 2).sum(0)
    return count, mean, np.where(count > 1, square / np.maximum(count - 1, 1), np.nan)


def _moved(ours: np.ndarray, theirs: np.ndarray) -> tuple[np.ndarray, float]:
    """Standard error of the change of every place, and the share of places that Welch's test calls changed."""
    (n, mean, variance), (m, other, spread) = _moments(ours), _moments(theirs)
    a, b = variance / np.maximum(n, 1), spread / np.maximum(m, 1)
    error = np.sqrt(a + b)
    tested = error > 0
    freedom = (a + b)[tested] ** 2 / (a**2 / np.maximum(n - 1, 1) + b**2 / np.maximum(m - 1, 1))[tested]
    p = 2 * student.sf(abs(other - mean)[tested] / error[tested], freedom)
    return error, float((p < _LEVEL).mean()) if tested.any() else np.nan


def _agreement(ours: np.ndarray, theirs: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Rank correlation over all places with its interval, that of each layer, and its ceiling."""
    first, other = _mean(ours), _mean(theirs)

    def fisher(one: np.ndarray, another: np.ndarray) -> np.ndarray:
        return np.array([np.arctanh(np.clip(spearman(one, another), -_NEARLY_ONE, _NEARLY_ONE))])

    layers = np.array([spearman(a, b) for a, b in zip(first, other, strict=True)])
    return (
        np.tanh(jackknife(fisher, first, other))[0],
        layers,
        float(np.sqrt(_reliability(ours) * _reliability(theirs))),
    )


def spearman(first: np.ndarray, other: np.ndarray) -> float:
    """Spearman's rank correlation over the places that both define; NaN with fewer than three, or where one is flat."""
    known = ~np.isnan(first) & ~np.isnan(other)
    return rank_correlation(first[known], other[known]) if known.sum() >= 3 else np.nan


def _reliability(values: np.ndarray) -> float:
    """Rank correlation of even with odd windows, stepped up to all of them by Spearman and Brown's formula."""
    if len(values) < 2:
        return np.nan
    half = max(0.0, spearman(_mean(values[::2]), _mean(values[1::2])))
    return 2 * half / (1 + half)


def _overlap(
    selection: Selection, ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray], seed: int
) -> dict[str, Any]:
    # On arrays that are already means; `select` is for results.
    entropy, member = selection.variable, selection.holds
    first, other = (_mean(side[entropy]) for side in (ours, theirs))
    present = ~np.isnan(first) & ~np.isnan(other)
    sets = [member(values) & present for values in (first, other)]
    sizes = [int(chosen.sum()) for chosen in sets]
    total = int(present.sum())
    return {
        "jaccard": jaccard(*sets),
        "halves": np.mean([_halves(side[entropy], member) for side in (ours, theirs)]),
        "chance": np.stack([chance_anywhere(total, *sizes), chance_per_head(present, *sets, seed=seed)]),
        "first_members": sizes[0],
        "other_members": sizes[1],
        "places": total,
    }


def _halves(values: np.ndarray, member: Callable[[np.ndarray], np.ndarray]) -> float:
    return jaccard(*(member(_mean(half)) for half in (values[::2], values[1::2]))) if len(values) > 1 else np.nan
