"""What a selection is judged against: as many other pairs of every head; and the pairs that importance puts last."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import xarray as xr

from ropescope.base.arguments import check_share
from ropescope.base.axes import LAYER, STREAMS
from ropescope.base.errors import InputError, did_you_mean
from ropescope.interventions.masks import PairMask
from ropescope.measurement.results import mean_over_sequences, stream_data

_ORDERS = ("fisher", "rotation_fisher")


def matched_random(mask: PairMask, seed: int) -> PairMask:
    """Draw random pairs, as many in every layer and head as the mask selects: the control of a selection.

    Parameters
    ----------
    mask
        The selection to be matched.
    seed
        Seed of NumPy's default generator.

    Returns
    -------
    PairMask
        Drawn without replacement from all pairs of the head, selected ones included.

    Examples
    --------
    >>> with rs.weighted_rope(model, matched_random(mask, seed=0), alpha=0.1):  # doctest: +SKIP
    ...     rs.perplexity(model, windows)
    """
    random = np.random.default_rng(seed)
    return _redrawn(mask, f"random pairs, seed {seed}", lambda present: random.random(present.shape))


def lowest_norm(mask: PairMask, result: xr.DataTree) -> PairMask:
    """Take the pairs of lowest mean norm, as many in every layer and head as the mask selects.

    Parameters
    ----------
    mask
        The selection to be matched.
    result
        The result that it was selected from, or another one of the same shape.

    Returns
    -------
    PairMask
        What turning down the quietest pairs would do: a selection should matter more, or less, than that.

    Raises
    ------
    InputError
        If the result has other layers, heads or pairs than the mask.

    Examples
    --------
    >>> with rs.weighted_rope(model, lowest_norm(mask, result), alpha=0.1):  # doctest: +SKIP
    ...     rs.perplexity(model, windows)
    """
    return _lowest(mask, result, "mean_norm", "pairs of lowest mean norm")


def lowest_importance(mask: PairMask, importance: xr.DataTree) -> PairMask:
    """Take the pairs of lowest importance, as many in every layer and head as the mask selects.

    Parameters
    ----------
    mask
        The selection to be matched.
    importance
        What :func:`ropescope.importance` gave for the model that the mask is for.

    Returns
    -------
    PairMask
        What turning down the pairs that the model feels least would do.

    Raises
    ------
    InputError
        If the importance has other layers, heads or pairs than the mask.

    Examples
    --------
    >>> with rs.weighted_rope(model, lowest_importance(mask, worth), alpha=0.1):  # doctest: +SKIP
    ...     rs.perplexity(model, windows)
    """
    return _lowest(mask, importance, "fisher", "pairs of lowest importance")


def all_but_best(mask: PairMask, importance: xr.DataTree, keep: float, variable: str = "fisher") -> PairMask:
    """Select, in each stream of the whole model, all pairs but the share of highest importance.

    Parameters
    ----------
    mask
        Any mask of the model.
    importance
        What :func:`ropescope.importance` gave for the model.
    keep
        Share of the pairs that is left out of the selection, 0 to 1.
    variable
        "fisher" or "rotation_fisher".

    Returns
    -------
    PairMask
        At equal importance the pair that comes first is kept.

    Raises
    ------
    InputError
        If the share is out of range, the variable is another, or the importance has other layers, heads or pairs.

    Examples
    --------
    >>> half = all_but_best(mask, worth, keep=0.5)  # doctest: +SKIP
    >>> rs.sweep(model, windows, {"best half kept": half})  # doctest: +SKIP
    """
    check_share("keep", keep)
    if variable not in _ORDERS:
        raise InputError(f"got variable {variable!r}: {did_you_mean(variable, _ORDERS)}")
    drawn = {}
    for stream, values in matching_values(mask, importance, variable).items():
        present = mask.present(stream).values
        rank = np.where(present, -values, np.inf).ravel().argsort(kind="stable").argsort().reshape(present.shape)
        drawn[stream] = mask.streams()[stream].copy(data=present & (rank >= round(keep * present.sum())))
    return mask.replaced(drawn["query"], drawn["key"], f"all but the best {keep:.4g} by {variable}")


def _lowest(mask: PairMask, result: xr.DataTree, variable: str, name: str) -> PairMask:
    ordered = iter(matching_values(mask, result, variable).values())
    return _redrawn(mask, name, lambda present: next(ordered))


def matching_values(mask: PairMask, result: xr.DataTree, variable: str) -> dict[str, np.ndarray]:
    """A variable, mean over sequences, by stream, once it is clear that it is of the mask's pairs."""
    found = {stream: mean_over_sequences(stream_data(result, stream))[variable] for stream in STREAMS}
    for stream, values in found.items():
        present = mask.present(stream)
        if not np.array_equal(present.values, values.notnull().values) or mask.layers != values[LAYER].values.tolist():
            raise InputError(
                f"the mask has {int(present.sum())} {stream} pairs in {dict(present.sizes)}, the result "
                f"{int(values.count())} in {dict(values.sizes)}; give a result of the model that the mask is for"
            )
    return {stream: values.values for stream, values in found.items()}


def _redrawn(mask: PairMask, name: str, scores: Callable[[np.ndarray], np.ndarray]) -> PairMask:
    """Select, in every head, the pairs of lowest score, as many as the mask does."""
    drawn = {}
    for stream, chosen in mask.streams().items():
        present = mask.present(stream).values
        rank = np.where(present, scores(present), np.inf).argsort(-1).argsort(-1)
        drawn[stream] = chosen.copy(data=rank < chosen.values.sum(-1, keepdims=True))
    return mask.replaced(drawn["query"], drawn["key"], f"{name}, matched to: {mask.provenance['selection']}")
