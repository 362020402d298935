"""One way to open every kind of file that ropescope writes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from ropescope.base.netcdf import schema_of
from ropescope.evaluation.importance_validation import VALIDATION
from ropescope.evaluation.sweep.dataset import SWEEP
from ropescope.evaluation.tasks.dataset import TASKS
from ropescope.interventions.masks import PairMask
from ropescope.measurement.results import IMPORTANCE
from ropescope.measurement.results import load as load_measurement

_SAFETENSORS = ".safetensors"
_PLAN = "ropescope-keys"


def load(path: str | Path) -> Any:
    """Read a file of ropescope fully into memory and close it, whichever kind it is.

    Parameters
    ----------
    path
        What `measure`, `importance`, `sweep`, `tasks` or `select` wrote, or a plan of thin keys saved.

    Returns
    -------
    xarray.DataTree, xarray.Dataset, PairMask or KeyPlan
        A measurement, and importance, is a tree, a sweep or scores of tasks a dataset, a ``.safetensors`` file a mask
        or a plan.

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
    kinds[VALIDATION.name] = VALIDATION.load
    return kinds.get(schema_of(path) or "", load_measurement)(Path(path))


def _load_safetensors(path: str | Path) -> Any:
    """A plan, whose room needs torch, or a mask, which does not; what is neither is refused as no mask."""
    from safetensors import SafetensorError, safe_open

    with suppress(OSError, SafetensorError), safe_open(path, framework="numpy") as file:
        if (file.metadata() or {}).get("format") == _PLAN:
            from ropescope.compression.plans import KeyPlan

            return KeyPlan.load(path)
    return PairMask.load(path)
