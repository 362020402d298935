"""One way to open every kind of file that ropescope writes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ropescope.base.netcdf import schema_of
from ropescope.base.records import format_of
from ropescope.evaluation.claims.behaviour_dataset import BEHAVIOUR
from ropescope.evaluation.frontier.dataset import FRONTIER
from ropescope.evaluation.importance_validation import VALIDATION
from ropescope.evaluation.set_prediction import SET_VALIDATION
from ropescope.evaluation.sweep.dataset import SWEEP
from ropescope.evaluation.tasks.dataset import TASKS
from ropescope.interventions.masks import MASK, PairMask
from ropescope.measurement.results import IMPORTANCE
from ropescope.measurement.results import load as load_measurement

_SAFETENSORS = ".safetensors"


def load(path: str | Path) -> Any:
    """Read a file of ropescope fully into memory and close it, whichever kind it is.

    Parameters
    ----------
    path
        What `measure`, `importance`, `sweep`, `tasks`, `compress` or `select` wrote, or a plan of thin keys saved.

    Returns
    -------
    xarray.DataTree, xarray.Dataset, PairMask or KeyPlan
        A measurement, and importance, is a tree, a sweep, a frontier or scores of tasks a dataset, a ``.safetensors``
        file a mask or a plan.

    Raises
    ------
    ResultError
        If the file is missing, damaged, none of these, or of another schema version.

    Examples
    --------
    >>> load("qwen3.nc")["query"].spectrum_fe  # doctest: +SKIP
    """
    if Path(path).suffix == _SAFETENSORS:
        return _load_safetensors(path)
    importance = partial(load_measurement, schema=IMPORTANCE)
    kinds: dict[str, Callable[[Path], Any]] = {SWEEP.name: SWEEP.load, TASKS.name: TASKS.load, IMPORTANCE: importance}
    kinds |= {schema.name: schema.load for schema in (VALIDATION, SET_VALIDATION, FRONTIER, BEHAVIOUR)}
    return kinds.get(schema_of(path) or "", load_measurement)(Path(path))


def _load_safetensors(path: str | Path) -> Any:
    """A plan, whose room needs torch, or a mask, which does not; what is neither is refused as no mask."""
    kind = format_of(path)
    if kind in (None, MASK.format):
        return PairMask.load(path)
    from ropescope.compression.plans import PLAN, KeyPlan

    return (KeyPlan if kind == PLAN.format else PairMask).load(path)
