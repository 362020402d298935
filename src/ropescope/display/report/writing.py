"""Every kind of file or result -> one HTML file: the explorer, then sweeps, tasks, comparison and places in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
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
from ropescope.display.report.illustrations import worth_sections
from ropescope.evaluation.claims.behaviour_dataset import BEHAVIOUR
from ropescope.evaluation.claims.evidence import same_weights
from ropescope.evaluation.claims.judging import claims_by_model
from ropescope.evaluation.frontier.dataset import FRONTIER
from ropescope.evaluation.frontier.in_words import section as thin_section
from ropescope.evaluation.importance_validation import VALIDATION
from ropescope.evaluation.opening import load
from ropescope.evaluation.sweep.dataset import SWEEP
from ropescope.evaluation.tasks.dataset import TASKS
from ropescope.evaluation.tasks.table import tasks_section
from ropescope.measurement.names import called, check_labels, model_name, names_of
from ropescope.measurement.results import IMPORTANCE, SCHEMA

Content = xr.DataTree | xr.Dataset | str | Path


def report(
    contents: Mapping[str, Content] | Sequence[str | Path],
    path: str | Path,
    *,
    labels: Sequence[str] = (),
    overwrite: bool = False,
) -> Path:
    """Write one HTML file to explore measurements in a browser, offline.

    Parameters
    ----------
    contents
        Measurements, importance with its validation, sweeps, frontiers of thin keys, scores of tasks and looks at the
        model by the name to show, each as it is in memory or as a file; or files alone, which are called by their
        models, by their texts and lengths too where that tells them apart. At least one measurement; the first is
        shown first. Claims are judged by all that is given.
    path
        HTML file to write.
    labels
        What to call the contents, one for each; files of different kinds may have the same.
    overwrite
        Whether it may be replaced.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    InputError
        There is no measurement, something that is none of these, importance of another model, the same file twice,
        or labels that do not fit.
    ResultError
        A file cannot be read, or the page cannot be written.
    MissingExtraError
        The packages that draw it are not installed.

    Examples
    --------
    >>> report(["qwen3.nc", "qwen3-worth.nc", "qwen3-sweep.nc"], "qwen3.html")  # doctest: +SKIP
    """
    target = check_target(path, overwrite=overwrite)
    check_labels(labels, len(contents))
    given = contents if isinstance(contents, Mapping) else named([Path(each) for each in contents])
    loaded = {name: load(each) if isinstance(each, str | Path) else each for name, each in given.items()}
    _check_kinds(loaded)
    by_key = dict(zip(loaded, labels, strict=True)) if labels else {}
    calls = partial(_called, loaded, by_key, not isinstance(contents, Mapping))
    results, importances = calls(SCHEMA), calls(IMPORTANCE)
    sweeps, tasks, frontiers = (calls(schema.name, text=True) for schema in (SWEEP, TASKS, FRONTIER))
    if not results:
        raise InputError("report got no measurement; name at least one file of 'ropescope measure'")
    sections = [tasks_section(data, name) for name, data in tasks.items()]
    sections += [thin_section(data, name) for name, data in frontiers.items()]
    worth = worth_sections(results, importances)
    further = [section for name, result in results.items() for section in further_sections(result, name)]
    compared = against_first(results, pair_by_pair(results))
    others = {f"{key}, a file": each for key, each in loaded.items() if _kind(each) not in (SCHEMA, FRONTIER.name)}
    verdicts = {
        name: replace(found, model=_model(name, results) or found.model)
        for name, found in claims_by_model(results | others).items()
    }
    claimed = [found.section(name if len(verdicts) > 1 else "") for name, found in verdicts.items()]
    page = render(
        results,
        verdicts=[found.summary() for found in verdicts.values()],
        sweeps=sweeps,
        sections=[*claimed, *worth, *further, *sections, *compared, *_lived(results)],
    )
    with written_whole(target) as unfinished:
        unfinished.write_text(page, encoding="utf-8")
    return target


def _model(name: str, results: Mapping[str, xr.DataTree]) -> str:
    """What its model is called; labels of several measurements of one model are none of the model."""
    alike = [result for result in results.values() if same_weights(results[name], result)]
    return model_name(results[name]) if len(alike) == 1 else ""


def _kind(content: Any) -> Any:
    return getattr(content, "attrs", {}).get("schema")


def _check_kinds(loaded: Mapping[str, Any]) -> None:
    shown = (SCHEMA, IMPORTANCE, *(schema.name for schema in (SWEEP, TASKS, FRONTIER, VALIDATION, BEHAVIOUR)))
    if unknown := sorted(key for key, each in loaded.items() if _kind(each) not in shown):
        raise InputError(
            f"report got {unknown[0]!r}, which is no measurement, importance, sweep, frontier of thin keys, scores of "
            "tasks or look at a model; leave it out"
        )


def _called(
    loaded: Mapping[str, Any], labels: Mapping[str, str], files: bool, kind: str, *, text: bool = False
) -> dict[str, Any]:
    """What follows a schema, by the names to show."""
    found = {key: each for key, each in loaded.items() if _kind(each) == kind}
    if labels:
        return called(found, [labels[key] for key in found])
    names = names_of(found, text=text) if files else {key: key for key in found}
    return {names[key]: each for key, each in found.items()}


def _lived(results: Mapping[str, xr.DataTree]) -> list[Section]:
    return [where_bands_live(result, name if len(results) > 1 else "") for name, result in results.items()]
