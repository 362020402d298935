"""Sweep selections and their controls over strengths: what a model's perplexity says of the pairs turned down.

A cell is one perplexity: a mask at a strength. Cells that must be equal (strength 1, masks that select nothing, equal
masks) are computed once. Each finished cell is kept at once, so a killed run goes on and ends with the same file.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from tqdm import tqdm

from ropescope.axes import STREAMS
from ropescope.errors import InputError, ResultError
from ropescope.evaluation.journal import Journal, drop_journal, journal_of
from ropescope.evaluation.perplexity import check_scoring, perplexity, protocol
from ropescope.evaluation.plan import ALPHAS, THREE_SEEDS, Controls, Plan, mask_digest, planned
from ropescope.evaluation.records import (
    ALPHA,
    ARM,
    SCHEMA_VERSION,
    SELECTION,
    STREAM,
    WINDOW,
    labelled,
    load_sweep,
    save_sweep,
)
from ropescope.files import check_target
from ropescope.interventions import derotated, weighted_rope
from ropescope.live import model_provenance
from ropescope.masks import PairMask
from ropescope.results import provenance as result_provenance
from ropescope.windows import windows_protocol

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ropescope.axes import TokenIds

Intervention = Callable[["PreTrainedModel", PairMask, float], AbstractContextManager[None]]


def rotation_kept(model: PreTrainedModel, mask: PairMask, alpha: float) -> AbstractContextManager[None]:
    """Derotation as an intervention to sweep: the selected pairs keep the share `alpha` of their rotation."""
    return derotated(model, mask, strength=1 - alpha)


def sweep(
    model: PreTrainedModel,
    windows: TokenIds,
    selections: Mapping[str, PairMask],
    *,
    alphas: Iterable[float] = ALPHAS,
    controls: Controls = THREE_SEEDS,
    intervention: Intervention = weighted_rope,
    path: str | Path | None = None,
    overwrite: bool = False,
    stride: int | None = None,
    batch_size: int = 1,
    progress: bool = False,
) -> xr.Dataset:
    """Perplexity over strengths for selections of pairs and for equal numbers of other pairs.

    Parameters
    ----------
    model
        The model that the masks were selected on.
    windows
        Token ids to judge on, shape (sequence, position); not the text that the pairs were selected on.
    selections
        Masks by name.
    alphas
        Strengths, 0 to 1; 1, the model as it stands, is always added.
    controls
        Arms to compare with.
    intervention
        Called with model, mask and alpha, gives a context in which the model is judged; 1 must change nothing.
        A named function, such as :func:`weighted_rope` or :func:`rotation_kept`.
    path
        NetCDF file for the dataset. Beside it a folder ``<path>.partial`` keeps every finished cell until the file is
        complete: the same call after a crash goes on there, and ends with the same bytes.
    overwrite
        Whether another file at `path` may be replaced. One that holds this very sweep is read and returned.
    stride, batch_size
        As in :func:`ropescope.perplexity`.
    progress
        Show a progress bar with the time left on a terminal.

    Returns
    -------
    xarray.Dataset
        `nats` (selection, arm, alpha, window), NaN where a control was not asked for; `perplexity` (selection, arm,
        alpha); `tokens` (window), the scored ones; `selected_pairs` (selection, stream). Arms are "selection",
        "random-<seed>" and "lowest-norm". Where a mask selects nothing, every cell is the baseline.

    Raises
    ------
    InputError
        Before anything runs: no selection, alphas empty or outside 0 to 1, a mask of another model, bad windows.
    ResultError
        If the file or its journal cannot be written, belong to another sweep, or are in use; no finished cell is lost.

    Examples
    --------
    >>> data = sweep(model, windows, {"bands": mask}, alphas=(0, 0.5), path="sweep.nc")  # doctest: +SKIP
    >>> print(sweep_table(data))  # doctest: +SKIP
    """
    plan = planned(selections, alphas, controls)
    scored = check_scoring(model, windows, stride, batch_size)
    facts = _configuration(model, windows, intervention, stride, batch_size)
    provenance = _provenance(facts, protocol(model, windows, stride, batch_size), plan, controls)
    target = None if path is None else check_target(path)
    if target is not None and target.exists() and (done := _finished(target, provenance, overwrite)) is not None:
        drop_journal(target, facts)
        return done
    for mask in plan.masks():
        with intervention(model, mask, 1.0):
            pass

    def judge(mask: PairMask, alpha: float) -> np.ndarray:
        with nullcontext() if alpha == 1 else intervention(model, mask, alpha):
            return perplexity(model, windows, stride=stride, batch_size=batch_size).window_nats

    with nullcontext() if target is None else journal_of(target, facts) as journal:
        cells = _run(plan, judge, journal, len(windows), progress)
        data = _dataset(plan, cells, np.full(len(windows), scored), provenance)
        if target is not None and journal is not None:
            save_sweep(data, target)
            journal.remove()
    return data


def _configuration(
    model: PreTrainedModel, windows: TokenIds, intervention: Intervention, stride: int | None, batch_size: int
) -> dict[str, Any]:
    """All that decides the nats of a mask at a strength."""
    name = getattr(intervention, "__qualname__", "<none>")
    if "<" in name:
        raise InputError(f"got the intervention {intervention!r}; give a function with a name, which the file records")
    packages = ("ropescope", "torch", "transformers", "numpy")
    return {
        "schema_version": SCHEMA_VERSION,
        "model": {**model_provenance(model), "device": model.device.type},
        "windows": {"shape": list(windows.shape), "sha256": windows_protocol(windows[:])["sha256"]},
        "intervention": f"{intervention.__module__}.{name}",
        "stride": stride,
        "batch_size": batch_size,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
    }


def _provenance(
    facts: Mapping[str, Any], protocol: Mapping[str, object], plan: Plan, controls: Controls
) -> dict[str, Any]:
    norms = None if controls.result is None else result_provenance(controls.result)
    return {
        **facts,
        "windows": dict(protocol),
        "selections": {
            name: {**arms[SELECTION].provenance, "sha256": mask_digest(arms[SELECTION])}
            for name, arms in plan.arms.items()
        },
        "alphas": list(plan.alphas),
        "controls": {"seeds": list(controls.seeds), "alphas": list(plan.control_alphas), "norms_measured": norms},
    }


def _finished(target: Path, provenance: Mapping[str, Any], overwrite: bool) -> xr.Dataset | None:
    """The sweep that a file holds if it is this very one; None if it may be replaced."""
    try:
        data = load_sweep(target)
        if json.loads(data.attrs["provenance"]) == json.loads(json.dumps(provenance)):
            return data
    except (ResultError, KeyError, ValueError):
        pass
    check_target(target, overwrite=overwrite)
    return None


def _run(
    plan: Plan,
    judge: Callable[[PairMask, float], np.ndarray],
    journal: Journal | None,
    windows: int,
    progress: bool,
) -> dict[str, np.ndarray]:
    """Nats of every cell by its name, those in the journal taken from there."""
    wanted: dict[str, tuple[str, str, float]] = {}
    for place, cell in plan.cells().items():
        wanted.setdefault(cell, place)
    found = {} if journal is None else {cell: journal.read(cell, windows) for cell in wanted}
    cells = {cell: nats for cell, nats in found.items() if nats is not None}
    bar = tqdm(total=len(wanted), initial=len(cells), unit="cell", disable=None if progress else True)
    with bar:
        for cell, (selection, arm, alpha) in wanted.items():
            if cell in cells:
                continue
            bar.set_description(f"{selection} {arm} at {alpha:g}", refresh=True)
            cells[cell] = judge(plan.arms[selection][arm], 1.0 if cell == "baseline" else alpha)
            if journal is not None:
                journal.write(cell, cells[cell])
            bar.update()
    return cells


def _dataset(
    plan: Plan, cells: Mapping[str, np.ndarray], tokens: np.ndarray, provenance: Mapping[str, Any]
) -> xr.Dataset:
    selections, arms = list(plan.arms), list(next(iter(plan.arms.values())))
    nats = np.full((len(selections), len(arms), len(plan.alphas), len(tokens)), np.nan)
    for (selection, arm, alpha), cell in plan.cells().items():
        nats[selections.index(selection), arms.index(arm), plan.alphas.index(alpha)] = cells[cell]
    with np.errstate(over="ignore"):
        values = np.exp(nats.sum(-1) / tokens.sum())
    counts = [[int(mask.streams()[stream].sum()) for stream in STREAMS] for mask in plan.masks()]
    variables = {"nats": nats, "perplexity": values, "tokens": tokens, "selected_pairs": np.array(counts)}
    coordinates = {SELECTION: selections, ARM: arms, ALPHA: list(plan.alphas), STREAM: list(STREAMS)}
    return labelled(variables, {**coordinates, WINDOW: range(len(tokens))}, provenance)
