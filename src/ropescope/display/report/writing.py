"""Every kind of file or result -> one HTML file: the explorer, then sweeps, tasks, comparison and places in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import xarray as xr

from ropescope.analysis.comparability import pair_by_pair
from ropescope.analysis.joined_variables import further_sections
from ropescope.analysis.places_in_words import where_bands_live
from ropescope.base.errors import InputError
from ropescope.base.files import check_target, named, written_whole
from ropescope.base.tables import Section
from ropescope.display.comparison import against_first
from ropescope.display.report import render
from ropescope.display.report.illustrations import worth_joined
from ropescope.evaluation.claims.behaviour_dataset import BEHAVIOUR
from ropescope.evaluation.claims.judging import claims_by_model
from ropescope.evaluation.frontier.dataset import FRONTIER
from ropescope.evaluation.frontier.in_words import section as thin_section
from ropescope.evaluation.importance_validation import VALIDATION
from ropescope.evaluation.opening import load
from ropescope.evaluation.sweep.dataset import SWEEP
from ropescope.evaluation.tasks.dataset import TASKS
from ropescope.evaluation.tasks.table import tasks_section
from ropescope.measurement.results import IMPORTANCE, SCHEMA

Content = xr.DataTree | xr.Dataset | str | Path


def report(
    contents: Mapping[str, Content] | Sequence[str | Path], path: str | Path, *, overwrite: bool = False
) -> Path:
    """Write one HTML file to explore measurements in a browser, offline.

    Parameters
    ----------
    contents
        Measurements, importance with its validation, sweeps, frontiers of thin keys, scores of tasks and looks at the
        model by the name to show, each as it is in memory or as a file; or files alone, which are named after
        themselves. At least one measurement; the first is shown first. Claims are judged by all that is given.
    path
        HTML file to write.
    overwrite
        Whether it may be replaced.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    InputError
        There is no measurement, something that is none of these, importance of another model, or the same file
        twice.
    ResultError
        A file cannot be read, or the page cannot be written.
    MissingExtraError
        The packages that draw it are not installed.

    Examples
    --------
    >>> report(["qwen3.nc", "qwen3-worth.nc", "qwen3-sweep.nc"], "qwen3.html")  # doctest: +SKIP
    """
    target = check_target(path, overwrite=overwrite)
    given = contents if isinstance(contents, Mapping) else named([Path(each) for each in contents])
    loaded = {name: load(each) if isinstance(each, str | Path) else each for name, each in given.items()}
    kinds = (SCHEMA, IMPORTANCE, SWEEP.name, TASKS.name, FRONTIER.name)
    results, importances, sweeps, tasks, frontiers = (_of_kind(loaded, kind) for kind in kinds)
    seen = {name: each for kind in (VALIDATION.name, BEHAVIOUR.name) for name, each in _of_kind(loaded, kind).items()}
    if unknown := sorted(loaded.keys() - {*results, *importances, *sweeps, *tasks, *frontiers, *seen}):
        raise InputError(
            f"report got {unknown[0]!r}, which is no measurement, importance, sweep, frontier of thin keys, scores of "
            "tasks or look at a model; leave it out"
        )
    if not results:
        raise InputError("report got no measurement; name at least one file of 'ropescope measure'")
    together, worth = worth_joined(results, importances)
    sections = [tasks_section(data, name) for name, data in tasks.items()]
    sections += [thin_section(data, name) for name, data in frontiers.items()]
    further = [section for name, result in together.items() for section in further_sections(result, name)]
    compared = against_first(results, pair_by_pair(results))
    verdicts = claims_by_model(results | importances | seen | sweeps | tasks)
    claimed = [found.section(name if len(verdicts) > 1 else "") for name, found in verdicts.items()]
    page = render(
        results,
        verdicts=[found.summary() for found in verdicts.values()],
        sweeps=sweeps,
        sections=[*claimed, *worth, *further, *sections, *compared, *_lived(results)],
    )
    with written_whole(target) as partial:
        partial.write_text(page, encoding="utf-8")
    return target


def _of_kind(loaded: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """What follows a schema."""
    return {name: each for name, each in loaded.items() if getattr(each, "attrs", {}).get("schema") == kind}


def _lived(results: Mapping[str, xr.DataTree]) -> list[Section]:
    return [where_bands_live(result, name if len(results) > 1 else "") for name, result in results.items()]
