"""Sweep selections and their controls over strengths: what a model's perplexity says of the pairs turned down.

A cell is one perplexity: a mask at a strength. Cells that must be equal (strength 1, masks that select nothing, equal
masks) are computed once. Each finished cell is kept at once, so a killed run goes on and ends with the same file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from ropescope.base.arguments import AUTO, BatchSize
from ropescope.base.axes import STREAMS
from ropescope.base.facts import versions
from ropescope.evaluation.perplexity import check_scoring, perplexity, protocol
from ropescope.evaluation.sweep.arms import ALPHAS, THREE_SEEDS, Controls, Grid, planned
from ropescope.evaluation.sweep.dataset import (
    ALPHA,
    ARM,
    SELECTION,
    STREAM,
    SWEEP,
    WINDOW,
    labelled,
)
from ropescope.interventions.fitting import looked_at_once
from ropescope.interventions.masks import PairMask
from ropescope.interventions.protocol import Intervention, intervention_name
from ropescope.interventions.weighting import weighted_rope
from ropescope.measurement.results import provenance as result_provenance
from ropescope.model.identity import model_provenance
from ropescope.model.windows import windows_protocol
from ropescope.run.batching import batches_of
from ropescope.run.engine import Cell, Cells, Output, one_by_one
from ropescope.run.workers import workers_of

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from transformers import PreTrainedModel

    from ropescope.base.axes import TokenIds


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
    batch_size: BatchSize = 1,
    group: ProcessGroup | None = None,
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
        Sweep anew and replace whatever file is at `path`. Without it a file that holds this very sweep is read and
        returned, and any other is refused, as in :func:`ropescope.measure`.
    stride, batch_size
        As in :func:`ropescope.perplexity`.
    group
        Processes that share the cells, each of which makes this call with a copy of the model; all of them get the
        whole dataset, the first writes it. None is this process alone, or all those that tensor parallelism has
        spread the model over.
    progress
        Show how far it is: a bar on a terminal, elsewhere a line every 30 seconds.

    Returns
    -------
    xarray.Dataset
        `nats` (selection, arm, alpha, window), NaN where a control was not asked for; `perplexity` (selection, arm,
        alpha); `tokens` (window), the scored ones; `selected_pairs` (selection, stream). Arms are "selection",
        "random-<seed>", "lowest-norm" and "lowest-importance". Where a mask selects nothing, every cell is the
        baseline.

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
    grid = planned(selections, alphas, controls)
    scored = check_scoring(model, windows, stride, batch_size)
    workers = workers_of(model, group)
    batches_of(batch_size, model.device.type, workers)
    facts = _configuration(model, windows, intervention, stride, batch_size)
    provenance = _provenance(facts, protocol(model, windows, stride, batch_size), grid, controls)
    output = Output(
        path=path,
        overwrite=overwrite,
        facts=provenance,
        cell_facts=facts,
        load=SWEEP.load,
        save=SWEEP.save,
        recorded=SWEEP.provenance,
    )

    def made(cells: Cells) -> xr.Dataset:
        with looked_at_once(model):
            for mask in grid.masks():
                with intervention(model, mask, 1.0):
                    pass
            nats = _nats(grid, _judge(model, windows, intervention, stride, batch_size), cells)
        return _dataset(grid, nats, np.full(len(windows), scored), provenance)

    return output.finished_or_made(Cells("sweep", "cell", workers, progress), made)


def _judge(
    model: PreTrainedModel, windows: TokenIds, intervention: Intervention, stride: int | None, batch_size: BatchSize
) -> Callable[[PairMask, float], np.ndarray]:
    """What gives the nats of a mask at a strength; automatic batches begin at the largest that did fit."""
    fitting = batch_size

    def judge(mask: PairMask, alpha: float) -> np.ndarray:
        nonlocal fitting
        with nullcontext() if alpha == 1 else intervention(model, mask, alpha):
            found = perplexity(model, windows, stride=stride, batch_size=fitting)
        if fitting == AUTO:
            sizes: Any = found.protocol["batch_sizes"]
            fitting = max(sizes)
        return found.window_nats

    return judge


def _configuration(
    model: PreTrainedModel, windows: TokenIds, intervention: Intervention, stride: int | None, batch_size: BatchSize
) -> dict[str, Any]:
    """All that decides the nats of a mask at a strength."""
    return {
        "schema_version": SWEEP.version,
        "model": {**model_provenance(model), "device": model.device.type},
        "windows": {"shape": list(windows.shape), "sha256": windows_protocol(windows[:])["sha256"]},
        "intervention": intervention_name(intervention),
        "stride": stride,
        "batch_size": batch_size,
        "versions": versions("ropescope", "torch", "transformers", "numpy"),
    }


def _provenance(
    facts: Mapping[str, Any], protocol: Mapping[str, object], grid: Grid, controls: Controls
) -> dict[str, Any]:
    norms = None if controls.result is None else result_provenance(controls.result)
    worth = {} if controls.importance is None else {"importance": result_provenance(controls.importance)}
    return {
        **facts,
        "windows": dict(protocol),
        "selections": {
            name: {**arms[SELECTION].provenance, "sha256": arms[SELECTION].digest()} for name, arms in grid.arms.items()
        },
        "alphas": list(grid.alphas),
        "controls": {
            "seeds": list(controls.seeds),
            "alphas": list(grid.control_alphas),
            "norms_measured": norms,
            **worth,
        },
    }


def _nats(grid: Grid, judge: Callable[[PairMask, float], np.ndarray], cells: Cells) -> dict[str, np.ndarray]:
    """Nats of every cell by its name."""
    wanted: dict[str, tuple[str, str, float]] = {}
    for place, name in grid.cells().items():
        wanted.setdefault(name, place)

    def computed(name: str) -> Cell:
        selection, arm, alpha = wanted[name]
        return {"nats": judge(grid.arms[selection][arm], 1.0 if name == "baseline" else alpha)}

    def described(name: str) -> str:
        selection, arm, alpha = wanted[name]
        return f"{selection} {arm} at {alpha:g}"

    share = cells.shared(dict.fromkeys(wanted, 1))
    found = cells.everywhere(dict(share.found(one_by_one(computed, described))))
    return {name: cell["nats"] for name, cell in found.items()}


def _dataset(
    grid: Grid, nats_of: Mapping[str, np.ndarray], tokens: np.ndarray, provenance: Mapping[str, Any]
) -> xr.Dataset:
    selections, arms = list(grid.arms), list(next(iter(grid.arms.values())))
    nats = np.full((len(selections), len(arms), len(grid.alphas), len(tokens)), np.nan)
    for (selection, arm, alpha), name in grid.cells().items():
        nats[selections.index(selection), arms.index(arm), grid.alphas.index(alpha)] = nats_of[name]
    with np.errstate(over="ignore"):
        values = np.exp(nats.sum(-1) / tokens.sum())
    counts = [[int(mask.streams()[stream].sum()) for stream in STREAMS] for mask in grid.masks()]
    variables = {"nats": nats, "perplexity": values, "tokens": tokens, "selected_pairs": np.array(counts)}
    coordinates = {SELECTION: selections, ARM: arms, ALPHA: list(grid.alphas), STREAM: list(STREAMS)}
    return labelled(variables, {**coordinates, WINDOW: range(len(tokens))}, provenance)
